//! Instructions whose operands and results differ in width: AdvSIMD three different (long, wide, narrow), their by-element
//! forms, shift left long, and the narrowing moves.

use super::lanes::*;
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op};

/// A function of wide lanes: the accumulator, and two operands extended to its width (as `S` says).
pub trait LongFn {
    /// Operands are sign-extended.
    const S: bool;
    /// The function.
    fn f<W: Lane>(d: W, n: W, m: W, qc: &mut bool) -> W;
}

macro_rules! long_fns {
    ($($name:ident($s:expr) = |$d:ident, $n:ident, $m:ident, $q:ident| $e:expr;)*) => {$(
        #[doc = concat!("Widening function ", stringify!($name), ".")]
        pub struct $name;
        impl LongFn for $name {
            const S: bool = $s;
            #[inline(always)]
            #[allow(unused_variables, reason = "an operation takes what it needs")]
            fn f<W: Lane>($d: W, $n: W, $m: W, $q: &mut bool) -> W { $e }
        }
    )*};
}

/// `SatQ(2 * n * m)`.
#[inline(always)]
fn dmull<W: Lane>(n: W, m: W, q: &mut bool) -> i128 {
    let product: W = sat_s(2 * i128::from(n.s()) * i128::from(m.s()), q);
    i128::from(product.s())
}

long_fns! {
    SAddL(true) = |d, n, m, q| n.add(m);
    UAddL(false) = |d, n, m, q| n.add(m);
    SSubL(true) = |d, n, m, q| n.sub(m);
    USubL(false) = |d, n, m, q| n.sub(m);
    SAbalL(true) = |d, n, m, q| d.add(if n.s() > m.s() { n.sub(m) } else { m.sub(n) });
    UAbalL(false) = |d, n, m, q| d.add(if n.u() > m.u() { n.sub(m) } else { m.sub(n) });
    SAbdL(true) = |d, n, m, q| if n.s() > m.s() { n.sub(m) } else { m.sub(n) };
    UAbdL(false) = |d, n, m, q| if n.u() > m.u() { n.sub(m) } else { m.sub(n) };
    SMlalL(true) = |d, n, m, q| d.add(n.mul(m));
    UMlalL(false) = |d, n, m, q| d.add(n.mul(m));
    SMlslL(true) = |d, n, m, q| d.sub(n.mul(m));
    UMlslL(false) = |d, n, m, q| d.sub(n.mul(m));
    SMullL(true) = |d, n, m, q| n.mul(m);
    UMullL(false) = |d, n, m, q| n.mul(m);
    SQDMlalL(true) = |d, n, m, q| { let p = dmull(n, m, q); sat_s(i128::from(d.s()) + p, q) };
    SQDMlslL(true) = |d, n, m, q| { let p = dmull(n, m, q); sat_s(i128::from(d.s()) - p, q) };
    SQDMullL(true) = |d, n, m, q| W::of(dmull(n, m, q) as u64);
    PMullL(false) = |d, n, m, q| {
        let mut r = 0;
        for i in 0..8 {
            r ^= (n.u() << i) & (m.u() >> i & 1).wrapping_neg();
        }
        W::of(r)
    };
}

/// Decodes AdvSIMD three different and scalar three different.
pub fn decode_three_diff(insn: u32, width: Width) -> Option<Decoded> {
    let (u, size, opcode) = (insn >> 29 & 1, insn >> 22 & 3, insn >> 12 & 15);
    if let Width::Scalar(_) = width {
        let f = matches!(opcode, 0b1001 | 0b1011 | 0b1101) && u == 0 && (size == 1 || size == 2);
        return if f { long_op(long_run(u, opcode, size)?, insn, width, size) } else { None };
    }
    let q = width == Width::Full;
    let run: Handler = match opcode {
        0b1110 if u == 0 && size == 3 => {
            if q {
                pmull64::<true>
            } else {
                pmull64::<false>
            }
        }
        0b1110 if u == 0 && size == 0 => long::<PMullL, u8>,
        0b1110 => return None,
        _ if size == 3 => return None,
        0b0001 | 0b0011 => wide_run(u, opcode, size),
        0b0100 | 0b0110 => {
            let sub = opcode == 0b0110;
            match (size, sub) {
                (0, false) => high_narrow::<u8, false>,
                (0, true) => high_narrow::<u8, true>,
                (1, false) => high_narrow::<u16, false>,
                (1, true) => high_narrow::<u16, true>,
                (_, false) => high_narrow::<u32, false>,
                (_, true) => high_narrow::<u32, true>,
            }
        }
        _ => long_run(u, opcode, size)?,
    };
    long_op(run, insn, width, size)
}

