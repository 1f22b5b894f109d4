//! Self-hosted debug: software step, breakpoints and watchpoints (Arm ARM D2).
//!
//! All of it is off the fast path: while a step or a breakpoint is armed the run loop executes single instructions
//! ([`Cpu::slow_mode`]), and while a watchpoint is armed all data accesses take the slow path. The OS lock is the host's
//! (OSLAR_EL1 leaves to it) and counts as unlocked.

use super::cpu::{Cpu, Privilege, Trap};
use super::op::Next;
use super::syndrome::{ec, fsc, iss};

/// MDSCR_EL1 bits.
mod mdscr {
    pub const SS: u64 = 1 << 0;
    pub const KDE: u64 = 1 << 13;
    pub const MDE: u64 = 1 << 15;
}

/// What the last step did, for the syndrome of the software step exception.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stepped {
    /// An instruction was stepped (rather than SS found clear on arrival).
    valid: bool,
    /// It was a load-exclusive.
    exclusive: bool,
}

/// A DBGBCR/DBGWCR value is enabled for an exception level (PMC/PAC).
fn applies(control: u64, el: u8) -> bool {
    control & 1 == 1 && control >> (if el == 0 { 2 } else { 1 }) & 1 == 1
}

impl Cpu {
    /// Derives whether instructions must be executed singly.
    pub(crate) fn refresh_debug(&mut self) {
        let debug = self.sys.mdscr & (mdscr::SS | mdscr::MDE) != 0;
        self.slow_mode = self.il || debug && (self.step_enabled() || self.breakpoints_armed());
    }

    /// Debug exceptions are taken from exception level `el` with PSTATE.D = `masked`. Those that go to the host always are.
    fn debug_enabled(&self, el: u8, masked: bool) -> bool {
        self.trap_debug_exceptions || el == 0 || self.sys.mdscr & mdscr::KDE != 0 && !masked
    }

    fn debug_enabled_here(&self) -> bool {
        self.debug_enabled(self.el, self.daif & 8 != 0)
    }

    /// Software step is active.
    pub(crate) fn step_enabled(&self) -> bool {
        self.sys.mdscr & mdscr::SS != 0 && self.debug_enabled_here()
    }

    /// Software step will be active at `el` with PSTATE from `spsr`.
    pub(crate) fn step_enabled_at(&self, el: u8, spsr: u64) -> bool {
        self.sys.mdscr & mdscr::SS != 0 && self.debug_enabled(el, spsr & 1 << 9 != 0)
    }

    fn breakpoints_armed(&self) -> bool {
        let enabled = |&[_, control]: &[u64; 2]| control & 1 == 1;
        self.sys.mdscr & mdscr::MDE != 0 && self.debug_enabled_here() && self.sys.breakpoints.iter().any(enabled)
    }

    /// A watchpoint is enabled for some exception level.
    #[inline]
    pub(crate) fn watchpoints_enabled(&self) -> bool {
        let enabled = |&[_, control]: &[u64; 2]| control & 1 == 1;
        self.sys.mdscr & mdscr::MDE != 0 && self.sys.watchpoints.iter().any(enabled)
    }

    /// What comes before an instruction in slow mode: software step, breakpoints, illegal execution state, in order of
    /// priority.
    pub(crate) fn before_instruction(&mut self) -> Option<Next> {
        self.block = std::ptr::null();
        if self.step_enabled() && !self.ss {
            let stepped = std::mem::take(&mut self.stepped);
            let ex = if stepped.exclusive { 1 << 6 } else { 0 };
            let valid = if stepped.valid { 1 << 24 } else { 0 };
            return Some(self.debug_exception(ec::SOFTWARE_STEP_LOWER, fsc::DEBUG | valid | ex));
        }
        self.stepped = Stepped::default();
        if self.breakpoints_armed() && self.breakpoint_matches() {
            return Some(self.debug_exception(ec::BREAKPOINT_LOWER, fsc::DEBUG));
        }
        if self.il {
            self.take_exception(ec::ILLEGAL_STATE, 0, None, self.pc);
            return Some(Next::Lookup);
        }
        None
    }

    /// What comes after an instruction in slow mode. `stepping`: software step was active before it.
    pub(crate) fn after_instruction(&mut self, next: Next, insn: u32, stepping: bool) -> Next {
        if stepping && next != Next::Stop && !self.single {
            self.ss = false;
            // LDXR, LDAXR, LDXP, LDAXP.
            self.stepped = Stepped { valid: true, exclusive: insn & 0x3fc0_0000 == 0x0840_0000 };
        }
        next
    }

    fn debug_exception(&mut self, ec: u32, iss: u32) -> Next {
        if self.trap_debug_exceptions {
            return self.stop(ec, iss, 0, 0);
        }
        self.take_exception(ec, iss, None, self.pc);
        Next::Lookup
    }

    /// `AArch64.BreakpointMatch` for any breakpoint.
    fn breakpoint_matches(&self) -> bool {
        let context = |index: u64| {
            let linked = self.sys.breakpoints.get(index as usize);
            linked.is_some_and(|&[value, control]| {
                control & 1 == 1 && control >> 20 & 0xe == 2 && value as u32 == self.sys.contextidr as u32
            })
        };
        (0..).zip(&self.sys.breakpoints).any(|(index, &[value, control])| {
            let address = (value << 8) as i64 >> 8 == (self.pc << 8) as i64 >> 8 && control >> 5 & 0xf == 0xf;
            applies(control, self.el)
                && match control >> 20 & 0xf {
                    0 => address,
                    1 => address && context(control >> 16 & 0xf),
                    2 => context(index),
                    _ => false,
                }
        })
    }

    /// `AArch64.CheckWatchpoint` for all watchpoints.
    pub(crate) fn check_watchpoints(&mut self, va: u64, size: u64, write: bool, with: Privilege) -> Result<(), Trap> {
        if !self.debug_enabled_here() {
            return Ok(());
        }
        let el = if with == Privilege::Unprivileged { 0 } else { self.el };
        let kind = if write { 2 } else { 1 };
        let matches = self.sys.watchpoints.iter().any(|&[value, control]| {
            let mask = control >> 24 & 0x1f;
            let select = control >> 5 & 0xff;
            let (base, length) = match mask {
                3.. => (value & (!0 << mask), 1 << mask),
                _ => (value & !7 | u64::from(select.trailing_zeros()), u64::from(select.count_ones())),
            };
            let overlaps = va < base.wrapping_add(length) && base < va.wrapping_add(size);
            applies(control, el) && control >> 3 & kind != 0 && select != 0 && overlaps
        });
        if !matches {
            return Ok(());
        }
        let syndrome = fsc::DEBUG | if write { iss::WNR } else { 0 };
        Err(if self.trap_debug_exceptions {
            self.fault = super::exception::Fault::Host { ec: ec::WATCHPOINT_LOWER, iss: syndrome, far: va, ipa: 0 };
            Trap
        } else {
            self.guest_fault(ec::WATCHPOINT_LOWER, syndrome, Some(va))
        })
    }
}
