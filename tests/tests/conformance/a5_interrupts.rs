//! A5: interrupts as the guest takes them.

use std::sync::Barrier;
use std::thread;

use applevisor::prelude::*;

use crate::a5_gic::accepted;
use crate::asm::*;
use crate::code;
use crate::guest::*;

const PMR: u16 = 0xc230;
const IAR0: u16 = 0xc640;
const EOIR0: u16 = 0xc641;
const DIR: u16 = 0xc659;
const RPR: u16 = 0xc65b;
const SGI1R: u16 = 0xc65d;
const IAR1: u16 = 0xc660;
const EOIR1: u16 = 0xc661;
const HPPIR1: u16 = 0xc662;
const CTLR: u16 = 0xc664;
const IGRPEN0: u16 = 0xc666;
const IGRPEN1: u16 = 0xc667;

const ALL: u64 = u32::MAX as u64;
const SPURIOUS: u64 = 1023;

/// The CPU interface open, interrupts unmasked.
fn open() -> Vec<u32> {
    code![mov(0, 0xff), msr(PMR, 0), mov(0, 1), msr(IGRPEN1, 0), IRQ_ON]
}

/// Takes an interrupt: acknowledges into X10, ends it, reports 9, and returns.
fn handler() -> Vec<u32> {
    code![mrs(10, IAR1), msr(EOIR1, 10), hvc(9), ERET]
}

/// A guest that waits for interrupts for ever, with everything in Group 1 and enabled, edge-triggered from INTID 48.
fn waiting() -> Guest<GicEnabled> {
    let mut guest = gic_guest(&code![open(), WFI, b(-1)]);
    guest.write_code(VECTORS + 0x280, &handler());
    configure(&guest);
    guest
}

fn configure(guest: &Guest<GicEnabled>) {
    use GicDistributorReg as D;
    for (register, value) in [(D::CTLR, 2), (D::IGROUPR1, ALL), (D::ISENABLER1, ALL), (D::ICFGR3, 0xaaaa_aaaa)] {
        guest.vm.gic_set_distributor_reg(register, value).unwrap();
    }
    // Where an interrupt goes that nobody has routed is not said.
    for router in [D::IROUTER40, D::IROUTER48, D::IROUTER49, D::IROUTER50, D::IROUTER51] {
        guest.vm.gic_set_distributor_reg(router, 0).unwrap();
    }
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::IGROUPR0, ALL).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, ALL).unwrap();
}

impl Guest<GicEnabled> {
    /// The guest is waiting: nothing comes.
    fn is_quiet(&self) {
        assert_eq!(self.run_on_stopped().reason, ExitReason::CANCELED);
    }

    /// The guest takes this interrupt next.
    fn takes(&self, intid: u64) {
        self.run_to(9);
        assert_eq!(self.x(Reg::X10), intid);
    }
}

#[test]
fn a5_04_a_level_interrupt_comes_until_the_line_is_low() {
    let guest = waiting();
    guest.is_quiet();
    guest.vm.gic_set_spi(40, true).unwrap();
    guest.takes(40);
    guest.takes(40);
    guest.vm.gic_set_spi(40, false).unwrap();
    guest.is_quiet();
}

#[test]
fn a5_04_an_edge_interrupt_comes_once_for_each_true() {
    let guest = waiting();
    guest.vm.gic_set_spi(50, true).unwrap();
    guest.takes(50);
    guest.is_quiet();
    // The level is not looked at.
    guest.vm.gic_set_spi(50, true).unwrap();
    guest.takes(50);
    guest.vm.gic_set_spi(50, false).unwrap();
    guest.is_quiet();
}

