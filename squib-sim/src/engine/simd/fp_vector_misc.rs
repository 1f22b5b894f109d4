//! Floating-point AdvSIMD two-register miscellaneous, and the fixed-point conversions of shift by immediate, vector and
//! scalar.

use super::fp_ops::*;
use super::lanes::*;
use crate::engine::cpu::Cpu;
use crate::engine::fp::{D, Format, H, Rounding, S, convert};
use crate::engine::op::{Decoded, Handler, Next, Op};

/// Decodes two-register miscellaneous: `a` is bit 23, elements have `8 << size` bits (half precision has no
/// conversions between formats).
pub fn decode(insn: u32, width: Width, a: u32, size: u32) -> Option<Decoded> {
    let (u, opcode) = (insn >> 29 & 1, insn >> 12 & 31);
    let scalar = matches!(width, Width::Scalar(_));
    let op = |runs: ByFormat, k: u32| fp_op(runs, insn, width, size, k);
    match (a, opcode) {
        (0, 0b10110) if u == 0 && !scalar && size > 1 => {
            return Some(between(if size == 2 { narrow::<S, H> } else { narrow::<D, S> }, insn, width, FPCR));
        }
        (0, 0b10110) if u == 1 && size == 3 => {
            return Some(between(if scalar { narrow_odd::<true> } else { narrow_odd::<false> }, insn, width, 0));
        }
        (0, 0b10111) if u == 0 && !scalar && size > 1 => {
            return Some(between(if size == 2 { lengthen::<H, S> } else { lengthen::<S, D> }, insn, width, FPCR));
        }
        _ => {}
    }
    let unsigned = u == 1;
    match (a, opcode, u) {
        (0, 0b11010, _) => op(for_width::<FCvtToFixed>(width), conversion(0, 0, unsigned)),
        (1, 0b11010, _) => op(for_width::<FCvtToFixed>(width), conversion(1, 0, unsigned)),
        (0, 0b11011, _) => op(for_width::<FCvtToFixed>(width), conversion(2, 0, unsigned)),
        (1, 0b11011, _) => op(for_width::<FCvtToFixed>(width), conversion(TO_ZERO, 0, unsigned)),
        (0, 0b11100, _) => op(for_width::<FCvtToFixed>(width), conversion(TIE_AWAY, 0, unsigned)),
        (0, 0b11101, _) => op(for_width::<FCvtFromFixed>(width), conversion(FPCR, 0, unsigned)),
        (1, 0b01100, 0) => op(for_width::<FCmGt0>(width), 0),
        (1, 0b01100, _) => op(for_width::<FCmGe0>(width), 0),
        (1, 0b01101, 0) => op(for_width::<FCmEq0>(width), 0),
        (1, 0b01101, _) => op(for_width::<FCmLe0>(width), 0),
        (1, 0b01110, 0) => op(for_width::<FCmLt0>(width), 0),
        (1, 0b11101, 0) => op(for_width::<FRecpE>(width), 0),
        (1, 0b11101, _) => op(for_width::<FRSqrtE>(width), 0),
        (1, 0b11111, 0) if scalar => op(scalars::<FRecpX>(), 0),
        _ if scalar => None,
        (1, 0b01111, 0) => op(for_width::<FAbs>(width), 0),
        (1, 0b01111, _) => op(for_width::<FNeg>(width), 0),
        (0, 0b11000, 0) => op(for_width::<FRInt>(width), 0),
        (0, 0b11000, _) => op(for_width::<FRInt>(width), TIE_AWAY),
        (0, 0b11001, 0) => op(for_width::<FRInt>(width), 2),
        (0, 0b11001, _) => op(for_width::<FRIntX>(width), FPCR),
        (1, 0b11000, 0) => op(for_width::<FRInt>(width), 1),
        (1, 0b11001, 0) => op(for_width::<FRInt>(width), TO_ZERO),
        (1, 0b11001, _) => op(for_width::<FRInt>(width), FPCR),
        (1, 0b11100, 0) if size == 2 => op(for_width::<URecpE>(width), 0),
        (1, 0b11100, _) if size == 2 => op(for_width::<URSqrtE>(width), 0),
        (1, 0b11111, 1) => op(for_width::<FSqrt>(width), 0),
        _ => None,
    }
}

