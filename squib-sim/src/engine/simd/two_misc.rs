//! AdvSIMD two-register miscellaneous (integer part) and across lanes.

use super::lane_ops::*;
use super::lanes::*;
use super::long::{self, SQShrUn, SQShrn, Shrn, UQShrn};
use super::{fp_across, fp_vector_misc};
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op};

/// Decodes AdvSIMD two-register miscellaneous, vector and scalar.
pub fn decode(insn: u32, width: Width) -> Option<Decoded> {
    let (u, size, opcode) = (insn >> 29 & 1, insn >> 22 & 3, insn >> 12 & 31);
    let fp = opcode >= 0b10110 || (0b01100..=0b01111).contains(&opcode);
    if fp {
        return fp_vector_misc::decode(insn, width, size >> 1, 2 + (size & 1));
    }
    let scalar = matches!(width, Width::Scalar(_));
    let width = if scalar { Width::Scalar(size) } else { width };
    if scalar && !scalar_allowed(u, opcode, size) {
        return None;
    }
    match (opcode, u) {
        (0b10010, 0) if size < 3 => return long::decode_narrow::<Shrn>(insn, width, size, 0),
        (0b10010, _) if size < 3 => return long::decode_narrow::<SQShrUn>(insn, width, size, 0),
        (0b10011, 1) if size < 3 => return long::decode_shift_left_long(insn, width, size, 8 << size, false),
        (0b10100, 0) if size < 3 => return long::decode_narrow::<SQShrn>(insn, width, size, 0),
        (0b10100, _) if size < 3 => return long::decode_narrow::<UQShrn>(insn, width, size, 0),
        _ => {}
    }
    if width == Width::Half && size == 3 {
        return None;
    }
    macro_rules! pair {
        ($s:ty, $u:ty) => {
            if u == 0 { by_size!(size, lanewise, $s) } else { by_size!(size, lanewise, $u) }
        };
    }
    let run: Handler = match opcode {
        0b00000 if u == 0 && size < 3 => [reverse::<8, 1>, reverse::<8, 2>, reverse::<8, 4>][size as usize],
        0b00000 if u == 1 && size < 2 => [reverse::<4, 1>, reverse::<4, 2>][size as usize],
        0b00001 if u == 0 && size == 0 => reverse::<2, 1>,
        0b00010 if size < 3 => add_long_pairwise_by::<false>(u, size),
        0b00110 if size < 3 => add_long_pairwise_by::<true>(u, size),
        0b00011 => pair!(SUQAdd, USQAdd),
        0b00100 if size < 3 => pair!(Cls, Clz),
        0b00101 if u == 0 && size == 0 => lanewise::<Cnt, u8>,
        0b00101 if u == 1 && size == 0 => lanewise::<Not, u8>,
        0b00101 if u == 1 && size == 1 => lanewise::<RBit, u8>,
        0b00111 => pair!(SQAbs, SQNeg),
        0b01000 => pair!(CmGt0, CmGe0),
        0b01001 => pair!(CmEq0, CmLe0),
        0b01010 if u == 0 => by_size!(size, lanewise, CmLt0),
        0b01011 => pair!(Abs, Neg),
        _ => return None,
    };
    masked(run, insn, width, 0)
}

fn scalar_allowed(u: u32, opcode: u32, size: u32) -> bool {
    match opcode {
        0b00011 | 0b00111 => true,
        0b01000 | 0b01001 | 0b01011 => size == 3,
        0b01010 => size == 3 && u == 0,
        0b10010 => size < 3 && u == 1,
        0b10100 => size < 3,
        _ => false,
    }
}

/// REV16, REV32, REV64: reverses the elements of `E` bytes in each container of `C` bytes.
///
/// # Safety
/// See [`Handler`].
unsafe fn reverse<const C: usize, const E: usize>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let (n, mask) = (lanes::<u8>(cpu, o.rn), mask_lanes::<u8>(o));
        // Counting in elements, position i within its container is mirrored; bytes inside an element stay in order.
        set_lanes::<u8>(cpu, o.rd, std::array::from_fn(|i| n[i ^ (C - E)] & mask[i]));
        Op::next(cpu, op)
    }
}

fn add_long_pairwise_by<const ACC: bool>(u: u32, size: u32) -> Handler {
    match (u, size) {
        (0, 0) => add_long_pairwise::<u8, true, ACC>,
        (0, 1) => add_long_pairwise::<u16, true, ACC>,
        (0, _) => add_long_pairwise::<u32, true, ACC>,
        (_, 0) => add_long_pairwise::<u8, false, ACC>,
        (_, 1) => add_long_pairwise::<u16, false, ACC>,
        (_, _) => add_long_pairwise::<u32, false, ACC>,
    }
}

