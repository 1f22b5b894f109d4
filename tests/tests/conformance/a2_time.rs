//! A2: the virtual timer and time.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

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

#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
mod kernel {
    pub use squib_sim::mach::{mach_absolute_time as now, mach_continuous_time as continuous};

    /// Lets the host sleep.
    pub fn sleep() {
        squib_sim::control::sleep(std::time::Duration::from_secs(3600));
    }
}

#[cfg(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim")))]
mod kernel {
    /// `mach_absolute_time`.
    pub fn now() -> u64 {
        // SAFETY: reads a counter.
        unsafe { mach2::mach_time::mach_absolute_time() }
    }

    /// `mach_continuous_time`.
    pub fn continuous() -> u64 {
        // SAFETY: reads a counter.
        unsafe { mach2::mach_time::mach_continuous_time() }
    }

    /// Nobody puts a Mac to sleep for a test: most have slept since they were started, and the clocks differ by that.
    pub fn sleep() {}
}

use kernel::now;

/// CNTFRQ_EL0 as a guest reads it.
fn frequency() -> u64 {
    let guest = guest(&[mrs(0, CNTFRQ_EL0), hvc(1)]);
    guest.run_to(1);
    guest.x(Reg::X0)
}

/// `mach_absolute_time`, at 24 MHz, in the guest's ticks: no less, and less than one host tick more, than it has counted.
fn ticks(mach: u64, frequency: u64) -> u64 {
    (u128::from(mach) * u128::from(frequency) / MACH_FREQUENCY) as u64
}

/// `mach_absolute_time` ticks per second on Apple silicon.
const MACH_FREQUENCY: u128 = 24_000_000;

/// Arms the timer so that it has fired already.
fn expire(vcpu: &Vcpu) {
    vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 0).unwrap();
    vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ENABLE).unwrap();
}

/// Long enough for any timer that has fired to be noticed: counts X0 down, and reports 1.
fn linger() -> Vec<u32> {
    code![mov(0, 1_000_000), subs(0, 0, 1), b_ne(-1), hvc(1)]
}

#[test]
fn a2_01_the_timer_exits_once_and_masks_itself() {
    let mut guest = guest(&[SPIN]);
    let second = RAM + 0x100;
    guest.write_code(second, &linger());
    assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(false));
    expire(&guest.vcpu);
    for _ in 0..2 {
        assert_eq!(guest.run().reason, ExitReason::VTIMER_ACTIVATED);
        assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(true));
        // Masked: the guest runs on, though the timer has fired.
        guest.vcpu.set_reg(Reg::PC, second).unwrap();
        guest.run_straight_to(1);
        assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(true));
        guest.vcpu.set_vtimer_mask(false).unwrap();
        guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
    }
}

#[test]
fn a2_02_a_masked_or_disabled_timer_does_not_exit() {
    for (masked, ctl) in [(false, 0), (false, ENABLE | IMASK), (false, IMASK), (true, ENABLE)] {
        let guest = guest(&linger());
        expire(&guest.vcpu);
        guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ctl).unwrap();
        guest.vcpu.set_vtimer_mask(masked).unwrap();
        guest.run_straight_to(1);
        assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(masked));
    }
}

/// After an exit, as a host without a GIC looks at it to know when to lower the line.
#[test]
fn a2_03_the_condition_can_be_read_back() {
    let guest = guest(&[hvc(1), hvc(2), hvc(3)]);
    let control = || guest.vcpu.get_sys_reg(SysReg::CNTV_CTL_EL0).unwrap();
    guest.vcpu.set_vtimer_mask(true).unwrap();
    expire(&guest.vcpu);
    let before = control();
    guest.run_straight_to(1);
    assert_eq!(control(), ENABLE | ISTATUS);
    probe(
        "ISTATUS of a timer that has fired, before the guest runs",
        if before & ISTATUS == 0 { "clear" } else { "set" },
    );
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, u64::MAX).unwrap();
    guest.run_straight_to(2);
    assert_eq!(control(), ENABLE);
    // Of a timer that is off ISTATUS says nothing.
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, 0).unwrap();
    guest.run_straight_to(3);
    assert_eq!(control() & (ENABLE | IMASK), 0);
}