/// Decodes SCVTF, UCVTF, FCVTZS, FCVTZU with `fbits` (shift by immediate).
pub fn decode_fixed(insn: u32, width: Width, size: u32, fbits: u32) -> Option<Decoded> {
    if size == 0 {
        return None;
    }
    let unsigned = insn >> 29 & 1 == 1;
    let runs =
        if insn >> 11 & 31 == 0b11100 { for_width::<FCvtFromFixed>(width) } else { for_width::<FCvtToFixed>(width) };
    fp_op(runs, insn, width, size, conversion(TO_ZERO, fbits, unsigned))
}

/// A conversion between formats; `ra` selects the upper half.
fn between(run: Handler, insn: u32, width: Width, k: u32) -> Decoded {
    let mut op = vop(run, insn);
    op.ra = u8::from(width == Width::Full);
    op.imm2 = k;
    Decoded::fp(op)
}

#[inline(always)]
fn narrow_to<From: Format, To: Format>(cpu: &mut Cpu, o: &Op, rounding: Rounding) -> u64 {
    let mut e = env(cpu);
    let n = v(cpu, o.rn);
    let mut r = 0;
    for i in 0..128 / From::BITS {
        r |= convert::convert::<From, To>(&mut e, element::<From>(n, i), rounding) << (i * To::BITS);
    }
    settle(cpu, e);
    r
}

#[inline(never)]
fn narrow_body<From: Format, To: Format>(cpu: &mut Cpu, o: &Op) {
    let rounding = env(cpu).rounding();
    let r = narrow_to::<From, To>(cpu, o, rounding);
    let upper = u128::from(r) << 64 | v(cpu, o.rd) & u128::from(u64::MAX);
    set_v(cpu, o.rd, if o.ra != 0 { upper } else { r.into() });
}

/// FCVTN, FCVTN2.
///
/// # Safety
/// See [`Handler`].
unsafe fn narrow<From: Format, To: Format>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        narrow_body::<From, To>(cpu, &*op);
        Op::next(cpu, op)
    }
}

#[inline(never)]
fn narrow_odd_body(cpu: &mut Cpu, o: &Op, scalar: bool) {
    let result = if scalar {
        let mut e = env(cpu);
        let r = convert::convert::<D, S>(&mut e, v(cpu, o.rn) as u64, Rounding::Odd);
        settle(cpu, e);
        r.into()
    } else {
        let r = narrow_to::<D, S>(cpu, o, Rounding::Odd);
        if o.ra != 0 { u128::from(r) << 64 | v(cpu, o.rd) & u128::from(u64::MAX) } else { r.into() }
    };
    set_v(cpu, o.rd, result);
}

/// FCVTXN, FCVTXN2.
///
/// # Safety
/// See [`Handler`].
unsafe fn narrow_odd<const SCALAR: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        narrow_odd_body(cpu, &*op, SCALAR);
        Op::next(cpu, op)
    }
}

#[inline(never)]
fn lengthen_body<From: Format, To: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let n = u128::from(half(v(cpu, o.rn), o.ra != 0));
    let rounding = e.rounding();
    let mut r = 0;
    for i in 0..128 / To::BITS {
        let x = convert::convert::<From, To>(&mut e, element::<From>(n, i), rounding);
        r |= u128::from(x) << (i * To::BITS);
    }
    settle(cpu, e);
    set_v(cpu, o.rd, r);
}

/// FCVTL, FCVTL2.
///
/// # Safety
/// See [`Handler`].
unsafe fn lengthen<From: Format, To: Format>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        lengthen_body::<From, To>(cpu, &*op);
        Op::next(cpu, op)
    }
}
