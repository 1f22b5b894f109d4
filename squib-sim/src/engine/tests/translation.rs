//! Stage 1, the TLB, and self-modifying code.

use super::*;
use crate::config::ClockMode::Host;
use crate::engine::shared::Request;

const LDR_X2_X0: u32 = 0xf940_0002;
const STR_X3_X1: u32 = 0xf900_0023;

#[test]
fn both_halves_of_the_address_space_translate() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.poke(DATA + 8, 0x1234);
    bench.code(RAM, &[LDR_X2_X0, STR_X3_X1, HVC]);
    bench.vcpu.cpu.x[0] = (DATA + 8) | 0xffff_ff80_0000_0000;
    bench.vcpu.cpu.x[1] = DATA + 16;
    bench.vcpu.cpu.x[3] = 0x5678;
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.x[2], 0x1234);
    assert_eq!(bench.peek(DATA + 16), 0x5678);
}

#[test]
fn stage_1_faults_tell_what_and_where() {
    // Descriptor of DATA's page, the instruction, its syndrome.
    let cases: [(u64, u32, u64); 6] = [
        (0, LDR_X2_X0, 0x9600_0007),                        // translation, level 3
        (DATA | 0x303, LDR_X2_X0, 0x9600_000b),             // access flag
        (DATA | 0x783, STR_X3_X1, 0x9600_004f),             // permission, write
        (DATA | 0x783, 0xd61f_0000, 0),                     // br x0: executable, see below
        (1 << 45 | 0x703, LDR_X2_X0, 0x9600_0003),          // address size
        (DATA | 1 << 53 | 0x703, 0xd61f_0000, 0x8600_000f), // br x0: PXN
    ];
    for (descriptor, insn, esr) in cases {
        let mut bench = Bench::new(Host);
        bench.identity_map();
        bench.hvc_vectors();
        bench.poke(Bench::page_descriptor(0), descriptor);
        bench.code(RAM, &[insn, HVC]);
        bench.code(DATA, &[HVC]);
        (bench.vcpu.cpu.x[0], bench.vcpu.cpu.x[1]) = (DATA, DATA);
        bench.run_to_hvc();
        let found = bench.get(reg::ESR);
        assert_eq!(found, esr, "{descriptor:#x} {insn:#x}: {found:#x}");
        if esr != 0 {
            assert_eq!(bench.get(reg::FAR), DATA);
        }
    }
}

#[test]
fn addresses_outside_both_halves_fault_and_tags_are_ignored_when_asked() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.hvc_vectors();
    bench.code(RAM, &[LDR_X2_X0, HVC]);
    bench.vcpu.cpu.x[0] = DATA | 0x55 << 56;
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::FAR)), (0x9600_0004, DATA | 0x55 << 56));
    let tcr = bench.get(reg::TCR);
    bench.set(reg::TCR, tcr | 1 << 37);
    bench.poke(DATA, 99);
    bench.vcpu.cpu.pc = RAM;
    bench.run_to_hvc();
    assert_eq!((bench.vcpu.cpu.x[2], bench.vcpu.cpu.pc), (99, RAM + 8));
}

#[test]
fn access_flag_and_dirty_state_are_managed_by_hardware() {
    let mut bench = Bench::new(Host);
    bench.map_with(3 << 39);
    let clean = DATA | 1 << 51 | 0x383; // DBM, read-only, AF clear
    bench.poke(Bench::page_descriptor(0), clean);
    bench.code(RAM, &[LDR_X2_X0, HVC, STR_X3_X1, HVC]);
    (bench.vcpu.cpu.x[0], bench.vcpu.cpu.x[1]) = (DATA, DATA);
    bench.run_to_hvc();
    assert_eq!(bench.peek(Bench::page_descriptor(0)), clean | 1 << 10);
    bench.run_to_hvc();
    assert_eq!(bench.peek(Bench::page_descriptor(0)), (clean | 1 << 10) & !(1 << 7));
}

#[test]
fn privileged_access_never_keeps_the_kernel_off_user_pages() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.hvc_vectors();
    bench.poke(Bench::page_descriptor(0), DATA | 0x743);
    bench.poke(DATA, 5);
    // ldr x2, [x0]; msr pan, #1; ldtr x4, [x0]; ldr x2, [x0]
    bench.code(RAM, &[LDR_X2_X0, 0xd500_419f, 0xf840_0804, LDR_X2_X0]);
    bench.vcpu.cpu.x[0] = DATA;
    bench.run_to_hvc();
    assert_eq!((bench.vcpu.cpu.x[2], bench.vcpu.cpu.x[4]), (5, 5));
    assert_eq!((bench.get(reg::ESR), bench.get(reg::ELR)), (0x9600_000f, RAM + 12));
}

