//! AdvSIMD: the groups with two vector sources, by-element forms, permutations, cryptography.

use super::Class::{Crypto, Simd, SimdFp};
use super::{Class, Row, always, bit, field, row};

/// Size 11 only in the 128-bit arrangement.
pub(super) fn no_1d(insn: u32) -> bool {
    field(insn, 23, 22) != 3 || bit(insn, 30)
}

/// sz = 1 (double precision) only in the 128-bit arrangement.
pub(super) fn fp_no_1d(insn: u32) -> bool {
    !bit(insn, 22) || bit(insn, 30)
}

/// Allowed bits 23:22.
pub(super) const B: u8 = 0b0001;
pub(super) const BHS: u8 = 0b0111;
pub(super) const HS: u8 = 0b0110;
pub(super) const D: u8 = 0b1000;
pub(super) const ALL: u8 = 0b1111;
/// Floating point: bit 23 is part of the opcode, bit 22 is sz.
pub(super) const LOW: u8 = 0b0011;
pub(super) const HIGH: u8 = 0b1100;

pub(super) fn rows(rows: &mut Vec<Row>) {
    three_same(rows);
    three_same_half(rows);
    three_same_extra(rows);
    three_different(rows);
    by_element(rows);
    permute(rows);
    crypto(rows);
}

