//! Asks the guest's side what only the guest's side can say: the frequency of its counter.
//!
//! The framework offers no way to read CNTFRQ_EL0 from outside, and what is known of Apple's chips allows for two answers. Two
//! instructions on a vCPU that has not run anything else settle it.

use applevisor::prelude::{Reg, Vcpu};
use vm_memory::{Bytes, GuestAddress};

use super::exit::Exit;
use super::stage2::MappedRam;
use crate::error::{Error, HvContext, Result};
use crate::layout;
use crate::memory::{GRANULE, GuestRam};

/// `MRS X0, CNTFRQ_EL0`, then `HVC #0`.
const PROGRAM: [u32; 2] = [0xd53b_e000, 0xd400_0002];
/// How many exits that are not the program's own are put up with.
const PATIENCE: u32 = 1000;

/// CNTFRQ_EL0. Changes PC, CPSR and X0 of the vCPU, which must be given their own values afterwards.
pub fn counter_frequency(vcpu: &Vcpu, cpsr: u64) -> Result<u64> {
    let ram = GuestRam::new(layout::PROBE, GRANULE, false)?;
    let write = ram.guest_memory()?.write_obj(PROGRAM, GuestAddress(layout::PROBE));
    write.map_err(|_| Error::GuestMemory { what: "the probe", address: layout::PROBE, len: 8 })?;
    let _mapped = MappedRam::whole(ram)?;
    vcpu.set_reg(Reg::CPSR, cpsr).hv("set CPSR")?;
    vcpu.set_reg(Reg::PC, layout::PROBE).hv("set PC")?;
    for _ in 0..PATIENCE {
        vcpu.run().hv("run a vCPU")?;
        match Exit::decode(&vcpu.get_exit_info()) {
            Exit::Hvc => return vcpu.get_reg(Reg::X0).hv("read a register"),
            Exit::Canceled | Exit::VtimerActivated => {}
            exit => return Err(Error::State(format!("measuring the guest's counter ended in {exit:?}"))),
        }
    }
    Err(Error::State("measuring the guest's counter came to no end".into()))
}