#[test]
fn a2_04_the_guest_counts_from_the_offset() {
    let frequency = frequency();
    let guest = guest(&[mrs(0, CNTVCT_EL0), hvc(1), mrs(0, CNTVCT_EL0), hvc(2)]);
    let now = || ticks(now(), frequency);
    let offset = now().wrapping_sub(1_000_000);
    guest.vcpu.set_vtimer_offset(offset).unwrap();
    assert_eq!(guest.vcpu.get_vtimer_offset(), Ok(offset));
    let before = now().wrapping_sub(offset);
    guest.run_to(1);
    let after = now().wrapping_sub(offset) + frequency / 24_000_000;
    assert!((before..=after).contains(&guest.x(Reg::X0)), "{before} {} {after}", guest.x(Reg::X0));
    // An offset ahead of the counter makes guest time negative, and nothing worse.
    let offset = now().wrapping_add(1 << 50);
    guest.vcpu.set_vtimer_offset(offset).unwrap();
    guest.run_to(2);
    assert!((guest.x(Reg::X0) as i64) < 0);
}

#[test]
fn a2_15_the_counter_stands_still_while_the_host_sleeps() {
    let frequency = frequency();
    let guest = guest(&[mrs(0, CNTVCT_EL0), hvc(1), b(-2)]);
    guest.vcpu.set_vtimer_offset(0).unwrap();
    let count = || {
        let before = ticks(now(), frequency);
        guest.run_to(1);
        let after = ticks(now(), frequency) + frequency / 24_000_000;
        let count = guest.x(Reg::X0);
        assert!((before..=after).contains(&count), "{before} {count} {after}");
        count
    };
    let first = count();
    kernel::sleep();
    let last = count();
    let behind = ticks(kernel::continuous(), frequency).saturating_sub(last);
    assert!(last - first < 3600 * frequency, "an hour has not passed while it was awake");
    // Without a sleep this says nothing: put the Mac to sleep once, and run the suite again.
    probe(
        "how far the guest's counter, with offset 0, is behind mach_continuous_time",
        format_args!("{} s", behind / frequency),
    );
}

#[test]
fn a2_05_one_offset_for_all_vcpus_is_one_time() {
    // Each vCPU reads its counter in turn, on its own thread: later readings are never earlier.
    let frequency = frequency();
    let turn = Turn::take();
    let vm = machine();
    let mut ram = vm.memory_create(RAM_SIZE as usize).unwrap();
    ram.map(RAM, MemPerms::RWX).unwrap();
    write_code(&mut ram, RAM, &[ISB, mrs(0, CNTVCT_EL0), hvc(1), b(-3)]);
    let offset = ticks(now(), frequency).wrapping_sub(1_000_000);
    let last = Mutex::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let vcpu = vm.vcpu_create().unwrap();
                prepare(&vcpu, RAM);
                vcpu.set_vtimer_offset(offset).unwrap();
                for _ in 0..50 {
                    let mut last = last.lock().unwrap();
                    assert_eq!(run(&vm, &vcpu).exception.syndrome, hvc_syndrome(1));
                    let count = vcpu.get_reg(Reg::X0).unwrap();
                    assert!(count >= *last, "{count} after {last}");
                    *last = count;
                }
            });
        }
    });
    drop((ram, vm, turn));
}

#[test]
fn a2_06_a6_07_a_timer_that_had_expired_fires_after_restore() {
    let frequency = frequency();
    let guest = guest(&[IRQ_ON, SPIN]);
    guest.vcpu.set_vtimer_offset(ticks(now(), frequency).wrapping_sub(5_000)).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 4_000).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ENABLE).unwrap();
    guest.vcpu.set_vtimer_mask(false).unwrap();
    assert_eq!(guest.run().reason, ExitReason::VTIMER_ACTIVATED);
}

