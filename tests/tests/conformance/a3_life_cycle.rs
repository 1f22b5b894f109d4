//! A3: threads, life cycle, errors.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;

use applevisor::memory::PAGE_SIZE;
use applevisor::prelude::*;
use applevisor_sys::*;

use crate::asm::*;
use crate::guest::*;

const BAD_ARGUMENT: i32 = hv_error_t::HV_BAD_ARGUMENT as i32;

#[test]
fn a3_01_one_virtual_machine_a_process() {
    let _turn = Turn::take();
    let vm = machine();
    assert_eq!(VirtualMachine::new().err(), Some(HypervisorError::Busy));
    drop(vm);
    really_destroyed();
    drop(machine());
}

#[test]
fn a3_01_creation_is_answered() {
    let _turn = Turn::take();
    let mut busy = 0;
    let vm = patiently(|| {
        let vm = VirtualMachine::new();
        busy += u32::from(vm.as_ref().err() == Some(&HypervisorError::Busy));
        vm
    });
    switch(
        "hypervisor",
        match vm.as_ref().err() {
            None => "allowed".to_owned(),
            Some(HypervisorError::Denied) => "denied".to_owned(),
            Some(HypervisorError::Unsupported) => "missing".to_owned(),
            Some(other) => format!("{other:?}"),
        },
    );
    let vm = vm.unwrap();
    switch("busy", busy);
    drop(vm);
}

#[test]
fn a3_01_without_one_nothing_works() {
    let _turn = Turn::take();
    let (mut vcpu, mut exit) = (0, std::ptr::null());
    // SAFETY: places for the results; there is no virtual machine for any of this to act on.
    let codes = unsafe {
        [
            ("hv_vcpu_create", hv_vcpu_create(&mut vcpu, &mut exit, std::ptr::null_mut())),
            ("hv_vm_unmap", hv_vm_unmap(RAM, PAGE_SIZE)),
            ("hv_vm_destroy", hv_vm_destroy()),
        ]
    };
    for (call, code) in codes {
        probe(&format!("{call} without a virtual machine"), name(code));
        assert_ne!(code, 0, "{call}");
    }
}

#[test]
fn a3_02_a_machine_with_vcpus_cannot_be_destroyed() {
    let guest = guest(&[hvc(1)]);
    // SAFETY: refused, as is being tested.
    assert_eq!(unsafe { hv_vm_destroy() }, hv_error_t::HV_BUSY as i32);
    guest.run_to(1);
}

#[test]
fn a3_03_one_vcpu_a_thread() {
    let guest = guest(&[hvc(1)]);
    let second = guest.vm.vcpu_create().err();
    probe("a second vCPU on a thread", second.map_or("allowed".to_owned(), |error| name(error.into())));
    assert!(second.is_some());
    let other = thread::scope(|scope| scope.spawn(|| guest.vm.vcpu_create().map(|vcpu| vcpu.id())).join().unwrap());
    assert_ne!(other.unwrap(), guest.vcpu.id());
}

#[test]
fn a3_03_register_calls_from_another_thread_do_not_crash() {
    let guest = guest(&[hvc(1)]);
    let id = guest.vcpu.id();
    guest.vcpu.set_reg(Reg::X0, 7).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut value, mut pending, mut q) = (0, false, 0u128);
            // SAFETY: places for the results; the vCPU is not running, and its owner waits for this thread.
            let codes = unsafe {
                [
                    hv_vcpu_get_reg(id, hv_reg_t::X0, &mut value),
                    hv_vcpu_set_reg(id, hv_reg_t::X0, 1),
                    hv_vcpu_get_sys_reg(id, hv_sys_reg_t::MPIDR_EL1, &mut value),
                    hv_vcpu_set_sys_reg(id, hv_sys_reg_t::VBAR_EL1, 0),
                    hv_vcpu_get_simd_fp_reg(id, hv_simd_fp_reg_t::Q0, &mut q),
                    hv_vcpu_get_pending_interrupt(id, hv_interrupt_type_t::IRQ, &mut pending),
                    hv_vcpu_set_pending_interrupt(id, hv_interrupt_type_t::IRQ, true),
                ]
            };
            let names: BTreeSet<String> = codes.map(name).into();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            switch(
                "wrong-thread",
                match names.as_str() {
                    "HV_BAD_ARGUMENT" => "bad-argument",
                    "HV_DENIED" => "denied",
                    "HV_SUCCESS" => "works",
                    other => other,
                },
            );
            probe("calls from a thread that does not own the vCPU", names);
        });
    });
    guest.run_to(1);
}

