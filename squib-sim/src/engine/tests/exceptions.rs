//! Exceptions to EL1 and exits to the host: syndromes, addresses, PSTATE.

use super::*;
use crate::config::ClockMode::Host;

const EL1H_MASKED: u64 = 0x3c5;

#[test]
fn a_loop_runs_and_hvc_leaves_with_pc_behind_it() {
    let mut bench = Bench::new(Host);
    bench.code(
        RAM,
        &[
            0xd280_0000, // mov x0, #0
            0xd280_7d01, // mov x1, #1000
            0x8b01_0000, // add x0, x0, x1
            0xf100_0421, // subs x1, x1, #1
            0x54ff_ffc1, // b.ne .-8
            HVC,
        ],
    );
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.x[0], 500_500);
    assert_eq!(bench.vcpu.cpu.pc, RAM + 24);
    assert_eq!(bench.vcpu.cpu.retired(), 2 + 3000 + 1);
}

#[test]
fn exits_of_instructions_that_only_the_host_can_carry_out() {
    // Instruction, syndrome; PC stays on it.
    let cases: [(u32, u64); 5] = [
        (0xd420_0060, 0xf200_0003), // brk #3
        (0xd400_00a3, 0x5e00_0005), // smc #5
        (0xd53b_9c07, 0x6230_e4f9), // mrs x7, pmcr_el0: op0 3 op2 0 op1 3 CRn 9 Rt 7 CRm 12, read
        (0xd510_1087, 0x6228_04e0), // msr oslar_el1, x7: op0 2 op2 4 op1 0 CRn 1 Rt 7 CRm 0, write
        (0xd503_207f, 0x07e0_0000), // wfi
    ];
    for (insn, esr) in cases {
        let mut bench = Bench::new(Host);
        bench.code(RAM, &[0xd503_201f, insn]);
        let (found, _, _) = bench.run_to_exception();
        assert_eq!(found, esr, "{insn:#x}: {found:#x}");
        assert_eq!(bench.vcpu.cpu.pc, RAM + 4);
        assert_eq!(bench.vcpu.cpu.retired(), 1);
    }
}

#[test]
fn mmio_leaves_with_the_access_described() {
    let access = [
        (0x3900_1020, 4, 0x9300_0047u64), // strb w0, [x1, #4]: WnR, translation fault
        (0xf940_0022, 0, 0x93c2_8007),    // ldr x2, [x1]: SAS 3, SRT 2, SF
        (0x79c0_0423, 2, 0x9363_0007),    // ldrsh w3, [x1, #2]: SAS 1, SSE, SRT 3
        (0xa940_1424, 0, 0x9200_0007),    // ldp x4, x5, [x1]: ISV 0
    ];
    for (insn, offset, esr) in access {
        let mut bench = Bench::new(Host);
        bench.code(RAM, &[0xd503_201f, insn, HVC]);
        bench.vcpu.cpu.x[1] = 0x0900_0000;
        let (found, far, ipa) = bench.run_to_exception();
        assert_eq!((found, far, ipa), (esr, 0x0900_0000 + offset, 0x0900_0000 + offset), "{insn:#x}: {found:#x}");
        assert_eq!(bench.vcpu.cpu.pc, RAM + 4);
        // The host emulates and steps over it.
        bench.vcpu.cpu.pc += 4;
        bench.run_to_hvc();
    }
}

#[test]
fn undefined_and_svc_go_to_el1() {
    let mut bench = Bench::new(Host);
    bench.hvc_vectors();
    bench.code(RAM, &[0xd503_201f, 0x0000_0000]); // nop; udf #0
    bench.run_to_hvc();
    assert_eq!(bench.get(reg::ESR), 1 << 25);
    assert_eq!((bench.get(reg::ELR), bench.get(reg::SPSR)), (RAM + 4, EL1H_MASKED));
    assert_eq!(bench.vcpu.cpu.pc, VECTORS + 0x204);

    bench.vcpu.cpu.pc = RAM;
    bench.code(RAM + 0x100, &[0xd400_00e1]); // svc #7
    bench.vcpu.cpu.pc = RAM + 0x100;
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::ELR)), (0x5600_0007, RAM + 0x104));
}

