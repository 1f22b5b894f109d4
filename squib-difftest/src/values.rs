//! Operand values, biased to where arithmetic goes wrong.

use crate::case::WINDOW_LEN;
use crate::rng::Rng;

/// FPCR bits the features give a meaning: AHP, DN, FZ, RMode, FZ16.
pub const FPCR_BITS: u32 = 0x07c8_0000;
/// FPSR bits: QC, IDC, IXC, UFC, OFC, DZC, IOC.
pub const FPSR_BITS: u32 = 0x0800_009f;

/// A general-purpose register.
pub fn integer(rng: &mut Rng) -> u64 {
    const EDGES: [u64; 16] = [
        0,
        1,
        2,
        u64::MAX,
        u64::MAX - 1,
        1 << 63,
        (1 << 63) - 1,
        1 << 31,
        (1 << 31) - 1,
        (1 << 32) - 1,
        1 << 32,
        0xffff_ffff_8000_0000,
        0x7f,
        0x80,
        0x7fff,
        0x8000,
    ];
    match rng.below(8) {
        0..3 => rng.pick(&EDGES),
        3 => rng.pick(&EDGES).wrapping_add(rng.below(5)).wrapping_sub(2),
        4 => rng.next() >> rng.below(64),
        5 => 1 << rng.below(64),
        6 => !(rng.next() >> rng.below(64)),
        _ => rng.next(),
    }
}

/// A floating-point value of 16, 32 or 64 bits: `exponent` and `fraction` are the widths of its fields.
fn float(rng: &mut Rng, exponent: u32, fraction: u32) -> u64 {
    let sign = rng.below(2) << (exponent + fraction);
    let max = (1u64 << exponent) - 1;
    let bias = max >> 1;
    let ones = (1u64 << fraction) - 1;
    let quiet = 1 << (fraction - 1);
    let compose = |e: u64, f: u64| sign | e << fraction | f & ones;
    match rng.below(16) {
        0 => sign,
        1 => compose(max, 0),
        2 => compose(max, quiet | rng.next() >> rng.below(64)),
        3 => compose(max, (rng.next() & (quiet - 1)).max(1)),
        // Denormals, and the numbers next to them.
        4 => compose(0, (rng.next() & ones) >> rng.below(u64::from(fraction))),
        5 => compose(rng.pick(&[0, 1]), rng.pick(&[1, ones, 0, quiet])),
        // The largest numbers, powers of two, numbers about 1.
        6 => compose(max - 1, rng.pick(&[ones, ones - 1, 0, rng.clone().next()])),
        7 => compose(rng.below(max), 0),
        8 => compose(bias, rng.pick(&[0, 1, quiet, ones])),
        // Integers and halves of integers, about the widths of the integer formats.
        9 => compose((bias + rng.below(20)).min(max - 1), rng.next() & !(ones >> rng.below(12))),
        10 => {
            let at = rng.pick(&[7u64, 8, 15, 16, 31, 32, 63, 64]);
            compose((bias + at - rng.below(2)).min(max - 1), rng.pick(&[0, 1, ones, ones - 1, quiet]))
        }
        // Few fraction bits (exact products and ties), near exponents (cancellation).
        11 => compose(bias + rng.below(8) - 4, rng.next() & rng.next() & rng.next()),
        12 => compose(bias + rng.below(4) - 2, rng.next()),
        13 => compose((rng.below(6) + fraction as u64 / 2).min(max - 1), rng.next()),
        14 => compose(rng.below(max), rng.next() & rng.next() & rng.next()),
        _ => rng.next() & (compose(max, ones) | 1 << (exponent + fraction)),
    }
}

/// One lane of `1 << log2` bytes, as a floating-point value where the width has one.
fn float_lane(rng: &mut Rng, log2: u32) -> u64 {
    match log2 {
        1 => float(rng, 5, 10),
        2 => float(rng, 8, 23),
        3 => float(rng, 11, 52),
        _ => rng.next(),
    }
}

/// A FP/SIMD register: lanes of one width.
pub fn vector(rng: &mut Rng) -> u128 {
    let log2 = rng.below(4) as u32;
    let floats = rng.below(3) != 0;
    let bits = 8u32 << log2;
    let mut value = 0u128;
    for lane in 0..128 / bits {
        let part = if floats { float_lane(rng, log2) } else { integer(rng) };
        let part = if bits == 64 { part } else { part & ((1 << bits) - 1) };
        value |= u128::from(part) << (lane * bits);
    }
    match rng.below(16) {
        0 => 0,
        1 => u128::MAX,
        2 => value & u128::from(u64::MAX),
        _ => value,
    }
}

/// FPCR: rounding to nearest without flushing half of the time.
pub fn fpcr(rng: &mut Rng) -> u32 {
    match rng.below(4) {
        0 | 1 => 0,
        2 => rng.word() & rng.word() & FPCR_BITS,
        _ => rng.word() & FPCR_BITS,
    }
}

/// FPSR: mostly clear, so that every flag that is raised shows.
pub fn fpsr(rng: &mut Rng) -> u32 {
    if rng.one_in(8) { rng.word() & FPSR_BITS } else { 0 }
}

/// The scratch window.
pub fn window(rng: &mut Rng) -> Vec<u8> {
    (0..WINDOW_LEN / 16).flat_map(|_| vector(rng).to_le_bytes()).collect()
}