#[test]
fn a3_04_an_exit_before_the_run_ends_the_run() {
    let guest = guest(&[hvc(1), hvc(1)]);
    let exit = || guest.vm.vcpus_exit(&[guest.vcpu.get_handle()]).unwrap();
    exit();
    let first = guest.run();
    switch_is_on("lost-exits", first.reason != ExitReason::CANCELED);
    probe("an exit asked for before the run", if first.reason == ExitReason::CANCELED { "latched" } else { "lost" });
    if first.reason == ExitReason::CANCELED {
        assert_eq!(guest.pc(), RAM);
    } else {
        // A host that asks again until it is answered gets there.
        exit();
        assert_eq!(guest.run().reason, ExitReason::CANCELED);
    }
    guest.run_to(1);
}

#[test]
fn a3_04_an_exit_during_the_run_ends_it() {
    let guest = guest(&[add(0, 0, 1), b(-1)]);
    for _ in 0..20 {
        let before = guest.x(Reg::X0);
        assert_eq!(guest.run_stopped(|| ()).reason, ExitReason::CANCELED);
        assert!(guest.x(Reg::X0) > before || guest.pc() == RAM);
    }
}

#[test]
fn a3_04_exits_reach_only_those_named() {
    let turn = Turn::take();
    let vm = machine();
    let mut ram = vm.memory_create(RAM_SIZE as usize).unwrap();
    ram.map(RAM, MemPerms::RWX).unwrap();
    write_code(&mut ram, RAM, &[SPIN]);
    let (sender, receiver) = mpsc::channel();
    let named = AtomicBool::new(false);
    thread::scope(|scope| {
        for second in [false, true] {
            let (vm, sender, named) = (vm.clone(), sender.clone(), &named);
            scope.spawn(move || {
                let vcpu = vm.vcpu_create().unwrap();
                prepare(&vcpu, RAM);
                sender.send((second, vcpu.get_handle())).unwrap();
                assert_eq!(run(&vm, &vcpu).reason, ExitReason::CANCELED);
                if second {
                    assert!(named.load(Ordering::SeqCst), "the other one was meant");
                }
            });
        }
        let mut handles: Vec<_> = receiver.iter().take(2).collect();
        handles.sort_by_key(|(second, _)| *second);
        exit_until_gone(&vm, &handles[0].1);
        assert!(handles[1].1.is_valid());
        named.store(true, Ordering::SeqCst);
        exit_until_gone(&vm, &handles[1].1);
    });
    drop((ram, vm, turn));
}

/// Asks a vCPU to exit until its thread has dropped it: the first request may be lost.
fn exit_until_gone(vm: &VirtualMachineInstance<GicDisabled>, handle: &VcpuHandle) {
    while handle.is_valid() {
        // Fails when the vCPU goes in this very moment.
        let _ = vm.vcpus_exit(std::slice::from_ref(handle));
        thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a3_05_there_are_64_slots() {
    let _turn = Turn::take();
    let vm = machine();
    let count = Vcpu::get_max_count().unwrap() as usize;
    assert!((1..=64).contains(&count));
    let (all_there, tried) = (Barrier::new(count + 1), Barrier::new(count + 1));
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                let vcpu = vm.vcpu_create();
                all_there.wait();
                tried.wait();
                drop(vcpu.unwrap());
            });
        }
        all_there.wait();
        let one_more = vm.vcpu_create().err();
        tried.wait();
        assert_eq!(one_more, Some(HypervisorError::NoResources));
    });
    drop(vm.vcpu_create().unwrap());
}

#[test]
fn a3_05_exits_of_nobody_are_refused() {
    let guest = guest(&[hvc(1)]);
    for id in [64, 1000, u64::MAX] {
        // SAFETY: an array of one id.
        assert_eq!(unsafe { hv_vcpus_exit(&id, 1) }, BAD_ARGUMENT);
    }
    guest.run_to(1);
}

#[test]
fn a3_06_unknown_registers_are_refused() {
    let guest = guest(&[hvc(1)]);
    let vcpu = &guest.vcpu;
    let mut value = 0;
    type GetReg = unsafe extern "C" fn(u64, u32, *mut u64) -> i32;
    type SetReg = unsafe extern "C" fn(u64, u32, u64) -> i32;
    // SAFETY: the same functions with the register as the integer it is in C, so that ones that do not exist can be named.
    let (get, set, get_sys, set_sys) = unsafe {
        (
            std::mem::transmute::<*const (), GetReg>(hv_vcpu_get_reg as *const ()),
            std::mem::transmute::<*const (), SetReg>(hv_vcpu_set_reg as *const ()),
            std::mem::transmute::<*const (), GetReg>(hv_vcpu_get_sys_reg as *const ()),
            std::mem::transmute::<*const (), SetReg>(hv_vcpu_set_sys_reg as *const ()),
        )
    };
    // SAFETY: this thread's vCPU, and a place for the result.
    unsafe {
        assert_eq!(get(vcpu.id(), 35, &mut value), BAD_ARGUMENT);
        assert_eq!(set(vcpu.id(), 35, 0), BAD_ARGUMENT);
        for encoding in [0, 0xc7ff, 0xfffe] {
            assert_eq!(get_sys(vcpu.id(), encoding, &mut value), BAD_ARGUMENT, "{encoding:#x}");
            assert_eq!(set_sys(vcpu.id(), encoding, 0), BAD_ARGUMENT, "{encoding:#x}");
        }
        let nobody = hv_vcpu_get_reg(vcpu.id() + 1, hv_reg_t::X0, &mut value);
        probe("a register of a vCPU that is not there", name(nobody));
        assert_ne!(nobody, 0);
    }
}

