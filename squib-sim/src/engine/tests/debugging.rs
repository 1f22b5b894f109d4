//! Self-hosted debug.

use super::*;
use crate::config::ClockMode::Host;

#[test]
fn software_step_executes_one_instruction_and_comes_back() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.hvc_vectors();
    bench.poke(Bench::page_descriptor(0), DATA | 0x743);
    bench.code(RAM, &[0xd69f_03e0]); // eret
    bench.code(DATA, &[0xd503_201f, 0xd503_201f, 0xd400_0001]); // nop; nop; svc #0
    bench.set(reg::MDSCR, 1);
    for (elr, esr) in [(DATA + 4, 0xca00_0022 | 1 << 24), (DATA + 8, 0xca00_0022 | 1 << 24)] {
        bench.set(reg::ELR, elr - 4);
        bench.set(reg::SPSR, 1 << 21);
        bench.vcpu.cpu.pc = RAM;
        bench.run_to_hvc();
        assert_eq!((bench.get(reg::ELR), bench.get(reg::ESR)), (elr, esr));
        assert_eq!(bench.get(reg::SPSR), 0);
    }
    // The stepped SVC is taken as SVC, and leaves SS clear: the step completes when EL1 returns.
    bench.set(reg::ELR, DATA + 8);
    bench.set(reg::SPSR, 1 << 21);
    bench.vcpu.cpu.pc = RAM;
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::SPSR)), (0x5600_0000, 0));
}

#[test]
fn a_breakpoint_fires_before_its_instruction() {
    let mut bench = Bench::new(Host);
    bench.hvc_vectors();
    bench.code(RAM, &[0xd503_48ff, 0xd503_201f, 0xd503_201f, HVC]); // msr daifclr, #8; nop; nop
    bench.set(reg::MDSCR, 1 << 15 | 1 << 13);
    bench.set(0x8004, RAM + 8);
    bench.set(0x8005, 0xf << 5 | 3 << 1 | 1);
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::ELR)), (0xc600_0022, RAM + 8));
}

#[test]
fn a_watchpoint_fires_on_a_store_to_its_bytes_only() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.hvc_vectors();
    // msr daifclr, #8; str x3, [x1]; str x3, [x0]
    bench.code(RAM, &[0xd503_48ff, 0xf900_0023, 0xf900_0003]);
    bench.set(reg::MDSCR, 1 << 15 | 1 << 13);
    bench.set(0x8006, DATA + 8);
    bench.set(0x8007, 0xff << 5 | 2 << 3 | 3 << 1 | 1);
    (bench.vcpu.cpu.x[0], bench.vcpu.cpu.x[1]) = (DATA + 12, DATA + 16);
    bench.run_to_hvc();
    let found = (bench.get(reg::ESR), bench.get(reg::FAR), bench.get(reg::ELR));
    assert_eq!(found, (0xd600_0062, DATA + 12, RAM + 8));
}

#[test]
fn debug_exceptions_go_to_the_host_when_it_asks() {
    let mut bench = Bench::new(Host);
    bench.code(RAM, &[0xd503_201f, 0xd503_201f]);
    bench.vcpu.cpu.trap_debug_exceptions = true;
    bench.set(reg::MDSCR, 1);
    bench.vcpu.cpu.set_pstate(0x3c5 | 1 << 21);
    let (esr, ..) = bench.run_to_exception();
    assert_eq!((esr, bench.vcpu.cpu.pc), (0xca00_0022 | 1 << 24, RAM + 4));
}
