//! Handlers against recorded answers and against the manual's own words; the decoder against a list of encodings.

mod memory;
mod pointer_auth;

use std::sync::Arc;

use super::decode;
use crate::config::Config;
use crate::engine::block::Block;
use crate::engine::cpu::Cpu;
use crate::engine::op::{Next, Op, slot};
use crate::engine::shared::VcpuShared;
use crate::machine::Machine;

const CODE: u64 = 0x4000_0000;

fn cpu() -> Box<Cpu> {
    Cpu::new(Arc::new(Machine::new(Config::default(), 36)), VcpuShared::new(0))
}

/// Runs a few instructions as one block at [`CODE`]; the last may be a branch.
fn run(cpu: &mut Cpu, words: &[u32]) -> Next {
    let ops = words
        .iter()
        .enumerate()
        .map(|(i, &word)| {
            let mut op = decode(word).unwrap_or_else(|| panic!("{word:08x} is not decoded")).op;
            op.off = (i * 4) as u16;
            op
        })
        .collect();
    run_ops(cpu, ops)
}

fn run_ops(cpu: &mut Cpu, mut ops: Vec<Op>) -> Next {
    unsafe fn stop(_: &mut Cpu, _: *const Op) -> Next {
        Next::Stop
    }
    ops.push(Op::new(stop, 0));
    let block = Block::lone();
    (cpu.block, cpu.block_va) = (&raw const block, CODE);
    // SAFETY: the ops are a block that ends with an op that ends it.
    let next = unsafe { (ops[0].run)(cpu, ops.as_ptr()) };
    cpu.block = std::ptr::null();
    next
}

#[test]
fn data_processing_gives_the_recorded_answers() {
    let mut cpu = cpu();
    for line in include_str!("known_answers.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split_whitespace().filter(|&field| field != "->");
        let mut hex = || u64::from_str_radix(fields.next().expect(line), 16).expect(line);
        let word = hex() as u32;
        (cpu.x[1], cpu.x[2], cpu.x[3]) = (hex(), hex(), hex());
        cpu.set_nzcv(hex() as u32);
        cpu.x[0] = hex();
        run(&mut cpu, &[word]);
        assert_eq!((cpu.x[0], u64::from(cpu.nzcv())), (hex(), hex()), "{line}");
        assert_eq!(cpu.x[usize::from(slot::ZR)], 0, "{line}");
    }
}

#[test]
fn pc_relative_addresses() {
    let mut cpu = cpu();
    // nop-like first instruction, so that the address is not the block's own; adr x0, .+5; adrp x1, .-0x2000
    run(&mut cpu, &[0x9100_0042, 0x3000_0020, 0xd0ff_ffe1]);
    assert_eq!(cpu.x[0], CODE + 4 + 5);
    assert_eq!(cpu.x[1], CODE - 0x2000);
}

#[test]
fn stack_pointer_and_zero_register() {
    let mut cpu = cpu();
    cpu.x[usize::from(slot::SP)] = 0x1000;
    // sub sp, sp, #16; mov x0, sp; add x1, sp, w2, uxtb #1; and sp, x3, #~15; adds xzr, sp, #1; mov x4, xzr
    (cpu.x[2], cpu.x[3], cpu.x[4]) = (0xf03, 0x2fff, 7);
    run(&mut cpu, &[0xd100_43ff, 0x9100_03e0, 0x8b22_07e1, 0x927c_ec7f, 0xb100_07ff, 0xaa1f_03e4]);
    assert_eq!((cpu.x[0], cpu.x[1], cpu.x[4]), (0xff0, 0xff6, 0));
    assert_eq!(cpu.x[usize::from(slot::SP)], 0x2ff0);
    assert_eq!((cpu.x[usize::from(slot::ZR)], cpu.nzcv()), (0, 0));
}

#[test]
fn branches() {
    // Instruction, x1, flags; next address, and which successor that is (one on another page is looked up).
    let table: &[(u32, u64, u32, u64, Next)] = &[
        (0x1400_0003, 0, 0, CODE + 12, Next::Taken),              // b .+12
        (0x17ff_ffff, 0, 0, CODE - 4, Next::Lookup),              // b .-4
        (0x9400_0002, 0, 0, CODE + 8, Next::Taken),               // bl .+8
        (0x5400_0040, 0, 4, CODE + 8, Next::Taken),               // b.eq .+8
        (0x5400_0040, 0, 0, CODE + 4, Next::NotTaken),            // b.eq .+8
        (0x54ff_ffcd, 0, 8, CODE - 8, Next::Lookup),              // b.le .-8
        (0xb400_0041, 1 << 63, 0, CODE + 4, Next::NotTaken),      // cbz x1, .+8
        (0x3400_0041, 1 << 63, 0, CODE + 8, Next::Taken),         // cbz w1, .+8
        (0x35ff_ffe1, 1 << 31, 0, CODE - 4, Next::Lookup),        // cbnz w1, .-4
        (0xb6f8_0041, 1 << 63, 0, CODE + 4, Next::NotTaken),      // tbz x1, #63, .+8
        (0x372f_ffe1, 1 << 5, 0, CODE - 4, Next::Lookup),         // tbnz w1, #5, .-4
        (0xd61f_0020, 0x4444_0000, 0, 0x4444_0000, Next::Lookup), // br x1
        (0xd63f_0020, 0x4444_0000, 0, 0x4444_0000, Next::Lookup), // blr x1
        (0xd65f_0020, 0x4444_0000, 0, 0x4444_0000, Next::Lookup), // ret x1
    ];
    for &(word, x1, nzcv, pc, next) in table {
        let mut cpu = cpu();
        cpu.x[1] = x1;
        cpu.set_nzcv(nzcv);
        assert_eq!(run(&mut cpu, &[word]), next, "{word:08x}");
        assert_eq!(cpu.pc, pc, "{word:08x}");
        let links = word >> 26 == 0x25 || word == 0xd63f_0020;
        assert_eq!(cpu.x[30], if links { CODE + 4 } else { 0 }, "{word:08x}");
    }
}

