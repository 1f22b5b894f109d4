//! System registers: what each access means.

use super::SysRegs;

/// Puts every register to its reset value.
pub fn reset(regs: &mut SysRegs) {
    regs.sctlr = 0x30d0_0980;
    regs.mpidr = 1 << 31;
}