#[test]
fn el0_comes_in_by_the_lower_level_vectors() {
    // What EL0 may not do, and the syndrome EL1 sees.
    let cases: [(u32, u64, u64); 6] = [
        (0xd400_00e1, 0x5600_0007, 4),                                                    // svc #7
        (0xd538_0001, 0x0200_0000, 0),                                                    // mrs x1, midr_el1: UNDEFINED
        (0xd503_42df, 0x6200_0000 | 0x1f << 5 | 3 << 14 | 4 << 10 | 2 << 1 | 6 << 17, 0), // msr daifset, #2
        (0xd53b_0021, 0x6232_c021, 0), // mrs x1, ctr_el0: SCTLR_EL1.UCT = 0
        (0xd50b_7420, 0x6212_dc08, 0), // dc zva, x0: SCTLR_EL1.DZE = 0
        (0xd69f_03e0, 0x0200_0000, 0), // eret: UNDEFINED
    ];
    for (insn, esr, advance) in cases {
        let mut bench = Bench::new(Host);
        bench.identity_map();
        bench.hvc_vectors();
        bench.poke(Bench::page_descriptor(0), DATA | 0x743); // EL0 may read, write and execute
        bench.code(RAM, &[0xd69f_03e0]); // eret
        bench.code(DATA, &[insn]);
        bench.set(reg::ELR, DATA);
        bench.set(reg::SPSR, 0x8000_0000);
        bench.run_to_hvc();
        let found = bench.get(reg::ESR);
        assert_eq!(found, esr, "{insn:#x}: {found:#x}");
        assert_eq!(bench.get(reg::ELR), DATA + advance);
        assert_eq!(bench.get(reg::SPSR), 0x8000_0000);
        assert_eq!(bench.vcpu.cpu.pc, VECTORS + 0x404);
    }
}

#[test]
fn fp_is_trapped_until_enabled() {
    let mut bench = Bench::new(Host);
    bench.hvc_vectors();
    bench.code(RAM, &[0x9e67_0000, HVC]); // fmov d0, x0
    bench.vcpu.cpu.x[0] = 77;
    bench.run_to_hvc();
    assert_eq!(bench.get(reg::ESR), 0x1fe0_0000);
    assert_eq!(bench.get(reg::ELR), RAM);
    bench.set(0xc082, 3 << 20);
    bench.vcpu.cpu.pc = RAM;
    bench.run_to_hvc();
    assert_eq!((bench.vcpu.cpu.v[0], bench.vcpu.cpu.pc), (77, RAM + 8));
}

#[test]
fn misaligned_pc_and_sp_fault() {
    let mut bench = Bench::new(Host);
    bench.hvc_vectors();
    bench.code(RAM, &[0xd61f_00a0]); // br x5
    bench.vcpu.cpu.x[5] = RAM + 6;
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::FAR), bench.get(reg::ELR)), (0x8a00_0000, RAM + 6, RAM + 6));

    bench.set(reg::SCTLR, 1 << 3);
    bench.code(RAM, &[0xf940_07e0]); // ldr x0, [sp, #8]
    bench.vcpu.cpu.set_sp_el(1, DATA + 8);
    bench.vcpu.cpu.pc = RAM;
    bench.vcpu.cpu.carry_out(crate::engine::shared::Request::CodeAll);
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::ELR)), (0x9a00_0000, RAM));
}

#[test]
fn an_illegal_return_sets_il_and_the_next_instruction_faults() {
    let mut bench = Bench::new(Host);
    bench.hvc_vectors();
    bench.code(RAM, &[0xd69f_03e0]); // eret
    bench.code(RAM + 0x40, &[0xd503_201f]); // nop
    bench.set(reg::ELR, RAM + 0x40);
    bench.set(reg::SPSR, 0x8000_03c9); // EL2h
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::ELR)), (0x3a00_0000, RAM + 0x40));
    assert_eq!(bench.get(reg::SPSR), 0x8010_03c5);
}

#[test]
fn the_virtual_timer_leaves_to_the_host_once_and_masks_itself() {
    let mut bench = Bench::new(Host);
    bench.code(RAM, &[SELF]);
    bench.set(reg::CNTV_CVAL, 0);
    bench.set(reg::CNTV_CTL, 1);
    assert_eq!(bench.vcpu.run(), Exit::VtimerActivated);
    assert!(bench.vcpu.cpu.timer.masked);
    bench.vcpu.cpu.shared.request_exit();
    assert_eq!(bench.vcpu.run(), Exit::Canceled);
    assert_eq!(bench.get(reg::CNTV_CTL), 5);
}

#[test]
fn pending_interrupts_are_taken_when_unmasked_and_last_for_one_run() {
    let mut bench = Bench::new(Host);
    bench.hvc_vectors();
    bench.code(RAM, &[0xd503_42ff, HVC]); // msr daifclr, #2
    bench.vcpu.set_pending_interrupt(false, true);
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.pc, VECTORS + 0x284);
    assert_eq!(bench.get(reg::ELR), RAM + 4);
    assert!(!bench.vcpu.pending_interrupt(false));
}
