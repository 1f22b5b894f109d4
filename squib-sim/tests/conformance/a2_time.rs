//! A2: the virtual timer and time.

use applevisor::prelude::*;

use crate::asm::*;
use crate::code;
use crate::guest::*;

const CNTFRQ_EL0: u16 = 0xdf00;
const CNTVCT_EL0: u16 = 0xdf02;
/// CNTV_CTL_EL0 bits.
const ENABLE: u64 = 1;
const IMASK: u64 = 2;
const ISTATUS: u64 = 4;

/// `mach_absolute_time`.
fn now() -> u64 {
    squib_sim::mach::mach_absolute_time()
}

/// Arms the timer so that it has fired already.
fn expire(vcpu: &Vcpu) {
    vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 0).unwrap();
    vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ENABLE).unwrap();
}

#[test]
fn a2_01_the_timer_exits_once_and_masks_itself() {
    let guest = guest(&[hvc(1), SPIN]);
    assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(false));
    expire(&guest.vcpu);
    assert_eq!(guest.run().reason, ExitReason::VTIMER_ACTIVATED);
    assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(true));
    // Masked: the guest runs on.
    guest.run_to(1);
    guest.vcpu.set_vtimer_mask(false).unwrap();
    assert_eq!(guest.run().reason, ExitReason::VTIMER_ACTIVATED);
}

#[test]
fn a2_02_a_masked_or_disabled_timer_does_not_exit() {
    for ctl in [0, ENABLE | IMASK, IMASK] {
        let guest = guest(&[hvc(1)]);
        expire(&guest.vcpu);
        guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ctl).unwrap();
        guest.run_to(1);
        assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(false));
    }
}

#[test]
fn a2_03_the_condition_can_be_read_back() {
    let guest = guest(&[hvc(1)]);
    expire(&guest.vcpu);
    assert_eq!(guest.vcpu.get_sys_reg(SysReg::CNTV_CTL_EL0), Ok(ENABLE | ISTATUS));
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, u64::MAX).unwrap();
    assert_eq!(guest.vcpu.get_sys_reg(SysReg::CNTV_CTL_EL0), Ok(ENABLE));
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, 0).unwrap();
    assert_eq!(guest.vcpu.get_sys_reg(SysReg::CNTV_CTL_EL0), Ok(0));
}

#[test]
fn a2_04_the_guest_counts_from_the_offset() {
    let guest = guest(&[mrs(0, CNTVCT_EL0), hvc(1), mrs(0, CNTVCT_EL0), hvc(2)]);
    let offset = now().wrapping_sub(1_000_000);
    guest.vcpu.set_vtimer_offset(offset).unwrap();
    assert_eq!(guest.vcpu.get_vtimer_offset(), Ok(offset));
    let before = now().wrapping_sub(offset);
    guest.run_to(1);
    let after = now().wrapping_sub(offset);
    assert!((before..=after).contains(&guest.x(Reg::X0)), "{before} {} {after}", guest.x(Reg::X0));
    // An offset ahead of the counter makes guest time negative, and nothing worse.
    let offset = now().wrapping_add(1 << 40);
    guest.vcpu.set_vtimer_offset(offset).unwrap();
    guest.run_to(2);
    assert!((guest.x(Reg::X0) as i64) < 0);
}

#[test]
fn a2_06_a_timer_that_had_expired_fires_after_restore() {
    let guest = guest(&[IRQ_ON, SPIN]);
    guest.vcpu.set_vtimer_offset(now().wrapping_sub(5_000)).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 4_000).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ENABLE).unwrap();
    guest.vcpu.set_vtimer_mask(false).unwrap();
    assert_eq!(guest.run().reason, ExitReason::VTIMER_ACTIVATED);
}

#[test]
fn a2_06_a_timer_fires_while_the_guest_runs() {
    // In 2 ms of guest time.
    let guest = guest(&[SPIN]);
    let start = now();
    guest.vcpu.set_vtimer_offset(start).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 48_000).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ENABLE).unwrap();
    assert_eq!(guest.run().reason, ExitReason::VTIMER_ACTIVATED);
    assert!(now() - start >= 48_000);
}

#[test]
fn a2_07_a2_08_with_a_gic_the_timer_is_ppi_27() {
    let mut guest = gic_guest(&code![mov(0, 1), msr(0xc667, 0), mov(0, 0xff), msr(0xc230, 0), IRQ_ON, WFI, b(-1),]);
    guest.write_code(VECTORS + 0x280, &[mrs(0, 0xc660), hvc(9)]);
    guest.vm.gic_set_distributor_reg(GicDistributorReg::CTLR, 2).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::IGROUPR0, u64::from(u32::MAX)).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, 1 << 27).unwrap();
    guest.vcpu.set_vtimer_offset(now()).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 24_000).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ENABLE).unwrap();
    guest.run_to(9);
    assert_eq!(guest.x(Reg::X0), 27);
}

#[test]
fn a2_10_the_guests_counter_frequency_is_24_mhz() {
    let guest = guest(&[mrs(0, CNTFRQ_EL0), hvc(1)]);
    guest.run_to(1);
    assert_eq!(guest.x(Reg::X0), 24_000_000);
}

#[test]
fn a2_13_execution_time_grows_with_execution() {
    let guest = guest(&code![mov(0, 1_000_000), subs(0, 0, 1), b_ne(-1), hvc(1)]);
    let before = guest.vcpu.get_exec_time().unwrap();
    guest.run_to(1);
    assert!(guest.vcpu.get_exec_time().unwrap() > before);
}
