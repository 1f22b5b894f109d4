//! Vectors as lanes: how a 128-bit register is cut into elements, which part of it an instruction works on, and the generic
//! handlers that apply one function lane by lane.
//!
//! One handler serves the 128-bit, the 64-bit and the scalar form of an instruction: bits outside its width are masked out of
//! the operands (an operation on zeros never saturates) and out of the result (the architecture zeroes them). The loops have
//! constant trip counts and no side effects, so the compiler turns them into host vector code.

use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op};

/// FPSR.QC, cumulative saturation.
pub const QC: u32 = 1 << 27;

/// One element of a vector.
pub trait Lane: Copy + Default + Eq + 'static {
    /// A whole register of these.
    type Vec: Copy + AsRef<[Self]> + AsMut<[Self]>;
    /// Bits of an element.
    const BITS: u32;
    /// Elements in 128 bits.
    const N: usize = 128 / Self::BITS as usize;
    /// Cuts a register.
    fn split(v: u128) -> Self::Vec;
    /// Glues a register.
    fn join(v: Self::Vec) -> u128;
    /// `SInt`.
    fn s(self) -> i64;
    /// `UInt`.
    fn u(self) -> u64;
    /// The low bits of `x`.
    fn of(x: u64) -> Self;
    /// Modular sum.
    fn add(self, o: Self) -> Self;
    /// Modular difference.
    fn sub(self, o: Self) -> Self;
    /// Modular product.
    fn mul(self, o: Self) -> Self;
    /// Ones or zeros.
    #[inline(always)]
    fn mask(b: bool) -> Self {
        Self::of(u64::from(b).wrapping_neg())
    }
}

macro_rules! lanes {
    (@split u8, $v:expr) => { $v.to_ne_bytes() };
    (@join u8, $v:expr) => { u128::from_ne_bytes($v) };
    // SAFETY: both are 16 bytes without invalid values.
    (@split $u:ident, $v:expr) => { unsafe { core::mem::transmute::<u128, Self::Vec>($v) } };
    // SAFETY: both are 16 bytes without invalid values.
    (@join $u:ident, $v:expr) => { unsafe { core::mem::transmute::<Self::Vec, u128>($v) } };
    ($($u:ident $s:ident;)*) => {$(
        impl Lane for $u {
            type Vec = [$u; 128 / $u::BITS as usize];
            const BITS: u32 = $u::BITS;
            #[inline(always)]
            fn split(v: u128) -> Self::Vec {
                // Lane 0 is the low one on little-endian hosts, which all supported ones are (checked below).
                lanes!(@split $u, v)
            }
            #[inline(always)]
            fn join(v: Self::Vec) -> u128 {
                lanes!(@join $u, v)
            }
            #[inline(always)]
            fn s(self) -> i64 { i64::from(self as $s) }
            #[inline(always)]
            fn u(self) -> u64 { u64::from(self) }
            #[inline(always)]
            fn of(x: u64) -> Self { x as $u }
            #[inline(always)]
            fn add(self, o: Self) -> Self { self.wrapping_add(o) }
            #[inline(always)]
            fn sub(self, o: Self) -> Self { self.wrapping_sub(o) }
            #[inline(always)]
            fn mul(self, o: Self) -> Self { self.wrapping_mul(o) }
        }
    )*};
}
lanes! { u8 i8; u16 i16; u32 i32; u64 i64; }
const _: () = assert!(cfg!(target_endian = "little"), "lane order follows the host's byte order");

/// The element twice as wide.
pub trait Widen: Lane {
    /// Its type.
    type Wide: Lane;
}
impl Widen for u8 {
    type Wide = u16;
}
impl Widen for u16 {
    type Wide = u32;
}
impl Widen for u32 {
    type Wide = u64;
}

/// `SignedSatQ`, the flag kept in `qc`.
#[inline(always)]
pub fn sat_s<L: Lane>(x: i128, qc: &mut bool) -> L {
    let max = (1i128 << (L::BITS - 1)) - 1;
    let r = x.clamp(-max - 1, max);
    *qc |= r != x;
    L::of(r as u64)
}

/// `UnsignedSatQ`, the flag kept in `qc`.
#[inline(always)]
pub fn sat_u<L: Lane>(x: i128, qc: &mut bool) -> L {
    let r = x.clamp(0, (1i128 << L::BITS) - 1);
    *qc |= r != x;
    L::of(r as u64)
}

/// What part of the registers an instruction works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One element of `8 << size` bits.
    Scalar(u32),
    /// The low 64 bits.
    Half,
    /// All 128 bits.
    Full,
}

impl Width {
    /// The vector form selected by the Q bit.
    pub fn vector(insn: u32) -> Width {
        if insn >> 30 & 1 == 1 { Width::Full } else { Width::Half }
    }
    /// Elements of `8 << size` bits in it.
    pub fn lanes(self, size: u32) -> u32 {
        match self {
            Width::Scalar(_) => 1,
            Width::Half => 8 >> size,
            Width::Full => 16 >> size,
        }
    }
    /// Sets the masks read by [`mask`].
    pub fn set(self, op: &mut Op) {
        let ones = |bits: u32| if bits >= 64 { !0 } else { (1u64 << bits) - 1 };
        (op.imm, op.imm2) = match self {
            Width::Scalar(size) => (ones(8 << size), 0),
            Width::Half => (!0, 0),
            Width::Full => (!0, !0),
        };
    }
}

