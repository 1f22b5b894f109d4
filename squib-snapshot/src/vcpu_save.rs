//! Capture and restore of a vCPU, a GIC and the metadata service through traits that a host implements.
//!
//! [`capture_vcpu_state`] reads every register of [`SysReg::all`]; [`restore_vcpu_state`] writes them back and applies the
//! published power rule (vCPU 0 on, the others off). A guest whose secondaries were running needs
//! [`restore_vcpu_state_as_saved`], which brings each vCPU back in the power state it was captured in.

use crate::arch::SysReg;
use crate::error::{Result, SnapshotError};
use crate::state::{FpSimdRegs, GpRegs, MmdsState, PsciVcpuState, VcpuState};

/// A stopped vCPU that can be read.
pub trait VcpuSnapshotSource {
    /// MPIDR_EL1.
    fn mpidr(&self) -> u64;
    /// General registers.
    ///
    /// # Errors
    /// The implementor's.
    fn read_gp_regs(&self) -> Result<GpRegs>;
    /// FP/SIMD registers.
    ///
    /// # Errors
    /// The implementor's.
    fn read_fp_simd(&self) -> Result<FpSimdRegs>;
    /// One system register; `None` if the backend cannot read it, which leaves it out of the state.
    ///
    /// # Errors
    /// The implementor's.
    fn read_sys_reg(&self, reg: SysReg) -> Result<Option<u64>>;
    /// Power state.
    fn psci_state(&self) -> PsciVcpuState;
}

/// A vCPU that has not run yet and can be written.
pub trait VcpuRestoreTarget {
    /// Writes the general registers.
    ///
    /// # Errors
    /// The implementor's.
    fn write_gp_regs(&mut self, regs: &GpRegs) -> Result<()>;
    /// Writes the FP/SIMD registers.
    ///
    /// # Errors
    /// The implementor's.
    fn write_fp_simd(&mut self, regs: &FpSimdRegs) -> Result<()>;
    /// Writes one system register.
    ///
    /// # Errors
    /// The implementor's.
    fn write_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<()>;
    /// Sets the power state.
    ///
    /// # Errors
    /// The implementor's.
    fn set_psci_state(&mut self, state: PsciVcpuState) -> Result<()>;
}

/// A GIC that can be read.
pub trait GicSnapshotSource {
    /// The opaque blob.
    ///
    /// # Errors
    /// The implementor's.
    fn capture(&self) -> Result<Vec<u8>>;
}

/// A GIC that can be written.
pub trait GicRestoreTarget {
    /// Takes a blob back, before any vCPU runs.
    ///
    /// # Errors
    /// The implementor's.
    fn restore(&mut self, data: &[u8]) -> Result<()>;
}

/// A metadata service that can be read.
pub trait MmdsSnapshotSource {
    /// Its state; `None` if it is off.
    ///
    /// # Errors
    /// The implementor's.
    fn capture(&self) -> Result<Option<MmdsState>>;
}

/// A metadata service that can be written.
pub trait MmdsRestoreTarget {
    /// Takes a state back; `None` leaves the service as it is.
    ///
    /// # Errors
    /// The implementor's.
    fn restore(&mut self, state: Option<&MmdsState>) -> Result<()>;
}

/// Reads general, FP/SIMD and then every system register of [`SysReg::all`]; the first error ends it.
///
/// # Errors
/// The source's.
pub fn capture_vcpu_state<S: VcpuSnapshotSource + ?Sized>(source: &S) -> Result<VcpuState> {
    let mut state = VcpuState::new(source.mpidr());
    state.regs = source.read_gp_regs()?;
    state.fp_regs = source.read_fp_simd()?;
    for &reg in SysReg::all() {
        if let Some(value) = source.read_sys_reg(reg)? {
            state.sys_regs.insert(reg.as_encoded(), value);
        }
    }
    state.psci_state = source.psci_state();
    Ok(state)
}

/// Writes general, FP/SIMD, system registers in ascending key order, and the power state
/// [`normalized_psci_state`] gives for this index; the saved power state is not used.
///
/// # Errors
/// The target's; [`SnapshotError::Incompatible`] at a register key this build does not know.
pub fn restore_vcpu_state<T: VcpuRestoreTarget + ?Sized>(
    target: &mut T,
    state: &VcpuState,
    vcpu_index: u32,
) -> Result<()> {
    restore_registers(target, state)?;
    target.set_psci_state(normalized_psci_state(vcpu_index))
}