#[test]
fn a3_07_codes_have_the_headers_values() {
    let _turn = Turn::take();
    // SAFETY: calls that are refused.
    unsafe {
        let vm = machine();
        assert_eq!(hv_vm_create(std::ptr::null_mut()) as u32, 0xfae9_4002, "HV_BUSY");
        assert_eq!(hv_vm_unmap(1, PAGE_SIZE) as u32, 0xfae9_4003, "HV_BAD_ARGUMENT");
        let config = hv_vm_config_create();
        assert_eq!(hv_vm_config_set_ipa_size(config, 64) as u32, 0xfae9_400f, "HV_UNSUPPORTED");
        os_release(config);
        drop(vm);
    }
}

/// Says to a copy of this program that it is one, and what it is for.
const UNENTITLED: &str = "SQUIB_CONFORMANCE_UNENTITLED";

#[test]
fn a3_08_without_the_entitlement_creation_is_denied() {
    if std::env::var_os(UNENTITLED).is_some() {
        assert_eq!(VirtualMachine::new().err(), Some(HypervisorError::Denied));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut program = unentitled(directory.path());
    program.args(["--exact", "a3_life_cycle::a3_08_without_the_entitlement_creation_is_denied"]).env(UNENTITLED, "1");
    let output = program.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// This program with a signature that has no entitlements.
#[cfg(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim")))]
fn unentitled(directory: &Path) -> Command {
    let copy = directory.join("conformance");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let signed = Command::new("codesign").args(["--sign", "-", "--force"]).arg(&copy).status().unwrap();
    assert!(signed.success());
    Command::new(copy)
}

/// This program, as the stand-in treats one without the entitlement.
#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
fn unentitled(_: &Path) -> Command {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.env("SQUIB_SIM", format!("{},hypervisor=denied", std::env::var("SQUIB_SIM").unwrap_or_default()));
    program
}

#[test]
fn a3_09_ipa_sizes() {
    let mut config = VirtualMachineConfig::new();
    let maximum = VirtualMachineConfig::get_max_ipa_size().unwrap();
    switch("max-ipa", maximum);
    let default = VirtualMachineConfig::get_default_ipa_size().unwrap();
    assert!(default <= maximum);
    assert_eq!(config.set_ipa_size(maximum), Ok(()));
    assert_eq!(config.get_ipa_size(), Ok(maximum));
    assert_eq!(config.set_ipa_size(maximum + 1), Err(HypervisorError::Unsupported));
    assert_eq!(config.set_ipa_size(u32::MAX), Err(HypervisorError::Unsupported));
    assert_eq!(config.get_ipa_size(), Ok(maximum));
    assert_eq!(config.set_ipa_size(0), Ok(()));
}

#[test]
fn a3_09_memory_ends_with_the_ipa_space() {
    let _turn = Turn::take();
    for bits in [0, VirtualMachineConfig::get_max_ipa_size().unwrap()] {
        let vm = with_ipa_bits(bits);
        let bits = if bits == 0 { VirtualMachineConfig::get_default_ipa_size().unwrap() } else { bits };
        let mut last = vm.memory_create(PAGE_SIZE).unwrap();
        last.map((1 << bits) - PAGE_SIZE as u64, MemPerms::RW).unwrap();
        let mut beyond = vm.memory_create(PAGE_SIZE).unwrap();
        assert!(beyond.map(1 << bits, MemPerms::RW).is_err());
        drop((last, beyond, vm));
        really_destroyed();
    }
}

fn with_ipa_bits(bits: u32) -> VirtualMachineInstance<GicDisabled> {
    let config = || {
        let mut config = VirtualMachineConfig::new();
        config.set_ipa_size(bits).unwrap();
        config
    };
    patiently(|| VirtualMachine::with_config(config())).unwrap()
}

#[test]
fn a3_09_el2_is_refused_where_there_is_none() {
    let _turn = Turn::take();
    let supported = VirtualMachineConfig::get_el2_supported().unwrap();
    probe("EL2 for guests", if supported { "supported" } else { "not supported" });
    let enabled = || {
        let mut config = VirtualMachineConfig::new();
        assert_eq!(config.get_el2_enabled(), Ok(false));
        config.set_el2_enabled(true)?;
        assert_eq!(config.get_el2_enabled(), Ok(true));
        VirtualMachine::with_config(config)
    };
    let vm = patiently(enabled);
    assert_eq!(vm.err(), if supported { None } else { Some(HypervisorError::Unsupported) });
}
