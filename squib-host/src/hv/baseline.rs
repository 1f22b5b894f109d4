//! The least that a tracked write can cost: a store to a protected page, `hv_vm_protect`, and the store again. For benchmarks, as
//! the baseline of dirty tracking.

use std::time::Duration;

use applevisor::prelude::{Reg, Vcpu};
use vm_memory::{Bytes, GuestAddress};

use super::exit::{DataAbort, Exit};
use super::stage2::{MappedRam, Permission};
use super::vm::BareVm;
use crate::error::{Error, HvContext, Result};
use crate::layout::{RAM_BASE, UART};
use crate::memory::GuestRam;
use crate::vcpu::registers;

/// EL1h, everything masked.
const CPSR: u64 = 0x3c5;
/// The data register of the PL011. Of its flags RXFE reads 0: there is always a byte.
const DR: u64 = 0;

/// Runs a bare guest `image` (as `guest-images/bare/sweep.img`: it does a round of stores, prints how many nanoseconds that took as
/// hexadecimal digits and a `.`, and does the next round when it gets a byte) with nothing around it: one vCPU, and a loop
/// that answers a write fault by opening the `granule` bytes around it, and accesses to the console. No log, no devices, no other threads.
///
/// Before every round but the first `free` ones all of RAM is write-protected. How long each round took. While no machine exists in
/// this process.
pub fn protect_and_resume(
    image: &[u8],
    memory_mib: u64,
    granule: u64,
    free: usize,
    rounds: usize,
) -> Result<Vec<Duration>> {
    let machine = BareVm::create()?;
    let ram = GuestRam::new(RAM_BASE, memory_mib << 20, false)?;
    let write = ram.guest_memory()?.write_slice(image, GuestAddress(RAM_BASE));
    write.map_err(|_| Error::GuestMemory { what: "the baseline", address: RAM_BASE, len: image.len() as u64 })?;
    let mapped = MappedRam::whole(ram)?;
    let vcpu = machine.vm.vcpu_create().hv("create a vCPU")?;
    let registers = [(Reg::CPSR, CPSR), (Reg::PC, RAM_BASE)];
    registers.into_iter().try_for_each(|(reg, value)| vcpu.set_reg(reg, value)).hv("set a register")?;
    let (mut times, mut digits) = (Vec::new(), String::new());
    while times.len() < rounds {
        vcpu.run().hv("run a vCPU")?;
        match Exit::decode(&vcpu.get_exit_info()) {
            Exit::DataAbort(abort) if abort.ipa >= RAM_BASE && abort.is_store() => {
                let start = (abort.ipa - RAM_BASE) / granule * granule;
                let len = granule.min(mapped.ram().size() - start);
                mapped.protect(start, len, Permission::ReadWriteExec)?;
            }
            Exit::DataAbort(abort) if abort.ipa & !0xfff == UART => match console(&vcpu, &abort)? {
                Some('.') => {
                    let nanos = u64::from_str_radix(&std::mem::take(&mut digits), 16);
                    times.push(Duration::from_nanos(nanos.map_err(|e| Error::State(format!("the baseline: {e}")))?));
                    if times.len() >= free {
                        mapped.protect(0, mapped.ram().size(), Permission::ReadExec)?;
                    }
                }
                printed => digits.extend(printed),
            },
            Exit::Canceled => {}
            Exit::VtimerActivated => vcpu.set_vtimer_mask(false).hv("unmask the virtual timer")?,
            exit => return Err(Error::State(format!("the baseline of dirty tracking ended in {exit:?}"))),
        }
    }
    Ok(times)
}

/// Answers an access to the UART. What was printed.
fn console(vcpu: &Vcpu, abort: &DataAbort) -> Result<Option<char>> {
    let access = abort.access.ok_or_else(|| Error::State("the baseline's console needs plain accesses".into()))?;
    let register = registers::gp(access.register);
    let mut printed = None;
    match register {
        Some(register) if abort.write && abort.ipa - UART == DR => {
            let value = vcpu.get_reg(register).hv("read a register")?;
            printed = Some(char::from(value as u8));
        }
        Some(register) if !abort.write => vcpu.set_reg(register, 0).hv("write a register")?,
        _ => {}
    }
    let pc = vcpu.get_reg(Reg::PC).hv("read PC")?;
    vcpu.set_reg(Reg::PC, pc.wrapping_add(4)).hv("move PC")?;
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_with_faults_and_without_come_to_an_end() {
        let _turn = crate::pager::testing::turn();
        let mut image = include_bytes!("../../../guest-images/bare/sweep.img").to_vec();
        for (n, value) in [16u64 << 10, 64, 0, 1].into_iter().enumerate() {
            image[64 + 8 * n..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let times = protect_and_resume(&image, 64, 16 << 10, 2, 5).unwrap();
        assert_eq!(times.len(), 5);
        assert!(times.iter().all(|time| *time < Duration::from_secs(60)), "{times:?}");
    }
}
