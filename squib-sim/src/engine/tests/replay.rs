//! Deterministic time: exact stops, and independence of how code is cut into blocks.

use super::*;
use crate::config::ClockMode::Deterministic;

/// A guest that computes, reads the counter in the middle of blocks, and takes timer interrupts at a period that is no
/// multiple of anything; x20 hashes what it sees.
fn guest() -> Bench {
    let mut bench = Bench::new(Deterministic);
    bench.code(
        RAM,
        &[
            0xd51b_e318, // msr cntv_tval_el0, x24
            0xd280_0020, // mov x0, #1
            0xd51b_e320, // msr cntv_ctl_el0, x0
            0xd503_42ff, // msr daifclr, #2
            0x9100_0442, // add x2, x2, #1
            0xd53b_e041, // mrs x1, cntvct_el0
            0x9b02_5034, // madd x20, x1, x2, x20
            0xca54_2694, // eor x20, x20, x20, lsr #9
            0x9100_0442, // add x2, x2, #1
            0xf100_0463, // subs x3, x3, #1
            0x54ff_ff41, // b.ne .-24
            HVC,
        ],
    );
    bench.vcpu.cpu.x[3] = 20_000;
    bench.vcpu.cpu.x[24] = 333;
    bench
}

/// The host's side: timer exits become a visit of the vCPU's state, unmasking and a new deadline.
fn run(bench: &mut Bench, mut limit: impl FnMut(u64) -> Option<u64>) -> (u64, u64, u64) {
    loop {
        let next = limit(bench.vcpu.cpu.retired());
        bench.vcpu.cpu.counters.limit.store(next.unwrap_or(u64::MAX), std::sync::atomic::Ordering::SeqCst);
        match bench.vcpu.run() {
            Exit::Canceled => assert_eq!(Some(bench.vcpu.cpu.retired()), next),
            Exit::VtimerActivated => {
                let cpu = &mut bench.vcpu.cpu;
                cpu.x[20] ^= cpu.pc << 32 | cpu.x[3];
                cpu.timer.cval += 777;
                cpu.timer.masked = false;
            }
            Exit::Exception { esr, .. } => {
                assert_eq!(esr, HVC_ESR);
                let cpu = &bench.vcpu.cpu;
                return (cpu.x[20], cpu.retired(), cpu.virtual_count());
            }
        }
    }
}

/// The same for a guest that sleeps until its timer, with a GIC.
fn sleeper() -> Bench {
    let mut bench = Bench::new(Deterministic);
    bench.gic(&[&bench.vcpu.cpu]);
    bench.code(
        RAM,
        &[
            0xd51b_e318, // msr cntv_tval_el0, x24
            0xd51b_e320, // msr cntv_ctl_el0, x0
            0xd503_207f, // wfi
            0xd53b_e041, // mrs x1, cntvct_el0
            0x9b02_5034, // madd x20, x1, x2, x20
            0xd538_cc04, // mrs x4, icc_iar1_el1
            0xd51b_e33f, // msr cntv_ctl_el0, xzr
            0xd518_cc24, // msr icc_eoir1_el1, x4
            0xf100_0463, // subs x3, x3, #1
            0x54ff_fee1, // b.ne .-36
            HVC,
        ],
    );
    let cpu = &mut bench.vcpu.cpu;
    (cpu.x[0], cpu.x[2], cpu.x[3], cpu.x[24]) = (1, 0x1_0001, 100, 5000);
    bench
}

#[test]
fn stops_at_any_count_change_nothing() {
    let whole = run(&mut guest(), |_| None);
    assert_eq!(whole.1, 4 + 20_000 * 7 + 1);
    let mut seed = 1u64;
    for _ in 0..20 {
        let mut bench = guest();
        // The clock is the process's: time starts anew with the machine.
        let cut = run(&mut bench, |done| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some(done + 1 + (seed >> 33) % 5000)
        });
        assert_eq!(cut, whole, "seed {seed}");
    }
}

#[test]
fn a_sleeping_guest_wakes_at_its_deadline_to_the_tick() {
    let mut bench = sleeper();
    let whole = run(&mut bench, |_| None);
    assert_eq!(bench.vcpu.cpu.x[4], 27);
    // A round: the deadline is 5000 from the write of TVAL; then WFI itself and seven more retire.
    assert_eq!((whole.1, whole.2), (1001, 100 * (5000 + 8) + 1));
    for step in 1..13 {
        assert_eq!(run(&mut sleeper(), |done| Some(done + step)), whole, "stops every {step} instructions");
    }
}