#[test]
fn a2_06_a_timer_fires_while_the_guest_runs() {
    // In 2 ms of guest time.
    let frequency = frequency();
    let guest = guest(&[SPIN]);
    let start = now();
    guest.vcpu.set_vtimer_offset(ticks(start, frequency)).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, frequency / 500).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ENABLE).unwrap();
    assert_eq!(guest.run().reason, ExitReason::VTIMER_ACTIVATED);
    // Less a tick for rounding.
    assert!(now() - start >= 48_000 - 1);
}

#[test]
fn a2_07_a2_08_with_a_gic_the_timer_is_ppi_27() {
    let frequency = frequency();
    let mut guest = gic_guest(&code![mov(0, 1), msr(0xc667, 0), mov(0, 0xff), msr(0xc230, 0), IRQ_ON, WFI, b(-1),]);
    guest.write_code(VECTORS + 0x280, &[mrs(0, 0xc660), hvc(9)]);
    guest.vm.gic_set_distributor_reg(GicDistributorReg::CTLR, 2).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::IGROUPR0, u64::from(u32::MAX)).unwrap();
    guest.vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, 1 << 27).unwrap();
    guest.vcpu.set_vtimer_offset(ticks(now(), frequency)).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, frequency / 1000).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, ENABLE).unwrap();
    let mut exits = 0;
    loop {
        let exit = guest.run();
        match exit.reason {
            ExitReason::VTIMER_ACTIVATED => {
                exits += 1;
                assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(true));
                guest.vcpu.set_vtimer_mask(false).unwrap();
            }
            ExitReason::EXCEPTION if exit.exception.syndrome >> 26 == ec::WFX => guest.skip(),
            _ => {
                assert_eq!(exit.exception.syndrome, hvc_syndrome(9));
                break;
            }
        }
    }
    switch_is_on("vtimer-exits", exits > 0);
    probe(
        "VTIMER_ACTIVATED with a GIC",
        if exits == 0 { "never" } else { "comes, masks itself, and the PPI comes too" },
    );
    assert_eq!(guest.x(Reg::X0), 27);
}

/// Between two readings of the counter lie more than the ticks of `mach_absolute_time` that passed inside, and fewer than those outside:
/// that holds on the busiest host, and tells 1 GHz from 24 MHz.
#[test]
fn a2_09_a2_10_a2_11_the_counter_counts_at_the_frequency_it_names() {
    let frequency = frequency();
    probe("CNTFRQ_EL0", format_args!("{frequency} Hz"));
    let guest = guest(&[mrs(0, CNTVCT_EL0), hvc(1), mrs(1, CNTVCT_EL0), hvc(2)]);
    let outside = now();
    guest.run_to(1);
    let inside = now();
    thread::sleep(Duration::from_millis(50));
    let inside = now() - inside;
    guest.run_to(2);
    let outside = now() - outside;
    let counted = guest.x(Reg::X1) - guest.x(Reg::X0);
    let found = format!("{counted} ticks in {inside} to {outside} of mach_absolute_time");
    probe("the counter in a sleep of 50 ms", &found);
    // One more for the part of a tick at either end.
    let fits = ticks(inside, frequency) <= counted && counted <= ticks(outside + 1, frequency) + 1;
    match (fits, frequency) {
        (true, 24_000_000) => switch("counter", "24mhz"),
        (true, 1_000_000_000) => switch("counter", "1ghz"),
        _ => switch("counter", format_args!("{frequency} Hz, {found}")),
    }
    assert!(fits, "{found}");
}

#[test]
fn a2_13_execution_time_grows_with_execution() {
    let guest = guest(&code![mov(0, 1_000_000), subs(0, 0, 1), b_ne(-1), hvc(1)]);
    let before = guest.vcpu.get_exec_time().unwrap();
    guest.run_to(1);
    assert!(guest.vcpu.get_exec_time().unwrap() > before);
}
