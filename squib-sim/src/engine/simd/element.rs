//! AdvSIMD vector x indexed element, vector and scalar.

use super::lane_ops::*;
use super::lanes::*;
use super::{dot, fp_complex, fp_vector, long};
use crate::engine::op::{Decoded, Handler};

/// Decodes AdvSIMD (scalar) x indexed element.
pub fn decode(insn: u32, width: Width) -> Option<Decoded> {
    let (u, size, opcode) = (insn >> 29 & 1, insn >> 22 & 3, insn >> 12 & 15);
    let (l, m, h) = (insn >> 21 & 1, insn >> 20 & 1, insn >> 11 & 1);
    let scalar = matches!(width, Width::Scalar(_));
    match (u, opcode) {
        (_, 0b1001) | (0, 0b0001 | 0b0101) => {
            let (fsize, index, rm) = match size {
                0b00 => (1, h << 2 | l << 1 | m, insn >> 16 & 15),
                0b10 => (2, h << 1 | l, insn >> 16 & 31),
                0b11 if l == 0 => (3, h, insn >> 16 & 31),
                _ => return None,
            };
            return fp_vector::by_element(insn, width, fsize, rm, index);
        }
        (1, 0b0001 | 0b0011 | 0b0101 | 0b0111) => {
            let full = width == Width::Full;
            return match size {
                1 if !scalar && (full || h == 0) => fp_complex::decode_elem(insn, width, 1, h << 1 | l),
                2 if full && l == 0 => fp_complex::decode_elem(insn, width, 2, h),
                _ => None,
            };
        }
        (_, 0b1110) if size == 2 && !scalar => return dot::decode(insn, width, Some(h << 1 | l)),
        _ => {}
    }
    let (index, rm) = match size {
        1 => (h << 2 | l << 1 | m, insn >> 16 & 15),
        2 => (h << 1 | l, insn >> 16 & 31),
        _ => return None,
    };
    macro_rules! pick {
        ($f:ty) => {
            by_size!(size, lanewise_elem, $f)
        };
    }
    let run: Handler = match (u, opcode) {
        (1, 0b0000) if !scalar => pick!(Mla),
        (1, 0b0100) if !scalar => pick!(Mls),
        (0, 0b1000) if !scalar => pick!(Mul),
        (0, 0b1100) => pick!(SQDMulH),
        (0, 0b1101) => pick!(SQRDMulH),
        (1, 0b1101) => pick!(SQRDMlaH),
        (1, 0b1111) => pick!(SQRDMlsH),
        _ => return long::decode_elem(insn, width, size, rm, index),
    };
    let width = if scalar { Width::Scalar(size) } else { width };
    let mut decoded = masked(run, insn, width, index)?;
    decoded.op.rm = rm as u8;
    Some(decoded)
}