#[test]
fn a5_04_a_message_is_an_edge() {
    let guest = waiting();
    use GicDistributorReg as D;
    // The last two blocks of 32, where all MSIs are.
    let (first, second) = (msi_first() + 20, msi_first() + 21);
    assert!(first >= 960, "{first}");
    for register in [D::IGROUPR30, D::ISENABLER30, D::IGROUPR31, D::ISENABLER31] {
        guest.vm.gic_set_distributor_reg(register, ALL).unwrap();
    }
    guest.vm.gic_send_msi(MSI + GicMsiReg::SET_SPI_NSR as u64, first).unwrap();
    guest.takes(first.into());
    guest.is_quiet();
    guest.vm.gic_set_msi_reg(GicMsiReg::SET_SPI_NSR, second.into()).unwrap();
    guest.takes(second.into());
}

#[test]
fn a5_04_an_interrupt_wakes_a_waiting_guest() {
    let guest = waiting();
    let vm = guest.vm.clone();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(std::time::Duration::from_millis(10));
            vm.gic_set_spi(50, true).unwrap();
        });
        guest.takes(50);
    });
}

#[test]
fn a_disabled_masked_or_other_groups_interrupt_does_not_come() {
    let guest = waiting();
    use GicDistributorReg as D;
    guest.vm.gic_set_distributor_reg(D::ICENABLER1, 1 << 18).unwrap();
    guest.vm.gic_set_spi(50, true).unwrap();
    guest.is_quiet();
    assert_eq!(guest.vm.gic_get_distributor_reg(D::ISPENDR1), Ok(1 << 18));
    guest.vm.gic_set_distributor_reg(D::ISENABLER1, 1 << 18).unwrap();
    guest.takes(50);
    // Priority not below the mask.
    guest.vm.gic_set_distributor_reg(D::IPRIORITYR12, 0x0080_0000).unwrap();
    guest.vcpu.set_icc_reg(GicIccReg::PMR_EL1, 0x80).unwrap();
    guest.vm.gic_set_spi(50, true).unwrap();
    guest.is_quiet();
    guest.vcpu.set_icc_reg(GicIccReg::PMR_EL1, 0x88).unwrap();
    guest.takes(50);
    // Distributor off for the group.
    guest.vm.gic_set_distributor_reg(D::CTLR, 1).unwrap();
    guest.vm.gic_set_spi(50, true).unwrap();
    guest.is_quiet();
    guest.vm.gic_set_distributor_reg(D::CTLR, 3).unwrap();
    guest.takes(50);
    // Routed to a vCPU that is not there.
    guest.vm.gic_set_distributor_reg(D::IROUTER50, 5).unwrap();
    guest.vm.gic_set_spi(50, true).unwrap();
    guest.is_quiet();
    // To anyone, if the GIC can (No1N), or to the one that is there.
    let only_one = guest.vm.gic_get_distributor_reg(D::TYPER).unwrap() >> 25 & 1 == 1;
    probe("interrupts to any one of the vCPUs", if only_one { "not offered" } else { "offered" });
    guest.vm.gic_set_distributor_reg(D::IROUTER50, if only_one { 0 } else { 1 << 31 }).unwrap();
    guest.takes(50);
}

#[test]
fn group_0_is_a_fast_interrupt() {
    let mut guest = gic_guest(&code![open(), mov(0, 1), msr(IGRPEN0, 0), FIQ_ON, WFI, b(-1)]);
    guest.write_code(VECTORS + 0x280, &handler());
    guest.write_code(VECTORS + 0x300, &code![mrs(11, IAR1), mrs(10, IAR0), msr(EOIR0, 10), hvc(9), ERET]);
    configure(&guest);
    use GicDistributorReg as D;
    guest.vm.gic_set_distributor_reg(D::CTLR, 3).unwrap();
    guest.vm.gic_set_distributor_reg(D::IGROUPR1, ALL & !(1 << 18)).unwrap();
    guest.vm.gic_set_spi(50, true).unwrap();
    guest.takes(50);
    assert_eq!(guest.x(Reg::X11), SPURIOUS, "not of Group 1");
    guest.vm.gic_set_spi(51, true).unwrap();
    guest.takes(51);
}

