//! AdvSIMD: one source, pairwise and across lanes, shifts by immediate, modified immediates.

use super::Class::{Simd, SimdFp};
use super::simd::{ALL, B, BHS, D, HIGH, LOW, add, fp_no_1d, no_1d};
use super::{Class, Row, always, bit, field, row};

pub(super) fn rows(rows: &mut Vec<Row>) {
    two_register(rows);
    two_register_fp(rows);
    two_register_half(rows);
    pairwise_and_across(rows);
    shift_immediate(rows);
    modified_immediate(rows);
}

const VECTOR: &str = "0QU01110 zz10000 ooooo 10 nnnnn ddddd";
const SCALAR: &str = "01U11110 zz10000 ooooo 10 nnnnn ddddd";

fn two_register(rows: &mut Vec<Row>) {
    for entry in [
        ("REV64", 0, 0b00000, BHS),
        ("REV32 (vector)", 1, 0b00000, 0b0011),
        ("REV16 (vector)", 0, 0b00001, B),
        ("SADDLP", 0, 0b00010, BHS),
        ("UADDLP", 1, 0b00010, BHS),
        ("SUQADD", 0, 0b00011, ALL),
        ("USQADD", 1, 0b00011, ALL),
        ("CLS (vector)", 0, 0b00100, BHS),
        ("CLZ (vector)", 1, 0b00100, BHS),
        ("CNT", 0, 0b00101, B),
        ("NOT", 1, 0b00101, B),
        ("RBIT (vector)", 1, 0b00101, 0b0010),
        ("SADALP", 0, 0b00110, BHS),
        ("UADALP", 1, 0b00110, BHS),
        ("SQABS", 0, 0b00111, ALL),
        ("SQNEG", 1, 0b00111, ALL),
        ("CMGT (zero)", 0, 0b01000, ALL),
        ("CMGE (zero)", 1, 0b01000, ALL),
        ("CMEQ (zero)", 0, 0b01001, ALL),
        ("CMLE (zero)", 1, 0b01001, ALL),
        ("CMLT (zero)", 0, 0b01010, ALL),
        ("ABS", 0, 0b01011, ALL),
        ("NEG", 1, 0b01011, ALL),
        ("XTN", 0, 0b10010, BHS),
        ("SQXTUN", 1, 0b10010, BHS),
        ("SHLL", 1, 0b10011, BHS),
        ("SQXTN", 0, 0b10100, BHS),
        ("UQXTN", 1, 0b10100, BHS),
    ] {
        add(rows, Simd, VECTOR, entry, no_1d);
    }
    for entry in [
        ("SUQADD (scalar)", 0, 0b00011, ALL),
        ("USQADD (scalar)", 1, 0b00011, ALL),
        ("SQABS (scalar)", 0, 0b00111, ALL),
        ("SQNEG (scalar)", 1, 0b00111, ALL),
        ("CMGT (scalar zero)", 0, 0b01000, D),
        ("CMGE (scalar zero)", 1, 0b01000, D),
        ("CMEQ (scalar zero)", 0, 0b01001, D),
        ("CMLE (scalar zero)", 1, 0b01001, D),
        ("CMLT (scalar zero)", 0, 0b01010, D),
        ("ABS (scalar)", 0, 0b01011, D),
        ("NEG (scalar)", 1, 0b01011, D),
        ("SQXTUN (scalar)", 1, 0b10010, BHS),
        ("SQXTN (scalar)", 0, 0b10100, BHS),
        ("UQXTN (scalar)", 1, 0b10100, BHS),
    ] {
        add(rows, Simd, SCALAR, entry, always);
    }
}