#[test]
fn tlbi_makes_a_new_mapping_visible() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.poke(DATA, 1);
    bench.poke(DATA + 0x1000, 2);
    bench.code(
        RAM,
        &[
            LDR_X2_X0,
            STR_X3_X1,   // the descriptor
            0xd503_3b9f, // dsb ish
            0xd508_8364, // tlbi vaae1is, x4
            0xd503_3b9f, // dsb ish
            0xd503_3fdf, // isb
            0xf940_0005, // ldr x5, [x0]
            HVC,
        ],
    );
    let cpu = &mut bench.vcpu.cpu;
    (cpu.x[0], cpu.x[1], cpu.x[3], cpu.x[4]) = (DATA, Bench::page_descriptor(0), (DATA + 0x1000) | 0x703, DATA >> 12);
    bench.run_to_hvc();
    assert_eq!((bench.vcpu.cpu.x[2], bench.vcpu.cpu.x[5]), (1, 2));
}

#[test]
fn a_block_mapping_goes_with_any_of_its_addresses() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    let block = RAM + (4 << 21);
    bench.poke(block + 0x5000, 7);
    bench.code(RAM, &[LDR_X2_X0, HVC]);
    bench.vcpu.cpu.x[0] = block + 0x5000;
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.x[2], 7);
    bench.poke(TABLES + 0x1000 + 4 * 8, (RAM + (5 << 21)) | 0x701);
    bench.poke(RAM + (5 << 21) + 0x5000, 8);
    bench.vcpu.cpu.carry_out(Request::TlbVa(block + 0x10_0000));
    bench.vcpu.cpu.pc = RAM;
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.x[2], 8);
}

#[test]
fn device_memory_and_stage_1_off_refuse_unaligned_accesses() {
    let mut bench = Bench::new(Host);
    bench.hvc_vectors();
    bench.code(RAM, &[LDR_X2_X0, HVC]);
    bench.vcpu.cpu.x[0] = DATA + 1;
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::FAR)), (0x9600_0021, DATA + 1));
    bench.identity_map();
    bench.vcpu.cpu.pc = RAM;
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.pc, RAM + 8);
    bench.poke(Bench::page_descriptor(0), DATA | 0x707); // attribute 1: Device-nGnRnE
    bench.vcpu.cpu.carry_out(Request::TlbAll);
    bench.vcpu.cpu.pc = RAM;
    bench.run_to_hvc();
    assert_eq!((bench.get(reg::ESR), bench.get(reg::ELR)), (0x9600_0021, RAM));
}

#[test]
fn unaligned_accesses_across_pages_go_to_both() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.poke(Bench::page_descriptor(1), (DATA + 0x3000) | 0x703);
    bench.code(RAM, &[STR_X3_X1, LDR_X2_X0, HVC]);
    let cpu = &mut bench.vcpu.cpu;
    (cpu.x[0], cpu.x[1], cpu.x[3]) = (DATA + 0xffd, DATA + 0xffd, 0x8877_6655_4433_2211);
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.x[2], 0x8877_6655_4433_2211);
    assert_eq!(bench.peek(DATA + 0x3000), 0x88_7766_5544);
    assert_eq!(bench.peek(DATA + 0xff8) >> 40, 0x33_2211);
}

#[test]
fn stage_2_faults_on_a_walk_name_the_descriptor() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.poke(TABLES + 0x1000 + 8, 0x2000_0000 | 3); // DATA's level-3 table is not in RAM
    bench.code(RAM, &[LDR_X2_X0]);
    bench.vcpu.cpu.x[0] = DATA + 0x3008;
    // The page is the descriptor's, the offset the access's.
    assert_eq!(bench.run_to_exception(), (0x9200_0087, DATA + 0x3008, 0x2000_0008));
}

#[test]
fn stage_2_write_protection_leaves_and_the_store_is_retried() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.code(RAM, &[LDR_X2_X0, STR_X3_X1, HVC]);
    let page = DATA & !0x3fff;
    bench.machine.stage2.protect(page, 0x4000, Perms::READ | Perms::EXEC).unwrap();
    bench.machine.stage2_changed(page, 0x4000, false);
    let cpu = &mut bench.vcpu.cpu;
    (cpu.x[0], cpu.x[1], cpu.x[3]) = (DATA, DATA, 3);
    let (esr, far, ipa) = bench.run_to_exception();
    assert_eq!((esr, far, ipa), (0x93c3_804f, DATA, DATA));
    bench.machine.stage2.protect(page, 0x4000, Perms::READ | Perms::WRITE | Perms::EXEC).unwrap();
    bench.run_to_hvc();
    assert_eq!(bench.peek(DATA), 3);
}

