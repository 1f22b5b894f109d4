//! Loads and stores.

use super::Class::{Atomic, Memory, Structure};
use super::{Form, Row, bit, field, row};

pub(super) fn rows(rows: &mut Vec<Row>) {
    exclusive(rows);
    general(rows);
    structures(rows);
}

fn exclusive(rows: &mut Vec<Row>) {
    for (name, pattern) in [
        ("STXR/STLXR", "zz001000000 sssss o 11111 nnnnn ttttt"),
        ("STXP/STLXP", "1z001000001 sssss o uuuuu nnnnn ttttt"),
        ("LDXR/LDAXR", "zz001000010 11111 o 11111 nnnnn ttttt"),
        ("LDXP/LDAXP", "1z001000011 11111 o uuuuu nnnnn ttttt"),
        ("STLR", "zz001000100 11111 1 11111 nnnnn ttttt"),
        ("LDAR", "zz001000110 11111 1 11111 nnnnn ttttt"),
        ("CAS", "zz0010001L1 sssss o 11111 nnnnn ttttt"),
        ("CASP", "0z0010000L1 ssss0 o 11111 nnnnn tttt0"),
        ("LDAPR", "zz111000101 11111 110000 nnnnn ttttt"),
        ("SWP", "zz111000AR1 sssss 100000 nnnnn ttttt"),
        ("LDADD", "zz111000AR1 sssss 000000 nnnnn ttttt"),
        ("LDCLR", "zz111000AR1 sssss 000100 nnnnn ttttt"),
        ("LDEOR", "zz111000AR1 sssss 001000 nnnnn ttttt"),
        ("LDSET", "zz111000AR1 sssss 001100 nnnnn ttttt"),
        ("LDSMAX", "zz111000AR1 sssss 010000 nnnnn ttttt"),
        ("LDSMIN", "zz111000AR1 sssss 010100 nnnnn ttttt"),
        ("LDUMAX", "zz111000AR1 sssss 011000 nnnnn ttttt"),
        ("LDUMIN", "zz111000AR1 sssss 011100 nnnnn ttttt"),
    ] {
        rows.push(row(name, Atomic, pattern).form(Form::Base));
    }
}

/// STR, LDR, and the signed loads that exist for the size; size 11 with opc 10 (PRFM) only where `prefetch` says.
fn general_opc(insn: u32, prefetch: bool) -> bool {
    match (field(insn, 31, 30), field(insn, 23, 22)) {
        (3, 2) => prefetch,
        (2 | 3, 3) => false,
        _ => true,
    }
}

/// FP/SIMD: bit 23 set only for the 128-bit forms.
fn simd_opc(insn: u32) -> bool {
    !bit(insn, 23) || field(insn, 31, 30) == 0
}

fn general(rows: &mut Vec<Row>) {
    let mut add = |name, form, pattern, valid: fn(u32) -> bool| {
        rows.push(row(name, Memory, pattern).form(form).when(valid));
    };
    let any = super::always;
    add("LDR (literal)", Form::Literal, "oo011000 iiiiiiiiiiiiiiiiiii ttttt", any);
    add("LDR (literal, SIMD&FP)", Form::Literal, "oo011100 iiiiiiiiiiiiiiiiiii ttttt", |i| field(i, 31, 30) != 3);
    let pair: fn(u32) -> bool = |i| match field(i, 31, 30) {
        0 | 2 => true,
        // LDPSW, which has no non-temporal form.
        1 => bit(i, 22) && field(i, 24, 23) != 0,
        _ => false,
    };
    add("LDP/STP", Form::Pair, "oo10100 mmL iiiiiii uuuuu nnnnn ttttt", pair);
    add("LDP/STP (SIMD&FP)", Form::Pair, "oo10110 mmL iiiiiii uuuuu nnnnn ttttt", |i| field(i, 31, 30) != 3);
    add("LDUR/STUR", Form::Imm9, "zz111000 oo0 iiiiiiiii 00 nnnnn ttttt", |i| general_opc(i, true));
    add("LDR/STR (post-index)", Form::Imm9, "zz111000 oo0 iiiiiiiii 01 nnnnn ttttt", |i| general_opc(i, false));
    add("LDTR/STTR", Form::Imm9, "zz111000 oo0 iiiiiiiii 10 nnnnn ttttt", |i| general_opc(i, false));
    add("LDR/STR (pre-index)", Form::Imm9, "zz111000 oo0 iiiiiiiii 11 nnnnn ttttt", |i| general_opc(i, false));
    add("LDUR/STUR (SIMD&FP)", Form::Imm9, "zz111100 oo0 iiiiiiiii 00 nnnnn ttttt", simd_opc);
    add("LDR/STR (post-index, SIMD&FP)", Form::Imm9, "zz111100 oo0 iiiiiiiii 01 nnnnn ttttt", simd_opc);
    add("LDR/STR (pre-index, SIMD&FP)", Form::Imm9, "zz111100 oo0 iiiiiiiii 11 nnnnn ttttt", simd_opc);
    add("LDR/STR (register)", Form::Register, "zz111000 oo1 mmmmm eeeS10 nnnnn ttttt", |i| {
        general_opc(i, true) && bit(i, 14)
    });
    add("LDR/STR (register, SIMD&FP)", Form::Register, "zz111100 oo1 mmmmm eeeS10 nnnnn ttttt", |i| {
        simd_opc(i) && bit(i, 14)
    });
    add("LDR/STR (immediate)", Form::Scaled, "zz111001 oo iiiiiiiiiiii nnnnn ttttt", |i| general_opc(i, true));
    add("LDR/STR (immediate, SIMD&FP)", Form::Scaled, "zz111101 oo iiiiiiiiiiii nnnnn ttttt", simd_opc);
}

fn multiple_opcode(insn: u32) -> bool {
    match field(insn, 15, 12) {
        // LD4, LD3, LD2: no 1D arrangement.
        0 | 4 | 8 => bit(insn, 30) || field(insn, 11, 10) != 3,
        2 | 6 | 7 | 10 => true,
        _ => false,
    }
}

fn single_opcode(insn: u32) -> bool {
    let (s, size) = (bit(insn, 12), field(insn, 11, 10));
    match field(insn, 15, 13) {
        0 | 1 => true,
        2 | 3 => size & 1 == 0,
        4 | 5 => size == 0 || (size == 1 && !s),
        // LD1R..LD4R.
        _ => bit(insn, 22) && !s,
    }
}

fn structures(rows: &mut Vec<Row>) {
    for (name, pattern, valid) in [
        ("LD1-4/ST1-4 (multiple)", "0Q0011000 L000000 oooozz nnnnn ttttt", multiple_opcode as fn(u32) -> bool),
        ("LD1-4/ST1-4 (multiple, post)", "0Q0011001 L0mmmmm oooozz nnnnn ttttt", multiple_opcode),
        ("LD1-4/ST1-4 (single)", "0Q0011010 LR00000 oooSzz nnnnn ttttt", single_opcode),
        ("LD1-4/ST1-4 (single, post)", "0Q0011011 LRmmmmm oooSzz nnnnn ttttt", single_opcode),
    ] {
        rows.push(row(name, Structure, pattern).form(Form::Base).when(valid));
    }
}