/// A long op: `ra` selects the upper half, `imm` holds the masks of narrow and wide operands, `imm2` is free (here U).
fn long_op(run: Handler, insn: u32, width: Width, size: u32) -> Option<Decoded> {
    let mut op = vop(run, insn);
    op.ra = u8::from(width == Width::Full);
    op.imm = match width {
        Width::Scalar(_) => u64::from(size | (size + 1) << 8),
        _ => u64::from(FULL | FULL << 8),
    };
    op.imm2 = insn >> 29 & 1;
    Some(Decoded::fp(op))
}

/// The lanes of narrow elements an op works on: all, or the first of a scalar form.
#[inline(always)]
fn narrow_mask<L: Lane>(o: &Op) -> L::Vec {
    mask_lanes_of::<L>(o.imm as u32)
}

/// The lanes of wide elements an op works on.
#[inline(always)]
fn wide_mask<L: Widen>(o: &Op) -> <L::Wide as Lane>::Vec {
    mask_lanes_of::<L::Wide>((o.imm >> 8) as u32)
}

macro_rules! long_size {
    ($size:expr, $h:ident, $f:ty) => {
        match $size {
            0 => $h::<$f, u8> as Handler,
            1 => $h::<$f, u16>,
            _ => $h::<$f, u32>,
        }
    };
}

fn wide_run(u: u32, opcode: u32, size: u32) -> Handler {
    match (u, opcode) {
        (0, 1) => long_size!(size, wide, SAddL),
        (0, _) => long_size!(size, wide, SSubL),
        (_, 1) => long_size!(size, wide, UAddL),
        (_, _) => long_size!(size, wide, USubL),
    }
}

fn long_run(u: u32, opcode: u32, size: u32) -> Option<Handler> {
    macro_rules! pair {
        ($s:ty, $u:ty) => {
            if u == 0 { long_size!(size, long, $s) } else { long_size!(size, long, $u) }
        };
    }
    Some(match opcode {
        0b0000 => pair!(SAddL, UAddL),
        0b0010 => pair!(SSubL, USubL),
        0b0101 => pair!(SAbalL, UAbalL),
        0b0111 => pair!(SAbdL, UAbdL),
        0b1000 => pair!(SMlalL, UMlalL),
        0b1010 => pair!(SMlslL, UMlslL),
        0b1100 => pair!(SMullL, UMullL),
        0b1001 | 0b1011 | 0b1101 if u == 1 || size == 0 => return None,
        0b1001 => long_size!(size, long, SQDMlalL),
        0b1011 => long_size!(size, long, SQDMlslL),
        0b1101 => long_size!(size, long, SQDMullL),
        _ => return None,
    })
}

/// Decodes the widening members of vector x indexed element; `index` is the element.
pub fn decode_elem(insn: u32, width: Width, size: u32, rm: u32, index: u32) -> Option<Decoded> {
    let (u, opcode) = (insn >> 29 & 1, insn >> 12 & 15);
    macro_rules! pair {
        ($s:ty, $u:ty) => {
            if u == 0 { long_size!(size, long_elem, $s) } else { long_size!(size, long_elem, $u) }
        };
    }
    let scalar = matches!(width, Width::Scalar(_));
    let run = match opcode {
        0b0010 if !scalar => pair!(SMlalL, UMlalL),
        0b0110 if !scalar => pair!(SMlslL, UMlslL),
        0b1010 if !scalar => pair!(SMullL, UMullL),
        0b0011 if u == 0 => long_size!(size, long_elem, SQDMlalL),
        0b0111 if u == 0 => long_size!(size, long_elem, SQDMlslL),
        0b1011 if u == 0 => long_size!(size, long_elem, SQDMullL),
        _ => return None,
    };
    let mut decoded = long_op(run, insn, width, size)?;
    decoded.op.rm = rm as u8;
    decoded.op.imm2 = index;
    Some(decoded)
}

/// Extends a narrow lane.
#[inline(always)]
fn extend<L: Widen, const S: bool>(x: L) -> L::Wide {
    L::Wide::of(if S { x.s() as u64 } else { x.u() })
}