#[test]
fn address_translation_instructions_fill_par() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    // at s1e1r, x0; mrs x1, par_el1; at s1e0w, x0; mrs x2, par_el1
    bench.code(RAM, &[0xd508_7800, 0xd538_7401, 0xd508_7860, 0xd538_7402, HVC]);
    bench.vcpu.cpu.x[0] = DATA + 0x123;
    bench.run_to_hvc();
    assert_eq!(bench.vcpu.cpu.x[1], 0xff << 56 | DATA | 1 << 11 | 3 << 7);
    assert_eq!(bench.vcpu.cpu.x[2], 1 << 11 | 0xf << 1 | 1);
}

#[test]
fn modified_code_is_executed_after_ic_ivau() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.code(
        RAM,
        &[
            0xd63f_0000, // blr x0
            0xaa01_03ea, // mov x10, x1
            0xb900_0002, // str w2, [x0]
            0xd50b_7b20, // dc cvau, x0
            0xd503_3b9f, // dsb ish
            0xd50b_7520, // ic ivau, x0
            0xd503_3b9f, // dsb ish
            0xd503_3fdf, // isb
            0xd63f_0000, // blr x0
            HVC,
            0xd280_0021, // mov x1, #1
            0xd65f_03c0, // ret
        ],
    );
    bench.vcpu.cpu.x[0] = RAM + 40;
    bench.vcpu.cpu.x[2] = 0xd280_0041; // mov x1, #2
    bench.run_to_hvc();
    assert_eq!((bench.vcpu.cpu.x[10], bench.vcpu.cpu.x[1]), (1, 2));
}

#[test]
fn sixteen_kilobyte_granule_translates_blocks_and_pages() {
    let mut bench = Bench::new(Host);
    bench.hvc_vectors();
    // 36-bit addresses: the walk starts at level 2, 32 MiB an entry.
    let (level2, level3) = (TABLES, TABLES + 0x4000);
    bench.poke(level2 + 8 * (RAM >> 25), RAM | 0x701);
    bench.poke(level2 + 8 * ((RAM >> 25) + 1), level3 | 3);
    bench.poke(level3 + 8 * 5, (DATA + 0x4000) | 0x703);
    bench.set(reg::MAIR, 0xff);
    bench.set(reg::TCR, 28 | 2 << 14 | 1 << 23 | 2 << 32);
    bench.set(reg::TTBR0, level2);
    bench.set(reg::SCTLR, 1);
    bench.poke(DATA + 0x4000 + 0x3008, 42);
    bench.code(RAM, &[LDR_X2_X0, HVC]);
    bench.vcpu.cpu.x[0] = RAM + (1 << 25) + 5 * 0x4000 + 0x3008;
    bench.run_to_hvc();
    assert_eq!((bench.vcpu.cpu.x[2], bench.vcpu.cpu.pc), (42, RAM + 8));
    // EPD1: the upper half is not walked.
    bench.vcpu.cpu.x[0] = 0xffff_fff0_0000_0000;
    bench.vcpu.cpu.pc = RAM;
    bench.run_to_hvc();
    assert_eq!(bench.get(reg::ESR), 0x9600_0004);
}

#[test]
fn execute_never_depends_on_who_executes_and_on_writability() {
    const UXN: u64 = 1 << 54;
    const PXN: u64 = 1 << 53;
    // Descriptor bits, SCTLR_EL1.WXN, EL0: is a fetch allowed?
    let cases = [
        (0x703, false, false, true),
        (0x743, false, true, true),
        (0x743, false, false, false), // writable at EL0: never executable at EL1
        (0x743 | UXN, false, true, false),
        (0x7c3 | PXN, false, true, true),
        (0x7c3, false, false, true),
        (0x703, true, false, false),
        (0x743, true, true, false),
        (0x7c3, true, true, true),
    ];
    for (bits, wxn, el0, allowed) in cases {
        let mut bench = Bench::new(Host);
        bench.identity_map();
        bench.hvc_vectors();
        // The program and the vectors stay executable under WXN: read-only at EL1.
        bench.poke(TABLES + 0x1000, RAM | 0x781);
        bench.poke(Bench::page_descriptor(0), DATA | bits);
        bench.code(RAM, &[0xd69f_03e0]); // eret
        bench.code(DATA, &[0xd400_0001]); // svc #0
        bench.set(reg::ELR, DATA);
        bench.set(reg::SPSR, if el0 { 0 } else { 0x3c5 });
        let sctlr = bench.get(reg::SCTLR);
        bench.set(reg::SCTLR, sctlr | u64::from(wxn) << 19);
        bench.run_to_hvc();
        let class = bench.get(reg::ESR) >> 26;
        let expected = if allowed { 0x15 } else { 0x21 - u64::from(el0) };
        assert_eq!(class, expected, "{bits:#x} wxn {wxn} el0 {el0}");
    }
}

