//! A5: the in-kernel GIC: configuration, registers, state.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use applevisor::prelude::*;
use applevisor_sys::*;

use crate::asm::*;
use crate::code;
use crate::guest::*;

const ALL: u64 = u32::MAX as u64;

/// What creating a machine with such a GIC comes to; the machine is gone again.
fn create(config: impl Fn(&mut GicConfig)) -> Result<()> {
    patiently(|| {
        let mut gic = GicConfig::new();
        config(&mut gic);
        let result = VirtualMachine::with_gic(VirtualMachineConfig::new(), gic).map(drop);
        // Also of a machine whose GIC was refused.
        if result != Err(HypervisorError::Busy) {
            really_destroyed();
        }
        result
    })
}

#[test]
fn a5_01_a_gic_comes_after_the_machine_and_before_the_vcpus() {
    let _turn = Turn::take();
    // SAFETY: configuration objects are released at the end; nothing else is touched.
    unsafe {
        let config = hv_gic_config_create();
        assert_eq!(hv_gic_config_set_redistributor_base(config, GICR), 0);
        assert_ne!(hv_gic_create(config), 0, "there is no machine");
        let vm = machine();
        let vcpu = vm.vcpu_create().unwrap();
        assert_ne!(hv_gic_create(config), 0, "there is a vCPU already");
        drop(vcpu);
        drop(vm);
        really_destroyed();
        let vm = machine();
        assert_eq!(hv_gic_create(config), 0);
        assert_ne!(hv_gic_create(config), 0, "there is a GIC already");
        os_release(config);
        drop(vm);
    }
}

#[test]
fn a5_01_without_a_gic_there_is_no_device() {
    let guest = guest(&[hvc(1)]);
    let mut value = 0;
    // SAFETY: a place for the result.
    unsafe {
        assert_ne!(hv_gic_set_spi(40, true), 0);
        assert_ne!(hv_gic_reset(), 0);
        assert_ne!(hv_gic_get_icc_reg(guest.vcpu.id(), hv_gic_icc_reg_t::PMR_EL1, &mut value), 0);
        assert!(hv_gic_state_create().is_null());
    }
}

#[test]
fn a5_02_regions_must_not_overlap() {
    let _turn = Turn::take();
    assert_eq!(create(|_| ()).err(), Some(HypervisorError::BadArgument));
    create(|gic| gic.set_redistributor_base(0x2_0000).unwrap()).unwrap();
    create(|gic| gic.set_distributor_base(0x2000_0000).unwrap()).unwrap();
    let inside = GICR + GicConfig::get_redistributor_region_size().unwrap() as u64 - 0x1_0000;
    let overlapping = create(|gic| {
        gic.set_redistributor_base(GICR).unwrap();
        gic.set_distributor_base(inside).unwrap();
    });
    assert_eq!(overlapping.err(), Some(HypervisorError::BadArgument));
}

#[test]
fn a5_02_bases_are_aligned_and_do_not_overflow() {
    let mut gic = GicConfig::new();
    let bad = Err(HypervisorError::BadArgument);
    let half = |alignment: Result<usize>| alignment.unwrap() as u64 / 2;
    assert_eq!(gic.set_distributor_base(GICD + half(GicConfig::get_distributor_base_alignment())), bad);
    assert_eq!(gic.set_redistributor_base(GICR + half(GicConfig::get_redistributor_base_alignment())), bad);
    assert_eq!(gic.set_msi_region_base(MSI + half(GicConfig::get_msi_region_base_alignment())), bad);
    let last = |size: Result<usize>| u64::MAX - size.unwrap() as u64 + 1;
    assert_eq!(gic.set_distributor_base(last(GicConfig::get_distributor_size())), bad);
    assert_eq!(gic.set_redistributor_base(last(GicConfig::get_redistributor_region_size())), bad);
    let (first, count) = GicConfig::get_spi_interrupt_range().unwrap();
    assert_eq!(gic.set_msi_interrupt_range(first, count), Ok(()));
    for (first, count) in [(first - 1, 4), (first, count + 1), (first + count, 1), (0, u32::MAX), (u32::MAX, 2)] {
        assert_eq!(gic.set_msi_interrupt_range(first, count), bad, "{first} {count}");
    }
}