#[inline(always)]
fn long_body<F: LongFnFor<L>, L: Widen>(cpu: &mut Cpu, o: &Op, m: L::Half) {
    let n = half_lanes::<L>(cpu, o.rn, o.ra != 0);
    let (narrow, wide) = (narrow_mask::<L>(o), wide_mask::<L>(o));
    let mut d = lanes::<L::Wide>(cpu, o.rd);
    let mut qc = false;
    let operands = n.as_ref().iter().zip(m.as_ref()).zip(narrow.as_ref()).zip(wide.as_ref());
    for (d, (((&n, &m), &narrow), &wide)) in d.as_mut().iter_mut().zip(operands) {
        *d = F::apply(*d, n.and(narrow), m, &mut qc).and(wide);
    }
    set_lanes::<L::Wide>(cpu, o.rd, d);
    cpu.fpsr |= if qc { QC } else { 0 };
}

/// [`LongFn`] with its extension applied (a const generic cannot depend on `F`).
trait LongFnFor<L: Widen> {
    fn apply(d: L::Wide, n: L, m: L, qc: &mut bool) -> L::Wide;
}
impl<F: LongFn, L: Widen> LongFnFor<L> for F {
    #[inline(always)]
    fn apply(d: L::Wide, n: L, m: L, qc: &mut bool) -> L::Wide {
        if F::S {
            F::f(d, extend::<L, true>(n), extend::<L, true>(m), qc)
        } else {
            F::f(d, extend::<L, false>(n), extend::<L, false>(m), qc)
        }
    }
}

/// Vd.Wide = F(Vd, extend(Vn), extend(Vm)).
///
/// # Safety
/// See [`Handler`].
unsafe fn long<F: LongFn, L: Widen>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let m = half_lanes::<L>(cpu, o.rm, o.ra != 0);
        long_body::<F, L>(cpu, o, m);
        Op::next(cpu, op)
    }
}

/// Vd.Wide = F(Vd, extend(Vn), extend(Vm[imm2])).
///
/// # Safety
/// See [`Handler`].
unsafe fn long_elem<F: LongFn, L: Widen>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let x = lanes::<L>(cpu, o.rm).as_ref()[o.imm2 as usize % L::N];
        let mut m = half_lanes::<L>(cpu, o.rm, false);
        m.as_mut().fill(x);
        long_body::<F, L>(cpu, o, m);
        Op::next(cpu, op)
    }
}

/// Vd.Wide = F(Vn.Wide, extend(Vm)).
///
/// # Safety
/// See [`Handler`].
unsafe fn wide<F: LongFn, L: Widen>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let m = half_lanes::<L>(cpu, o.rm, o.ra != 0);
        let mut n = lanes::<L::Wide>(cpu, o.rn);
        for (n, &m) in n.as_mut().iter_mut().zip(m.as_ref()) {
            let m = if F::S { extend::<L, true>(m) } else { extend::<L, false>(m) };
            *n = F::f(*n, *n, m, &mut false);
        }
        set_lanes::<L::Wide>(cpu, o.rd, n);
        Op::next(cpu, op)
    }
}

/// Writes a narrowed result: to the low half (zeroing the rest), or with `upper` to the high half (keeping the low one).
#[inline(always)]
fn set_half<L: Lane>(cpu: &mut Cpu, d: u8, upper: bool, half: L::Half) {
    let mut r = if upper { lanes::<L>(cpu, d) } else { L::ZEROS };
    let (low, high) = r.as_mut().split_at_mut(L::N / 2);
    if upper { high } else { low }.copy_from_slice(half.as_ref());
    set_lanes::<L>(cpu, d, r);
}

/// ADDHN, SUBHN and, with U (`imm2`), their rounding forms. `L` is the narrow lane.
///
/// # Safety
/// See [`Handler`].
unsafe fn high_narrow<L: Widen, const SUB: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let round = L::Wide::of(u64::from(o.imm2) << (L::BITS - 1));
        let (n, m) = (lanes::<L::Wide>(cpu, o.rn), lanes::<L::Wide>(cpu, o.rm));
        let mut r = L::HALF_ZEROS;
        for ((r, &n), &m) in r.as_mut().iter_mut().zip(n.as_ref()).zip(m.as_ref()) {
            let sum = if SUB { n.sub(m) } else { n.add(m) };
            *r = L::of(sum.add(round).u() >> L::BITS);
        }
        set_half::<L>(cpu, o.rd, o.ra != 0, r);
        Op::next(cpu, op)
    }
}

/// PMULL, PMULL2 of 64 bits.
///
/// # Safety
/// See [`Handler`].
unsafe fn pmull64<const UPPER: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let (n, m) = (half(v(cpu, o.rn), UPPER), half(v(cpu, o.rm), UPPER));
        set_v(cpu, o.rd, poly_mul(n, m));
        Op::next(cpu, op)
    }
}

