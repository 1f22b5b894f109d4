//! AdvSIMD shift by immediate, vector and scalar.

use super::fp_vector_misc;
use super::lane_ops::*;
use super::lanes::*;
use super::long::{self, RShrn, SQRShrUn, SQRShrn, SQShrUn, SQShrn, Shrn, UQRShrn, UQShrn};
use crate::engine::op::{Decoded, Handler};

/// Decodes AdvSIMD shift by immediate; `immh` is not zero.
pub fn decode(insn: u32, width: Width) -> Option<Decoded> {
    let (u, opcode) = (insn >> 29 & 1, insn >> 11 & 31);
    let (immh, imm) = (insn >> 19 & 15, insn >> 16 & 127);
    let scalar = matches!(width, Width::Scalar(_));
    // HighestSetBit(immh).
    let size = 31 - immh.leading_zeros();
    let esize = 8 << size;
    let (right, left) = (2 * esize - imm, imm - esize);
    let width = if scalar { Width::Scalar(size) } else { width };
    if opcode == 0b11100 || opcode == 0b11111 {
        return fp_vector_misc::decode_fixed(insn, width, size, right);
    }
    if (0b10000..=0b10011).contains(&opcode) {
        if size == 3 || scalar && (opcode < 0b10010 && u == 0) {
            return None;
        }
        return match opcode << 1 & 6 | u {
            0 => long::decode_narrow::<Shrn>(insn, width, size, right),
            1 => long::decode_narrow::<SQShrUn>(insn, width, size, right),
            2 => long::decode_narrow::<RShrn>(insn, width, size, right),
            3 => long::decode_narrow::<SQRShrUn>(insn, width, size, right),
            4 => long::decode_narrow::<SQShrn>(insn, width, size, right),
            5 => long::decode_narrow::<UQShrn>(insn, width, size, right),
            6 => long::decode_narrow::<SQRShrn>(insn, width, size, right),
            _ => long::decode_narrow::<UQRShrn>(insn, width, size, right),
        };
    }
    if opcode == 0b10100 {
        let reserved = size == 3 || scalar;
        return if reserved { None } else { long::decode_shift_left_long(insn, width, size, left, u == 0) };
    }
    let any_scalar = matches!(opcode, 0b01100 | 0b01110);
    if size == 3 && width == Width::Half || scalar && size != 3 && !any_scalar {
        return None;
    }
    macro_rules! pair {
        ($s:ty, $u:ty) => {
            if u == 0 { by_size!(size, lanewise, $s) } else { by_size!(size, lanewise, $u) }
        };
    }
    let (run, k): (Handler, u32) = match opcode {
        0b00000 => (pair!(SShr, UShr), right),
        0b00010 => (pair!(SSra, USra), right),
        0b00100 => (pair!(SRShr, URShr), right),
        0b00110 => (pair!(SRSra, URSra), right),
        0b01000 if u == 1 => (by_size!(size, lanewise, Sri), right),
        0b01010 => (pair!(Shl, Sli), left),
        0b01100 if u == 1 => (by_size!(size, lanewise, SQShlU), left),
        0b01110 => (pair!(SQShlImm, UQShlImm), left),
        _ => return None,
    };
    masked(run, insn, width, k)
}
