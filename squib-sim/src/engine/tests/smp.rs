//! Two vCPUs on two threads.

use super::*;
use crate::config::ClockMode::Host;
use crate::engine::shared::{Request, broadcast};
use std::thread::JoinHandle;

/// A second vCPU with the same translation as the first.
pub fn second(bench: &Bench) -> Vcpu {
    let mut other = Bench::vcpu(&bench.machine, 1);
    for register in [reg::MAIR, reg::TCR, reg::TTBR0, reg::TTBR1, reg::SCTLR, reg::VBAR] {
        other.cpu.host_set_sys_reg(register, bench.get(register));
    }
    other
}

/// A `Vcpu` belongs to the thread that runs it; a test hands it over before, and takes it back after.
struct Handed(Vcpu);
// SAFETY: only ever one thread has it.
unsafe impl Send for Handed {}

/// Runs a vCPU on a thread of its own until its first exit; the answer is the exit and X8.
pub fn start(vcpu: Vcpu) -> JoinHandle<(Exit, u64)> {
    let handed = Handed(vcpu);
    std::thread::spawn(move || {
        let mut handed = handed;
        let handed = &mut handed;
        (handed.0.run(), handed.0.cpu.x[8])
    })
}

#[test]
fn guest_atomics_are_atomic_between_vcpus() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.code(
        RAM,
        &[
            0xc85f_fc01, // ldaxr x1, [x0]
            0x9100_0421, // add x1, x1, #1
            0xc802_fc01, // stlxr w2, x1, [x0]
            0x35ff_ffa2, // cbnz w2, .-12
            0xf823_0004, // ldadd x3, x4, [x0]
            0xf100_04a5, // subs x5, x5, #1
            0x54ff_ff41, // b.ne .-24
            HVC,
        ],
    );
    const ROUNDS: u64 = 100_000;
    let mut other = second(&bench);
    for cpu in [&mut other.cpu, &mut bench.vcpu.cpu] {
        cpu.pc = RAM;
        (cpu.x[0], cpu.x[3], cpu.x[5]) = (DATA, 2, ROUNDS);
    }
    let thread = start(other);
    bench.run_to_hvc();
    assert_eq!(thread.join().unwrap().0, Exit::Exception { esr: HVC_ESR, far: 0, ipa: 0 });
    assert_eq!(bench.peek(DATA), 2 * 3 * ROUNDS);
}

#[test]
fn a_request_to_a_vcpu_that_does_not_run_waits_in_the_mailbox() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.poke(DATA, 1);
    bench.code(RAM, &[0xf940_0002, HVC]); // ldr x2, [x0]
    bench.vcpu.cpu.x[0] = DATA;
    bench.run_to_hvc();
    bench.poke(Bench::page_descriptor(0), (DATA + 0x1000) | 0x703);
    bench.poke(DATA + 0x1000, 2);
    let shared = bench.vcpu.cpu.shared.clone();
    broadcast(&[shared], Request::TlbVa(DATA), true, None);
    bench.vcpu.cpu.pc = RAM;
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.x[2], 2);
}

#[test]
fn an_exit_request_ends_an_endless_loop_and_is_latched() {
    let mut bench = Bench::new(Host);
    bench.code(RAM, &[SELF]);
    bench.vcpu.cpu.shared.request_exit();
    assert_eq!(bench.vcpu.run(), Exit::Canceled);
    let shared = bench.vcpu.cpu.shared.clone();
    let thread = std::thread::spawn(move || shared.request_exit());
    assert_eq!(bench.vcpu.run(), Exit::Canceled);
    thread.join().unwrap();
}