/// Adds a row for U and an opcode of `width` bits inside a template that has `U` and a run of `o`.
pub(super) fn add(
    rows: &mut Vec<Row>,
    class: Class,
    template: &str,
    (name, u, opcode, sizes): (&'static str, u32, u32, u8),
    valid: fn(u32) -> bool,
) {
    let width = template.bytes().filter(|b| *b == b'o').count();
    let mut digits = (0..width).rev().map(|i| if opcode >> i & 1 == 1 { '1' } else { '0' });
    let pattern: String = template
        .chars()
        .map(|c| match c {
            'U' => char::from(b'0' + u as u8),
            'o' => digits.next().expect("as many digits as places"),
            other => other,
        })
        .collect();
    rows.push(row(name, class, &pattern).sizes(sizes).when(valid));
}

fn three_same(rows: &mut Vec<Row>) {
    const VECTOR: &str = "0QU01110 zz1 mmmmm ooooo 1 nnnnn ddddd";
    const SCALAR: &str = "01U11110 zz1 mmmmm ooooo 1 nnnnn ddddd";
    for entry in [
        ("SHADD", 0, 0b00000, BHS),
        ("UHADD", 1, 0b00000, BHS),
        ("SQADD", 0, 0b00001, ALL),
        ("UQADD", 1, 0b00001, ALL),
        ("SRHADD", 0, 0b00010, BHS),
        ("URHADD", 1, 0b00010, BHS),
        ("SHSUB", 0, 0b00100, BHS),
        ("UHSUB", 1, 0b00100, BHS),
        ("SQSUB", 0, 0b00101, ALL),
        ("UQSUB", 1, 0b00101, ALL),
        ("CMGT", 0, 0b00110, ALL),
        ("CMHI", 1, 0b00110, ALL),
        ("CMGE", 0, 0b00111, ALL),
        ("CMHS", 1, 0b00111, ALL),
        ("SSHL", 0, 0b01000, ALL),
        ("USHL", 1, 0b01000, ALL),
        ("SQSHL", 0, 0b01001, ALL),
        ("UQSHL", 1, 0b01001, ALL),
        ("SRSHL", 0, 0b01010, ALL),
        ("URSHL", 1, 0b01010, ALL),
        ("SQRSHL", 0, 0b01011, ALL),
        ("UQRSHL", 1, 0b01011, ALL),
        ("SMAX", 0, 0b01100, BHS),
        ("UMAX", 1, 0b01100, BHS),
        ("SMIN", 0, 0b01101, BHS),
        ("UMIN", 1, 0b01101, BHS),
        ("SABD", 0, 0b01110, BHS),
        ("UABD", 1, 0b01110, BHS),
        ("SABA", 0, 0b01111, BHS),
        ("UABA", 1, 0b01111, BHS),
        ("ADD (vector)", 0, 0b10000, ALL),
        ("SUB (vector)", 1, 0b10000, ALL),
        ("CMTST", 0, 0b10001, ALL),
        ("CMEQ", 1, 0b10001, ALL),
        ("MLA", 0, 0b10010, BHS),
        ("MLS", 1, 0b10010, BHS),
        ("MUL", 0, 0b10011, BHS),
        ("PMUL", 1, 0b10011, B),
        ("SMAXP", 0, 0b10100, BHS),
        ("UMAXP", 1, 0b10100, BHS),
        ("SMINP", 0, 0b10101, BHS),
        ("UMINP", 1, 0b10101, BHS),
        ("SQDMULH", 0, 0b10110, HS),
        ("SQRDMULH", 1, 0b10110, HS),
        ("ADDP", 0, 0b10111, ALL),
    ] {
        add(rows, Simd, VECTOR, entry, no_1d);
    }
    for (name, u, size) in [
        ("AND", 0, 0b0001),
        ("BIC", 0, 0b0010),
        ("ORR", 0, 0b0100),
        ("ORN", 0, 0b1000),
        ("EOR", 1, 0b0001),
        ("BSL", 1, 0b0010),
        ("BIT", 1, 0b0100),
        ("BIF", 1, 0b1000),
    ] {
        add(rows, Simd, VECTOR, (name, u, 0b00011, size), always);
    }
    for entry in [
        ("FMAXNM", 0, 0b11000, LOW),
        ("FMINNM", 0, 0b11000, HIGH),
        ("FMAXNMP", 1, 0b11000, LOW),
        ("FMINNMP", 1, 0b11000, HIGH),
        ("FMLA", 0, 0b11001, LOW),
        ("FMLS", 0, 0b11001, HIGH),
        ("FADD", 0, 0b11010, LOW),
        ("FSUB", 0, 0b11010, HIGH),
        ("FADDP", 1, 0b11010, LOW),
        ("FABD", 1, 0b11010, HIGH),
        ("FMULX", 0, 0b11011, LOW),
        ("FMUL", 1, 0b11011, LOW),
        ("FCMEQ", 0, 0b11100, LOW),
        ("FCMGE", 1, 0b11100, LOW),
        ("FCMGT", 1, 0b11100, HIGH),
        ("FACGE", 1, 0b11101, LOW),
        ("FACGT", 1, 0b11101, HIGH),
        ("FMAX", 0, 0b11110, LOW),
        ("FMIN", 0, 0b11110, HIGH),
        ("FMAXP", 1, 0b11110, LOW),
        ("FMINP", 1, 0b11110, HIGH),
        ("FRECPS", 0, 0b11111, LOW),
        ("FRSQRTS", 0, 0b11111, HIGH),
        ("FDIV", 1, 0b11111, LOW),
    ] {
        add(rows, SimdFp, VECTOR, entry, fp_no_1d);
    }
    for entry in [
        ("SQADD (scalar)", 0, 0b00001, ALL),
        ("UQADD (scalar)", 1, 0b00001, ALL),
        ("SQSUB (scalar)", 0, 0b00101, ALL),
        ("UQSUB (scalar)", 1, 0b00101, ALL),
        ("CMGT (scalar)", 0, 0b00110, D),
        ("CMHI (scalar)", 1, 0b00110, D),
        ("CMGE (scalar)", 0, 0b00111, D),
        ("CMHS (scalar)", 1, 0b00111, D),
        ("SSHL (scalar)", 0, 0b01000, D),
        ("USHL (scalar)", 1, 0b01000, D),
        ("SQSHL (scalar)", 0, 0b01001, ALL),
        ("UQSHL (scalar)", 1, 0b01001, ALL),
        ("SRSHL (scalar)", 0, 0b01010, D),
        ("URSHL (scalar)", 1, 0b01010, D),
        ("SQRSHL (scalar)", 0, 0b01011, ALL),
        ("UQRSHL (scalar)", 1, 0b01011, ALL),
        ("ADD (scalar)", 0, 0b10000, D),
        ("SUB (scalar)", 1, 0b10000, D),
        ("CMTST (scalar)", 0, 0b10001, D),
        ("CMEQ (scalar)", 1, 0b10001, D),
        ("SQDMULH (scalar)", 0, 0b10110, HS),
        ("SQRDMULH (scalar)", 1, 0b10110, HS),
    ] {
        add(rows, Simd, SCALAR, entry, always);
    }
    for entry in [
        ("FABD (scalar)", 1, 0b11010, HIGH),
        ("FMULX (scalar)", 0, 0b11011, LOW),
        ("FCMEQ (scalar)", 0, 0b11100, LOW),
        ("FCMGE (scalar)", 1, 0b11100, LOW),
        ("FCMGT (scalar)", 1, 0b11100, HIGH),
        ("FACGE (scalar)", 1, 0b11101, LOW),
        ("FACGT (scalar)", 1, 0b11101, HIGH),
        ("FRECPS (scalar)", 0, 0b11111, LOW),
        ("FRSQRTS (scalar)", 0, 0b11111, HIGH),
    ] {
        add(rows, SimdFp, SCALAR, entry, always);
    }
}

/// Half precision: here bit 23 is the `a` of the manual, bit 22 is 1.
fn three_same_half(rows: &mut Vec<Row>) {
    const VECTOR: &str = "0QU01110 a10 mmmmm 00ooo 1 nnnnn ddddd";
    const SCALAR: &str = "01U11110 a10 mmmmm 00ooo 1 nnnnn ddddd";
    const A0: u8 = LOW;
    const A1: u8 = HIGH;
    for entry in [
        ("FMAXNM (half)", 0, 0b000, A0),
        ("FMINNM (half)", 0, 0b000, A1),
        ("FMLA (half)", 0, 0b001, A0),
        ("FMLS (half)", 0, 0b001, A1),
        ("FADD (half)", 0, 0b010, A0),
        ("FSUB (half)", 0, 0b010, A1),
        ("FMULX (half)", 0, 0b011, A0),
        ("FCMEQ (half)", 0, 0b100, A0),
        ("FMAX (half)", 0, 0b110, A0),
        ("FMIN (half)", 0, 0b110, A1),
        ("FRECPS (half)", 0, 0b111, A0),
        ("FRSQRTS (half)", 0, 0b111, A1),
        ("FMAXNMP (half)", 1, 0b000, A0),
        ("FMINNMP (half)", 1, 0b000, A1),
        ("FADDP (half)", 1, 0b010, A0),
        ("FABD (half)", 1, 0b010, A1),
        ("FMUL (half)", 1, 0b011, A0),
        ("FCMGE (half)", 1, 0b100, A0),
        ("FCMGT (half)", 1, 0b100, A1),
        ("FACGE (half)", 1, 0b101, A0),
        ("FACGT (half)", 1, 0b101, A1),
        ("FMAXP (half)", 1, 0b110, A0),
        ("FMINP (half)", 1, 0b110, A1),
        ("FDIV (half)", 1, 0b111, A0),
    ] {
        add(rows, SimdFp, VECTOR, entry, always);
    }
    for entry in [
        ("FMULX (scalar half)", 0, 0b011, A0),
        ("FCMEQ (scalar half)", 0, 0b100, A0),
        ("FRECPS (scalar half)", 0, 0b111, A0),
        ("FRSQRTS (scalar half)", 0, 0b111, A1),
        ("FABD (scalar half)", 1, 0b010, A1),
        ("FCMGE (scalar half)", 1, 0b100, A0),
        ("FCMGT (scalar half)", 1, 0b100, A1),
        ("FACGE (scalar half)", 1, 0b101, A0),
        ("FACGT (scalar half)", 1, 0b101, A1),
    ] {
        add(rows, SimdFp, SCALAR, entry, always);
    }
}

fn three_same_extra(rows: &mut Vec<Row>) {
    const VECTOR: &str = "0QU01110 zz0 mmmmm 1 oooo 1 nnnnn ddddd";
    const SCALAR: &str = "01U11110 zz0 mmmmm 1 oooo 1 nnnnn ddddd";
    for entry in [("SQRDMLAH", 1, 0b0000, HS), ("SQRDMLSH", 1, 0b0001, HS)] {
        add(rows, Simd, VECTOR, entry, always);
    }
    for entry in [("SQRDMLAH (scalar)", 1, 0b0000, HS), ("SQRDMLSH (scalar)", 1, 0b0001, HS)] {
        add(rows, Simd, SCALAR, entry, always);
    }
    for entry in [("SDOT", 0, 0b0010, 0b0100), ("UDOT", 1, 0b0010, 0b0100)] {
        add(rows, Simd, VECTOR, entry, always);
    }
    for entry in [
        ("FCMLA #0", 1, 0b1000, 0b1110),
        ("FCMLA #90", 1, 0b1001, 0b1110),
        ("FCMLA #180", 1, 0b1010, 0b1110),
        ("FCMLA #270", 1, 0b1011, 0b1110),
        ("FCADD #90", 1, 0b1100, 0b1110),
        ("FCADD #270", 1, 0b1110, 0b1110),
    ] {
        add(rows, SimdFp, VECTOR, entry, no_1d);
    }
}

fn three_different(rows: &mut Vec<Row>) {
    const VECTOR: &str = "0QU01110 zz1 mmmmm oooo 00 nnnnn ddddd";
    const SCALAR: &str = "01U11110 zz1 mmmmm oooo 00 nnnnn ddddd";
    for entry in [
        ("SADDL", 0, 0b0000, BHS),
        ("UADDL", 1, 0b0000, BHS),
        ("SADDW", 0, 0b0001, BHS),
        ("UADDW", 1, 0b0001, BHS),
        ("SSUBL", 0, 0b0010, BHS),
        ("USUBL", 1, 0b0010, BHS),
        ("SSUBW", 0, 0b0011, BHS),
        ("USUBW", 1, 0b0011, BHS),
        ("ADDHN", 0, 0b0100, BHS),
        ("RADDHN", 1, 0b0100, BHS),
        ("SABAL", 0, 0b0101, BHS),
        ("UABAL", 1, 0b0101, BHS),
        ("SUBHN", 0, 0b0110, BHS),
        ("RSUBHN", 1, 0b0110, BHS),
        ("SABDL", 0, 0b0111, BHS),
        ("UABDL", 1, 0b0111, BHS),
        ("SMLAL", 0, 0b1000, BHS),
        ("UMLAL", 1, 0b1000, BHS),
        ("SQDMLAL", 0, 0b1001, HS),
        ("SMLSL", 0, 0b1010, BHS),
        ("UMLSL", 1, 0b1010, BHS),
        ("SQDMLSL", 0, 0b1011, HS),
        ("SMULL", 0, 0b1100, BHS),
        ("UMULL", 1, 0b1100, BHS),
        ("SQDMULL", 0, 0b1101, HS),
    ] {
        add(rows, Simd, VECTOR, entry, always);
    }
    add(rows, Crypto, VECTOR, ("PMULL", 0, 0b1110, B | D), always);
    for entry in
        [("SQDMLAL (scalar)", 0, 0b1001, HS), ("SQDMLSL (scalar)", 0, 0b1011, HS), ("SQDMULL (scalar)", 0, 0b1101, HS)]
    {
        add(rows, Simd, SCALAR, entry, always);
    }
}

/// Half (00), single (10), and double (11), which has no L and only the 128-bit arrangement.
fn fp_element(insn: u32) -> bool {
    field(insn, 23, 22) != 3 || (!bit(insn, 21) && bit(insn, 30))
}

fn fp_element_scalar(insn: u32) -> bool {
    field(insn, 23, 22) != 3 || !bit(insn, 21)
}

fn complex_element(insn: u32) -> bool {
    let (q, l, h) = (bit(insn, 30), bit(insn, 21), bit(insn, 11));
    if field(insn, 23, 22) == 1 { q || !h } else { q && !l }
}

fn by_element(rows: &mut Vec<Row>) {
    const VECTOR: &str = "0QU01111 zzL Mmmmm oooo H0 nnnnn ddddd";
    const SCALAR: &str = "01U11111 zzL Mmmmm oooo H0 nnnnn ddddd";
    const COMPLEX: &str = "0QU01111 zzL Mmmmm 0rr1 H0 nnnnn ddddd";
    const HALF_SINGLE_DOUBLE: u8 = 0b1101;
    for entry in [
        ("MLA (by element)", 1, 0b0000, HS),
        ("MLS (by element)", 1, 0b0100, HS),
        ("SMLAL (by element)", 0, 0b0010, HS),
        ("UMLAL (by element)", 1, 0b0010, HS),
        ("SQDMLAL (by element)", 0, 0b0011, HS),
        ("SMLSL (by element)", 0, 0b0110, HS),
        ("UMLSL (by element)", 1, 0b0110, HS),
        ("SQDMLSL (by element)", 0, 0b0111, HS),
        ("MUL (by element)", 0, 0b1000, HS),
        ("SMULL (by element)", 0, 0b1010, HS),
        ("UMULL (by element)", 1, 0b1010, HS),
        ("SQDMULL (by element)", 0, 0b1011, HS),
        ("SQDMULH (by element)", 0, 0b1100, HS),
        ("SQRDMULH (by element)", 0, 0b1101, HS),
        ("SQRDMLAH (by element)", 1, 0b1101, HS),
        ("SQRDMLSH (by element)", 1, 0b1111, HS),
        ("SDOT (by element)", 0, 0b1110, 0b0100),
        ("UDOT (by element)", 1, 0b1110, 0b0100),
    ] {
        add(rows, Simd, VECTOR, entry, always);
    }
    for entry in [
        ("SQDMLAL (scalar by element)", 0, 0b0011, HS),
        ("SQDMLSL (scalar by element)", 0, 0b0111, HS),
        ("SQDMULL (scalar by element)", 0, 0b1011, HS),
        ("SQDMULH (scalar by element)", 0, 0b1100, HS),
        ("SQRDMULH (scalar by element)", 0, 0b1101, HS),
        ("SQRDMLAH (scalar by element)", 1, 0b1101, HS),
        ("SQRDMLSH (scalar by element)", 1, 0b1111, HS),
    ] {
        add(rows, Simd, SCALAR, entry, always);
    }
    for entry in [
        ("FMLA (by element)", 0, 0b0001, HALF_SINGLE_DOUBLE),
        ("FMLS (by element)", 0, 0b0101, HALF_SINGLE_DOUBLE),
        ("FMUL (by element)", 0, 0b1001, HALF_SINGLE_DOUBLE),
        ("FMULX (by element)", 1, 0b1001, HALF_SINGLE_DOUBLE),
    ] {
        add(rows, SimdFp, VECTOR, entry, fp_element);
    }
    for entry in [
        ("FMLA (scalar by element)", 0, 0b0001, HALF_SINGLE_DOUBLE),
        ("FMLS (scalar by element)", 0, 0b0101, HALF_SINGLE_DOUBLE),
        ("FMUL (scalar by element)", 0, 0b1001, HALF_SINGLE_DOUBLE),
        ("FMULX (scalar by element)", 1, 0b1001, HALF_SINGLE_DOUBLE),
    ] {
        add(rows, SimdFp, SCALAR, entry, fp_element_scalar);
    }
    add(rows, SimdFp, COMPLEX, ("FCMLA (by element)", 1, 0, HS), complex_element);
}

fn permute(rows: &mut Vec<Row>) {
    const PERMUTE: &str = "0Q001110 zz0 mmmmm 0 ooo 10 nnnnn ddddd";
    for entry in [
        ("UZP1", 0, 0b001, ALL),
        ("TRN1", 0, 0b010, ALL),
        ("ZIP1", 0, 0b011, ALL),
        ("UZP2", 0, 0b101, ALL),
        ("TRN2", 0, 0b110, ALL),
        ("ZIP2", 0, 0b111, ALL),
    ] {
        add(rows, Simd, PERMUTE, entry, no_1d);
    }
    let mut push = |name, pattern, valid: fn(u32) -> bool| rows.push(row(name, Simd, pattern).when(valid));
    push("TBL", "0Q001110 000 mmmmm 0 ll 0 00 nnnnn ddddd", always);
    push("TBX", "0Q001110 000 mmmmm 0 ll 1 00 nnnnn ddddd", always);
    push("EXT", "0Q101110 000 mmmmm 0 iiii 0 nnnnn ddddd", |i| bit(i, 30) || !bit(i, 14));
    let element: fn(u32) -> bool = |i| field(i, 19, 16) != 0;
    // A lane of 64 bits only with Q.
    let duplicate: fn(u32) -> bool = |i| match field(i, 20, 16).trailing_zeros() {
        0..=2 => true,
        3 => bit(i, 30),
        _ => false,
    };
    push("DUP (scalar)", "01011110000 iiiii 0 0000 1 nnnnn ddddd", element);
    push("DUP (element)", "0Q001110000 iiiii 0 0000 1 nnnnn ddddd", duplicate);
    push("DUP (general)", "0Q001110000 iiiii 0 0001 1 nnnnn ddddd", duplicate);
    push("INS (general)", "01001110000 iiiii 0 0011 1 nnnnn ddddd", element);
    push("INS (element)", "01101110000 iiiii 0 jjjj 1 nnnnn ddddd", element);
    push("SMOV", "0Q001110000 iiiii 0 0101 1 nnnnn ddddd", |i| {
        field(i, 20, 16).trailing_zeros() < if bit(i, 30) { 3 } else { 2 }
    });
    push("UMOV", "0Q001110000 iiiii 0 0111 1 nnnnn ddddd", |i| {
        let lane = field(i, 20, 16).trailing_zeros();
        if bit(i, 30) { lane == 3 } else { lane < 3 }
    });
}

fn crypto(rows: &mut Vec<Row>) {
    for (name, pattern) in [
        ("AESE", "01001110 00 10100 00100 10 nnnnn ddddd"),
        ("AESD", "01001110 00 10100 00101 10 nnnnn ddddd"),
        ("AESMC", "01001110 00 10100 00110 10 nnnnn ddddd"),
        ("AESIMC", "01001110 00 10100 00111 10 nnnnn ddddd"),
        ("SHA1C", "01011110 000 mmmmm 0 000 00 nnnnn ddddd"),
        ("SHA1P", "01011110 000 mmmmm 0 001 00 nnnnn ddddd"),
        ("SHA1M", "01011110 000 mmmmm 0 010 00 nnnnn ddddd"),
        ("SHA1SU0", "01011110 000 mmmmm 0 011 00 nnnnn ddddd"),
        ("SHA256H", "01011110 000 mmmmm 0 100 00 nnnnn ddddd"),
        ("SHA256H2", "01011110 000 mmmmm 0 101 00 nnnnn ddddd"),
        ("SHA256SU1", "01011110 000 mmmmm 0 110 00 nnnnn ddddd"),
        ("SHA1H", "01011110 00 10100 00000 10 nnnnn ddddd"),
        ("SHA1SU1", "01011110 00 10100 00001 10 nnnnn ddddd"),
        ("SHA256SU0", "01011110 00 10100 00010 10 nnnnn ddddd"),
    ] {
        rows.push(row(name, Crypto, pattern));
    }
}
