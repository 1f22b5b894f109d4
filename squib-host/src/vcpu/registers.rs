//! Reading and writing the whole of a vCPU that stands still, through the snapshot crate's traits.
//!
//! What the framework cannot read is left out of the state. Some registers are not written at a restore but compared, because the
//! guest was told them and has acted on them: the ID registers, MIDR and MPIDR. The virtual timer is
//! written last, by [`restore_timer`], once every vCPU has the offset that makes its compare value mean what it meant.

use std::collections::BTreeMap;

use applevisor::prelude::{GicIccReg, HypervisorError, InterruptType, Reg, SysReg as HvSysReg, Vcpu};
use squib_snapshot::{FpSimdRegs, GpRegs, PsciVcpuState, SnapshotError, SysReg, VcpuRestoreTarget, VcpuSnapshotSource};

use crate::clock;
use crate::hv::simd;

unsafe extern "C" {
    fn hv_vcpu_get_sys_reg(vcpu: u64, reg: u32, value: *mut u64) -> i32;
    fn hv_vcpu_set_sys_reg(vcpu: u64, reg: u32, value: u64) -> i32;
}

const GP: [Reg; 31] = {
    use applevisor_sys::hv_reg_t::*;
    [
        X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15, X16, X17, X18, X19, X20, X21, X22, X23,
        X24, X25, X26, X27, X28, X29, X30,
    ]
};

/// The GIC CPU interface, in the order it must be written: the group enables last.
pub const ICC: [GicIccReg; 9] = [
    GicIccReg::CTLR_EL1,
    GicIccReg::PMR_EL1,
    GicIccReg::BPR0_EL1,
    GicIccReg::BPR1_EL1,
    GicIccReg::AP0R0_EL1,
    GicIccReg::AP1R0_EL1,
    GicIccReg::SRE_EL1,
    GicIccReg::IGRPEN0_EL1,
    GicIccReg::IGRPEN1_EL1,
];

/// General register `n`, 0 to 30.
pub fn gp(n: u8) -> Option<Reg> {
    GP.get(usize::from(n)).copied()
}

/// Reads a system register by its 16-bit encoding.
pub fn read_sys_reg(vcpu: &Vcpu, encoding: u16) -> Result<u64, HypervisorError> {
    let mut value = 0;
    // SAFETY: plain call on a vCPU of this thread (`Vcpu` is not `Send`); `value` is a valid place for the result. The binding
    // takes an enumeration that lacks registers of newer systems; the framework answers what it does not know with an error.
    let code = unsafe { hv_vcpu_get_sys_reg(vcpu.id(), u32::from(encoding), &mut value) };
    if code == 0 { Ok(value) } else { Err(HypervisorError::from(code)) }
}

/// Writes a system register by its 16-bit encoding.
pub fn write_sys_reg(vcpu: &Vcpu, encoding: u16, value: u64) -> Result<(), HypervisorError> {
    // SAFETY: as for reading.
    let code = unsafe { hv_vcpu_set_sys_reg(vcpu.id(), u32::from(encoding), value) };
    if code == 0 { Ok(()) } else { Err(HypervisorError::from(code)) }
}

/// What a restore does with a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Write it.
    Write,
    /// Refuse the restore if it differs.
    Compare,
    /// Somebody else's: the timer's, the general registers', or not the framework's to set.
    Elsewhere,
}

fn role(reg: SysReg) -> Role {
    use SysReg::*;
    match reg {
        MpidrEl1 | MidrEl1 => Role::Compare,
        IdAa64Mmfr0El1 | IdAa64Mmfr1El1 | IdAa64Mmfr2El1 | IdAa64Pfr0El1 | IdAa64Pfr1El1 | IdAa64Dfr0El1
        | IdAa64Dfr1El1 | IdAa64Isar0El1 | IdAa64Isar1El1 | IdAa64Zfr0El1 | IdAa64Smfr0El1 => Role::Compare,
        // The frequency is compared once for the machine, by `restore`.
        CntvCtlEl0 | CntvCvalEl0 | CntvOffEl2 | CntFrqEl0 => Role::Elsewhere,
        // In the general registers' part of the state, which is written first.
        SpEl1 | Fpcr | Fpsr => Role::Elsewhere,
        _ => Role::Write,
    }
}