#[test]
fn a5_03_sizes() {
    assert_eq!(GicConfig::get_distributor_size(), Ok(0x1_0000));
    assert_eq!(GicConfig::get_redistributor_size(), Ok(0x2_0000));
    let region = GicConfig::get_redistributor_region_size().unwrap();
    assert!(region >= 0x2_0000 * Vcpu::get_max_count().unwrap() as usize);
    let (first, count) = GicConfig::get_spi_interrupt_range().unwrap();
    assert_eq!(first, 32);
    assert!(count > 0 && first + count <= 1020);
    for alignment in [
        GicConfig::get_distributor_base_alignment().unwrap(),
        GicConfig::get_redistributor_base_alignment().unwrap(),
        GicConfig::get_msi_region_base_alignment().unwrap(),
    ] {
        assert!(alignment.is_power_of_two() && alignment >= 0x1000);
    }
    assert!(GicConfig::get_msi_region_size().unwrap() >= 0x1000);
}

#[test]
fn a5_04_a5_12_interrupts_that_cannot_be_injected() {
    let guest = gic_guest(&[hvc(1)]);
    let bad = Err(HypervisorError::BadArgument);
    let (first, behind) = (msi_first(), msi_first() + MSI_COUNT);
    for intid in [0, 15, 27, 31, behind, 1020, 1023, 8192, u32::MAX, first, behind - 1] {
        assert_eq!(guest.vm.gic_set_spi(intid, true), bad, "{intid}");
    }
    assert_eq!(guest.vm.gic_set_spi(first - 1, true), Ok(()));
    let setspi = MSI + GicMsiReg::SET_SPI_NSR as u64;
    for (address, intid) in [(setspi, first - 1), (setspi, behind), (MSI - 0x40, first), (GICD + 0x40, first)] {
        assert_eq!(guest.vm.gic_send_msi(address, intid), bad, "{address:#x} {intid}");
    }
    assert_eq!(guest.vm.gic_send_msi(setspi, first), Ok(()));
    assert_eq!(guest.vm.gic_get_msi_reg(GicMsiReg::TYPER), Ok(u64::from(first << 16 | MSI_COUNT)));
}