#[test]
fn address_spaces_are_kept_apart_and_kernel_mappings_survive_a_switch() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.hvc_vectors();
    // Two address spaces, whose page 0 of DATA differs; EL0 reads it.
    let other = TABLES + 0x8000;
    bench.poke(other + 8, (other + 0x1000) | 3);
    bench.poke(other + 0x1000, RAM | 0x701);
    bench.poke(other + 0x1008, (other + 0x2000) | 3);
    let user = 0x743 | 1 << 11;
    bench.poke(other + 0x2000, (DATA + 0x2000) | user);
    bench.poke(other + 0x2008, (DATA + 0x1000) | user);
    bench.poke(Bench::page_descriptor(0), DATA | user);
    bench.poke(Bench::page_descriptor(1), (DATA + 0x1000) | user);
    bench.poke(DATA, 10);
    bench.poke(DATA + 0x2000, 20);
    bench.code(DATA + 0x1000, &[LDR_X2_X0, 0xd400_0001]); // svc #0
    bench.code(RAM, &[0xd69f_03e0]); // eret
    bench.vcpu.cpu.x[0] = DATA;
    for (ttbr0, value) in [(TABLES, 10), (other | 1 << 48, 20), (TABLES, 10), (other | 1 << 48, 20)] {
        bench.set(reg::TTBR0, ttbr0);
        bench.set(reg::ELR, DATA + 0x1000);
        bench.set(reg::SPSR, 0);
        bench.vcpu.cpu.pc = RAM;
        bench.run_to_hvc();
        assert_eq!((bench.vcpu.cpu.x[2], bench.get(reg::ESR)), (value, 0x5600_0000));
    }
}

#[test]
fn a_descriptor_that_may_not_be_written_stops_its_update() {
    const SVC: u32 = 0xd400_0001;
    let fetch = [0xd61f_0000, HVC]; // br x0
    // Program, descriptor of DATA's page, syndrome, what the descriptor becomes.
    let access_flag = |old: u64| old | 1 << 10;
    let cases: [(&[u32], u64, u64, u64); 4] = [
        (&[LDR_X2_X0, HVC], DATA | 0x303, 0x9200_00cf, access_flag(DATA | 0x303)),
        (&[STR_X3_X1, HVC], DATA | 1 << 51 | 0x783, 0x9200_00cf, DATA | 1 << 51 | 0x703),
        (&[0xf823_0002, HVC], DATA | 1 << 51 | 0x783, 0x9200_00cf, DATA | 1 << 51 | 0x703), // ldadd x3, x2, [x0]
        (&fetch, DATA | 0x383, 0x8200_008f, access_flag(DATA | 0x383)),
    ];
    for (program, descriptor, syndrome, updated) in cases {
        let mut bench = Bench::new(Host);
        bench.map_with(3 << 39);
        bench.hvc_vectors();
        bench.code(RAM, program);
        bench.code(DATA, &[SVC]);
        bench.poke(Bench::page_descriptor(0), descriptor);
        let tables = TABLES & !0x3fff;
        bench.machine.stage2.protect(tables, 0x4000, Perms::READ | Perms::EXEC).unwrap();
        (bench.vcpu.cpu.x[0], bench.vcpu.cpu.x[1]) = (DATA, DATA);
        let (esr, far, ipa) = bench.run_to_exception();
        assert_eq!((esr, far, ipa), (syndrome, DATA, Bench::page_descriptor(0) & !0xfff), "{program:x?}");
        assert_eq!(bench.peek(Bench::page_descriptor(0)), descriptor);
        bench.machine.stage2.protect(tables, 0x4000, Perms::READ | Perms::WRITE).unwrap();
        bench.run_to_hvc();
        assert_eq!(bench.peek(Bench::page_descriptor(0)), updated, "{program:x?}");
    }
}

#[test]
fn address_translation_that_meets_missing_memory_is_marked() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.poke(TABLES + 0x1000 + 8, 0x2000_0000 | 3); // DATA's level-3 table is not in RAM
    bench.code(RAM, &[0xd508_7800]); // at s1e1r, x0
    bench.vcpu.cpu.x[0] = DATA;
    // S1PTW, CM, and WnR, which always goes with CM.
    assert_eq!(bench.run_to_exception(), (0x9200_01c7, DATA, 0x2000_0000));
}