fn capture(what: &str) -> impl FnOnce(HypervisorError) -> SnapshotError + '_ {
    move |error| SnapshotError::Capture(format!("{what}: {error}"))
}

/// A vCPU of this thread, standing still.
#[derive(Debug)]
pub struct LiveVcpu<'a> {
    /// The vCPU.
    pub vcpu: &'a Vcpu,
    /// Its power state.
    pub power: PsciVcpuState,
}

impl LiveVcpu<'_> {
    fn read(&self, reg: SysReg) -> Option<u64> {
        match reg {
            // Needs EL2; the offset is saved as the counter it gives.
            SysReg::CntvOffEl2 => None,
            SysReg::CntFrqEl0 => Some(clock::counter_frequency()),
            SysReg::Fpcr => self.vcpu.get_reg(Reg::FPCR).ok(),
            SysReg::Fpsr => self.vcpu.get_reg(Reg::FPSR).ok(),
            _ if !reg.in_hypervisor_framework() => None,
            _ => read_sys_reg(self.vcpu, reg.hv_encoding()).ok(),
        }
    }
}

impl VcpuSnapshotSource for LiveVcpu<'_> {
    fn mpidr(&self) -> u64 {
        self.read(SysReg::MpidrEl1).unwrap_or_default()
    }

    fn read_gp_regs(&self) -> squib_snapshot::Result<GpRegs> {
        let get = |reg: Reg| self.vcpu.get_reg(reg).map_err(capture("reading a general register"));
        let mut regs = GpRegs::default();
        for (value, reg) in regs.x.iter_mut().zip(GP) {
            *value = get(reg)?;
        }
        regs.pc = get(Reg::PC)?;
        regs.pstate = get(Reg::CPSR)?;
        regs.sp = self.vcpu.get_sys_reg(HvSysReg::SP_EL1).map_err(capture("reading SP_EL1"))?;
        Ok(regs)
    }

    fn read_fp_simd(&self) -> squib_snapshot::Result<FpSimdRegs> {
        let mut regs = FpSimdRegs::default();
        for (value, reg) in regs.v.iter_mut().zip(simd::VECTORS) {
            let q = self.vcpu.get_simd_fp_reg(reg).map_err(capture("reading a vector register"))?;
            *value = [q as u64, (q >> 64) as u64];
        }
        regs.fpcr = self.vcpu.get_reg(Reg::FPCR).map_err(capture("reading FPCR"))?;
        regs.fpsr = self.vcpu.get_reg(Reg::FPSR).map_err(capture("reading FPSR"))?;
        Ok(regs)
    }

    fn read_sys_reg(&self, reg: SysReg) -> squib_snapshot::Result<Option<u64>> {
        Ok(self.read(reg))
    }

    fn psci_state(&self) -> PsciVcpuState {
        self.power
    }
}

