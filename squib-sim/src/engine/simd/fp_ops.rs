//! Floating-point operations as functions of elements, and the handlers that apply them to scalars, vectors and pairs.

use super::lanes::*;
use crate::engine::cpu::Cpu;
use crate::engine::fp::convert::Fixed;
use crate::engine::fp::{D, Env, Format, H, Rounding, S, arith, compare, convert, estimate};
use crate::engine::op::{Decoded, Handler, Next, Op};
use std::cmp::Ordering;

/// A function of elements: the constant `k`, the old destination (or the addend) `d`, the sources `n` and `m`.
pub trait FpFn {
    /// The function.
    fn f<F: Format>(e: &mut Env, k: u32, d: u64, n: u64, m: u64) -> u64;
}

macro_rules! fp_fns {
    ($($name:ident = |$e:ident, $k:ident, $d:ident, $n:ident, $m:ident| $body:expr;)*) => {$(
        #[doc = concat!("Element function ", stringify!($name), ".")]
        pub struct $name;
        impl FpFn for $name {
            #[inline(always)]
            #[allow(unused_variables, reason = "an operation takes what it needs")]
            fn f<F: Format>($e: &mut Env, $k: u32, $d: u64, $n: u64, $m: u64) -> u64 { $body }
        }
    )*};
}

/// Codes of rounding in an op's constant; [`FPCR`] takes FPCR's mode.
pub const ROUNDINGS: [Rounding; 5] =
    [Rounding::TieEven, Rounding::PosInf, Rounding::NegInf, Rounding::Zero, Rounding::TieAway];
/// Code of "as FPCR says".
pub const FPCR: u32 = 7;
/// Code of ties away.
pub const TIE_AWAY: u32 = 4;
/// Code of towards zero.
pub const TO_ZERO: u32 = 3;

/// The rounding an op's constant stands for.
#[inline(always)]
pub fn rounding(e: &Env, k: u32) -> Rounding {
    if k & 7 == FPCR { e.rounding() } else { ROUNDINGS[(k & 7) as usize % 5] }
}

/// Packs rounding, fraction bits and signedness of a conversion.
pub fn conversion(rounding: u32, fbits: u32, unsigned: bool) -> u32 {
    rounding | fbits << 8 | u32::from(unsigned) << 16
}

/// The fixed-point type in an op's constant.
#[inline(always)]
pub fn fixed(k: u32, bits: u32) -> Fixed {
    Fixed { bits, fbits: k >> 8 & 127, unsigned: k >> 16 & 1 == 1 }
}

/// Ones or zeros.
#[inline(always)]
fn truth<F: Format>(b: bool) -> u64 {
    if b { F::ONES } else { 0 }
}

#[inline(always)]
fn greater<F: Format>(e: &mut Env, n: u64, m: u64) -> u64 {
    truth::<F>(compare::compare::<F>(e, n, m, true) == Some(Ordering::Greater))
}

#[inline(always)]
fn greater_equal<F: Format>(e: &mut Env, n: u64, m: u64) -> u64 {
    truth::<F>(matches!(compare::compare::<F>(e, n, m, true), Some(Ordering::Greater | Ordering::Equal)))
}

#[inline(always)]
fn equal<F: Format>(e: &mut Env, n: u64, m: u64) -> u64 {
    truth::<F>(compare::compare::<F>(e, n, m, false) == Some(Ordering::Equal))
}

