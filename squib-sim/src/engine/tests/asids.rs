//! TLBI by ASID between vCPUs: whoever uses the address space forgets in time, whoever does not is not waited for.

use super::smp::{second, start};
use super::*;
use crate::config::ClockMode::Host;
use crate::engine::shared::{Request, announce};

/// Both halves translate alike: the programs run, and reach what both use, in the upper one, where nothing has an ASID.
const UPPER: u64 = 0xffff_ff80_0000_0000;
const DSB: u32 = 0xd503_3b9f;
const ISB: u32 = 0xd503_3fdf;
const YIELD: u32 = 0xd503_203f;
const VAE1IS: u32 = 0xd508_8324;
const VALE1IS: u32 = 0xd508_83a4;
const ASIDE1IS: u32 = 0xd508_8344;
/// Readable at EL0, with and without an ASID.
const LOCAL: u64 = 0x743 | 1 << 11;
const GLOBAL: u64 = 0x743;

/// The first vCPU leads DATA's page to and fro between two pages, and whenever nobody may use the old one any more, spoils that
/// until the second has gone round twice. The second reads through the page without end, under the first ASID, goes
/// over to the second, pauses, goes back, and must never find anything spoiled. What is invalidated is ASID 7.
fn remap_under_a_reader(tlbi: u32, descriptor: u64, asids: [u64; 2], pause: u32) {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.hvc_vectors();
    let (page, other, flag, progress) = (DATA + 0x1000, DATA + 0x2000, DATA + 0x3000, DATA + 0x3100);
    bench.poke(Bench::page_descriptor(0), page | descriptor);
    let mut writer = vec![
        0xf900_002c, // str x12, [x1]: the mapping
        DSB,
        tlbi, // x4
        DSB,
        0xf900_01a9, // str x9, [x13]: spoils
        0xc8df_fe2a, // ldar x10, [x17]
        0x9100_094a, // add x10, x10, #2
        YIELD,
        0xc8df_fe2b, // ldar x11, [x17]
        0xeb0a_017f, // cmp x11, x10
        0x54ff_ffa3, // b.lo .-12
        0xf900_01bf, // str xzr, [x13]: mends
        DSB,
    ];
    // Swaps both and repeats: mov x14, x12; mov x12, x15; mov x15, x14; the same for x13, x16; subs x5, x5, #1; b.ne.
    writer.extend([0xaa0c_03ee, 0xaa0f_03ec, 0xaa0e_03ef, 0xaa0d_03ee, 0xaa10_03ed, 0xaa0e_03f0, 0xf100_04a5]);
    writer.push(0x5400_0001 | (-(writer.len() as i32) as u32 & 0x7_ffff) << 5);
    writer.extend([0xc89f_fc49, HVC]); // stlr x9, [x2]
    bench.code(RAM, &writer);
    // The load is at the end of a long block, so that the reader is mostly inside of one.
    let mut reader = vec![0xd518_200a, ISB]; // msr ttbr0_el1, x10
    reader.extend([0x9100_05ce; 40]); // add x14, x14, #1
    reader.extend([
        0xf840_0807, // ldtr x7, [x0]
        0xaa07_0108, // orr x8, x8, x7
        0xd518_200b, // msr ttbr0_el1, x11
        pause,
        0x9100_04a5, // add x5, x5, #1
        0xc89f_fc45, // stlr x5, [x2]
        0xc8df_fc23, // ldar x3, [x1]
    ]);
    reader.push(0xb400_0003 | (-(reader.len() as i32) as u32 & 0x7_ffff) << 5); // cbz x3
    reader.push(HVC);
    bench.code(RAM + 0x1000, &reader);
    let mut second = second(&bench);
    second.cpu.pc = UPPER | (RAM + 0x1000);
    (second.cpu.x[0], second.cpu.x[1], second.cpu.x[2]) = (DATA, UPPER | flag, UPPER | progress);
    (second.cpu.x[10], second.cpu.x[11]) = (TABLES | asids[0] << 48, TABLES | asids[1] << 48);
    let thread = start(second);
    bench.set(reg::TTBR0, TABLES | 9 << 48);
    let cpu = &mut bench.vcpu.cpu;
    cpu.pc = UPPER | RAM;
    (cpu.x[1], cpu.x[2], cpu.x[4]) = (UPPER | Bench::page_descriptor(0), UPPER | flag, DATA >> 12 | 7 << 48);
    (cpu.x[5], cpu.x[9], cpu.x[17]) = (120, 1, UPPER | progress);
    (cpu.x[12], cpu.x[15]) = (other | descriptor, page | descriptor);
    (cpu.x[13], cpu.x[16]) = (UPPER | page, UPPER | other);
    bench.run_to_hvc();
    let outcome = thread.join().unwrap();
    assert_eq!(outcome, (Exit::Exception { esr: HVC_ESR, far: 0, ipa: 0 }, 0), "{tlbi:#x}, {asids:?}: spoiled data");
}

#[test]
fn an_address_space_in_use_forgets_before_dsb_completes() {
    for tlbi in [VAE1IS, VALE1IS, ASIDE1IS] {
        remap_under_a_reader(tlbi, LOCAL, [7, 7], ISB);
    }
}

#[test]
fn an_address_space_that_comes_and_goes_forgets_in_time() {
    for tlbi in [VAE1IS, ASIDE1IS] {
        remap_under_a_reader(tlbi, LOCAL, [7, 8], ISB);
    }
}

#[test]
fn a_global_mapping_goes_whatever_the_asid() {
    remap_under_a_reader(VAE1IS, GLOBAL, [8, 6], ISB);
    remap_under_a_reader(VALE1IS, GLOBAL, [8, 8], ISB);
}

#[test]
fn a_spinning_vcpu_that_nobody_waits_for_forgets_before_it_goes_on() {
    remap_under_a_reader(VAE1IS, LOCAL, [7, 7], YIELD);
    remap_under_a_reader(ASIDE1IS, LOCAL, [7, 8], YIELD);
}

#[test]
fn who_holds_nothing_of_the_address_space_is_not_troubled() {
    let mut bench = Bench::new(Host);
    bench.identity_map();
    bench.poke(Bench::page_descriptor(0), DATA | LOCAL);
    // msr ttbr0_el1, x10; isb; ldtr x8, [x0]; msr ttbr0_el1, x11; isb; hvc
    bench.code(RAM, &[0xd518_200a, ISB, 0xf840_0808, 0xd518_200b, ISB, HVC]);
    let cpu = &mut bench.vcpu.cpu;
    cpu.pc = UPPER | RAM;
    (cpu.x[0], cpu.x[10], cpu.x[11]) = (DATA, TABLES | 7 << 48, TABLES | 8 << 48);
    bench.run_to_hvc();
    let shared = bench.vcpu.cpu.shared.clone();
    // As if it ran.
    shared.set_running(true);
    let posted_and_awaited = |asid: Option<u16>| {
        let mut awaited = Vec::new();
        announce(std::slice::from_ref(&shared), Request::TlbVa(DATA), asid, 1, &mut awaited);
        let (requests, ..) = shared.take_requests();
        (requests.len(), awaited.len())
    };
    assert_eq!(posted_and_awaited(Some(5)), (0, 0), "never held");
    assert_eq!(posted_and_awaited(Some(7)), (1, 0), "held, not in use");
    assert_eq!(posted_and_awaited(Some(8)), (1, 1), "in use");
    assert_eq!(posted_and_awaited(None), (1, 1), "all");
    shared.set_running(false);
}
