//! Conversions: between formats, to and from integers and fixed point, and to integral values.

use super::round::{
    Format, Rounding, Type, infinity, process_nan, round, round_cv, shift_rest, signed, unpack, unpack_cv, zero,
};
use super::{AHP, D, DN, Env, IOC, IXC};

/// A fixed-point type: `bits` of which `fbits` lie behind the point.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// Width: 16, 32 or 64.
    pub bits: u32,
    /// Fraction bits.
    pub fbits: u32,
    /// Without a sign.
    pub unsigned: bool,
}

/// `|value| * 2^shift` as an integer, rounded, and whether that was inexact. Anything from 2^100 on is just "huge".
fn to_integer(mant: u64, exp: i32, sign: bool, rounding: Rounding) -> (u128, bool) {
    if exp >= 0 {
        // mant is not zero here.
        let huge = exp + (64 - mant.leading_zeros() as i32) > 100;
        return (if huge { 1 << 100 } else { u128::from(mant) << exp }, false);
    }
    let (int, rest) = shift_rest(u128::from(mant), exp.unsigned_abs());
    (int + u128::from(rest.up(rounding, sign, int & 1 == 1)), rest.inexact())
}

/// `FPToFixed`, the result in the low `to.bits`.
#[inline]
pub fn to_fixed<F: Format>(e: &mut Env, x: u64, to: Fixed, rounding: Rounding) -> u64 {
    F::to_fixed(e, x, to, rounding).unwrap_or_else(|| to_fixed_slow::<F>(e, x, to, rounding))
}

#[cold]
pub(super) fn to_fixed_slow<F: Format>(e: &mut Env, x: u64, to: Fixed, rounding: Rounding) -> u64 {
    let a = unpack::<F>(e, x);
    let (magnitude, inexact) = match a.ty {
        Type::QNaN | Type::SNaN => {
            e.raise(IOC);
            return 0;
        }
        Type::Zero => return 0,
        Type::Infinity => (1 << 100, false),
        Type::Nonzero => to_integer(a.mant, a.exp + to.fbits as i32, a.sign, rounding),
    };
    let value = if a.sign { -(magnitude as i128) } else { magnitude as i128 };
    let (low, high) = if to.unsigned {
        (0, (1i128 << to.bits) - 1)
    } else {
        (-(1i128 << (to.bits - 1)), (1i128 << (to.bits - 1)) - 1)
    };
    if value < low || value > high {
        e.raise(IOC);
    } else if inexact {
        e.raise(IXC);
    }
    value.clamp(low, high) as u64 & u64::MAX >> (64 - to.bits)
}

/// `FixedToFP` of the low `from.bits` of x.
#[inline]
pub fn from_fixed<F: Format>(e: &mut Env, x: u64, from: Fixed, rounding: Rounding) -> u64 {
    let up = 64 - from.bits;
    let value = if from.unsigned { (x << up >> up) as i64 } else { (x << up) as i64 >> up };
    if from.unsigned && value < 0 {
        return from_fixed_slow::<F>(e, i128::from(x), from.fbits, rounding);
    }
    F::from_integer(e, value, from.fbits, rounding)
        .unwrap_or_else(|| from_fixed_slow::<F>(e, value.into(), from.fbits, rounding))
}

#[cold]
pub(super) fn from_fixed_slow<F: Format>(e: &mut Env, value: i128, fbits: u32, rounding: Rounding) -> u64 {
    if value == 0 {
        return 0;
    }
    round::<F>(e, value < 0, value.unsigned_abs(), -(fbits as i32), rounding)
}

/// `FPRoundInt`; `exact` raises Inexact.
pub fn round_int<F: Format>(e: &mut Env, x: u64, rounding: Rounding, exact: bool) -> u64 {
    let a = unpack::<F>(e, x);
    match a.ty {
        Type::QNaN | Type::SNaN => return process_nan::<F>(e, a.ty, x),
        Type::Infinity => return infinity::<F>(a.sign),
        Type::Zero => return zero::<F>(a.sign),
        Type::Nonzero if a.exp >= 0 => return x,
        Type::Nonzero => {}
    }
    let (int, inexact) = to_integer(a.mant, a.exp, a.sign, rounding);
    if exact && inexact {
        e.raise(IXC);
    }
    if int == 0 { zero::<F>(a.sign) } else { round::<F>(e, a.sign, int, 0, Rounding::Zero) }
}

/// `FPConvert`.
#[inline]
pub fn convert<From: Format, To: Format>(e: &mut Env, x: u64, rounding: Rounding) -> u64 {
    From::convert::<To>(e, x, rounding).unwrap_or_else(|| convert_slow::<From, To>(e, x, rounding))
}

#[cold]
pub(super) fn convert_slow<From: Format, To: Format>(e: &mut Env, x: u64, rounding: Rounding) -> u64 {
    let a = unpack_cv::<From>(e, x);
    let alternative = To::BITS == 16 && e.fpcr & AHP != 0;
    match a.ty {
        Type::QNaN | Type::SNaN => {
            if a.ty == Type::SNaN || alternative {
                e.raise(IOC);
            }
            if alternative {
                zero::<To>(a.sign)
            } else if e.fpcr & DN != 0 {
                To::DEFAULT_NAN
            } else {
                // FPConvertNaN: quiet, the top bits of the payload kept.
                let fraction = (x & From::FRACTION) << (52 - From::F) >> (52 - To::F);
                signed::<To>(a.sign, To::DEFAULT_NAN | fraction)
            }
        }
        Type::Infinity if alternative => {
            e.raise(IOC);
            signed::<To>(a.sign, To::SIGN - 1)
        }
        Type::Infinity => infinity::<To>(a.sign),
        Type::Zero => zero::<To>(a.sign),
        Type::Nonzero => round_cv::<To>(e, a.sign, u128::from(a.mant), a.exp, rounding),
    }
}

/// `FPToFixedJS`: the low 32 bits of the truncated integer, and Z (the conversion was exact and in range).
pub fn to_fixed_js(e: &mut Env, x: u64) -> (u32, bool) {
    let a = unpack::<D>(e, x);
    match a.ty {
        Type::QNaN | Type::SNaN | Type::Infinity => {
            e.raise(IOC);
            (0, false)
        }
        // Minus zero and flushed denormals are not exact integers.
        Type::Zero => (0, x == 0),
        Type::Nonzero => {
            let (magnitude, inexact) = if a.exp >= 0 {
                // Modulo 2^32, but large.
                (if a.exp < 64 { u128::from(a.mant) << a.exp } else { 1 << 100 }, false)
            } else {
                to_integer(a.mant, a.exp, a.sign, Rounding::Zero)
            };
            let value = if a.sign { -(magnitude as i128) } else { magnitude as i128 };
            if i32::try_from(value).is_err() {
                e.raise(IOC);
            } else if inexact {
                e.raise(IXC);
            }
            (value as u32, i32::try_from(value).is_ok() && !inexact)
        }
    }
}
