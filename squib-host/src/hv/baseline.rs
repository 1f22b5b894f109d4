//! The least that a tracked write can cost: a store to a protected page, `hv_vm_protect`, and the store again. For benchmarks, as
//! the baseline of dirty tracking in the same process.

use std::time::{Duration, Instant};

use applevisor::prelude::{Reg, VirtualMachine};
use vm_memory::{Bytes, GuestAddress};

use super::exit::Exit;
use super::stage2::{MappedRam, Permission};
use super::teardown::Teardown;
use crate::error::{Error, HvContext, Result};
use crate::layout::RAM_BASE;
use crate::memory::{GRANULE, GuestRam};

/// `STR X1, [X0]`, `ADD X0, X0, #0x4000`, and back to the store.
const PROGRAM: [u32; 3] = [0xf900_0001, 0x9140_1000, 0x17ff_fffe];
/// EL1h, everything masked.
const CPSR: u64 = 0x3c5;

/// Lets a vCPU store to each of `pages` protected pages of 16 KiB, and answers each fault by opening the page, with nothing
/// else in the loop. How long all of it took. While no machine exists in this process.
pub fn protect_and_resume(pages: u64) -> Result<Duration> {
    let vm = VirtualMachine::new().hv("create a virtual machine")?;
    let _teardown = Teardown::new();
    let ram = GuestRam::new(RAM_BASE, (pages + 1) * GRANULE, false)?;
    let write = ram.guest_memory()?.write_obj(PROGRAM, GuestAddress(RAM_BASE));
    write.map_err(|_| Error::GuestMemory { what: "the baseline", address: RAM_BASE, len: 12 })?;
    // A page that the host has to allocate first is no part of the fault.
    let touched = (1..=pages).try_for_each(|page| ram.write_fill(page * GRANULE, &[0]));
    touched.map_err(|source| Error::System { action: "touch guest RAM".into(), source })?;
    let mapped = MappedRam::whole(ram)?;
    mapped.protect(0, (pages + 1) * GRANULE, Permission::ReadExec)?;
    let vcpu = vm.vcpu_create().hv("create a vCPU")?;
    let registers = [(Reg::CPSR, CPSR), (Reg::PC, RAM_BASE), (Reg::X0, RAM_BASE + GRANULE)];
    registers.into_iter().try_for_each(|(reg, value)| vcpu.set_reg(reg, value)).hv("set a register")?;

    let started = Instant::now();
    let mut done = 0;
    while done < pages {
        vcpu.run().hv("run a vCPU")?;
        match Exit::decode(&vcpu.get_exit_info()) {
            Exit::DataAbort(abort) => {
                let page = (abort.ipa - RAM_BASE) / GRANULE;
                mapped.protect(page * GRANULE, GRANULE, Permission::ReadWriteExec)?;
                done += 1;
            }
            Exit::Canceled | Exit::VtimerActivated => {}
            exit => return Err(Error::State(format!("the baseline of dirty tracking ended in {exit:?}"))),
        }
    }
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_faults_once() {
        let _turn = crate::pager::testing::turn();
        assert!(protect_and_resume(64).unwrap() > Duration::ZERO);
    }
}
