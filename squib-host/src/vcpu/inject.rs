//! Exceptions that the host gives back to the guest: what `AArch64.TakeException` (Arm ARM, shared pseudocode) does for a
//! synchronous exception taken to EL1.

use applevisor::prelude::{HypervisorError, Reg, SysReg, Vcpu};

const SPSR_M_MASK: u64 = 0x1f;
const SPSR_M_AARCH32: u64 = 0x10;
const EL1H: u64 = 0b0101;
/// PSTATE.D, A, I, F.
const DAIF: u64 = 0xf << 6;
const SSBS: u64 = 1 << 12;
const PAN: u64 = 1 << 22;
const DIT: u64 = 1 << 24;
const NZCV: u64 = 0xf << 28;
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;
/// ESR_ELx.EC and IL.
const EC_SHIFT: u32 = 26;
const IL: u64 = 1 << 25;

/// Where an exception taken from PSTATE `cpsr` enters, relative to VBAR_EL1.
fn vector_offset(cpsr: u64) -> u64 {
    match cpsr & SPSR_M_MASK {
        m if m & SPSR_M_AARCH32 != 0 => 0x600,
        0b0000 => 0x400,
        0b0100 => 0x000,
        _ => 0x200,
    }
}

/// PSTATE after the exception.
fn handler_cpsr(cpsr: u64, sctlr: u64) -> u64 {
    let mut new = cpsr & (NZCV | PAN | DIT) | EL1H | DAIF;
    if sctlr & SCTLR_SPAN == 0 {
        new |= PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        new |= SSBS;
    }
    new
}

fn take(vcpu: &Vcpu, syndrome: u64) -> Result<(), HypervisorError> {
    let cpsr = vcpu.get_reg(Reg::CPSR)?;
    let pc = vcpu.get_reg(Reg::PC)?;
    let sctlr = vcpu.get_sys_reg(SysReg::SCTLR_EL1)?;
    let vector = vcpu.get_sys_reg(SysReg::VBAR_EL1)? + vector_offset(cpsr);
    vcpu.set_sys_reg(SysReg::ELR_EL1, pc)?;
    vcpu.set_sys_reg(SysReg::SPSR_EL1, cpsr)?;
    vcpu.set_sys_reg(SysReg::ESR_EL1, syndrome)?;
    vcpu.set_reg(Reg::CPSR, handler_cpsr(cpsr, sctlr))?;
    vcpu.set_reg(Reg::PC, vector)
}

/// The instruction at PC is UNDEFINED.
pub fn undefined(vcpu: &Vcpu) -> Result<(), HypervisorError> {
    take(vcpu, IL)
}

/// A debug exception that came to us instead of the guest, with the syndrome it came with.
pub fn debug(vcpu: &Vcpu, syndrome: u64, virtual_address: u64) -> Result<(), HypervisorError> {
    let ec = syndrome >> EC_SHIFT & 0x3f;
    let from_el0 = vcpu.get_reg(Reg::CPSR)? & 0b1100 == 0;
    // Breakpoint, single step and watchpoint have a class for "lower EL" and the next for "same EL"; BRK has one for both.
    let ec = if ec != 0x3c && !from_el0 { ec | 1 } else { ec };
    if ec & !1 == 0x34 {
        vcpu.set_sys_reg(SysReg::FAR_EL1, virtual_address)?;
    }
    take(vcpu, syndrome & !(0x3f << EC_SHIFT) | ec << EC_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_by_origin() {
        assert_eq!(vector_offset(0x0), 0x400);
        assert_eq!(vector_offset(0x4), 0x000);
        assert_eq!(vector_offset(0x5), 0x200);
        assert_eq!(vector_offset(0x10), 0x600);
    }

    #[test]
    fn the_handler_runs_masked_at_el1h() {
        assert_eq!(handler_cpsr(0x8000_0000, SCTLR_SPAN), 0x8000_03c5);
        assert_eq!(handler_cpsr(0, 0) & PAN, PAN);
        assert_eq!(handler_cpsr(PAN, SCTLR_SPAN) & PAN, PAN);
        assert_eq!(handler_cpsr(0, SCTLR_DSSBS | SCTLR_SPAN) & SSBS, SSBS);
        assert_eq!(handler_cpsr(0b11 << 10, SCTLR_SPAN), 0x3c5, "BTYPE is cleared");
    }
}
