//! The generic timer of a vCPU: the virtual counter and the EL1 virtual timer (Arm ARM D11).
//!
//! The counter is the machine's clock less the vCPU's offset. In deterministic mode it is exact at every instruction: the
//! clock holds what had retired when the run loop last looked up, and the rest is added here.

use super::cpu::Cpu;
use super::op::Op;

/// CNTV_CTL_EL0 bits.
pub mod ctl {
    /// The timer runs.
    pub const ENABLE: u64 = 1;
    /// Its signal is masked.
    pub const IMASK: u64 = 2;
    /// Its condition is met.
    pub const ISTATUS: u64 = 4;
}

/// PPI of the EL1 virtual timer.
pub const VTIMER_INTID: u32 = 27;

/// State of the virtual timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtualTimer {
    /// CNTV_CTL_EL0 without ISTATUS.
    pub ctl: u64,
    /// CNTV_CVAL_EL0.
    pub cval: u64,
    /// `hv_vcpu_set_vtimer_offset`.
    pub offset: u64,
    /// `hv_vcpu_set_vtimer_mask`.
    pub masked: bool,
    /// The level last shown to the GIC; unknown at first, when the GIC's own state may have been restored.
    pub(crate) line: Option<bool>,
}

impl Cpu {
    /// CNTVCT_EL0 between blocks.
    pub fn virtual_count(&self) -> u64 {
        self.physical_count().wrapping_sub(self.timer.offset)
    }

    /// CNTVCT_EL0 as the instruction at `op` reads it.
    ///
    /// # Safety
    /// `op` is inside the running block.
    pub(crate) unsafe fn virtual_count_at(&self, op: *const Op) -> u64 {
        // SAFETY: the caller's promise; the running block is live.
        let ahead = unsafe { u64::from((*self.block).len) - u64::from((*op).off) / 4 };
        let count = self.virtual_count();
        if self.machine.clock.is_deterministic() { count.wrapping_sub(ahead) } else { count }
    }

    fn physical_count(&self) -> u64 {
        let clock = &self.machine.clock;
        let counter = clock.counter();
        if clock.is_deterministic() { counter.wrapping_add(self.retired() - self.published) } else { counter }
    }

    /// Instructions retired since the vCPU was created, the running block's all included.
    #[inline]
    pub(crate) fn retired(&self) -> u64 {
        self.slice_end.wrapping_sub(self.budget as u64)
    }

    /// CNTV_CTL_EL0 as it reads when the counter shows `count`.
    pub(crate) fn timer_ctl(&self, count: u64) -> u64 {
        let met = self.timer.ctl & ctl::ENABLE != 0 && count >= self.timer.cval;
        self.timer.ctl | if met { ctl::ISTATUS } else { 0 }
    }

    /// Ticks until the timer's signal is asserted; `None` if it never will by itself, or is already.
    pub(crate) fn ticks_to_timer(&self) -> Option<u64> {
        let timer = &self.timer;
        if timer.ctl & (ctl::ENABLE | ctl::IMASK) != ctl::ENABLE || timer.masked {
            return None;
        }
        timer.cval.checked_sub(self.virtual_count()).filter(|&ticks| ticks > 0)
    }

    /// The timer's signal.
    pub(crate) fn timer_asserted(&self) -> bool {
        self.timer_ctl(self.virtual_count()) == ctl::ENABLE | ctl::ISTATUS
    }
}
