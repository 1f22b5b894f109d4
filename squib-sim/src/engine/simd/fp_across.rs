//! Floating-point across lanes and scalar pairwise.

use super::fp_ops::*;
use super::lanes::Width;
use crate::engine::op::Decoded;

/// Decodes FMAXNMV, FMINNMV, FMAXV, FMINV: half precision, or four lanes of single precision.
pub fn decode_across(insn: u32, width: Width) -> Option<Decoded> {
    let (u, minimum, sz) = (insn >> 29 & 1, insn >> 23 & 1 == 1, insn >> 22 & 1);
    if sz == 1 || u == 1 && width != Width::Full {
        return None;
    }
    let runs = match (insn >> 12 & 31, minimum) {
        (0b01100, false) => reducing::<FMaxNm>(),
        (0b01100, true) => reducing::<FMinNm>(),
        (0b01111, false) => reducing::<FMax>(),
        (0b01111, true) => reducing::<FMin>(),
        _ => return None,
    };
    fp_op(runs, insn, width, 1 + u, 0)
}

/// Decodes FADDP, FMAXNMP, FMINNMP, FMAXP, FMINP of a pair.
pub fn decode_scalar_pairwise(insn: u32) -> Option<Decoded> {
    let (u, a, sz) = (insn >> 29 & 1, insn >> 23 & 1, insn >> 22 & 1);
    let size = match (u, sz) {
        (0, 0) => 1,
        (0, _) => return None,
        (_, sz) => 2 + sz,
    };
    let runs = match (insn >> 12 & 31, a) {
        (0b01100, 0) => reducing::<FMaxNm>(),
        (0b01100, _) => reducing::<FMinNm>(),
        (0b01101, 0) => reducing::<FAdd>(),
        (0b01111, 0) => reducing::<FMax>(),
        (0b01111, _) => reducing::<FMin>(),
        _ => return None,
    };
    let mut decoded = fp_op(runs, insn, Width::Full, size, 0)?;
    decoded.op.ra = 2;
    Some(decoded)
}