fn two_register_fp(rows: &mut Vec<Row>) {
    for entry in [
        ("FCVTN", 0, 0b10110, LOW),
        ("FCVTL", 0, 0b10111, LOW),
        ("FCVTXN", 1, 0b10110, 0b0010),
        ("URECPE", 0, 0b11100, 0b0100),
        ("URSQRTE", 1, 0b11100, 0b0100),
    ] {
        add(rows, SimdFp, VECTOR, entry, always);
    }
    for entry in [
        ("FRINTN (vector)", 0, 0b11000, LOW),
        ("FRINTA (vector)", 1, 0b11000, LOW),
        ("FRINTP (vector)", 0, 0b11000, HIGH),
        ("FRINTM (vector)", 0, 0b11001, LOW),
        ("FRINTX (vector)", 1, 0b11001, LOW),
        ("FRINTZ (vector)", 0, 0b11001, HIGH),
        ("FRINTI (vector)", 1, 0b11001, HIGH),
        ("FCVTNS (vector)", 0, 0b11010, LOW),
        ("FCVTNU (vector)", 1, 0b11010, LOW),
        ("FCVTPS (vector)", 0, 0b11010, HIGH),
        ("FCVTPU (vector)", 1, 0b11010, HIGH),
        ("FCVTMS (vector)", 0, 0b11011, LOW),
        ("FCVTMU (vector)", 1, 0b11011, LOW),
        ("FCVTZS (vector)", 0, 0b11011, HIGH),
        ("FCVTZU (vector)", 1, 0b11011, HIGH),
        ("FCVTAS (vector)", 0, 0b11100, LOW),
        ("FCVTAU (vector)", 1, 0b11100, LOW),
        ("SCVTF (vector)", 0, 0b11101, LOW),
        ("UCVTF (vector)", 1, 0b11101, LOW),
        ("FCMGT (zero)", 0, 0b01100, HIGH),
        ("FCMGE (zero)", 1, 0b01100, HIGH),
        ("FCMEQ (zero)", 0, 0b01101, HIGH),
        ("FCMLE (zero)", 1, 0b01101, HIGH),
        ("FCMLT (zero)", 0, 0b01110, HIGH),
        ("FABS (vector)", 0, 0b01111, HIGH),
        ("FNEG (vector)", 1, 0b01111, HIGH),
        ("FRECPE", 0, 0b11101, HIGH),
        ("FRSQRTE", 1, 0b11101, HIGH),
        ("FSQRT (vector)", 1, 0b11111, HIGH),
    ] {
        add(rows, SimdFp, VECTOR, entry, fp_no_1d);
    }
    for entry in [
        ("FCVTXN (scalar)", 1, 0b10110, 0b0010),
        ("FCVTNS (scalar)", 0, 0b11010, LOW),
        ("FCVTNU (scalar)", 1, 0b11010, LOW),
        ("FCVTPS (scalar)", 0, 0b11010, HIGH),
        ("FCVTPU (scalar)", 1, 0b11010, HIGH),
        ("FCVTMS (scalar)", 0, 0b11011, LOW),
        ("FCVTMU (scalar)", 1, 0b11011, LOW),
        ("FCVTZS (scalar)", 0, 0b11011, HIGH),
        ("FCVTZU (scalar)", 1, 0b11011, HIGH),
        ("FCVTAS (scalar)", 0, 0b11100, LOW),
        ("FCVTAU (scalar)", 1, 0b11100, LOW),
        ("SCVTF (scalar)", 0, 0b11101, LOW),
        ("UCVTF (scalar)", 1, 0b11101, LOW),
        ("FCMGT (scalar zero)", 0, 0b01100, HIGH),
        ("FCMGE (scalar zero)", 1, 0b01100, HIGH),
        ("FCMEQ (scalar zero)", 0, 0b01101, HIGH),
        ("FCMLE (scalar zero)", 1, 0b01101, HIGH),
        ("FCMLT (scalar zero)", 0, 0b01110, HIGH),
        ("FRECPE (scalar)", 0, 0b11101, HIGH),
        ("FRSQRTE (scalar)", 1, 0b11101, HIGH),
        ("FRECPX", 0, 0b11111, HIGH),
    ] {
        add(rows, SimdFp, SCALAR, entry, always);
    }
}