fp_fns! {
    FMov = |e, k, d, n, m| n;
    FAbs = |e, k, d, n, m| n & !F::SIGN;
    FNeg = |e, k, d, n, m| n ^ F::SIGN;
    FSqrt = |e, k, d, n, m| arith::sqrt::<F>(e, n);
    FAdd = |e, k, d, n, m| arith::add::<F>(e, n, m);
    FSub = |e, k, d, n, m| arith::sub::<F>(e, n, m);
    FMul = |e, k, d, n, m| arith::mul::<F>(e, n, m);
    FNMul = |e, k, d, n, m| arith::mul::<F>(e, n, m) ^ F::SIGN;
    FMulX = |e, k, d, n, m| arith::mulx::<F>(e, n, m);
    FDiv = |e, k, d, n, m| arith::div::<F>(e, n, m);
    FMax = |e, k, d, n, m| arith::max::<F, false>(e, n, m);
    FMin = |e, k, d, n, m| arith::max::<F, true>(e, n, m);
    FMaxNm = |e, k, d, n, m| arith::max_num::<F, false>(e, n, m);
    FMinNm = |e, k, d, n, m| arith::max_num::<F, true>(e, n, m);
    FAbd = |e, k, d, n, m| arith::abs_difference::<F>(e, n, m);
    FMadd = |e, k, d, n, m| arith::mul_add::<F>(e, d, n, m);
    FMsub = |e, k, d, n, m| arith::mul_add::<F>(e, d, n ^ F::SIGN, m);
    FNMadd = |e, k, d, n, m| arith::mul_add::<F>(e, d ^ F::SIGN, n ^ F::SIGN, m);
    FNMsub = |e, k, d, n, m| arith::mul_add::<F>(e, d ^ F::SIGN, n, m);
    FRecpS = |e, k, d, n, m| arith::recip_step::<F>(e, n, m);
    FRSqrtS = |e, k, d, n, m| arith::rsqrt_step::<F>(e, n, m);
    FRecpE = |e, k, d, n, m| estimate::recip::<F>(e, n);
    FRSqrtE = |e, k, d, n, m| estimate::rsqrt::<F>(e, n);
    FRecpX = |e, k, d, n, m| estimate::recpx::<F>(e, n);
    FCmEq = |e, k, d, n, m| equal::<F>(e, n, m);
    FCmGe = |e, k, d, n, m| greater_equal::<F>(e, n, m);
    FCmGt = |e, k, d, n, m| greater::<F>(e, n, m);
    FAcGe = |e, k, d, n, m| greater_equal::<F>(e, n & !F::SIGN, m & !F::SIGN);
    FAcGt = |e, k, d, n, m| greater::<F>(e, n & !F::SIGN, m & !F::SIGN);
    FCmEq0 = |e, k, d, n, m| equal::<F>(e, n, 0);
    FCmGe0 = |e, k, d, n, m| greater_equal::<F>(e, n, 0);
    FCmGt0 = |e, k, d, n, m| greater::<F>(e, n, 0);
    FCmLe0 = |e, k, d, n, m| greater_equal::<F>(e, 0, n);
    FCmLt0 = |e, k, d, n, m| greater::<F>(e, 0, n);
    FRInt = |e, k, d, n, m| { let r = rounding(e, k); convert::round_int::<F>(e, n, r, false) };
    FRIntX = |e, k, d, n, m| { let r = rounding(e, k); convert::round_int::<F>(e, n, r, true) };
    FCvtToFixed = |e, k, d, n, m| { let r = rounding(e, k); convert::to_fixed::<F>(e, n, fixed(k, F::BITS), r) };
    FCvtFromFixed = |e, k, d, n, m| { let r = e.rounding(); convert::from_fixed::<F>(e, n, fixed(k, F::BITS), r) };
    URecpE = |e, k, d, n, m| u64::from(estimate::unsigned_recip(n as u32));
    URSqrtE = |e, k, d, n, m| u64::from(estimate::unsigned_rsqrt(n as u32));
}

/// The environment of an operation.
#[inline(always)]
pub fn env(cpu: &Cpu) -> Env {
    Env { fpcr: cpu.fpcr, fpsr: cpu.fpsr }
}

/// Keeps the flags an operation raised.
#[inline(always)]
pub fn settle(cpu: &mut Cpu, e: Env) {
    // New flags are rare, and a store here would delay the next operation's wider load of its environment.
    if e.fpsr != cpu.fpsr {
        cpu.fpsr = e.fpsr;
    }
}

// The bodies are kept out of the handlers: an `Env` on the handler's own frame would forbid the tail call to the next op.

#[inline(never)]
fn scalar_body<O: FpFn, F: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let low = |r: u8| v(cpu, r) as u64 & F::ONES;
    let r = O::f::<F>(&mut e, o.imm2, low(o.ra), low(o.rn), low(o.rm));
    settle(cpu, e);
    set_v(cpu, o.rd, u128::from(r));
}

/// Scalar: Vd = F(Va, Vn, Vm).
///
/// # Safety
/// See [`Handler`].
pub unsafe fn scalar<O: FpFn, F: Format>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        scalar_body::<O, F>(cpu, &*op);
        Op::next(cpu, op)
    }
}

/// Element `i` of a register.
#[inline(always)]
pub fn element<F: Format>(v: u128, i: u32) -> u64 {
    (v >> ((i * F::BITS) & 127)) as u64 & F::ONES
}

/// `imm` of an op without an element index.
pub const NO_INDEX: u64 = 16;

/// A format and the lane it lives in.
pub trait Element: Format {
    /// The lane.
    type Lane: Lane;
}
impl Element for H {
    type Lane = u16;
}
impl Element for S {
    type Lane = u32;
}
impl Element for D {
    type Lane = u64;
}

