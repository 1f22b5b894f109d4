//! Two vCPUs on two threads.

use super::*;
use crate::config::ClockMode::Host;
use crate::engine::shared::{Request, broadcast};

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
    let mut other = Bench::vcpu(&bench.machine, 1);
    for register in [reg::MAIR, reg::TCR, reg::TTBR0, reg::TTBR1, reg::SCTLR] {
        other.cpu.host_set_sys_reg(register, bench.get(register));
    }
    for cpu in [&mut other.cpu, &mut bench.vcpu.cpu] {
        cpu.pc = RAM;
        (cpu.x[0], cpu.x[3], cpu.x[5]) = (DATA, 2, ROUNDS);
    }
    // A `Vcpu` belongs to the thread that runs it; the test hands it over before it runs.
    struct Handed(Vcpu);
    // SAFETY: no other thread touches it.
    unsafe impl Send for Handed {}
    let handed = Handed(other);
    let thread = std::thread::spawn(move || {
        let mut handed = handed;
        let handed = &mut handed;
        handed.0.run()
    });
    bench.run_to_hvc();
    assert_eq!(thread.join().unwrap(), Exit::Exception { esr: HVC_ESR, far: 0, ipa: 0 });
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