#[test]
fn branch_and_link_through_the_link_register() {
    let mut cpu = cpu();
    cpu.x[30] = 0x5000_0000;
    assert_eq!(run(&mut cpu, &[0xd63f_03c0]), Next::Lookup);
    assert_eq!((cpu.pc, cpu.x[30]), (0x5000_0000, CODE + 4));
}

#[test]
fn unallocated_and_unannounced_encodings_are_not_decoded() {
    for word in [
        0x0000_0000, // UDF
        0x12e0_0000, // movn w0 with a shift of 48
        0x1240_0000, // and w0, w0, with N set
        0x9200_fc00, // and x0, x0, a mask of all ones
        0x5300_8000, // ubfm w0, w0, #0, #32
        0x1340_0000, // sbfm w0 with N set
        0x1380_8000, // extr w0, w0, w0, #32
        0x0ac0_8000, // and w0, w0, w0, ror #32
        0x8bc0_0000, // add with ror
        0x8b20_1400, // add with an extend shifted by 5
        0x9ac0_5000, // crc32c of a word to an X register
        0x9ac0_1000, // irg (FEAT_MTE)
        0x9180_0000, // addg (FEAT_MTE)
        0x1b20_0000, // smaddl to a W register
        0xfdc0_0000, // SIMD load of size 3 and opc 3
        0xf9c0_0000, // signed load of a W register from 8 bytes
        0x6880_0000, // stgp (FEAT_MTE)
        0xd940_0000, // ldapur (FEAT_RCPC2)
        0x0820_7c01, // casp of an odd register
        0xf83f_d000, // ld64b (FEAT_LS64)
        0xd6bf_03e0, // drps outside Debug state
        0x5400_0010, // bc.eq (FEAT_HBC)
    ] {
        assert!(decode(word).is_none(), "{word:08x} is decoded");
    }
}

#[test]
fn a_fused_pair_does_what_its_two_instructions_do() {
    let (mut cpu, values) = (cpu(), [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63, (1 << 63) - 1, u64::MAX]);
    // cmp x1, #1; subs x1, x1, #1; cmp x1, x2; subs x0, x1, x2; tst x1, #0x80000000; ands x0, x1, #1; tst x1, x2;
    // ands x1, x1, x2
    for first in
        [0xf100_043f, 0xf100_0421, 0xeb02_003f, 0xeb02_0020, 0xf261_003f, 0xf240_0020, 0xea02_003f, 0xea02_0021_u32]
    {
        for (cond, w) in (0..16).flat_map(|cond| [(cond, false), (cond, true)]) {
            // The same on W registers; the mask of the two bitmask immediates has N clear then.
            let first = if w {
                first & !(1 << 31) & !if first & 0x7f80_0000 == 0x7200_0000 { 1 << 22 } else { 0 }
            } else {
                first
            };
            let words = [first, 0x54ff_ff80 | cond];
            let [a, b] = words.map(|word| decode(word).unwrap().op);
            let pair = super::fuse(&a, &b).unwrap_or_else(|| panic!("{first:08x} is not fused"));
            for (x1, x2) in values.iter().flat_map(|&x1| values.map(|x2| (x1, x2))) {
                (cpu.x[0], cpu.x[1], cpu.x[2], cpu.pc) = (5, x1, x2, 0);
                let next = run(&mut cpu, &words);
                let expected = (next, cpu.pc, cpu.nzcv(), cpu.x[0], cpu.x[1]);
                (cpu.x[0], cpu.x[1], cpu.x[2], cpu.pc) = (5, x1, x2, 0);
                let next = run_ops(&mut cpu, vec![pair]);
                assert_eq!((next, cpu.pc, cpu.nzcv(), cpu.x[0], cpu.x[1]), expected, "{words:08x?} {x1:x} {x2:x}");
            }
        }
    }
}