/// Half precision: bit 23 is the `a` of the manual, bits 22:17 are fixed.
fn two_register_half(rows: &mut Vec<Row>) {
    const VECTOR: &str = "0QU01110 a111100 ooooo 10 nnnnn ddddd";
    const SCALAR: &str = "01U11110 a111100 ooooo 10 nnnnn ddddd";
    for entry in [
        ("FRINTN (half)", 0, 0b11000, LOW),
        ("FRINTA (half)", 1, 0b11000, LOW),
        ("FRINTP (half)", 0, 0b11000, HIGH),
        ("FRINTM (half)", 0, 0b11001, LOW),
        ("FRINTX (half)", 1, 0b11001, LOW),
        ("FRINTZ (half)", 0, 0b11001, HIGH),
        ("FRINTI (half)", 1, 0b11001, HIGH),
        ("FABS (half)", 0, 0b01111, HIGH),
        ("FNEG (half)", 1, 0b01111, HIGH),
        ("FSQRT (half)", 1, 0b11111, HIGH),
    ] {
        add(rows, SimdFp, VECTOR, entry, always);
    }
    for entry in [
        ("FCVTNS (half)", 0, 0b11010, LOW),
        ("FCVTNU (half)", 1, 0b11010, LOW),
        ("FCVTPS (half)", 0, 0b11010, HIGH),
        ("FCVTPU (half)", 1, 0b11010, HIGH),
        ("FCVTMS (half)", 0, 0b11011, LOW),
        ("FCVTMU (half)", 1, 0b11011, LOW),
        ("FCVTZS (half)", 0, 0b11011, HIGH),
        ("FCVTZU (half)", 1, 0b11011, HIGH),
        ("FCVTAS (half)", 0, 0b11100, LOW),
        ("FCVTAU (half)", 1, 0b11100, LOW),
        ("SCVTF (half)", 0, 0b11101, LOW),
        ("UCVTF (half)", 1, 0b11101, LOW),
        ("FCMGT (half zero)", 0, 0b01100, HIGH),
        ("FCMGE (half zero)", 1, 0b01100, HIGH),
        ("FCMEQ (half zero)", 0, 0b01101, HIGH),
        ("FCMLE (half zero)", 1, 0b01101, HIGH),
        ("FCMLT (half zero)", 0, 0b01110, HIGH),
        ("FRECPE (half)", 0, 0b11101, HIGH),
        ("FRSQRTE (half)", 1, 0b11101, HIGH),
    ] {
        add(rows, SimdFp, VECTOR, entry, always);
        add(rows, SimdFp, SCALAR, entry, always);
    }
    add(rows, SimdFp, SCALAR, ("FRECPX (half)", 0, 0b11111, HIGH), always);
}

fn pairwise_and_across(rows: &mut Vec<Row>) {
    const PAIR: &str = "01U11110 zz11000 ooooo 10 nnnnn ddddd";
    const ACROSS: &str = "0QU01110 zz11000 ooooo 10 nnnnn ddddd";
    add(rows, Simd, PAIR, ("ADDP (scalar)", 0, 0b11011, D), always);
    // Without sz for half precision (U = 0).
    for entry in [
        ("FMAXNMP (scalar)", 1, 0b01100, LOW),
        ("FMINNMP (scalar)", 1, 0b01100, HIGH),
        ("FADDP (scalar)", 1, 0b01101, LOW),
        ("FMAXP (scalar)", 1, 0b01111, LOW),
        ("FMINP (scalar)", 1, 0b01111, HIGH),
        ("FMAXNMP (scalar half)", 0, 0b01100, 0b0001),
        ("FMINNMP (scalar half)", 0, 0b01100, 0b0100),
        ("FADDP (scalar half)", 0, 0b01101, 0b0001),
        ("FMAXP (scalar half)", 0, 0b01111, 0b0001),
        ("FMINP (scalar half)", 0, 0b01111, 0b0100),
    ] {
        add(rows, SimdFp, PAIR, entry, always);
    }
    for entry in [
        ("SADDLV", 0, 0b00011, BHS),
        ("UADDLV", 1, 0b00011, BHS),
        ("SMAXV", 0, 0b01010, BHS),
        ("UMAXV", 1, 0b01010, BHS),
        ("SMINV", 0, 0b11010, BHS),
        ("UMINV", 1, 0b11010, BHS),
        ("ADDV", 0, 0b11011, BHS),
    ] {
        add(rows, Simd, ACROSS, entry, |i| field(i, 23, 22) != 2 || bit(i, 30));
    }
    for entry in [
        ("FMAXNMV", 1, 0b01100, 0b0001),
        ("FMINNMV", 1, 0b01100, 0b0100),
        ("FMAXV", 1, 0b01111, 0b0001),
        ("FMINV", 1, 0b01111, 0b0100),
    ] {
        add(rows, SimdFp, ACROSS, entry, |i| bit(i, 30));
    }
    for entry in [
        ("FMAXNMV (half)", 0, 0b01100, 0b0001),
        ("FMINNMV (half)", 0, 0b01100, 0b0100),
        ("FMAXV (half)", 0, 0b01111, 0b0001),
        ("FMINV (half)", 0, 0b01111, 0b0100),
    ] {
        add(rows, SimdFp, ACROSS, entry, always);
    }
}