impl VcpuRestoreTarget for LiveVcpu<'_> {
    fn write_gp_regs(&mut self, regs: &GpRegs) -> squib_snapshot::Result<()> {
        let set = |reg: Reg, value| self.vcpu.set_reg(reg, value).map_err(capture("writing a general register"));
        for (&value, reg) in regs.x.iter().zip(GP) {
            set(reg, value)?;
        }
        set(Reg::PC, regs.pc)?;
        set(Reg::CPSR, regs.pstate)?;
        self.vcpu.set_sys_reg(HvSysReg::SP_EL1, regs.sp).map_err(capture("writing SP_EL1"))
    }

    fn write_fp_simd(&mut self, regs: &FpSimdRegs) -> squib_snapshot::Result<()> {
        for (&[low, high], reg) in regs.v.iter().zip(simd::VECTORS) {
            let value = u128::from(high) << 64 | u128::from(low);
            simd::set(self.vcpu, reg, value).map_err(capture("writing a vector register"))?;
        }
        self.vcpu.set_reg(Reg::FPCR, regs.fpcr).map_err(capture("writing FPCR"))?;
        self.vcpu.set_reg(Reg::FPSR, regs.fpsr).map_err(capture("writing FPSR"))
    }

    fn write_sys_reg(&mut self, reg: SysReg, value: u64) -> squib_snapshot::Result<()> {
        let name = reg.name();
        match role(reg) {
            Role::Elsewhere => Ok(()),
            Role::Compare => match self.read(reg) {
                Some(here) if here == value => Ok(()),
                here => {
                    let here = here.map_or("absent".into(), |v| format!("{v:#x}"));
                    Err(SnapshotError::Capture(format!(
                        "{name} was {value:#x} where the snapshot was taken and is {here} here"
                    )))
                }
            },
            // A register that the host does not let us write may still have the right value.
            Role::Write => match write_sys_reg(self.vcpu, reg.hv_encoding(), value) {
                Err(error) if self.read(reg) != Some(value) => {
                    Err(SnapshotError::Capture(format!("{name} cannot be set to {value:#x}: {error}")))
                }
                _ => Ok(()),
            },
        }
    }

    fn set_psci_state(&mut self, state: PsciVcpuState) -> squib_snapshot::Result<()> {
        self.power = state;
        Ok(())
    }
}

/// Reads the GIC CPU interface.
pub fn capture_icc(vcpu: &Vcpu) -> Result<BTreeMap<u16, u64>, HypervisorError> {
    ICC.iter().map(|&reg| Ok((reg as u16, vcpu.get_icc_reg(reg)?))).collect()
}

/// Writes the GIC CPU interface, in the order of [`ICC`]. Registers the state lacks are left alone.
pub fn restore_icc(vcpu: &Vcpu, saved: &BTreeMap<u16, u64>) -> Result<(), (u16, HypervisorError)> {
    for reg in ICC {
        let Some(&value) = saved.get(&(reg as u16)) else { continue };
        match vcpu.set_icc_reg(reg, value) {
            Err(error) if vcpu.get_icc_reg(reg) != Ok(value) => return Err((reg as u16, error)),
            _ => {}
        }
    }
    Ok(())
}

/// Writes the virtual timer: compare value, then control, and the mask last. The offset is already that of the machine.
pub fn restore_timer(vcpu: &Vcpu, cval: u64, ctl: u64, masked: bool) -> Result<(), HypervisorError> {
    vcpu.set_sys_reg(HvSysReg::CNTV_CVAL_EL0, cval)?;
    // ISTATUS (bit 2) is read-only.
    vcpu.set_sys_reg(HvSysReg::CNTV_CTL_EL0, ctl & 0b11)?;
    vcpu.set_vtimer_mask(masked)
}

/// Reads the interrupts set pending by `hv_vcpu_set_pending_interrupt`: IRQ, FIQ.
pub fn pending(vcpu: &Vcpu) -> (bool, bool) {
    let get = |kind| vcpu.get_pending_interrupt(kind).unwrap_or(false);
    (get(InterruptType::IRQ), get(InterruptType::FIQ))
}

/// Sets them again. Without the in-kernel GIC that would be every run's business; with it they are normally clear.
pub fn set_pending(vcpu: &Vcpu, (irq, fiq): (bool, bool)) -> Result<(), HypervisorError> {
    if irq {
        vcpu.set_pending_interrupt(InterruptType::IRQ, true)?;
    }
    if fiq {
        vcpu.set_pending_interrupt(InterruptType::FIQ, true)?;
    }
    Ok(())
}