#[test]
fn a5_05_a_redistributor_has_an_address_once_there_is_an_affinity() {
    let turn = Turn::take();
    let vm = gic_machine();
    let both = Barrier::new(2);
    let bases = thread::scope(|scope| {
        let threads = [0x8000_0000u64, 0x8000_0001].map(|mpidr| {
            let (vm, both) = (&vm, &both);
            scope.spawn(move || {
                let vcpu = vm.vcpu_create().unwrap();
                let before = vcpu.get_redistributor_base().is_err();
                vcpu.set_sys_reg(SysReg::MPIDR_EL1, mpidr).unwrap();
                let base = vcpu.get_redistributor_base().unwrap();
                both.wait();
                let typer = vcpu.get_redistributor_reg(GicRedistributorReg::TYPER).unwrap();
                assert_eq!(typer >> 32, mpidr & 0xff, "the frame has the vCPU's affinity");
                both.wait();
                assert!(before, "an address before there is an affinity");
                (base, typer >> 4 & 1)
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    let size = GicConfig::get_redistributor_size().unwrap() as u64;
    assert_ne!(bases[0].0, bases[1].0);
    for (base, _) in bases {
        assert_eq!((base - GICR) % size, 0);
    }
    // A guest that goes through the frames one by one stops there; one that takes their number from the device tree need not look.
    let last = bases.map(|(_, last)| last == 1);
    probe("GICR_TYPER.Last of the first and the second frame", format_args!("{last:?}"));
    drop((vm, turn));
}

#[test]
fn a5_06_vcpu_registers_from_another_thread_do_not_crash() {
    let guest = gic_guest(&[hvc(1)]);
    let id = guest.vcpu.id();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 0;
            // SAFETY: a place for the result.
            let codes = unsafe {
                [
                    hv_gic_get_redistributor_reg(id, hv_gic_redistributor_reg_t::TYPER, &mut value),
                    hv_gic_set_redistributor_reg(id, hv_gic_redistributor_reg_t::ISENABLER0, 1),
                    hv_gic_get_icc_reg(id, hv_gic_icc_reg_t::PMR_EL1, &mut value),
                    hv_gic_set_icc_reg(id, hv_gic_icc_reg_t::PMR_EL1, 0),
                ]
            };
            let names: BTreeSet<String> = codes.map(name).into();
            probe(
                "GIC calls from a thread that does not own the vCPU",
                names.into_iter().collect::<Vec<_>>().join(", "),
            );
            // The distributor is everyone's.
            assert!(guest.vm.gic_get_distributor_reg(GicDistributorReg::TYPER).is_ok());
            assert!(guest.vm.gic_set_spi(40, true).is_ok());
        });
    });
}

#[test]
fn a5_07_the_guest_reaches_the_frames_with_or_without_exits() {
    // X20: the vCPU's own redistributor.
    let guest = gic_guest(&code![
        mov(0, GICD + 0x4),
        ldr_w(1, 0),
        mov(0, GICD + 0x100 + 4),
        mov(2, 0x55),
        str_w(2, 0),
        ldr_w(3, 0),
        mov(0, GICD + 0x6000 + 8 * 40),
        mov(2, 0x3456),
        str(2, 0),
        ldr(4, 0),
        add(0, 20, 0x8),
        ldr(5, 0),
        mov(0, MSI + 0x8),
        ldr_w(6, 0),
        mov(0, 0xffe8),
        add_register(0, 0, 20),
        ldr_w(7, 0),
        hvc(1),
    ]);
    guest.vcpu.set_reg(Reg::X20, guest.vcpu.get_redistributor_base().unwrap()).unwrap();
    let mut exits = Vec::new();
    loop {
        let exit = guest.run();
        if exit.exception.syndrome >> 26 != ec::DATA_ABORT {
            break;
        }
        exits.push(exit.exception.physical_address);
        guest.skip();
    }
    assert_eq!(guest.vcpu.get_exit_info().exception.syndrome, hvc_syndrome(1), "{}", guest.dump());
    switch_is_on("gic-mmio-exits", !exits.is_empty());
    if !exits.is_empty() {
        probe("guest accesses to the GIC's frames that exit as data aborts", format_args!("{exits:x?} of 8"));
        // The host answers them with the register calls.
        assert!(guest.vm.gic_get_distributor_reg(GicDistributorReg::TYPER).is_ok());
        return;
    }
    probe("guest accesses to the GIC's frames", "handled inside");
    assert_eq!(Ok(guest.x(Reg::X1)), guest.vm.gic_get_distributor_reg(GicDistributorReg::TYPER));
    assert_eq!(guest.x(Reg::X3), 0x55);
    assert_eq!(guest.x(Reg::X4), 0x3456);
    assert_eq!(guest.x(Reg::X5) >> 32, 0);
    assert_eq!(guest.x(Reg::X6), u64::from(msi_first() << 16 | MSI_COUNT));
    assert_eq!(guest.x(Reg::X7) & 0xf0, 0x30);
}

#[test]
fn a5_08_register_coverage() {
    let guest = gic_guest(&[hvc(1)]);
    let vm = &guest.vm;
    use GicDistributorReg as D;
    let mut failures = Vec::new();
    for register in [
        D::CTLR,
        D::TYPER,
        D::IGROUPR1,
        D::ISENABLER1,
        D::ICENABLER1,
        D::ISPENDR1,
        D::ICPENDR1,
        D::ISACTIVER1,
        D::ICACTIVER1,
        D::IPRIORITYR8,
        D::ICFGR2,
        D::IROUTER32,
        D::PIDR2,
    ] {
        let (read, write) = match vm.gic_get_distributor_reg(register) {
            Ok(value) => (Ok(()), vm.gic_set_distributor_reg(register, value)),
            Err(error) => (Err(error), Ok(())),
        };
        if (read, write) != (Ok(()), Ok(())) {
            failures.push(format!("{register:?}: {read:?} to read, {write:?} to write"));
        }
    }
    use GicRedistributorReg as R;
    for register in [
        R::TYPER,
        R::PIDR2,
        R::IGROUPR0,
        R::ISENABLER0,
        R::ICENABLER0,
        R::ISPENDR0,
        R::ICPENDR0,
        R::ISACTIVER0,
        R::ICACTIVER0,
        R::IPRIORITYR0,
        R::IPRIORITYR7,
        R::ICFGR0,
        R::ICFGR1,
    ] {
        if let Err(error) = guest.vcpu.get_redistributor_reg(register) {
            failures.push(format!("{register:?}: {error:?} to read"));
        }
    }
    assert_eq!(vm.gic_get_distributor_reg(D::PIDR2).unwrap() & 0xf0, 0x30);
    assert_eq!(guest.vcpu.get_redistributor_reg(R::PIDR2).unwrap() & 0xf0, 0x30);
    type Get = unsafe extern "C" fn(u64, u32, *mut u64) -> i32;
    type GetDistributor = unsafe extern "C" fn(u32, *mut u64) -> i32;
    let mut value = 0;
    // SAFETY: the same functions with the register as the integer it is in C; a place for the result.
    unsafe {
        let get = std::mem::transmute::<*const (), Get>(hv_gic_get_redistributor_reg as *const ());
        // GICR_CTLR, GICR_WAKER, GICR_IGRPMODR0.
        for offset in [0x0, 0x14, 0x1_0d00] {
            if get(guest.vcpu.id(), offset, &mut value) == 0 {
                failures.push(format!("the redistributor's {offset:#x} can be read"));
            }
        }
        let get = std::mem::transmute::<*const (), GetDistributor>(hv_gic_get_distributor_reg as *const ());
        // GICD_IGRPMODR1, the middle of a register, nothing.
        for offset in [0xd04, 0x102, 0x9000] {
            if get(offset, &mut value) == 0 {
                failures.push(format!("the distributor's {offset:#x} can be read"));
            }
        }
    }
    nothing_of(failures);
}

#[test]
fn a5_08_set_and_clear_registers_are_two_sides_of_one() {
    let guest = gic_guest(&[hvc(1)]);
    use GicDistributorReg as D;
    for (set, clear) in [(D::ISENABLER2, D::ICENABLER2), (D::ISPENDR2, D::ICPENDR2), (D::ISACTIVER2, D::ICACTIVER2)] {
        guest.vm.gic_set_distributor_reg(set, 0xf0f0).unwrap();
        guest.vm.gic_set_distributor_reg(set, 0x000f).unwrap();
        assert_eq!(guest.vm.gic_get_distributor_reg(clear), Ok(0xf0ff));
        guest.vm.gic_set_distributor_reg(clear, 0x00f0).unwrap();
        assert_eq!(guest.vm.gic_get_distributor_reg(set), Ok(0xf00f));
    }
    guest.vm.gic_set_distributor_reg(D::IPRIORITYR254, 0xffff_ffff).unwrap();
    let last = guest.vm.gic_get_distributor_reg(D::IPRIORITYR254).unwrap();
    assert!(last != 0);
    probe("bits of an interrupt's priority", (last as u8).count_ones());
}

/// Whether a state is taken; the only other answer is `HV_BAD_ARGUMENT`, as after an update of the system.
pub fn accepted(state: &mut GicState, data: &[u8]) -> bool {
    let result = state.set(data);
    assert!(matches!(result, Ok(()) | Err(HypervisorError::BadArgument)), "{result:?}");
    result.is_ok()
}

#[test]
fn a5_09_state_is_opaque_whole_and_checked() {
    let guest = gic_guest(&[hvc(1)]);
    let mut state = guest.vm.gic_state_create().unwrap();
    let size = state.size().unwrap();
    let mut data = vec![0; size];
    state.get(&mut data).unwrap();
    let accepted = accepted(&mut state, &data);
    probe("hv_gic_set_state of this system's own state", if accepted { "accepted" } else { "refused" });
    let bad = Err(HypervisorError::BadArgument);
    assert_eq!(state.set(&data[..size - 0x10]), bad);
    assert_eq!(state.set(&[]), bad);
    data[0] = 0;
    assert_eq!(state.set(&data), bad);
}

#[test]
fn a5_09_state_is_for_stopped_machines() {
    let guest = gic_guest(&[SPIN]);
    let vm = guest.vm.clone();
    let exit = guest.run_stopped(move || assert!(vm.gic_state_create().is_err(), "a vCPU is running"));
    assert_eq!(exit.reason, ExitReason::CANCELED);
    assert!(guest.vm.gic_state_create().is_ok());
}

#[test]
fn a5_09_a_state_moves_to_another_machine() {
    use GicDistributorReg as D;
    use GicRedistributorReg as R;
    let writes = [
        (D::CTLR, 2),
        (D::IGROUPR1, ALL),
        (D::ISENABLER1, 0x1234),
        (D::ISPENDR1, 0x88),
        (D::ISACTIVER3, 0x4),
        (D::IPRIORITYR9, 0x80a0_0898),
        (D::ICFGR3, 0xaaaa_aaaa),
        (D::IROUTER40, 0x0000_0002),
    ];
    let private =
        [(R::IGROUPR0, 0xffff_0000), (R::ISENABLER0, 0x0800_ffff), (R::ISPENDR0, 0x11), (R::IPRIORITYR6, 0x10)];
    let mut data = Vec::new();
    let mut seen = Vec::new();
    for restore in [false, true] {
        let guest = gic_guest(&[hvc(1)]);
        if restore {
            if !accepted(&mut guest.vm.gic_state_create().unwrap(), &data) {
                return;
            }
        } else {
            writes.iter().for_each(|&(register, value)| guest.vm.gic_set_distributor_reg(register, value).unwrap());
            private.iter().for_each(|&(register, value)| guest.vcpu.set_redistributor_reg(register, value).unwrap());
            let mut state = guest.vm.gic_state_create().unwrap();
            data = vec![0; state.size().unwrap()];
            state.get(&mut data).unwrap();
        }
        let distributor = writes.iter().map(|&(register, _)| guest.vm.gic_get_distributor_reg(register).unwrap());
        let redistributor = private.iter().map(|&(register, _)| guest.vcpu.get_redistributor_reg(register).unwrap());
        seen.push(distributor.chain(redistributor).collect::<Vec<_>>());
    }
    assert_eq!(seen[0], seen[1]);
    assert_ne!(seen[0][2], 0);
}

#[test]
fn a5_10_the_cpu_interface_is_not_in_the_state() {
    let guest = gic_guest(&[hvc(1)]);
    let icc = |register| guest.vcpu.get_icc_reg(register).unwrap();
    let set = |register, value| guest.vcpu.set_icc_reg(register, value).unwrap();
    set(GicIccReg::PMR_EL1, 0xf0);
    set(GicIccReg::IGRPEN1_EL1, 1);
    let mut state = guest.vm.gic_state_create().unwrap();
    let mut data = vec![0; state.size().unwrap()];
    state.get(&mut data).unwrap();
    set(GicIccReg::PMR_EL1, 0x80);
    set(GicIccReg::IGRPEN1_EL1, 0);
    accepted(&mut state, &data);
    assert_eq!((icc(GicIccReg::PMR_EL1), icc(GicIccReg::IGRPEN1_EL1)), (0x80, 0));
}

#[test]
fn a5_10_a5_11_cpu_interface_registers_read_back() {
    let guest = gic_guest(&[hvc(1)]);
    use GicIccReg as I;
    let ctlr = guest.vcpu.get_icc_reg(I::CTLR_EL1).unwrap();
    assert_eq!(guest.vcpu.get_icc_reg(I::SRE_EL1).unwrap() & 1, 1);
    for (register, value) in [
        (I::CTLR_EL1, ctlr | 2),
        (I::PMR_EL1, 0xf8),
        (I::BPR0_EL1, 4),
        (I::BPR1_EL1, 5),
        (I::AP0R0_EL1, 1 << 9),
        (I::AP1R0_EL1, 1 << 20),
        (I::IGRPEN0_EL1, 1),
        (I::IGRPEN1_EL1, 1),
    ] {
        assert_eq!(guest.vcpu.set_icc_reg(register, value), Ok(()), "{register:?}");
        assert_eq!(guest.vcpu.get_icc_reg(register), Ok(value), "{register:?}");
    }
    let running = guest.vcpu.get_icc_reg(I::RPR_EL1).unwrap();
    probe("ICC_RPR_EL1 with priorities 0x48 and 0xa0 active", format_args!("{running:#x}"));
    assert!(guest.vcpu.set_icc_reg(I::RPR_EL1, 0).is_err(), "read-only");
    assert!(guest.vcpu.get_icc_reg(I::SRE_EL2).is_err(), "there is no EL2");
    assert!(guest.vcpu.get_ich_reg(GicIchReg::HCR_EL2).is_err());
    assert!(guest.vcpu.set_ich_reg(GicIchReg::HCR_EL2, 0).is_err());
    assert!(guest.vcpu.get_icv_reg(GicIcvReg::PMR_EL1).is_err());
    assert!(guest.vcpu.set_icv_reg(GicIcvReg::PMR_EL1, 0).is_err());
}

#[test]
fn a5_14_each_redistributor_is_its_own_also_after_restore() {
    let mut data = Vec::new();
    let refused = AtomicBool::new(false);
    for restore in [false, true] {
        let turn = Turn::take();
        let vm = gic_machine();
        let step = Barrier::new(3);
        thread::scope(|scope| {
            for id in [1u64, 2] {
                let (vm, step, refused) = (&vm, &step, &refused);
                scope.spawn(move || {
                    let vcpu = vm.vcpu_create().unwrap();
                    vcpu.set_sys_reg(SysReg::MPIDR_EL1, 0x8000_0000 | id).unwrap();
                    if !restore {
                        // PPIs: a GIC may have all SGIs always enabled.
                        vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, 0x10_0000 * id).unwrap();
                        vcpu.set_redistributor_reg(GicRedistributorReg::ISPENDR0, 0x1_0000 * id).unwrap();
                    }
                    step.wait();
                    step.wait();
                    if refused.load(Ordering::SeqCst) {
                        return;
                    }
                    let ppis = |register| vcpu.get_redistributor_reg(register).unwrap() & 0xffff_0000;
                    let found = (ppis(GicRedistributorReg::ISENABLER0), ppis(GicRedistributorReg::ISPENDR0));
                    assert_eq!(found, (0x10_0000 * id, 0x1_0000 * id));
                });
            }
            step.wait();
            let mut state = vm.gic_state_create().unwrap();
            if restore {
                refused.store(!accepted(&mut state, &data), Ordering::SeqCst);
            } else {
                data = vec![0; state.size().unwrap()];
                state.get(&mut data).unwrap();
            }
            step.wait();
        });
        drop((vm, turn));
    }
}

#[test]
fn a5_15_reset_puts_everything_back() {
    let guest = gic_guest(&[hvc(1)]);
    let registers = |guest: &Guest<GicEnabled>| {
        let d = |register| guest.vm.gic_get_distributor_reg(register).unwrap();
        let r = |register| guest.vcpu.get_redistributor_reg(register).unwrap();
        use GicDistributorReg as D;
        use GicRedistributorReg as R;
        [
            d(D::CTLR),
            d(D::ISENABLER1),
            d(D::ISPENDR1),
            d(D::IROUTER33),
            r(R::ISENABLER0),
            r(R::IPRIORITYR3),
            r(R::TYPER),
        ]
    };
    let fresh = registers(&guest);
    guest.vm.gic_set_distributor_reg(GicDistributorReg::CTLR, 3).unwrap();
    guest.vm.gic_set_distributor_reg(GicDistributorReg::ISENABLER1, ALL).unwrap();
    guest.vm.gic_set_distributor_reg(GicDistributorReg::IROUTER33, 1).unwrap();
    guest.vm.gic_set_spi(35, true).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, ALL).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::IPRIORITYR3, ALL).unwrap();
    assert_ne!(registers(&guest), fresh);
    guest.vm.gic_reset().unwrap();
    assert_eq!(registers(&guest), fresh);
}

#[test]
fn a2_08_reserved_interrupts() {
    for (interrupt, intid) in [
        (GicIntId::PERFORMANCE_MONITOR, 23),
        (GicIntId::MAINTENANCE, 25),
        (GicIntId::EL2_PHYSICAL_TIMER, 26),
        (GicIntId::EL1_VIRTUAL_TIMER, 27),
        (GicIntId::EL1_PHYSICAL_TIMER, 30),
    ] {
        assert_eq!(GicConfig::get_intid(interrupt), Ok(intid));
    }
}
