//! Formats, unpacking and rounding: `FPUnpack`, `FPRound`, `FPProcessNaN` and the constants of a format.

use super::{AHP, DN, Env, FZ, FZ16, IDC, IOC, IXC, OFC, UFC};

/// A floating-point format, as raw bits in the low end of a `u64`.
pub trait Format: super::fast::Fast + 'static {
    /// Bits of the whole.
    const BITS: u32;
    /// Bits of the fraction.
    const F: u32;
    /// Exponent of the smallest normal number.
    const EMIN: i32 = 2 - (1 << (Self::BITS - Self::F - 2));
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::BITS - 1);
    /// Biased exponent of infinity.
    const EMAX_BIASED: u64 = (1 << (Self::BITS - 1 - Self::F)) - 1;
    /// Infinity.
    const INFINITY: u64 = Self::EMAX_BIASED << Self::F;
    /// The fraction.
    const FRACTION: u64 = (1 << Self::F) - 1;
    /// `FPDefaultNaN`.
    const DEFAULT_NAN: u64 = Self::INFINITY | 1 << (Self::F - 1);
    /// All of its bits.
    const ONES: u64 = Self::SIGN | (Self::SIGN - 1);
}

/// Half precision.
pub struct H;
/// Single precision.
pub struct S;
/// Double precision.
pub struct D;
impl Format for H {
    const BITS: u32 = 16;
    const F: u32 = 10;
}
impl Format for S {
    const BITS: u32 = 32;
    const F: u32 = 23;
}
impl Format for D {
    const BITS: u32 = 64;
    const F: u32 = 52;
}

/// `FPRounding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest, ties to even.
    TieEven,
    /// Towards plus infinity.
    PosInf,
    /// Towards minus infinity.
    NegInf,
    /// Towards zero.
    Zero,
    /// To nearest, ties away from zero.
    TieAway,
    /// To odd (FCVTXN).
    Odd,
}

/// `FPType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Zero, or a flushed denormal.
    Zero,
    /// Any other number.
    Nonzero,
    /// Infinity.
    Infinity,
    /// Quiet NaN.
    QNaN,
    /// Signalling NaN.
    SNaN,
}

/// An unpacked operand; a nonzero value is `mant * 2^exp`.
#[derive(Clone, Copy, Debug)]
pub struct Unpacked {
    pub ty: Type,
    pub sign: bool,
    pub mant: u64,
    pub exp: i32,
}

impl Unpacked {
    pub fn nan(&self) -> bool {
        matches!(self.ty, Type::QNaN | Type::SNaN)
    }
    pub fn inf(&self) -> bool {
        self.ty == Type::Infinity
    }
    pub fn zero(&self) -> bool {
        self.ty == Type::Zero
    }
}

/// `FPUnpackBase`; `cv` for conversions between formats (no FZ16, AHP respected).
fn unpack_base<F: Format>(e: &mut Env, x: u64, cv: bool) -> Unpacked {
    let sign = x & F::SIGN != 0;
    let (biased, fraction) = (x >> F::F & F::EMAX_BIASED, x & F::FRACTION);
    let (ty, mant, exp) = if biased == 0 {
        let flush = if F::BITS == 16 { !cv && e.fpcr & FZ16 != 0 } else { e.fpcr & FZ != 0 };
        if fraction != 0 && flush && F::BITS != 16 {
            e.raise(IDC);
        }
        (if fraction == 0 || flush { Type::Zero } else { Type::Nonzero }, fraction, F::EMIN)
    } else if biased == F::EMAX_BIASED && !(F::BITS == 16 && cv && e.fpcr & AHP != 0) {
        let ty = match fraction >> (F::F - 1) {
            _ if fraction == 0 => Type::Infinity,
            0 => Type::SNaN,
            _ => Type::QNaN,
        };
        (ty, fraction, 0)
    } else {
        (Type::Nonzero, fraction | 1 << F::F, F::EMIN + biased as i32 - 1)
    };
    Unpacked { ty, sign, mant, exp: exp - F::F as i32 }
}

/// `FPUnpack`.
pub fn unpack<F: Format>(e: &mut Env, x: u64) -> Unpacked {
    unpack_base::<F>(e, x, false)
}

/// `FPUnpackCV`.
pub fn unpack_cv<F: Format>(e: &mut Env, x: u64) -> Unpacked {
    unpack_base::<F>(e, x, true)
}

/// The sign bit of a format, or nothing.
pub fn signed<F: Format>(sign: bool, magnitude: u64) -> u64 {
    if sign { F::SIGN | magnitude } else { magnitude }
}

/// `FPInfinity`.
pub fn infinity<F: Format>(sign: bool) -> u64 {
    signed::<F>(sign, F::INFINITY)
}

/// `FPZero`.
pub fn zero<F: Format>(sign: bool) -> u64 {
    signed::<F>(sign, 0)
}

/// `FPMaxNormal`.
pub fn max_normal<F: Format>(sign: bool) -> u64 {
    signed::<F>(sign, F::INFINITY - 1)
}

/// The default NaN, with the Invalid Operation it answers.
pub fn invalid<F: Format>(e: &mut Env) -> u64 {
    e.raise(IOC);
    F::DEFAULT_NAN
}

