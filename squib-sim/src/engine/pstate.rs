//! PSTATE as a whole, the banked stack pointers, and what the engine derives from both.
//!
//! Guarantee: after [`Cpu::refresh`] every cached decision (which TLB, is FP enabled, which interrupts are masked) agrees
//! with PSTATE and the system registers.

use super::cpu::Cpu;
use super::op::slot;
use super::shared::pending;

/// SPSR bits (Arm ARM C5.2.19).
pub mod spsr {
    /// PSTATE.SSBS.
    pub const SSBS: u64 = 1 << 12;
    /// PSTATE.IL.
    pub const IL: u64 = 1 << 20;
    /// PSTATE.SS.
    pub const SS: u64 = 1 << 21;
    /// PSTATE.PAN.
    pub const PAN: u64 = 1 << 22;
}

/// SCTLR_EL1 bits the engine acts on (Arm ARM D17.2.118).
pub mod sctlr {
    /// Stage 1 translation enabled.
    pub const M: u64 = 1 << 0;
    /// Alignment checking.
    pub const A: u64 = 1 << 1;
    /// SP alignment check at EL1.
    pub const SA: u64 = 1 << 3;
    /// SP alignment check at EL0.
    pub const SA0: u64 = 1 << 4;
    /// EL0 may access DAIF.
    pub const UMA: u64 = 1 << 9;
    /// EL0 may execute DC ZVA.
    pub const DZE: u64 = 1 << 14;
    /// EL0 may read CTR_EL0.
    pub const UCT: u64 = 1 << 15;
    /// EL0 WFI does not trap.
    pub const NTWI: u64 = 1 << 16;
    /// EL0 WFE does not trap.
    pub const NTWE: u64 = 1 << 18;
    /// Writable implies execute-never.
    pub const WXN: u64 = 1 << 19;
    /// Exceptions leave PSTATE.PAN alone.
    pub const SPAN: u64 = 1 << 23;
    /// EL0 may execute cache maintenance.
    pub const UCI: u64 = 1 << 26;
    /// PSTATE.SSBS on exception entry.
    pub const DSSBS: u64 = 1 << 44;
}

impl Cpu {
    /// PSTATE in the SPSR/CPSR format.
    pub fn pstate(&self) -> u64 {
        let bit = |set: bool, mask: u64| if set { mask } else { 0 };
        u64::from(self.nzcv()) << 28
            | bit(self.ss, spsr::SS)
            | bit(self.pan, spsr::PAN)
            | bit(self.il, spsr::IL)
            | bit(self.ssbs, spsr::SSBS)
            | u64::from(self.daif) << 6
            | u64::from(self.el) << 2
            | u64::from(self.sp_sel & u8::from(self.el != 0))
    }

    /// Sets all of PSTATE from the SPSR/CPSR format; the exception level must be one that exists.
    pub fn set_pstate(&mut self, value: u64) {
        self.set_nzcv((value >> 28) as u32 & 15);
        self.ss = value & spsr::SS != 0;
        self.pan = value & spsr::PAN != 0;
        self.il = value & spsr::IL != 0;
        self.ssbs = value & spsr::SSBS != 0;
        self.daif = (value >> 6) as u8 & 15;
        self.switch_sp((value >> 2) as u8 & 1, value as u8 & 1);
        self.refresh();
    }

    /// Changes exception level and stack pointer selection; [`Cpu::refresh`] must follow.
    pub(crate) fn switch_sp(&mut self, el: u8, sp_sel: u8) {
        self.sp_bank[self.sp_index()] = self.x[usize::from(slot::SP)];
        self.el = el;
        self.sp_sel = sp_sel;
        self.x[usize::from(slot::SP)] = self.sp_bank[self.sp_index()];
    }

    fn sp_index(&self) -> usize {
        usize::from(self.el & self.sp_sel)
    }

    /// SP_EL0 or SP_EL1, wherever it lives at the moment.
    pub fn sp_el(&self, el: usize) -> u64 {
        if el == self.sp_index() { self.x[usize::from(slot::SP)] } else { self.sp_bank[el] }
    }

    /// Sets SP_EL0 or SP_EL1.
    pub fn set_sp_el(&mut self, el: usize, value: u64) {
        if el == self.sp_index() {
            self.x[usize::from(slot::SP)] = value;
        } else {
            self.sp_bank[el] = value;
        }
    }

    /// Derives again what depends on PSTATE.{D,A,I,F} alone.
    pub(crate) fn interrupt_masks_changed(&mut self) {
        self.poll_mask = pending::EXIT | pending::REQUEST;
        if self.daif & 2 == 0 {
            self.poll_mask |= pending::IRQ | pending::IRQ_ONCE;
        }
        if self.daif & 1 == 0 {
            self.poll_mask |= pending::FIQ | pending::FIQ_ONCE;
        }
        self.refresh_debug();
    }

    /// Derives the engine's cached decisions again, after PSTATE or a system register they depend on has changed.
    pub fn refresh(&mut self) {
        let el0 = self.el == 0;
        let fpen = self.sys.cpacr >> 20 & 3;
        self.fp_enabled = if el0 { fpen == 3 } else { fpen & 1 == 1 };
        let sa = if el0 { sctlr::SA0 } else { sctlr::SA };
        self.sp_align_mask = if self.sys.sctlr & sa != 0 { 15 } else { 0 };
        self.interrupt_masks_changed();
        self.refresh_mmu();
        self.update_force_slow();
    }
}
