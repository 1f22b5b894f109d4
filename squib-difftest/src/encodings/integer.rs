//! Data processing (immediate, register), branches, and system instructions that EL0 may use.

use super::Class::{Branch, Integer, System};
use super::{Form, Row, bit, field, row};

/// `DecodeBitMasks` accepts the immediate of a logical instruction.
fn bit_mask(insn: u32) -> bool {
    let (n, imms) = (field(insn, 22, 22), field(insn, 15, 10));
    let Some(len) = (n << 6 | !imms & 0x3f).checked_ilog2() else { return false };
    let levels = (1 << len) - 1;
    len > 0 && imms & levels != levels && (bit(insn, 31) || n == 0)
}

fn width_64_or_imm6_below_32(insn: u32) -> bool {
    bit(insn, 31) || field(insn, 15, 10) < 32
}

pub(super) fn rows(rows: &mut Vec<Row>) {
    immediate(rows);
    register(rows);
    branches(rows);
    system(rows);
}

fn immediate(rows: &mut Vec<Row>) {
    let mut add = |name, pattern| rows.push(row(name, Integer, pattern));
    add("ADR", "0ii10000 iiiiiiiiiiiiiiiiiii ddddd");
    add("ADRP", "1ii10000 iiiiiiiiiiiiiiiiiii ddddd");
    add("ADD/SUB (immediate)", "fof100010 h iiiiiiiiiiii nnnnn ddddd");
    let mut add = |name, pattern, valid| rows.push(row(name, Integer, pattern).when(valid));
    for (name, pattern) in [
        ("AND (immediate)", "f00100100 Niiiiiiiiiiii nnnnn ddddd"),
        ("ORR (immediate)", "f01100100 Niiiiiiiiiiii nnnnn ddddd"),
        ("EOR (immediate)", "f10100100 Niiiiiiiiiiii nnnnn ddddd"),
        ("ANDS (immediate)", "f11100100 Niiiiiiiiiiii nnnnn ddddd"),
    ] {
        add(name, pattern, bit_mask);
    }
    for (name, pattern) in [
        ("MOVN", "f00100101 hh iiiiiiiiiiiiiiii ddddd"),
        ("MOVZ", "f10100101 hh iiiiiiiiiiiiiiii ddddd"),
        ("MOVK", "f11100101 hh iiiiiiiiiiiiiiii ddddd"),
    ] {
        add(name, pattern, |i| bit(i, 31) || field(i, 22, 21) < 2);
    }
    for (name, pattern) in [
        ("SBFM", "f00100110 N rrrrrr iiiiii nnnnn ddddd"),
        ("BFM", "f01100110 N rrrrrr iiiiii nnnnn ddddd"),
        ("UBFM", "f10100110 N rrrrrr iiiiii nnnnn ddddd"),
    ] {
        add(name, pattern, |i| bit(i, 31) == bit(i, 22) && (bit(i, 31) || (!bit(i, 21) && !bit(i, 15))));
    }
    add("EXTR", "f00100111 N0 mmmmm iiiiii nnnnn ddddd", |i| bit(i, 31) == bit(i, 22) && width_64_or_imm6_below_32(i));
}