#[test]
fn two_vcpus_invalidate_at_once_and_both_get_on() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.hvc_vectors();
    // Each vCPU remaps its own page to and fro: store, dsb, tlbi vaae1is, dsb, isb, load, compare.
    let remap = |store: u32, compare: u32, out: u32| {
        [store, 0xd503_3b9f, 0xd508_8364, 0xd503_3b9f, 0xd503_3fdf, 0xf940_0008, compare, out]
    };
    let mut code = remap(0xf900_0022, 0xeb06_011f, 0x5400_0161).to_vec(); // str x2, [x1]; cmp x8, x6; b.ne .+44
    code.extend(remap(0xf900_0023, 0xeb07_011f, 0x5400_0061)); // str x3, [x1]; cmp x8, x7; b.ne .+12
    code.extend([0xf100_04a5, 0x54ff_fde1, HVC]); // subs x5, x5, #1; b.ne .-68
    bench.code(RAM, &code);
    const ROUNDS: u64 = 3000;
    let mut other = second(&bench);
    for (page, cpu) in [(0, &mut bench.vcpu.cpu), (8, &mut other.cpu)] {
        let va = DATA + page * 0x1000;
        cpu.pc = RAM;
        (cpu.x[0], cpu.x[1], cpu.x[4], cpu.x[5]) = (va, Bench::page_descriptor(page), va >> 12, ROUNDS);
        (cpu.x[2], cpu.x[3]) = ((va + 0x1000) | 0x703, (va + 0x2000) | 0x703);
        (cpu.x[6], cpu.x[7]) = (page + 1, page + 2);
    }
    for page in [0, 8] {
        bench.poke(DATA + (page + 1) * 0x1000, page + 1);
        bench.poke(DATA + (page + 2) * 0x1000, page + 2);
    }
    let thread = start(other);
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.x[5], 0, "a stale translation was used: {:#x}", bench.vcpu.cpu.x[8]);
    assert_eq!(thread.join().unwrap(), (Exit::Exception { esr: HVC_ESR, far: 0, ipa: 0 }, 10));
}

#[test]
fn code_changed_by_another_vcpu_is_seen_after_its_invalidation() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    let (function, flag) = (RAM + 0x4000, DATA);
    bench.code(function, &[0xd280_0028, 0xd65f_03c0]); // mov x8, #1; ret
    // blr x1; ldar x3, [x0]; cbz x3, .-8; isb; blr x1; hvc
    bench.code(RAM, &[0xd63f_0020, 0xc8df_fc03, 0xb4ff_ffc3, 0xd503_3fdf, 0xd63f_0020, HVC]);
    // str w2, [x1]; dc cvau, x1; dsb ish; ic ivau, x1; dsb ish; mov x3, #1; stlr x3, [x0]; hvc
    let writer = [0xb900_0022, 0xd50b_7b21, 0xd503_3b9f, 0xd50b_7521, 0xd503_3b9f, 0xd280_0023, 0xc89f_fc03, HVC];
    bench.code(RAM + 0x1000, &writer);
    let mut reader = second(&bench);
    reader.cpu.pc = RAM;
    (reader.cpu.x[0], reader.cpu.x[1]) = (flag, function);
    let thread = start(reader);
    std::thread::sleep(std::time::Duration::from_millis(5));
    let cpu = &mut bench.vcpu.cpu;
    cpu.pc = RAM + 0x1000;
    (cpu.x[0], cpu.x[1], cpu.x[2]) = (flag, function, 0xd280_0048); // mov x8, #2
    bench.run_to_hvc();
    assert_eq!(thread.join().unwrap(), (Exit::Exception { esr: HVC_ESR, far: 0, ipa: 0 }, 2));
}

#[test]
fn wfi_sleeps_until_a_software_generated_interrupt_or_the_timer() {
    let mut bench = Bench::new(Host);
    let mut other = second(&bench);
    bench.gic(&[&bench.vcpu.cpu, &other.cpu]);
    bench.code(RAM, &[0xd503_207f, HVC]); // wfi
    bench.code(RAM + 0x1000, &[0xd518_cba0, 0xd503_207f, HVC]); // msr icc_sgi1r_el1, x0; wfi
    other.cpu.pc = RAM;
    let thread = start(other);
    let cpu = &mut bench.vcpu.cpu;
    cpu.pc = RAM + 0x1000;
    cpu.x[0] = 2; // SGI 0 to affinity 0.0.0.1
    cpu.timer.cval = cpu.virtual_count() + 24_000; // a millisecond
    cpu.timer.ctl = 1;
    bench.run_to_hvc();
    assert!(bench.vcpu.cpu.timer_asserted());
    assert_eq!(thread.join().unwrap().0, Exit::Exception { esr: HVC_ESR, far: 0, ipa: 0 });
}