/// `FPProcessNaN`.
pub fn process_nan<F: Format>(e: &mut Env, ty: Type, x: u64) -> u64 {
    if ty == Type::SNaN {
        e.raise(IOC);
    }
    if e.fpcr & DN != 0 { F::DEFAULT_NAN } else { x | 1 << (F::F - 1) }
}

/// `FPProcessNaNs` and `FPProcessNaNs3`: the first signalling operand wins, then the first quiet one.
pub fn process_nans<F: Format>(e: &mut Env, operands: &[(Type, u64)]) -> Option<u64> {
    let first = |ty: Type| operands.iter().find(|o| o.0 == ty);
    let (ty, x) = first(Type::SNaN).or_else(|| first(Type::QNaN))?;
    Some(process_nan::<F>(e, *ty, *x))
}

/// How much of a number is cut off, in units of its last place kept.
#[derive(Clone, Copy)]
pub struct Rest {
    /// At least one half.
    pub half: bool,
    /// More than a multiple of one half.
    pub below: bool,
}

impl Rest {
    pub fn inexact(self) -> bool {
        self.half || self.below
    }
    /// Whether the magnitude is rounded up.
    pub fn up(self, rounding: Rounding, sign: bool, odd: bool) -> bool {
        match rounding {
            Rounding::TieEven => self.half && (self.below || odd),
            Rounding::TieAway => self.half,
            Rounding::PosInf => self.inexact() && !sign,
            Rounding::NegInf => self.inexact() && sign,
            Rounding::Zero | Rounding::Odd => false,
        }
    }
}

/// `x / 2^by`, and what it leaves.
pub fn shift_rest(x: u128, by: u32) -> (u128, Rest) {
    match by {
        0 => (x, Rest { half: false, below: false }),
        1..=127 => {
            let rest = x << (128 - by);
            (x >> by, Rest { half: rest >> 127 == 1, below: rest << 1 != 0 })
        }
        128 => (0, Rest { half: x >> 127 == 1, below: x << 1 != 0 }),
        _ => (0, Rest { half: false, below: x != 0 }),
    }
}

/// Whether an overflow goes to infinity rather than to the largest normal number.
pub fn overflow_to_inf(rounding: Rounding, sign: bool) -> bool {
    match rounding {
        Rounding::TieEven | Rounding::TieAway => true,
        Rounding::PosInf => !sign,
        Rounding::NegInf => sign,
        Rounding::Zero | Rounding::Odd => false,
    }
}

/// `FPRoundBase` of the nonzero number `±mant * 2^exp`. The lowest bit of `mant` may stand for a nonzero rest, as long as
/// at least two more bits lie between it and the last place of the result. `cv` as for [`unpack_cv`].
fn round_base<F: Format>(e: &mut Env, sign: bool, mant: u128, exp: i32, rounding: Rounding, cv: bool) -> u64 {
    let up = mant.leading_zeros();
    let (mant, exponent) = (mant << up, exp + 127 - up as i32);
    let flush = if F::BITS == 16 { !cv && e.fpcr & FZ16 != 0 } else { e.fpcr & FZ != 0 };
    if flush && exponent < F::EMIN {
        e.raise(UFC);
        return zero::<F>(sign);
    }
    let mut biased = (exponent - F::EMIN + 1).max(0) as u64;
    let denormal = (F::EMIN - exponent).max(0) as u32;
    let (int, rest) = shift_rest(mant, 127 - F::F + denormal);
    let mut int = int as u64;
    let mut inexact = rest.inexact();
    if biased == 0 && inexact {
        // Tininess is detected before rounding.
        e.raise(UFC);
    }
    if rest.up(rounding, sign, int & 1 == 1) {
        int += 1;
        if int == 1 << F::F && biased == 0 {
            biased = 1;
        } else if int == 2 << F::F {
            biased += 1;
            int >>= 1;
        }
    }
    if inexact && rounding == Rounding::Odd {
        int |= 1;
    }
    let result = if F::BITS == 16 && cv && e.fpcr & AHP != 0 {
        if biased > F::EMAX_BIASED {
            e.raise(IOC);
            inexact = false;
            F::SIGN - 1
        } else {
            biased << F::F | int & F::FRACTION
        }
    } else if biased >= F::EMAX_BIASED {
        e.raise(OFC);
        inexact = true;
        if overflow_to_inf(rounding, sign) { F::INFINITY } else { F::INFINITY - 1 }
    } else {
        biased << F::F | int & F::FRACTION
    };
    if inexact {
        e.raise(IXC);
    }
    signed::<F>(sign, result)
}

/// `FPRound`.
pub fn round<F: Format>(e: &mut Env, sign: bool, mant: u128, exp: i32, rounding: Rounding) -> u64 {
    round_base::<F>(e, sign, mant, exp, rounding, false)
}

/// `FPRoundCV`.
pub fn round_cv<F: Format>(e: &mut Env, sign: bool, mant: u128, exp: i32, rounding: Rounding) -> u64 {
    round_base::<F>(e, sign, mant, exp, rounding, true)
}
