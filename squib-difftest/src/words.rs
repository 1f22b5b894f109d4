//! Instruction words: small code sequences, and what an instruction's fields mean for its access.

use crate::encodings::{Class, Form, Row, bit, field};

/// Points a branch or an ADR of a unit at the word `distance` words on; leaves other instructions alone.
pub fn aim(word: u32, distance: i64) -> u32 {
    let imm = |bits: u32, low: u32| (distance as u32 & ((1 << bits) - 1)) << low;
    match field(word, 30, 26) {
        // B, BL.
        0b00101 => word & !0x03ff_ffff | imm(26, 0),
        // TBZ, TBNZ; CBZ, CBNZ.
        0b01101 if bit(word, 25) => word & !(0x3fff << 5) | imm(14, 5),
        0b01101 => word & !(0x7_ffff << 5) | imm(19, 5),
        // B.cond.
        0b10101 if !bit(word, 31) => word & !(0x7_ffff << 5) | imm(19, 5),
        // ADR, whose immediate counts bytes: its two low bits stay 0.
        0b00100 if !bit(word, 31) => word | imm(19, 5),
        _ => word,
    }
}

/// MOVZ and as many MOVKs as it takes, or MOVN for a negative number.
pub fn constant(register: u32, value: u64) -> Vec<u32> {
    let (first, skip) = if value >> 48 == 0xffff { (0x9280_0000, 0xffff) } else { (0xd280_0000, 0) };
    let low = value as u32 & 0xffff;
    let low = if skip == 0 { low } else { !low & 0xffff };
    let mut code = vec![first | low << 5 | register];
    for part in 1..4 {
        let half = (value >> (16 * part)) as u32 & 0xffff;
        if half != skip {
            code.push(0xf280_0000 | part << 21 | half << 5 | register);
        }
    }
    code
}

/// The low `bits` bits as a signed number.
pub fn sign_extend(value: u32, bits: u32) -> i64 {
    i64::from(value) << (64 - bits) >> (64 - bits)
}

/// log2 of the bytes of a single-register access.
pub fn access_scale(word: u32) -> u32 {
    field(word, 31, 30) | if bit(word, 26) { field(word, 23, 23) << 2 } else { 0 }
}

/// log2 of the bytes of each register of a pair.
pub fn pair_scale(word: u32) -> u32 {
    if bit(word, 26) { 2 + field(word, 31, 30) } else { 2 + field(word, 31, 31) }
}

/// Bytes an access touches.
pub fn access_size(row: &Row, word: u32) -> u64 {
    match row.form {
        Form::Pair => 2 << pair_scale(word),
        Form::Base if row.class == Class::Structure => structure_size(word),
        Form::Base if row.name.contains("XP") => 8 << field(word, 30, 30),
        Form::Base if row.name == "CASP" => 8 << field(word, 30, 30),
        Form::Base => 1 << field(word, 31, 30),
        _ => 1 << access_scale(word),
    }
}

fn structure_size(word: u32) -> u64 {
    if bit(word, 24) {
        let registers = 1 + u64::from(field(word, 13, 13) << 1 | field(word, 21, 21));
        let scale = match field(word, 15, 14) {
            // 32-bit lanes, or 64-bit ones when the size field says so.
            2 => 2 + field(word, 10, 10),
            3 => field(word, 11, 10),
            other => other,
        };
        return registers << scale;
    }
    let registers = match field(word, 15, 12) {
        0 | 2 => 4,
        4 | 6 => 3,
        7 => 1,
        _ => 2,
    };
    registers * if bit(word, 30) { 16 } else { 8 }
}

/// Not one of the register overlaps that the architecture leaves CONSTRAINED UNPREDICTABLE, and the base can be set up.
pub fn predictable(row: &Row, word: u32) -> bool {
    let (t, n, u, s) = (field(word, 4, 0), field(word, 9, 5), field(word, 14, 10), field(word, 20, 16));
    let simd = bit(word, 26);
    let base_is_data = |r: u32| !simd && r == n && n != 31;
    match row.form {
        Form::Imm9 => !(bit(word, 10) && base_is_data(t)),
        Form::Pair => {
            let writeback = bit(word, 23);
            !(bit(word, 22) && t == u) && !(writeback && (base_is_data(t) || base_is_data(u)))
        }
        Form::Register => s != n || n == 31,
        Form::Base if row.name.starts_with("STX") => {
            let pair = bit(word, 21);
            s != t && !(pair && s == u) && (s != n || n == 31)
        }
        Form::Base if row.name.starts_with("LDXP") => t != u,
        _ => true,
    }
}
