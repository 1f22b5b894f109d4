//! FP, AdvSIMD and cryptographic instructions.
//!
//! The tree of `decode` follows "Data Processing -- Scalar Floating-Point and Advanced SIMD" of the Arm Architecture
//! Reference Manual, one module a class. Implemented: all of Armv8.0-A, FEAT_FP16, FEAT_RDM, FEAT_DotProd, FEAT_FCMA,
//! FEAT_JSCVT, FEAT_AES, FEAT_PMULL, FEAT_SHA1 and FEAT_SHA256. Everything else is unallocated.

mod copy;
mod crypto;
mod dot;
mod element;
mod fp_across;
mod fp_complex;
mod fp_ops;
mod fp_scalar;
mod fp_vector;
mod fp_vector_misc;
mod lane_ops;
mod lanes;
mod long;
mod permute;
mod shift_imm;
mod structures;
mod three_same;
mod two_misc;

#[cfg(test)]
mod tests;

use super::op::Decoded;
use lanes::Width;

/// Decodes an instruction of the FP/AdvSIMD data-processing group (bits 28:25 = x111), of the AdvSIMD load/store structure
/// group, or answers `None` when the encoding is unallocated.
pub fn decode(insn: u32) -> Option<Decoded> {
    if insn >> 25 & 7 != 7 {
        return structures::decode(insn);
    }
    match (insn >> 31, insn >> 30 & 1, insn >> 28 & 1) {
        (0, _, 0) => decode_advsimd(insn, Width::vector(insn)),
        (0, 1, 1) => decode_advsimd(insn, Width::Scalar(0)),
        (_, 0, 1) => fp_scalar::decode(insn),
        _ => None,
    }
}

/// The vector classes, and with [`Width::Scalar`] their scalar counterparts.
fn decode_advsimd(insn: u32, width: Width) -> Option<Decoded> {
    let bit = |n: u32| insn >> n & 1;
    let scalar = matches!(width, Width::Scalar(_));
    if bit(24) == 1 {
        return match (bit(10), bit(23)) {
            (0, _) => element::decode(insn, width),
            (1, 0) if insn >> 19 & 15 != 0 => shift_imm::decode(insn, width),
            (1, 0) if !scalar => copy::decode_immediate(insn, width),
            _ => None,
        };
    }
    match (bit(21), bit(15), bit(11), bit(10)) {
        (1, _, _, 1) => three_same::decode(insn, width),
        (1, _, 0, 0) => long::decode_three_diff(insn, width),
        (1, _, 1, 0) => match insn >> 17 & 0x1f {
            0b10000 => two_misc::decode(insn, width),
            0b11000 if scalar => two_misc::decode_scalar_pairwise(insn),
            0b11000 => two_misc::decode_across(insn, width),
            0b11100 if bit(22) == 1 => fp_vector_misc::decode(insn, width, bit(23), 1),
            0b10100 => crypto::decode_two(insn, width),
            _ => None,
        },
        (_, 1, _, 1) => three_same::decode_extra(insn, width),
        (_, 0, _, 1) if insn >> 21 & 7 == 0 => copy::decode(insn, width),
        (_, 0, 0 | 1, 1) if insn >> 21 & 3 == 0b10 && bit(14) == 0 => {
            fp_vector::three_same(insn, width, bit(23), insn >> 11 & 7, 1)
        }
        (_, 0, 0, 0) if scalar && insn >> 29 & 1 == 0 => crypto::decode_three(insn),
        (_, 0, _, 0) if !scalar && bit(29) == 0 => match bit(11) {
            0 if insn >> 22 & 3 == 0 => permute::decode_table(insn, width),
            1 => permute::decode(insn, width),
            _ => None,
        },
        (_, 0, _, 0) if !scalar && insn >> 22 & 3 == 0 => permute::decode_ext(insn, width),
        _ => None,
    }
}