/// SADDLP, UADDLP, SADALP, UADALP.
///
/// # Safety
/// See [`Handler`].
unsafe fn add_long_pairwise<L: Widen, const S: bool, const ACC: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        // A pair is one lane twice as wide.
        let (n, mask) = (lanes::<L::Wide>(cpu, o.rn), mask_lanes::<L::Wide>(o));
        let mut d = if ACC { lanes::<L::Wide>(cpu, o.rd) } else { L::Wide::ZEROS };
        let extend = |x: u64| L::Wide::of(if S { L::of(x).s() as u64 } else { L::of(x).u() });
        for ((d, &n), &mask) in d.as_mut().iter_mut().zip(n.as_ref()).zip(mask.as_ref()) {
            *d = d.add(extend(n.u())).add(extend(n.u() >> L::BITS)).and(mask);
        }
        set_lanes::<L::Wide>(cpu, o.rd, d);
        Op::next(cpu, op)
    }
}

/// Decodes AdvSIMD across lanes.
pub fn decode_across(insn: u32, width: Width) -> Option<Decoded> {
    let (u, size, opcode) = (insn >> 29 & 1, insn >> 22 & 3, insn >> 12 & 31);
    if opcode == 0b01100 || opcode == 0b01111 {
        return fp_across::decode_across(insn, width);
    }
    if size == 3 || size == 2 && width != Width::Full {
        return None;
    }
    macro_rules! pick {
        ($h:ident, $f:ty) => {
            match size {
                0 => $h::<$f, u8> as Handler,
                1 => $h::<$f, u16>,
                _ => $h::<$f, u32>,
            }
        };
    }
    let run = match (opcode, u) {
        (0b00011, 0) => pick!(across_long, Signed),
        (0b00011, _) => pick!(across_long, Unsigned),
        (0b01010, 0) => pick!(across, SMax),
        (0b01010, _) => pick!(across, UMax),
        (0b11010, 0) => pick!(across, SMin),
        (0b11010, _) => pick!(across, UMin),
        (0b11011, 0) => pick!(across, Add),
        _ => return None,
    };
    let mut op = vop(run, insn);
    op.imm2 = width.lanes(size);
    Some(Decoded::fp(op))
}

/// ADDV, SMAXV, UMAXV, SMINV, UMINV over the first `imm2` lanes.
///
/// # Safety
/// See [`Handler`].
unsafe fn across<F: LaneFn, L: Lane>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let n = lanes::<L>(cpu, o.rn);
        let n = n.as_ref();
        let (first, rest) = (n[0], &n[1..(o.imm2 as usize).min(L::N)]);
        let r = rest.iter().fold(first, |r, &x| F::f(r, r, x, 0, &mut false));
        set_v(cpu, o.rd, u128::from(r.u()));
        Op::next(cpu, op)
    }
}

/// How [`across_long`] extends.
trait Extension {
    fn of<L: Lane>(x: L) -> u64;
}
struct Signed;
struct Unsigned;
impl Extension for Signed {
    #[inline(always)]
    fn of<L: Lane>(x: L) -> u64 {
        x.s() as u64
    }
}
impl Extension for Unsigned {
    #[inline(always)]
    fn of<L: Lane>(x: L) -> u64 {
        x.u()
    }
}

/// SADDLV, UADDLV over the first `imm2` lanes.
///
/// # Safety
/// See [`Handler`].
unsafe fn across_long<E: Extension, L: Widen>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let n = lanes::<L>(cpu, o.rn);
        let sum = n.as_ref().iter().take(o.imm2 as usize).fold(0u64, |r, &x| r.wrapping_add(E::of(x)));
        set_v(cpu, o.rd, u128::from(L::Wide::of(sum).u()));
        Op::next(cpu, op)
    }
}

/// Decodes AdvSIMD scalar pairwise.
pub fn decode_scalar_pairwise(insn: u32) -> Option<Decoded> {
    let (u, size, opcode) = (insn >> 29 & 1, insn >> 22 & 3, insn >> 12 & 31);
    if opcode == 0b11011 && u == 0 && size == 3 {
        return Some(Decoded::fp(vop(add_pair, insn)));
    }
    fp_across::decode_scalar_pairwise(insn)
}

/// ADDP Dd, Vn.2D.
///
/// # Safety
/// See [`Handler`].
unsafe fn add_pair(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let n = v(cpu, o.rn);
        set_v(cpu, o.rd, u128::from(half(n, false).wrapping_add(half(n, true))));
        Op::next(cpu, op)
    }
}
