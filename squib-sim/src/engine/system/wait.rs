//! WFI, WFE and YIELD.
//!
//! A waiting vCPU stays on its WFI: an exit in the middle of the wait leaves PC there, and the next run waits on. With a GIC
//! the wait is inside the run loop, without one (or by the switch) WFI leaves to the host.
//!
//! WFE and YIELD say that the guest spins, mostly for a lock. Where there are fewer processors than vCPUs its holder may be
//! waiting for ours: spinning vCPUs give the processor away, and those that go on spinning sleep for moments.

use super::ending;
use crate::engine::cpu::{Cpu, Trap};
use crate::engine::op::{Next, Op};
use crate::engine::pstate::sctlr;
use crate::engine::run::Exit;
use crate::engine::shared::pending;
use crate::engine::syndrome::ec;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// COND = 0b1110 and CV = 1, as for every A64 instruction.
const ISS: u32 = 1 << 24 | 0xe << 20;

/// How long a sleeper of deterministic time sleeps at once while other vCPUs are busy.
const NAP: Duration = Duration::from_micros(500);
/// After so many naps in which time stood still the others are taken for idle: one may be switched off.
const MOST_NAPS: u32 = 20;
/// Two WFE or YIELD at most so many instructions apart belong to one spin.
const SPIN_DISTANCE: u64 = 200;
/// After so many the vCPU sleeps instead of giving way.
const MOST_YIELDS: u32 = 32;
/// For how long at once.
const SPIN_NAP: Duration = Duration::from_micros(50);

impl Cpu {
    fn check_wfx_trap(&mut self, enabled: u64, trapped_instruction: u32) -> Result<(), Trap> {
        if self.el == 0 && self.sys.sctlr & enabled == 0 {
            return Err(self.guest_fault(ec::WFX, ISS | trapped_instruction, None));
        }
        if self.machine.config.wfx_exits || self.machine.gic.get().is_none() {
            return Err(self.host_fault(ec::WFX, ISS | trapped_instruction));
        }
        Ok(())
    }

    /// Another vCPU executes, or is about to.
    fn others_are_busy(&self) -> bool {
        let own = self.shared.index;
        self.machine.vcpus().iter().any(|vcpu| vcpu.index != own && vcpu.is_busy())
    }

    /// The guest spins: lets other threads run. Ends a block, because it may serve the mailbox.
    fn give_way(&mut self) {
        let retired = self.retired();
        self.spins = if retired.wrapping_sub(self.last_spin) < SPIN_DISTANCE { self.spins + 1 } else { 0 };
        self.last_spin = retired;
        let quiet = self.shared.pending.load(SeqCst) & pending::WAKE == 0;
        if self.spins < MOST_YIELDS || !quiet || self.machine.clock.is_deterministic() {
            return std::thread::yield_now();
        }
        self.shared.park(pending::WAKE | pending::EXIT | pending::REQUEST, Some(SPIN_NAP));
        // Nobody has waited for a sleeper.
        if self.shared.pending.load(SeqCst) & pending::REQUEST != 0 {
            self.serve_requests();
        }
        // Time has passed: the timer is to be looked at.
        self.end_slice();
    }

    /// Waits, PC on a WFI, until an interrupt is pending, masked or not; then the WFI retires.
    pub(crate) fn wait_for_interrupt(&mut self) -> Option<Exit> {
        let (mut naps, mut last) = (0, 0);
        loop {
            let raised = self.shared.pending.load(SeqCst);
            if raised & pending::REQUEST != 0 {
                self.serve_requests();
            }
            if let Some(exit) = self.update_timer() {
                return Some(exit);
            }
            let raised = self.shared.pending.load(SeqCst);
            if raised & pending::WAKE != 0 {
                break;
            }
            if raised & pending::EXIT != 0 {
                self.shared.pending.fetch_and(!pending::EXIT, SeqCst);
                return Some(Exit::Canceled);
            }
            let ticks = self.ticks_to_timer();
            if ticks.is_none() && self.timer.line != Some(true) && self.timer_asserted() && !self.timer.masked {
                // The timer fired after `update_timer` had looked: nobody would wake us.
                continue;
            }
            let timeout = match ticks {
                Some(ticks) if self.machine.clock.is_deterministic() => {
                    let now = self.machine.clock.counter();
                    naps = if now == last { naps + 1 } else { 0 };
                    last = now;
                    if naps == MOST_NAPS || !self.others_are_busy() {
                        naps = 0;
                        self.machine.clock.advance(ticks);
                        continue;
                    }
                    // Those who execute move the time; nobody tells when it has come.
                    Some(NAP)
                }
                _ => ticks.map(|ticks| self.machine.clock.duration(ticks)),
            };
            self.shared.park(pending::WAKE | pending::EXIT | pending::REQUEST, timeout);
        }
        self.pc = self.pc.wrapping_add(4);
        self.waiting = false;
        // The WFI itself: the slice is over, so one more instruction is one more before its end.
        self.slice_end = self.retired() + 1;
        self.budget = 0;
        None
    }
}

ending! {
    fn wfi(cpu, op) {
        cpu.check_wfx_trap(sctlr::NTWI, 0)?;
        cpu.pc = cpu.pc.wrapping_sub(4);
        cpu.unretire(u32::from(op.off) / 4);
        cpu.waiting = true;
        cpu.end_slice();
        Ok(Next::Lookup)
    }
}

ending! {
    /// The event register is not kept: WFE completes at any time.
    fn wfe(cpu, _op) {
        cpu.check_wfx_trap(sctlr::NTWE, 1)?;
        cpu.give_way();
        Ok(Next::Lookup)
    }
    fn yield_hint(cpu, _op) {
        if cpu.machine.vcpus().len() > 1 {
            cpu.give_way();
        }
        Ok(Next::Lookup)
    }
}
