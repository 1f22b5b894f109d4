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
    /// Half a register of these.
    type Half: Copy + AsRef<[Self]> + AsMut<[Self]>;
    /// All lanes zero.
    const ZEROS: Self::Vec;
    /// All lanes of a half zero.
    const HALF_ZEROS: Self::Half;
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
    /// Signed sum, saturated.
    fn sqadd(self, o: Self) -> Self;
    /// Signed difference, saturated.
    fn sqsub(self, o: Self) -> Self;
    /// Unsigned sum, saturated.
    fn uqadd(self, o: Self) -> Self;
    /// Unsigned difference, saturated.
    fn uqsub(self, o: Self) -> Self;
    /// Shift left by less than [`Lane::BITS`].
    fn shl(self, by: u32) -> Self;
    /// Logical shift right by less than [`Lane::BITS`].
    fn shr(self, by: u32) -> Self;
    /// Arithmetic shift right by less than [`Lane::BITS`].
    fn sar(self, by: u32) -> Self;
    /// Bits of both.
    fn and(self, o: Self) -> Self;
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
            type Half = [$u; 64 / $u::BITS as usize];
            const ZEROS: Self::Vec = [0; 128 / $u::BITS as usize];
            const HALF_ZEROS: Self::Half = [0; 64 / $u::BITS as usize];
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
            #[inline(always)]
            fn sqadd(self, o: Self) -> Self { (self as $s).saturating_add(o as $s) as $u }
            #[inline(always)]
            fn sqsub(self, o: Self) -> Self { (self as $s).saturating_sub(o as $s) as $u }
            #[inline(always)]
            fn uqadd(self, o: Self) -> Self { self.saturating_add(o) }
            #[inline(always)]
            fn uqsub(self, o: Self) -> Self { self.saturating_sub(o) }
            #[inline(always)]
            fn shl(self, by: u32) -> Self {
                self.wrapping_shl(by)
            }
            #[inline(always)]
            fn shr(self, by: u32) -> Self {
                self.wrapping_shr(by)
            }
            #[inline(always)]
            fn sar(self, by: u32) -> Self {
                (self as $s).wrapping_shr(by) as $u
            }
            #[inline(always)]
            fn and(self, o: Self) -> Self { self & o }
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
    /// Notes the width for [`mask`].
    pub fn set(self, op: &mut Op) {
        op.imm2 = match self {
            Width::Scalar(size) => size & 3,
            Width::Half => 3,
            Width::Full => FULL,
        };
    }
}

/// `imm2` of an op on full registers.
pub const FULL: u32 = 4;

/// Bits of a register an op works on, in the order of [`Width::set`].
static MASKS: [u128; 8] = [0xff, 0xffff, 0xffff_ffff, u64::MAX as u128, u128::MAX, u128::MAX, u128::MAX, u128::MAX];

/// The bits an op works on.
#[inline(always)]
pub fn mask(o: &Op) -> u128 {
    MASKS[o.imm2 as usize & 7]
}

/// The bits an op works on, cut into lanes.
#[inline(always)]
pub fn mask_lanes<L: Lane>(o: &Op) -> L::Vec {
    mask_lanes_of::<L>(o.imm2)
}

/// The mask at `index` of the order of [`Width::set`], cut into lanes.
#[inline(always)]
pub fn mask_lanes_of<L: Lane>(index: u32) -> L::Vec {
    read(&MASKS[index as usize & 7])
}

/// Vn, cut into lanes. (Reading memory as lanes, instead of cutting a `u128`, is what lets the compiler use host vectors.)
#[inline(always)]
pub fn lanes<L: Lane>(cpu: &Cpu, n: u8) -> L::Vec {
    read(&cpu.v[usize::from(n & 31)])
}

/// The low or (with `upper`) high half of Vn, cut into lanes.
#[inline(always)]
pub fn half_lanes<L: Lane>(cpu: &Cpu, n: u8, upper: bool) -> L::Half {
    let halves: [L::Half; 2] = read(&cpu.v[usize::from(n & 31)]);
    halves[usize::from(upper)]
}

/// Writes Vd from lanes.
#[inline(always)]
pub fn set_lanes<L: Lane>(cpu: &mut Cpu, d: u8, value: L::Vec) {
    let to: *mut u128 = &mut cpu.v[usize::from(d & 31)];
    // SAFETY: `L::Vec` is 16 bytes of integers, aligned no stricter than the register it replaces.
    unsafe { to.cast::<L::Vec>().write(value) }
}

#[inline(always)]
fn read<V: Copy>(from: &u128) -> V {
    const { assert!(size_of::<V>() == 16 && align_of::<V>() <= 16) };
    // SAFETY: 16 readable bytes; `V` is an array of integers, for which any bytes are valid.
    unsafe { std::ptr::from_ref(from).cast::<V>().read() }
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

/// The low or (with `upper`) high half of a register.
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
            #[allow(unused_variables, reason = "an operation takes what it needs")]
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

/// Applies `F` lane by lane within the op's width.
#[inline(always)]
fn apply<F: LaneFn, L: Lane>(cpu: &mut Cpu, o: &Op, m: L::Vec, k: u32) {
    let (mut d, n, mask) = (lanes::<L>(cpu, o.rd), lanes::<L>(cpu, o.rn), mask_lanes::<L>(o));
    let mut qc = false;
    for (((d, &n), &m), &mask) in d.as_mut().iter_mut().zip(n.as_ref()).zip(m.as_ref()).zip(mask.as_ref()) {
        *d = F::f(d.and(mask), n.and(mask), m, k, &mut qc).and(mask);
    }
    set_lanes::<L>(cpu, o.rd, d);
    cpu.fpsr |= if qc { QC } else { 0 };
}

/// Vd = F(Vd, Vn, Vm), lane by lane.
///
/// # Safety
/// See [`Handler`].
pub unsafe fn lanewise<F: LaneFn, L: Lane>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise that `op` is live and has a successor.
    unsafe {
        let o = &*op;
        let m = and::<L>(lanes::<L>(cpu, o.rm), mask_lanes::<L>(o));
        apply::<F, L>(cpu, o, m, u32::from(o.ra));
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
        let mut m = lanes::<L>(cpu, o.rm);
        let x = m.as_ref()[usize::from(o.ra) % L::N];
        m.as_mut().fill(x);
        apply::<F, L>(cpu, o, m, 0);
        Op::next(cpu, op)
    }
}

#[inline(always)]
fn and<L: Lane>(mut x: L::Vec, mask: L::Vec) -> L::Vec {
    for (x, &mask) in x.as_mut().iter_mut().zip(mask.as_ref()) {
        *x = x.and(mask);
    }
    x
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