/// As [`restore_vcpu_state`], but with the power state the vCPU was captured in: what an SMP guest needs.
///
/// # Errors
/// As [`restore_vcpu_state`].
pub fn restore_vcpu_state_as_saved<T: VcpuRestoreTarget + ?Sized>(target: &mut T, state: &VcpuState) -> Result<()> {
    restore_registers(target, state)?;
    target.set_psci_state(state.psci_state)
}

fn restore_registers<T: VcpuRestoreTarget + ?Sized>(target: &mut T, state: &VcpuState) -> Result<()> {
    target.write_gp_regs(&state.regs)?;
    target.write_fp_simd(&state.fp_regs)?;
    for (&key, &value) in &state.sys_regs {
        let reg = SysReg::from_encoded(key).ok_or(SnapshotError::Incompatible)?;
        target.write_sys_reg(reg, value)?;
    }
    Ok(())
}

/// The published power rule: vCPU 0 is on, every other is off.
#[must_use]
pub fn normalized_psci_state(vcpu_index: u32) -> PsciVcpuState {
    if vcpu_index == 0 { PsciVcpuState::On } else { PsciVcpuState::Off }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cpu {
        power: PsciVcpuState,
        log: Vec<String>,
    }

    impl VcpuSnapshotSource for Cpu {
        fn mpidr(&self) -> u64 {
            0x8000_0001
        }
        fn read_gp_regs(&self) -> Result<GpRegs> {
            Ok(GpRegs { pc: 4, ..GpRegs::default() })
        }
        fn read_fp_simd(&self) -> Result<FpSimdRegs> {
            Ok(FpSimdRegs { fpcr: 1, ..FpSimdRegs::default() })
        }
        fn read_sys_reg(&self, reg: SysReg) -> Result<Option<u64>> {
            match reg {
                SysReg::OslarEl1 => Ok(None),
                SysReg::PmCrEl0 => Ok(None),
                _ => Ok(Some(reg.as_encoded() * 10)),
            }
        }
        fn psci_state(&self) -> PsciVcpuState {
            self.power
        }
    }

    impl VcpuRestoreTarget for Cpu {
        fn write_gp_regs(&mut self, regs: &GpRegs) -> Result<()> {
            self.log.push(format!("gp {}", regs.pc));
            Ok(())
        }
        fn write_fp_simd(&mut self, regs: &FpSimdRegs) -> Result<()> {
            self.log.push(format!("fp {}", regs.fpcr));
            Ok(())
        }
        fn write_sys_reg(&mut self, reg: SysReg, value: u64) -> Result<()> {
            self.log.push(format!("{} {value}", reg.as_encoded()));
            Ok(())
        }
        fn set_psci_state(&mut self, state: PsciVcpuState) -> Result<()> {
            self.log.push(format!("{state:?}"));
            Ok(())
        }
    }

    #[test]
    fn capture_then_restore_in_the_documented_order() {
        let mut cpu = Cpu { power: PsciVcpuState::On, log: vec![] };
        let state = capture_vcpu_state(&cpu).unwrap();
        assert_eq!(state.mpidr, 0x8000_0001);
        assert_eq!(state.sys_regs.len(), SysReg::all().len() - 2);
        restore_vcpu_state(&mut cpu, &state, 1).unwrap();
        let log = std::mem::take(&mut cpu.log);
        assert_eq!(log[..4], ["gp 4", "fp 1", "1 10", "2 20"]);
        assert_eq!(log.last().unwrap(), "Off", "the published rule turns secondaries off");
        restore_vcpu_state_as_saved(&mut cpu as &mut dyn VcpuRestoreTarget, &state).unwrap();
        assert_eq!(cpu.log.last().unwrap(), "On");
    }

    #[test]
    fn an_unknown_register_is_refused_when_it_is_reached() {
        let mut cpu = Cpu { power: PsciVcpuState::Off, log: vec![] };
        let mut state = VcpuState::new(0);
        state.sys_regs = [(1, 5), (9999, 6)].into();
        assert!(matches!(restore_vcpu_state(&mut cpu, &state, 0), Err(SnapshotError::Incompatible)));
        assert_eq!(cpu.log, ["gp 0", "fp 0", "1 5"]);
    }
}