/// immh is not zero (that is the modified immediates), and 64-bit lanes only in the 128-bit arrangement.
fn shift_vector(insn: u32) -> bool {
    let immh = field(insn, 22, 19);
    immh != 0 && (immh < 8 || bit(insn, 30))
}

fn shift_narrow(insn: u32) -> bool {
    (1..8).contains(&field(insn, 22, 19))
}

fn shift_any(insn: u32) -> bool {
    field(insn, 22, 19) != 0
}

fn shift_d(insn: u32) -> bool {
    field(insn, 22, 19) >= 8
}

fn shift_fp(insn: u32) -> bool {
    shift_vector(insn) && field(insn, 22, 19) != 1
}

fn shift_fp_scalar(insn: u32) -> bool {
    field(insn, 22, 19) > 1
}

fn shift_immediate(rows: &mut Vec<Row>) {
    const VECTOR: &str = "0QU011110 hhhh bbb ooooo 1 nnnnn ddddd";
    const SCALAR: &str = "01U111110 hhhh bbb ooooo 1 nnnnn ddddd";
    let mut each = |class: Class, template, valid: fn(u32) -> bool, table: &[(&'static str, u32, u32)]| {
        for (name, u, opcode) in table {
            add(rows, class, template, (name, *u, *opcode, ALL), valid);
        }
    };
    let both = [
        ("SSHR", 0, 0b00000),
        ("USHR", 1, 0b00000),
        ("SSRA", 0, 0b00010),
        ("USRA", 1, 0b00010),
        ("SRSHR", 0, 0b00100),
        ("URSHR", 1, 0b00100),
        ("SRSRA", 0, 0b00110),
        ("URSRA", 1, 0b00110),
        ("SRI", 1, 0b01000),
        ("SHL", 0, 0b01010),
        ("SLI", 1, 0b01010),
    ];
    each(Simd, VECTOR, shift_vector, &both);
    each(Simd, SCALAR, shift_d, &both);
    let saturating = [("SQSHLU", 1, 0b01100), ("SQSHL (immediate)", 0, 0b01110), ("UQSHL (immediate)", 1, 0b01110)];
    each(Simd, VECTOR, shift_vector, &saturating);
    each(Simd, SCALAR, shift_any, &saturating);
    let narrow = [
        ("SQSHRN", 0, 0b10010),
        ("UQSHRN", 1, 0b10010),
        ("SQRSHRN", 0, 0b10011),
        ("UQRSHRN", 1, 0b10011),
        ("SQSHRUN", 1, 0b10000),
        ("SQRSHRUN", 1, 0b10001),
    ];
    each(Simd, VECTOR, shift_narrow, &narrow);
    each(Simd, SCALAR, shift_narrow, &narrow);
    each(
        Simd,
        VECTOR,
        shift_narrow,
        &[("SHRN", 0, 0b10000), ("RSHRN", 0, 0b10001), ("SSHLL", 0, 0b10100), ("USHLL", 1, 0b10100)],
    );
    let convert = [
        ("SCVTF (vector fixed)", 0, 0b11100),
        ("UCVTF (vector fixed)", 1, 0b11100),
        ("FCVTZS (vector fixed)", 0, 0b11111),
        ("FCVTZU (vector fixed)", 1, 0b11111),
    ];
    each(SimdFp, VECTOR, shift_fp, &convert);
    each(SimdFp, SCALAR, shift_fp_scalar, &convert);
}

fn modified_immediate(rows: &mut Vec<Row>) {
    let mut push = |name, pattern, valid: fn(u32) -> bool| rows.push(row(name, Simd, pattern).when(valid));
    push("MOVI/MVNI/ORR/BIC/FMOV", "0Qo0111100000 iii cccc 01 iiiii ddddd", |i| {
        field(i, 15, 12) != 15 || !bit(i, 29) || bit(i, 30)
    });
    push("FMOV (vector half)", "0Q00111100000 iii 1111 11 iiiii ddddd", always);
}
