//! A7: a whole machine moves to another, in the order that is known to work.

use applevisor::prelude::*;

use crate::a5_gic::accepted;
use crate::asm::*;
use crate::code;
use crate::guest::*;

const CNTVCT_EL0: u16 = 0xdf02;
const PMR: u16 = 0xc230;
const IAR1: u16 = 0xc660;
const EOIR1: u16 = 0xc661;
const IGRPEN1: u16 = 0xc667;

const GENERAL: [Reg; 5] = [Reg::X0, Reg::X10, Reg::X20, Reg::PC, Reg::CPSR];
const SYSTEM: [SysReg; 6] =
    [SysReg::SCTLR_EL1, SysReg::CPACR_EL1, SysReg::VBAR_EL1, SysReg::ELR_EL1, SysReg::SPSR_EL1, SysReg::SP_EL0];
const CPU_INTERFACE: [GicIccReg; 9] = {
    use applevisor_sys::hv_gic_icc_reg_t::*;
    [CTLR_EL1, PMR_EL1, BPR0_EL1, BPR1_EL1, AP0R0_EL1, AP1R0_EL1, SRE_EL1, IGRPEN0_EL1, IGRPEN1_EL1]
};

/// A machine that stands still, as far as its guest can tell one from another.
struct Frozen {
    gic: Vec<u8>,
    general: [u64; GENERAL.len()],
    vector: u128,
    system: [u64; SYSTEM.len()],
    cpu_interface: [u64; CPU_INTERFACE.len()],
    /// The guest's counter, and its timer.
    counter: u64,
    compare: u64,
    control: u64,
}

/// The guest: interrupts on, reads its counter, hands over, waits for its timer.
fn program() -> Vec<u32> {
    code![
        mov(0, 0xff),
        msr(PMR, 0),
        mov(0, 1),
        msr(IGRPEN1, 0),
        IRQ_ON,
        mov(20, 0x1234),
        mrs(0, CNTVCT_EL0),
        hvc(1),
        WFI,
        b(-1)
    ]
}

/// Takes the interrupt: its number, the time, both for the test.
fn handler() -> Vec<u32> {
    code![mrs(10, IAR1), mrs(0, CNTVCT_EL0), msr(EOIR1, 10), hvc(9), ERET]
}

fn freeze() -> Frozen {
    let mut guest = gic_guest(&program());
    guest.write_code(VECTORS + 0x280, &handler());
    guest.vm.gic_set_distributor_reg(GicDistributorReg::CTLR, 2).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::IGROUPR0, u64::from(u32::MAX)).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, 1 << 27).unwrap();
    assert_eq!(set_q(&guest.vcpu, SimdFpReg::Q8, 0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00), 0);
    guest.run_to(1);
    let counter = guest.x(Reg::X0);
    let mut state = guest.vm.gic_state_create().unwrap();
    let mut gic = vec![0; state.size().unwrap()];
    state.get(&mut gic).unwrap();
    Frozen {
        gic,
        general: GENERAL.map(|register| guest.x(register)),
        vector: guest.vcpu.get_simd_fp_reg(SimdFpReg::Q8).unwrap(),
        system: SYSTEM.map(|register| guest.vcpu.get_sys_reg(register).unwrap()),
        cpu_interface: CPU_INTERFACE.map(|register| guest.vcpu.get_icc_reg(register).unwrap()),
        counter,
        // The host arms the timer for the guest, a moment from when it was stopped.
        compare: counter + 1000,
        control: 1,
    }
}

#[test]
fn a5_13_a7_02_a_machine_restored_in_this_order_goes_on() {
    let frozen = freeze();
    // The host's counter in the guest's ticks, from a machine whose offset is known.
    let probe = guest(&[mrs(0, CNTVCT_EL0), hvc(1)]);
    probe.vcpu.set_vtimer_offset(0).unwrap();
    probe.run_to(1);
    let host_counter = probe.x(Reg::X0);
    drop(probe);
    // Machine, GIC, memory, vCPU on its thread, MPIDR ...
    let mut guest = gic_guest(&program());
    guest.write_code(VECTORS + 0x280, &handler());
    // ... the GIC's state before anything runs ...
    if !accepted(&mut guest.vm.gic_state_create().unwrap(), &frozen.gic) {
        return;
    }
    // ... registers, then the CPU interface, its enables last ...
    GENERAL.iter().zip(frozen.general).for_each(|(&register, value)| guest.vcpu.set_reg(register, value).unwrap());
    assert_eq!(set_q(&guest.vcpu, SimdFpReg::Q8, frozen.vector), 0);
    SYSTEM.iter().zip(frozen.system).for_each(|(&register, value)| guest.vcpu.set_sys_reg(register, value).unwrap());
    for (&register, value) in CPU_INTERFACE.iter().zip(frozen.cpu_interface) {
        guest.vcpu.set_icc_reg(register, value).unwrap();
    }
    // ... and time: offset, compare value, control, mask.
    guest.vcpu.set_vtimer_offset(host_counter.wrapping_sub(frozen.counter)).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, frozen.compare).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, frozen.control).unwrap();
    guest.vcpu.set_vtimer_mask(false).unwrap();
    guest.run_to(9);
    assert_eq!(guest.x(Reg::X10), 27, "the timer's interrupt");
    assert!(guest.x(Reg::X0) >= frozen.compare, "time went on");
    assert_eq!(guest.x(Reg::X20), 0x1234);
    assert_eq!(guest.vcpu.get_simd_fp_reg(SimdFpReg::Q8), Ok(frozen.vector));
}
