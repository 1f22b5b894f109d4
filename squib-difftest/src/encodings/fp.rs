//! Scalar floating point: single, double and half precision.

use super::Class::Fp;
use super::{Row, bit, field, row};

/// ptype is not the reserved one.
const PTYPES: u8 = 0b1011;

pub(super) fn rows(rows: &mut Vec<Row>) {
    let mut add = |name, sizes, pattern, valid: fn(u32) -> bool| {
        rows.push(row(name, Fp, pattern).sizes(sizes).when(valid));
    };
    let any = super::always;
    let scale: fn(u32) -> bool = |i| bit(i, 31) || bit(i, 15);
    add("SCVTF (fixed)", PTYPES, "f0011110 pp0 00 010 kkkkkk nnnnn ddddd", scale);
    add("UCVTF (fixed)", PTYPES, "f0011110 pp0 00 011 kkkkkk nnnnn ddddd", scale);
    add("FCVTZS (fixed)", PTYPES, "f0011110 pp0 11 000 kkkkkk nnnnn ddddd", scale);
    add("FCVTZU (fixed)", PTYPES, "f0011110 pp0 11 001 kkkkkk nnnnn ddddd", scale);
    for (name, pattern) in [
        ("FCVTNS", "f0011110 pp1 00 000 000000 nnnnn ddddd"),
        ("FCVTNU", "f0011110 pp1 00 001 000000 nnnnn ddddd"),
        ("FCVTPS", "f0011110 pp1 01 000 000000 nnnnn ddddd"),
        ("FCVTPU", "f0011110 pp1 01 001 000000 nnnnn ddddd"),
        ("FCVTMS", "f0011110 pp1 10 000 000000 nnnnn ddddd"),
        ("FCVTMU", "f0011110 pp1 10 001 000000 nnnnn ddddd"),
        ("FCVTZS", "f0011110 pp1 11 000 000000 nnnnn ddddd"),
        ("FCVTZU", "f0011110 pp1 11 001 000000 nnnnn ddddd"),
        ("SCVTF", "f0011110 pp1 00 010 000000 nnnnn ddddd"),
        ("UCVTF", "f0011110 pp1 00 011 000000 nnnnn ddddd"),
        ("FCVTAS", "f0011110 pp1 00 100 000000 nnnnn ddddd"),
        ("FCVTAU", "f0011110 pp1 00 101 000000 nnnnn ddddd"),
    ] {
        add(name, PTYPES, pattern, any);
    }
    add("FJCVTZS", 15, "00011110 011 11 110 000000 nnnnn ddddd", any);
    add("FMOV (general)", 15, "f0011110 pp1 00 11o 000000 nnnnn ddddd", |i| match field(i, 23, 22) {
        0 => !bit(i, 31),
        1 => bit(i, 31),
        3 => true,
        _ => false,
    });
    add("FMOV (top half)", 15, "10011110 101 01 11o 000000 nnnnn ddddd", any);
    for (name, pattern) in [
        ("FMOV (register)", "00011110 pp1 000000 10000 nnnnn ddddd"),
        ("FABS", "00011110 pp1 000001 10000 nnnnn ddddd"),
        ("FNEG", "00011110 pp1 000010 10000 nnnnn ddddd"),
        ("FSQRT", "00011110 pp1 000011 10000 nnnnn ddddd"),
        ("FRINTN", "00011110 pp1 001000 10000 nnnnn ddddd"),
        ("FRINTP", "00011110 pp1 001001 10000 nnnnn ddddd"),
        ("FRINTM", "00011110 pp1 001010 10000 nnnnn ddddd"),
        ("FRINTZ", "00011110 pp1 001011 10000 nnnnn ddddd"),
        ("FRINTA", "00011110 pp1 001100 10000 nnnnn ddddd"),
        ("FRINTX", "00011110 pp1 001110 10000 nnnnn ddddd"),
        ("FRINTI", "00011110 pp1 001111 10000 nnnnn ddddd"),
        ("FMUL", "00011110 pp1 mmmmm 0000 10 nnnnn ddddd"),
        ("FDIV", "00011110 pp1 mmmmm 0001 10 nnnnn ddddd"),
        ("FADD", "00011110 pp1 mmmmm 0010 10 nnnnn ddddd"),
        ("FSUB", "00011110 pp1 mmmmm 0011 10 nnnnn ddddd"),
        ("FMAX", "00011110 pp1 mmmmm 0100 10 nnnnn ddddd"),
        ("FMIN", "00011110 pp1 mmmmm 0101 10 nnnnn ddddd"),
        ("FMAXNM", "00011110 pp1 mmmmm 0110 10 nnnnn ddddd"),
        ("FMINNM", "00011110 pp1 mmmmm 0111 10 nnnnn ddddd"),
        ("FNMUL", "00011110 pp1 mmmmm 1000 10 nnnnn ddddd"),
        ("FMADD", "00011111 pp0 mmmmm 0 aaaaa nnnnn ddddd"),
        ("FMSUB", "00011111 pp0 mmmmm 1 aaaaa nnnnn ddddd"),
        ("FNMADD", "00011111 pp1 mmmmm 0 aaaaa nnnnn ddddd"),
        ("FNMSUB", "00011111 pp1 mmmmm 1 aaaaa nnnnn ddddd"),
        ("FCMP", "00011110 pp1 mmmmm 00 1000 nnnnn 00000"),
        ("FCMPE", "00011110 pp1 mmmmm 00 1000 nnnnn 10000"),
        ("FCMP (zero)", "00011110 pp1 00000 00 1000 nnnnn 01000"),
        ("FCMPE (zero)", "00011110 pp1 00000 00 1000 nnnnn 11000"),
        ("FCCMP", "00011110 pp1 mmmmm cccc 01 nnnnn 0 kkkk"),
        ("FCCMPE", "00011110 pp1 mmmmm cccc 01 nnnnn 1 kkkk"),
        ("FCSEL", "00011110 pp1 mmmmm cccc 11 nnnnn ddddd"),
        ("FMOV (immediate)", "00011110 pp1 iiiiiiii 100 00000 ddddd"),
    ] {
        add(name, PTYPES, pattern, any);
    }
    // To and from: the two precisions differ.
    add("FCVT", PTYPES, "00011110 pp1 0001oo 10000 nnnnn ddddd", |i| {
        field(i, 16, 15) != 2 && field(i, 16, 15) != field(i, 23, 22)
    });
}