#[test]
fn the_most_urgent_comes_first_and_preempts() {
    // The handler acknowledges, reports, lets itself be interrupted, and ends.
    let mut guest = gic_guest(&code![open(), WFI, b(-1)]);
    guest.write_code(
        VECTORS + 0x280,
        &code![
            mrs(20, 0xc201),
            mrs(21, 0xc200),
            mrs(10, IAR1),
            mrs(12, RPR),
            mrs(13, HPPIR1),
            hvc(8),
            cbz(14, 6),
            mov(14, 0),
            msr(EOIR1, 10),
            msr(0xc201, 20),
            msr(0xc200, 21),
            ERET,
            // Nested once.
            mov(14, 1),
            add(15, 20, 0),
            add(16, 21, 0),
            add(17, 10, 0),
            IRQ_ON,
            0xd503_42df,
            msr(EOIR1, 17),
            msr(0xc201, 15),
            msr(0xc200, 16),
            hvc(9),
            ERET,
        ],
    );
    configure(&guest);
    use GicDistributorReg as D;
    // 48: 0xa0, 49: 0x40, 50: 0x40, 51: 0xa0.
    guest.vm.gic_set_distributor_reg(D::IPRIORITYR12, 0xa040_40a0).unwrap();
    guest.vm.gic_set_spi(51, true).unwrap();
    guest.run_to(8);
    assert_eq!((guest.x(Reg::X10), guest.x(Reg::X12), guest.x(Reg::X13)), (51, 0xa0, SPURIOUS));
    // An equal one waits; two more urgent ones do not, lowest number first.
    for intid in [48, 50, 49] {
        guest.vm.gic_set_spi(intid, true).unwrap();
    }
    guest.run_to(8);
    assert_eq!((guest.x(Reg::X10), guest.x(Reg::X12), guest.x(Reg::X13)), (49, 0x40, 50));
    assert_eq!(guest.vm.gic_get_distributor_reg(D::ISACTIVER1), Ok(1 << 19 | 1 << 17));
    guest.vcpu.set_reg(Reg::X14, 1).unwrap();
    guest.run_to(8);
    assert_eq!(guest.x(Reg::X10), 50);
}

#[test]
fn priority_drop_and_deactivation_can_be_separate() {
    let mut guest = gic_guest(&code![mov(0, 2), msr(CTLR, 0), open(), WFI, b(-1)]);
    guest.write_code(
        VECTORS + 0x280,
        &code![mrs(10, IAR1), msr(EOIR1, 10), mrs(12, RPR), hvc(8), msr(DIR, 10), hvc(9), ERET],
    );
    configure(&guest);
    guest.vm.gic_set_spi(40, true).unwrap();
    guest.run_to(8);
    assert_eq!((guest.x(Reg::X10), guest.x(Reg::X12)), (40, 0xff), "dropped");
    assert_eq!(guest.vm.gic_get_distributor_reg(GicDistributorReg::ISACTIVER1), Ok(1 << 8), "still active");
    guest.vm.gic_set_spi(40, false).unwrap();
    guest.run_to(9);
    assert_eq!(guest.vm.gic_get_distributor_reg(GicDistributorReg::ISACTIVER1), Ok(0));
    guest.is_quiet();
}

#[test]
fn a_software_generated_interrupt_to_oneself() {
    // INTID 5, target list 1, affinity 0.
    let mut guest = gic_guest(&code![open(), mov(0, 5 << 24 | 1), msr(SGI1R, 0), ISB, WFI, b(-1)]);
    guest.write_code(VECTORS + 0x280, &handler());
    configure(&guest);
    guest.takes(5);
    guest.is_quiet();
}

#[test]
fn a_register_makes_a_private_interrupt_pending() {
    let guest = waiting();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::ISPENDR0, 1 << 20).unwrap();
    guest.takes(20);
    guest.is_quiet();
}