fn register(rows: &mut Vec<Row>) {
    let mut add = |name, pattern, valid: fn(u32) -> bool| rows.push(row(name, Integer, pattern).when(valid));
    for (name, pattern) in [
        ("AND/BIC (shifted)", "f0001010 ssN mmmmm iiiiii nnnnn ddddd"),
        ("ORR/ORN (shifted)", "f0101010 ssN mmmmm iiiiii nnnnn ddddd"),
        ("EOR/EON (shifted)", "f1001010 ssN mmmmm iiiiii nnnnn ddddd"),
        ("ANDS/BICS (shifted)", "f1101010 ssN mmmmm iiiiii nnnnn ddddd"),
    ] {
        add(name, pattern, width_64_or_imm6_below_32);
    }
    add("ADD/SUB (shifted)", "foS01011 hh0 mmmmm iiiiii nnnnn ddddd", |i| {
        field(i, 23, 22) != 3 && width_64_or_imm6_below_32(i)
    });
    add("ADD/SUB (extended)", "foS01011 001 mmmmm ooo iii nnnnn ddddd", |i| field(i, 12, 10) <= 4);
    let any = super::always;
    add("ADC/SBC", "foS11010000 mmmmm 000000 nnnnn ddddd", any);
    add("RMIF", "10111010000 iiiiii 00001 nnnnn 0 kkkk", any);
    add("SETF8/SETF16", "00111010000 000000 z 0010 nnnnn 01101", any);
    add("CCMN/CCMP (register)", "fo111010010 mmmmm cccc 00 nnnnn 0 kkkk", any);
    add("CCMN/CCMP (immediate)", "fo111010010 iiiii cccc 10 nnnnn 0 kkkk", any);
    add("CSEL/CSINC", "f0011010100 mmmmm cccc 0o nnnnn ddddd", any);
    add("CSINV/CSNEG", "f1011010100 mmmmm cccc 0o nnnnn ddddd", any);
    add("UDIV", "f0011010110 mmmmm 000010 nnnnn ddddd", any);
    add("SDIV", "f0011010110 mmmmm 000011 nnnnn ddddd", any);
    add("LSLV", "f0011010110 mmmmm 001000 nnnnn ddddd", any);
    add("LSRV", "f0011010110 mmmmm 001001 nnnnn ddddd", any);
    add("ASRV", "f0011010110 mmmmm 001010 nnnnn ddddd", any);
    add("RORV", "f0011010110 mmmmm 001011 nnnnn ddddd", any);
    add("CRC32", "f0011010110 mmmmm 0100zz nnnnn ddddd", |i| bit(i, 31) == (field(i, 11, 10) == 3));
    add("CRC32C", "f0011010110 mmmmm 0101zz nnnnn ddddd", |i| bit(i, 31) == (field(i, 11, 10) == 3));
    add("RBIT", "f1011010110 00000 000000 nnnnn ddddd", any);
    add("REV16", "f1011010110 00000 000001 nnnnn ddddd", any);
    add("REV32", "f1011010110 00000 000010 nnnnn ddddd", any);
    add("REV", "11011010110 00000 000011 nnnnn ddddd", any);
    add("CLZ", "f1011010110 00000 000100 nnnnn ddddd", any);
    add("CLS", "f1011010110 00000 000101 nnnnn ddddd", any);
    add("MADD/MSUB", "f0011011000 mmmmm o aaaaa nnnnn ddddd", any);
    add("SMADDL/SMSUBL", "10011011001 mmmmm o aaaaa nnnnn ddddd", any);
    add("UMADDL/UMSUBL", "10011011101 mmmmm o aaaaa nnnnn ddddd", any);
    add("SMULH", "10011011010 mmmmm 0 11111 nnnnn ddddd", any);
    add("UMULH", "10011011110 mmmmm 0 11111 nnnnn ddddd", any);
}

fn branches(rows: &mut Vec<Row>) {
    for (name, pattern) in [
        ("B.cond", "01010100 iiiiiiiiiiiiiiiiiii 0 cccc"),
        ("CBZ", "f0110100 iiiiiiiiiiiiiiiiiii ttttt"),
        ("CBNZ", "f0110101 iiiiiiiiiiiiiiiiiii ttttt"),
        ("TBZ", "b0110110 bbbbb iiiiiiiiiiiiii ttttt"),
        ("TBNZ", "b0110111 bbbbb iiiiiiiiiiiiii ttttt"),
        ("B", "000101 iiiiiiiiiiiiiiiiiiiiiiiiii"),
        ("BL", "100101 iiiiiiiiiiiiiiiiiiiiiiiiii"),
        ("BR", "1101011000011111000000 nnnnn 00000"),
        ("BLR", "1101011000111111000000 nnnnn 00000"),
        ("RET", "1101011001011111000000 nnnnn 00000"),
    ] {
        rows.push(row(name, Branch, pattern).form(Form::Branch));
    }
}

/// Hints run by both sides: everything but WFE and WFI, which wait.
fn hint(insn: u32) -> bool {
    !matches!(field(insn, 11, 5), 2 | 3)
}

fn system(rows: &mut Vec<Row>) {
    let mut add = |name, pattern, valid: fn(u32) -> bool| rows.push(row(name, System, pattern).when(valid));
    let any = super::always;
    add("HINT", "11010101000000110010 kkkk ooo 11111", hint);
    add("CLREX", "11010101000000110011 kkkk 010 11111", any);
    add("DSB", "11010101000000110011 kkkk 100 11111", any);
    add("DMB", "11010101000000110011 kkkk 101 11111", any);
    add("ISB", "11010101000000110011 kkkk 110 11111", any);
    add("CFINV", "11010101000000000100 0000 000 11111", any);
    add("MSR NZCV", "1101010100011011 0100 0010 000 ttttt", any);
    add("MRS NZCV", "1101010100111011 0100 0010 000 ttttt", any);
    add("MSR FPCR", "1101010100011011 0100 0100 000 ttttt", any);
    add("MRS FPCR", "1101010100111011 0100 0100 000 ttttt", any);
    add("MSR FPSR", "1101010100011011 0100 0100 001 ttttt", any);
    add("MRS FPSR", "1101010100111011 0100 0100 001 ttttt", any);
    add("MSR TPIDR_EL0", "1101010100011011 1101 0000 010 ttttt", any);
    add("MRS TPIDR_EL0", "1101010100111011 1101 0000 010 ttttt", any);
}
