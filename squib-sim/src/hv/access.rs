//! A vCPU's registers, timer and pending interrupts, as the host reads and writes them between runs.
//!
//! The guest's view of the same registers (who may access what, which bits stick) is the engine's; here it is the framework's:
//! everything in `hv_sys_reg_t` can be read, and written where the architecture lets it have state.

use crate::engine::run::Vcpu;
use crate::engine::sysreg::table::{find, rights};
use crate::engine::timer::ctl;

/// Encodings of registers the table of stored ones does not hold.
mod encoding {
    pub const SP_EL0: u16 = 0xc208;
    pub const SP_EL1: u16 = 0xe208;
    pub const CNTV_CTL_EL0: u16 = 0xdf19;
    pub const CNTV_CVAL_EL0: u16 = 0xdf1a;
    pub const CTR_EL0: u16 = 0xd801;
    pub const CLIDR_EL1: u16 = 0xc801;
    pub const DCZID_EL0: u16 = 0xd807;
}

/// FPCR bits with an effect: AHP, DN, FZ, RMode, FZ16.
const FPCR: u64 = 0x07c8_0000;
/// FPSR bits with state: NZCV, QC, IDC, IXC, UFC, OFC, DZC, IOC.
const FPSR: u64 = 0xf800_009f;

/// Whether an encoding is one of DBGBVRn, DBGBCRn, DBGWVRn, DBGWCRn, n = 0..16. Those beyond the implemented ones read as zero.
fn is_debug_pair(encoding: u16) -> bool {
    (0x8004..=0x807f).contains(&encoding) && encoding & 4 != 0
}

/// Whether PSTATE has an exception level that exists: EL0, EL1t, EL1h, all AArch64.
pub fn is_legal(cpsr: u64) -> bool {
    matches!(cpsr & 0x1f, 0b00000 | 0b00100 | 0b00101)
}

/// A new vCPU's value of an ID register.
pub fn feature_register(encoding: u16) -> Option<u64> {
    match encoding {
        encoding::CTR_EL0 => Some(crate::engine::system::CTR),
        encoding::CLIDR_EL1 => Some(crate::engine::system::CLIDR),
        encoding::DCZID_EL0 => Some(4),
        _ => find(encoding).map(|register| register.reset),
    }
}

/// What the host does to a vCPU that is not running.
pub trait HostAccess {
    /// A system register; `None` if the framework has none of this encoding.
    fn get_sys_reg(&self, encoding: u16) -> Option<u64>;
    /// Sets a system register; `false` if the framework has none of this encoding.
    fn set_sys_reg(&mut self, encoding: u16, value: u64) -> bool;
    /// Sets FPCR.
    fn set_fpcr(&mut self, value: u64);
    /// Sets FPSR.
    fn set_fpsr(&mut self, value: u64);
}

impl HostAccess for Vcpu {
    fn get_sys_reg(&self, encoding: u16) -> Option<u64> {
        let cpu = &self.cpu;
        Some(match encoding {
            encoding::SP_EL0 => cpu.sp_el(0),
            encoding::SP_EL1 => cpu.sp_el(1),
            encoding::CNTV_CTL_EL0 => cpu.timer_ctl(cpu.virtual_count()),
            encoding::CNTV_CVAL_EL0 => cpu.timer.cval,
            _ => match find(encoding) {
                Some(register) if register.rights & rights::HOST != 0 => cpu.sys.get(register),
                _ if is_debug_pair(encoding) => 0,
                _ => return None,
            },
        })
    }

    fn set_sys_reg(&mut self, encoding: u16, value: u64) -> bool {
        let cpu = &mut self.cpu;
        match encoding {
            encoding::SP_EL0 => cpu.set_sp_el(0, value),
            encoding::SP_EL1 => cpu.set_sp_el(1, value),
            encoding::CNTV_CTL_EL0 => cpu.timer.ctl = value & (ctl::ENABLE | ctl::IMASK),
            encoding::CNTV_CVAL_EL0 => cpu.timer.cval = value,
            _ => match find(encoding) {
                Some(register) if register.rights & rights::HOST != 0 => {
                    cpu.sys.set(register, register.mask(value));
                    cpu.refresh();
                }
                _ => return is_debug_pair(encoding),
            },
        }
        true
    }

    fn set_fpcr(&mut self, value: u64) {
        self.cpu.fpcr = (value & FPCR) as u32;
    }

    fn set_fpsr(&mut self, value: u64) {
        self.cpu.fpsr = (value & FPSR) as u32;
    }
}