/// The bits an op works on, as [`Width::set`] left them: `imm` for the low half, `imm2` sign-extended for the high one.
#[inline(always)]
pub fn mask(o: &Op) -> u128 {
    u128::from(o.imm) | u128::from(o.imm2 as i32 as i64 as u64) << 64
}

/// Reads Vn.
#[inline(always)]
pub fn v(cpu: &Cpu, n: u8) -> u128 {
    cpu.v[usize::from(n & 31)]
}

/// Writes Vd.
#[inline(always)]
pub fn set_v(cpu: &mut Cpu, d: u8, value: u128) {
    cpu.v[usize::from(d & 31)] = value;
}

/// The low or (with `upper`) high half of a register, cut into lanes and widened to 64 bits each by `SInt` or `UInt`.
#[inline(always)]
pub fn half(v: u128, upper: bool) -> u64 {
    (v >> (64 * u32::from(upper))) as u64
}

/// An op with its registers from the Rd, Rn, Rm and (in `ra`) Rd fields.
pub fn vop(run: Handler, insn: u32) -> Op {
    let mut op = Op::new(run, insn);
    op.rd = (insn & 31) as u8;
    op.rn = (insn >> 5 & 31) as u8;
    op.rm = (insn >> 16 & 31) as u8;
    op
}

/// A lane-wise op of `width`, with `k` for [`LaneFn::f`].
pub fn masked(run: Handler, insn: u32, width: Width, k: u32) -> Option<Decoded> {
    let mut op = vop(run, insn);
    width.set(&mut op);
    op.ra = k as u8;
    Some(Decoded::fp(op))
}

/// A function of the old destination lane `d`, the source lanes `n` and `m` and a constant `k`; `qc` collects saturation.
pub trait LaneFn {
    /// The function.
    fn f<L: Lane>(d: L, n: L, m: L, k: u32, qc: &mut bool) -> L;
}

/// Declares [`LaneFn`]s.
macro_rules! lane_fns {
    ($($name:ident = |$d:ident, $n:ident, $m:ident, $k:ident, $q:ident| $e:expr;)*) => {$(
        #[doc = concat!("Lane function ", stringify!($name), ".")]
        pub struct $name;
        impl $crate::engine::simd::lanes::LaneFn for $name {
            #[inline(always)]
            #[allow(unused_variables)]
            fn f<L: $crate::engine::simd::lanes::Lane>($d: L, $n: L, $m: L, $k: u32, $q: &mut bool) -> L { $e }
        }
    )*};
}
pub(crate) use lane_fns;

/// Applies `f` lane by lane.
#[inline(always)]
pub fn map3<L: Lane>(d: u128, n: u128, m: u128, mut f: impl FnMut(L, L, L) -> L) -> u128 {
    let (mut d, n, m) = (L::split(d), L::split(n), L::split(m));
    for ((d, n), m) in d.as_mut().iter_mut().zip(n.as_ref()).zip(m.as_ref()) {
        *d = f(*d, *n, *m);
    }
    L::join(d)
}

/// Vd = F(Vd, Vn, Vm), lane by lane.
///
/// # Safety
/// See [`Handler`].
pub unsafe fn lanewise<F: LaneFn, L: Lane>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise that `op` is live and has a successor.
    unsafe {
        let o = &*op;
        let mask = mask(o);
        let (d, n, m) = (v(cpu, o.rd) & mask, v(cpu, o.rn) & mask, v(cpu, o.rm) & mask);
        let (k, mut qc) = (u32::from(o.ra), false);
        let r = map3::<L>(d, n, m, |d, n, m| F::f(d, n, m, k, &mut qc));
        set_v(cpu, o.rd, r & mask);
        cpu.fpsr |= if qc { QC } else { 0 };
        Op::next(cpu, op)
    }
}

/// Vd = F(Vd, Vn, Vm[ra]), lane by lane.
///
/// # Safety
/// See [`Handler`].
pub unsafe fn lanewise_elem<F: LaneFn, L: Lane>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: as for `lanewise`.
    unsafe {
        let o = &*op;
        let mask = mask(o);
        let m = L::split(v(cpu, o.rm)).as_ref()[usize::from(o.ra) % L::N];
        let (d, n) = (v(cpu, o.rd) & mask, v(cpu, o.rn) & mask);
        let mut qc = false;
        let r = map3::<L>(d, n, 0, |d, n, _| F::f(d, n, m, 0, &mut qc));
        set_v(cpu, o.rd, r & mask);
        cpu.fpsr |= if qc { QC } else { 0 };
        Op::next(cpu, op)
    }
}

/// Picks the instance of a handler for elements of `8 << size` bits.
macro_rules! by_size {
    ($size:expr, $h:ident, $f:ty) => {
        match $size & 3 {
            0 => $h::<$f, u8> as $crate::engine::op::Handler,
            1 => $h::<$f, u16>,
            2 => $h::<$f, u32>,
            _ => $h::<$f, u64>,
        }
    };
}
pub(crate) use by_size;