/// `PolynomialMult` of 64 bits: four bits of `m` a step.
fn poly_mul(n: u64, m: u64) -> u128 {
    let mut table = [0u128; 16];
    for i in 1..16usize {
        table[i] = if i & 1 == 1 { table[i - 1] ^ u128::from(n) } else { table[i / 2] << 1 };
    }
    (0..16).rev().fold(0, |r, i| r << 4 ^ table[(m >> (4 * i) & 15) as usize])
}

/// A function that narrows one wide lane of 16, 32 or 64 bits to `L`, shifted right by `k` first.
pub trait NarrowFn {
    /// The function.
    fn f<L: Widen>(n: L::Wide, k: u32, qc: &mut bool) -> L;
}

macro_rules! narrow_fns {
    ($($name:ident = |$n:ident, $k:ident, $q:ident| $e:expr;)*) => {$(
        #[doc = concat!("Narrowing function ", stringify!($name), ".")]
        pub struct $name;
        impl NarrowFn for $name {
            #[inline(always)]
            #[allow(unused_variables, reason = "an operation takes what it needs")]
            fn f<L: Widen>($n: L::Wide, $k: u32, $q: &mut bool) -> L { $e }
        }
    )*};
}

/// `Int(x) >> k`, rounded when `round`; k up to 32.
#[inline(always)]
fn shr(x: i128, k: u32, round: bool) -> i128 {
    if round && k > 0 { (x + (1i128 << (k - 1))) >> k } else { x >> k }
}

narrow_fns! {
    Shrn = |n, k, q| L::of(n.shr(k).u());
    RShrn = |n, k, q| L::of(shr(i128::from(n.u()), k, true) as u64);
    SQShrn = |n, k, q| sat_s(shr(i128::from(n.s()), k, false), q);
    UQShrn = |n, k, q| sat_u(shr(i128::from(n.u()), k, false), q);
    SQShrUn = |n, k, q| sat_u(shr(i128::from(n.s()), k, false), q);
    SQRShrn = |n, k, q| sat_s(shr(i128::from(n.s()), k, true), q);
    UQRShrn = |n, k, q| sat_u(shr(i128::from(n.u()), k, true), q);
    SQRShrUn = |n, k, q| sat_u(shr(i128::from(n.s()), k, true), q);
}

/// Decodes a narrowing by `k`: `size` is that of the narrow element.
pub fn decode_narrow<F: NarrowFn>(insn: u32, width: Width, size: u32, k: u32) -> Option<Decoded> {
    let mut decoded = long_op(long_size!(size, narrow, F), insn, width, size)?;
    decoded.op.imm2 = k;
    Some(decoded)
}

/// Vd.Narrow = F(Vn.Wide).
///
/// # Safety
/// See [`Handler`].
unsafe fn narrow<F: NarrowFn, L: Widen>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let (n, wide) = (lanes::<L::Wide>(cpu, o.rn), wide_mask::<L>(o));
        let mut r = L::HALF_ZEROS;
        let mut qc = false;
        for ((r, &n), &wide) in r.as_mut().iter_mut().zip(n.as_ref()).zip(wide.as_ref()) {
            *r = F::f::<L>(n.and(wide), o.imm2 & 63, &mut qc);
        }
        set_half::<L>(cpu, o.rd, o.ra != 0, r);
        cpu.fpsr |= if qc { QC } else { 0 };
        Op::next(cpu, op)
    }
}

/// Decodes SSHLL, USHLL and SHLL: `size` is that of the narrow element.
pub fn decode_shift_left_long(insn: u32, width: Width, size: u32, k: u32, signed: bool) -> Option<Decoded> {
    let run: Handler = match (size, signed) {
        (0, true) => shift_left_long::<u8, true>,
        (0, false) => shift_left_long::<u8, false>,
        (1, true) => shift_left_long::<u16, true>,
        (1, false) => shift_left_long::<u16, false>,
        (_, true) => shift_left_long::<u32, true>,
        (_, false) => shift_left_long::<u32, false>,
    };
    let mut decoded = long_op(run, insn, width, size)?;
    decoded.op.imm2 = k;
    Some(decoded)
}

/// Vd.Wide = extend(Vn) << imm2.
///
/// # Safety
/// See [`Handler`].
unsafe fn shift_left_long<L: Widen, const S: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let n = half_lanes::<L>(cpu, o.rn, o.ra != 0);
        let mut r = L::Wide::ZEROS;
        for (r, &n) in r.as_mut().iter_mut().zip(n.as_ref()) {
            *r = extend::<L, S>(n).shl(o.imm2);
        }
        set_lanes::<L::Wide>(cpu, o.rd, r);
        Op::next(cpu, op)
    }
}