#[test]
fn software_generated_interrupts_between_vcpus() {
    // vCPU 0 sends INTID 3 to the others, vCPU 1 answers with INTID 4 to affinity 0.0.0.0.
    let turn = Turn::take();
    let vm = gic_machine();
    let mut ram = vm.memory_create(RAM_SIZE as usize).unwrap();
    ram.map(RAM, MemPerms::RWX).unwrap();
    let (second, vectors) = (RAM + 0x1000, VECTORS + 0x1000);
    write_code(&mut ram, RAM, &code![open(), mov(0, 1 << 40 | 3 << 24), msr(SGI1R, 0), WFI, b(-1)]);
    write_code(&mut ram, second, &code![open(), WFI, b(-1)]);
    write_code(&mut ram, VECTORS + 0x280, &handler());
    write_code(
        &mut ram,
        vectors + 0x280,
        &code![mrs(10, IAR1), msr(EOIR1, 10), mov(0, 4 << 24 | 1), msr(SGI1R, 0), hvc(9), ERET],
    );
    vm.gic_set_distributor_reg(GicDistributorReg::CTLR, 2).unwrap();
    let ready = Barrier::new(2);
    thread::scope(|scope| {
        for (id, pc, vbar, expected) in [(0u64, RAM, VECTORS, 4), (1, second, vectors, 3)] {
            let (vm, ready) = (&vm, &ready);
            scope.spawn(move || {
                let vcpu = vm.vcpu_create().unwrap();
                prepare(&vcpu, pc);
                vcpu.set_sys_reg(SysReg::VBAR_EL1, vbar).unwrap();
                vcpu.set_sys_reg(SysReg::MPIDR_EL1, 0x8000_0000 | id).unwrap();
                vcpu.set_redistributor_reg(GicRedistributorReg::IGROUPR0, ALL).unwrap();
                vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, ALL).unwrap();
                ready.wait();
                let exit = run_on(vm, &vcpu);
                assert_eq!(exit.exception.syndrome, hvc_syndrome(9));
                assert_eq!(vcpu.get_reg(Reg::X10), Ok(expected));
                // Nobody's frame goes before both are done.
                ready.wait();
            });
        }
    });
    drop((ram, vm, turn));
}

#[test]
fn a5_11_a_restored_guest_ends_the_interrupt_it_was_in() {
    // Stopped between acknowledge and end; state, CPU interface and registers move to a new machine.
    use GicIccReg as I;
    let order = [
        I::CTLR_EL1,
        I::PMR_EL1,
        I::BPR0_EL1,
        I::BPR1_EL1,
        I::AP0R0_EL1,
        I::AP1R0_EL1,
        I::SRE_EL1,
        I::IGRPEN0_EL1,
        I::IGRPEN1_EL1,
    ];
    let vectors = code![mrs(10, IAR1), hvc(8), msr(EOIR1, 10), hvc(9), ERET];
    let registers = [SysReg::ELR_EL1, SysReg::SPSR_EL1];
    let (state, icc, pc, cpsr, saved) = {
        let mut guest = waiting();
        guest.write_code(VECTORS + 0x280, &vectors);
        guest.vm.gic_set_spi(50, true).unwrap();
        guest.run_to(8);
        guest.vm.gic_set_spi(50, true).unwrap();
        let mut state = guest.vm.gic_state_create().unwrap();
        let mut data = vec![0; state.size().unwrap()];
        state.get(&mut data).unwrap();
        let icc = order.map(|register| guest.vcpu.get_icc_reg(register).unwrap());
        let saved = registers.map(|register| guest.vcpu.get_sys_reg(register).unwrap());
        (data, icc, guest.pc(), guest.x(Reg::CPSR), saved)
    };
    let mut guest = gic_guest(&code![open(), WFI, b(-1)]);
    guest.write_code(VECTORS + 0x280, &vectors);
    if !accepted(&mut guest.vm.gic_state_create().unwrap(), &state) {
        return;
    }
    guest.vcpu.set_reg(Reg::PC, pc).unwrap();
    guest.vcpu.set_reg(Reg::CPSR, cpsr).unwrap();
    guest.vcpu.set_reg(Reg::X10, 50).unwrap();
    registers.iter().zip(saved).for_each(|(&register, value)| guest.vcpu.set_sys_reg(register, value).unwrap());
    order.iter().zip(icc).for_each(|(&register, value)| guest.vcpu.set_icc_reg(register, value).unwrap());
    guest.run_to(9);
    // And takes the one that had come in the meantime.
    guest.run_to(8);
    assert_eq!(guest.x(Reg::X10), 50);
    guest.run_to(9);
    guest.is_quiet();
}