#[inline(never)]
fn vector_body<O: FpFn, F: Element>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let (d, n) = (lanes::<F::Lane>(cpu, o.rd), lanes::<F::Lane>(cpu, o.rn));
    let mut m = lanes::<F::Lane>(cpu, o.rm);
    if o.imm != NO_INDEX {
        let x = m.as_ref()[o.imm as usize % F::Lane::N];
        m.as_mut().fill(x);
    }
    let mut r = F::Lane::ZEROS;
    let operands = d.as_ref().iter().zip(n.as_ref()).zip(m.as_ref()).take(o.ra.into());
    for (r, ((d, n), m)) in r.as_mut().iter_mut().zip(operands) {
        *r = F::Lane::of(O::f::<F>(&mut e, o.imm2, d.u(), n.u(), m.u()));
    }
    settle(cpu, e);
    set_lanes::<F::Lane>(cpu, o.rd, r);
}

/// Vector: `ra` lanes of Vd = F(Vd, Vn, Vm), or with `imm` below 16 of F(Vd, Vn, Vm[imm]).
///
/// # Safety
/// See [`Handler`].
pub unsafe fn vector<O: FpFn, F: Element>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        vector_body::<O, F>(cpu, &*op);
        Op::next(cpu, op)
    }
}

#[inline(never)]
fn pairs_body<O: FpFn, F: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let lanes = u32::from(o.ra);
    let (n, m) = (v(cpu, o.rn), v(cpu, o.rm));
    let mut r = 0;
    for i in 0..lanes {
        let (src, at) = if 2 * i < lanes { (n, 2 * i) } else { (m, 2 * i - lanes) };
        let x = O::f::<F>(&mut e, 0, 0, element::<F>(src, at), element::<F>(src, at + 1));
        r |= u128::from(x) << (i * F::BITS);
    }
    settle(cpu, e);
    set_v(cpu, o.rd, r);
}

/// Vector pairwise: `ra` lanes over the concatenation Vm:Vn.
///
/// # Safety
/// See [`Handler`].
pub unsafe fn pairs<O: FpFn, F: Format>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        pairs_body::<O, F>(cpu, &*op);
        Op::next(cpu, op)
    }
}

#[inline(never)]
fn reduce_body<O: FpFn, F: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let n = v(cpu, o.rn);
    let mut lanes = u32::from(o.ra);
    let mut x: [u64; 8] = std::array::from_fn(|i| element::<F>(n, i as u32));
    // `Reduce` halves its input: neighbours meet first.
    while lanes > 1 {
        lanes /= 2;
        for i in 0..lanes as usize {
            x[i] = O::f::<F>(&mut e, 0, 0, x[2 * i], x[2 * i + 1]);
        }
    }
    settle(cpu, e);
    set_v(cpu, o.rd, u128::from(x[0]));
}

/// Vd = F over `ra` lanes of Vn.
///
/// # Safety
/// See [`Handler`].
pub unsafe fn reduce<O: FpFn, F: Format>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        reduce_body::<O, F>(cpu, &*op);
        Op::next(cpu, op)
    }
}

/// The instances of a handler for half, single and double precision.
pub type ByFormat = [Handler; 3];

/// [`scalar`] in the three formats.
pub fn scalars<O: FpFn>() -> ByFormat {
    [scalar::<O, H>, scalar::<O, S>, scalar::<O, D>]
}

/// [`vector`] or [`scalar`] in the three formats.
pub fn for_width<O: FpFn>(width: Width) -> ByFormat {
    if let Width::Scalar(_) = width { scalars::<O>() } else { [vector::<O, H>, vector::<O, S>, vector::<O, D>] }
}

/// [`pairs`] in the three formats.
pub fn pairwise<O: FpFn>() -> ByFormat {
    [pairs::<O, H>, pairs::<O, S>, pairs::<O, D>]
}

/// [`reduce`] in the three formats.
pub fn reducing<O: FpFn>() -> ByFormat {
    [reduce::<O, H>, reduce::<O, S>, reduce::<O, D>]
}

/// An op of elements of `8 << size` bits with constant `k`; `ra` is the lane count, or for scalars Vd again.
pub fn fp_op(runs: ByFormat, insn: u32, width: Width, size: u32, k: u32) -> Option<Decoded> {
    if size == 3 && width == Width::Half {
        return None;
    }
    let mut op = vop(runs[size as usize - 1], insn);
    op.ra = if let Width::Scalar(_) = width { op.rd } else { width.lanes(size) as u8 };
    op.imm = NO_INDEX;
    op.imm2 = k;
    Some(Decoded::fp(op))
}
