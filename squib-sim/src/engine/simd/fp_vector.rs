//! Floating-point AdvSIMD three same and by element, vector and scalar.

use super::fp_ops::*;
use super::lanes::Width;
use crate::engine::op::Decoded;

/// Decodes three same: `a` is bit 23, `opcode` the low three bits of the opcode field, elements have `8 << size` bits.
pub fn three_same(insn: u32, width: Width, a: u32, opcode: u32, size: u32) -> Option<Decoded> {
    let u = insn >> 29 & 1;
    let scalar = matches!(width, Width::Scalar(_));
    let in_scalar =
        matches!((u, opcode, a), (0, 0b011 | 0b100, 0) | (0, 0b111, _) | (1, 0b010, 1) | (1, 0b100 | 0b101, _));
    if scalar && !in_scalar {
        return None;
    }
    let runs = match (u, opcode, a) {
        (0, 0b000, 0) => for_width::<FMaxNm>(width),
        (0, 0b000, _) => for_width::<FMinNm>(width),
        (0, 0b001, 0) => for_width::<FMadd>(width),
        (0, 0b001, _) => for_width::<FMsub>(width),
        (0, 0b010, 0) => for_width::<FAdd>(width),
        (0, 0b010, _) => for_width::<FSub>(width),
        (0, 0b011, 0) => for_width::<FMulX>(width),
        (0, 0b100, 0) => for_width::<FCmEq>(width),
        (0, 0b110, 0) => for_width::<FMax>(width),
        (0, 0b110, _) => for_width::<FMin>(width),
        (0, 0b111, 0) => for_width::<FRecpS>(width),
        (0, 0b111, _) => for_width::<FRSqrtS>(width),
        (1, 0b000, 0) => pairwise::<FMaxNm>(),
        (1, 0b000, _) => pairwise::<FMinNm>(),
        (1, 0b010, 0) => pairwise::<FAdd>(),
        (1, 0b010, _) => for_width::<FAbd>(width),
        (1, 0b011, 0) => for_width::<FMul>(width),
        (1, 0b100, 0) => for_width::<FCmGe>(width),
        (1, 0b100, _) => for_width::<FCmGt>(width),
        (1, 0b101, 0) => for_width::<FAcGe>(width),
        (1, 0b101, _) => for_width::<FAcGt>(width),
        (1, 0b110, 0) => pairwise::<FMax>(),
        (1, 0b110, _) => pairwise::<FMin>(),
        (1, 0b111, 0) => for_width::<FDiv>(width),
        _ => return None,
    };
    fp_op(runs, insn, width, size, 0)
}

/// Decodes FMLA, FMLS, FMUL and FMULX by element.
pub fn by_element(insn: u32, width: Width, size: u32, rm: u32, index: u32) -> Option<Decoded> {
    let runs = match (insn >> 29 & 1, insn >> 12 & 15) {
        (0, 0b0001) => for_element::<FMadd>(width),
        (0, 0b0101) => for_element::<FMsub>(width),
        (0, 0b1001) => for_element::<FMul>(width),
        (1, 0b1001) => for_element::<FMulX>(width),
        _ => return None,
    };
    let mut decoded = fp_op(runs, insn, width, size, 0)?;
    if let Width::Scalar(_) = width {
        decoded.op.ra = 1;
    }
    decoded.op.rm = rm as u8;
    decoded.op.imm = u64::from(index);
    Some(decoded)
}

/// A scalar by element is a vector of one lane.
fn for_element<O: FpFn>(width: Width) -> ByFormat {
    for_width::<O>(if let Width::Scalar(_) = width { Width::Full } else { width })
}