#[test]
fn no_wake_up_is_lost_between_waiting_vcpus() {
    // A token goes round four vCPUs that all wait: each passes it on from its handler.
    const VCPUS: u64 = 4;
    const ROUNDS: u64 = 3000;
    let turn = Turn::take();
    let vm = gic_machine();
    let mut ram = vm.memory_create(RAM_SIZE as usize).unwrap();
    ram.map(RAM, MemPerms::RWX).unwrap();
    // X19: whether to start the token. X22: where it goes. X21: how often.
    write_code(&mut ram, RAM, &code![open(), cbz(19, 2), msr(SGI1R, 22), WFI, b(-1)]);
    let pass_on = code![mrs(10, IAR1), msr(EOIR1, 10), msr(SGI1R, 22), subs(21, 21, 1), b_ne(2), hvc(9), ERET];
    write_code(&mut ram, VECTORS + 0x280, &pass_on);
    vm.gic_set_distributor_reg(GicDistributorReg::CTLR, 2).unwrap();
    let ready = Barrier::new(VCPUS as usize);
    thread::scope(|scope| {
        for id in 0..VCPUS {
            let (vm, ready) = (&vm, &ready);
            scope.spawn(move || {
                let vcpu = vm.vcpu_create().unwrap();
                prepare(&vcpu, RAM);
                vcpu.set_sys_reg(SysReg::MPIDR_EL1, 0x8000_0000 | id).unwrap();
                vcpu.set_redistributor_reg(GicRedistributorReg::IGROUPR0, ALL).unwrap();
                vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, ALL).unwrap();
                vcpu.set_reg(Reg::X19, u64::from(id == 0)).unwrap();
                vcpu.set_reg(Reg::X21, ROUNDS).unwrap();
                vcpu.set_reg(Reg::X22, 7 << 24 | 1 << ((id + 1) % VCPUS)).unwrap();
                ready.wait();
                // A busy host may take long for all rounds, but not for one.
                let (mut left, mut before) = (ROUNDS, 0);
                while left != before && run_on(vm, &vcpu).reason == ExitReason::CANCELED {
                    (before, left) = (left, vcpu.get_reg(Reg::X21).unwrap());
                }
                assert_eq!(vcpu.get_exit_info().exception.syndrome, hvc_syndrome(9), "{left} rounds left");
                ready.wait();
            });
        }
    });
    drop((ram, vm, turn));
}

#[test]
fn no_injected_interrupt_is_lost() {
    // The guest counts in memory; the host injects when it has seen the count move.
    const COUNT: u64 = 3000;
    let mut guest = gic_guest(&code![mov(20, DATA), open(), WFI, b(-1)]);
    let count = code![
        mrs(10, IAR1),
        ldr(11, 20),
        add(11, 11, 1),
        str(11, 20),
        msr(EOIR1, 10),
        subs(21, 21, 1),
        b_ne(2),
        hvc(9),
        ERET
    ];
    guest.write_code(VECTORS + 0x280, &count);
    configure(&guest);
    guest.vcpu.set_reg(Reg::X21, COUNT).unwrap();
    let vm = guest.vm.clone();
    let counter = guest.ram.host_addr() as usize + (DATA - RAM) as usize;
    thread::scope(|scope| {
        scope.spawn(move || {
            for sent in 0..COUNT {
                vm.gic_set_spi(50, true).unwrap();
                // SAFETY: inside the guest's RAM, which outlives this thread; the guest stores whole words there.
                let seen = || unsafe { (counter as *const u64).read_volatile() };
                let patience = std::time::Instant::now();
                while seen() == sent && patience.elapsed().as_secs() < 20 {
                    thread::yield_now();
                }
            }
        });
        guest.run_to(9);
    });
}
