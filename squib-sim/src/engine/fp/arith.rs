//! `FPAdd`, `FPSub`, `FPMul`, `FPMulX`, `FPDiv`, `FPSqrt`, `FPMulAdd`, the fused Newton steps, and maximum and minimum.

use super::compare::{key, plain};
use super::round::{
    Format, Rounding, Type, Unpacked, infinity, invalid, process_nan, process_nans, round, signed, unpack, zero,
};
use super::{DZC, Env};

/// A sum is aligned to this bit: room above for a carry, and below for everything the larger operand holds.
const TOP: u32 = 125;

/// `±a ± b` of nonzero exact numbers as sign, mantissa with sticky lowest bit, exponent. A zero mantissa is an exact zero.
fn sum(a: (bool, u128, i32), b: (bool, u128, i32)) -> (bool, u128, i32) {
    let normal = |(sign, mant, exp): (bool, u128, i32)| {
        let up = mant.leading_zeros() - (127 - TOP);
        (sign, mant << up, exp - up as i32)
    };
    let (a, b) = (normal(a), normal(b));
    let (a, b) = if a.2 >= b.2 { (a, b) } else { (b, a) };
    let by = (a.2 - b.2) as u32;
    // Operands have at most 106 significant bits, so a shift that loses any leaves no cancellation beyond one place.
    let small = if by > 127 { 1 } else { b.1 >> by | u128::from(b.1 & ((1 << by) - 1) != 0) };
    if a.0 == b.0 {
        (a.0, a.1 + small, a.2)
    } else if a.1 >= small {
        (a.0, a.1 - small, a.2)
    } else {
        (b.0, small - a.1, a.2)
    }
}

fn exact(x: &Unpacked) -> (bool, u128, i32) {
    (x.sign, u128::from(x.mant), x.exp)
}

fn product(a: &Unpacked, b: &Unpacked) -> (bool, u128, i32) {
    (a.sign != b.sign, u128::from(a.mant) * u128::from(b.mant), a.exp + b.exp)
}

/// Rounds `value` by FPCR's mode; an exact zero is negative only when rounding down.
fn round_sum<F: Format>(e: &mut Env, (sign, mant, exp): (bool, u128, i32)) -> u64 {
    let rounding = e.rounding();
    if mant == 0 {
        return zero::<F>(rounding == Rounding::NegInf);
    }
    round::<F>(e, sign, mant, exp, rounding)
}

/// `FPAdd`.
#[inline]
pub fn add<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    F::add(e, x, y).unwrap_or_else(|| add_slow::<F>(e, x, y))
}

/// `FPSub`.
#[inline]
pub fn sub<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    F::add(e, x, y ^ F::SIGN).unwrap_or_else(|| sub_slow::<F>(e, x, y))
}

#[cold]
pub(super) fn add_slow<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    let (a, b) = (unpack::<F>(e, x), unpack::<F>(e, y));
    process_nans::<F>(e, &[(a.ty, x), (b.ty, y)]).unwrap_or_else(|| add_unpacked::<F>(e, a, b))
}

#[cold]
fn sub_slow<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    // A NaN operand keeps its sign, so the negation comes after NaN processing.
    let (a, mut b) = (unpack::<F>(e, x), unpack::<F>(e, y));
    if let Some(nan) = process_nans::<F>(e, &[(a.ty, x), (b.ty, y)]) {
        return nan;
    }
    b.sign = !b.sign;
    add_unpacked::<F>(e, a, b)
}

fn add_unpacked<F: Format>(e: &mut Env, a: Unpacked, b: Unpacked) -> u64 {
    match (a.ty, b.ty) {
        (Type::Infinity, Type::Infinity) if a.sign != b.sign => invalid::<F>(e),
        (Type::Infinity, _) => infinity::<F>(a.sign),
        (_, Type::Infinity) => infinity::<F>(b.sign),
        (Type::Zero, Type::Zero) if a.sign == b.sign => zero::<F>(a.sign),
        (Type::Zero, Type::Zero) => round_sum::<F>(e, (false, 0, 0)),
        (Type::Zero, _) => round_sum::<F>(e, exact(&b)),
        (_, Type::Zero) => round_sum::<F>(e, exact(&a)),
        _ => round_sum::<F>(e, sum(exact(&a), exact(&b))),
    }
}

/// `FPMul`.
#[inline]
pub fn mul<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    F::mul(e, x, y).unwrap_or_else(|| mul_slow::<F>(e, x, y))
}

#[cold]
pub(super) fn mul_slow<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    mul_or::<F>(e, x, y, |e, _| invalid::<F>(e))
}

/// `FPMulX`: zero times infinity is two.
pub fn mulx<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    mul_or::<F>(e, x, y, |_, sign| two::<F>(sign))
}

fn mul_or<F: Format>(e: &mut Env, x: u64, y: u64, zero_inf: impl Fn(&mut Env, bool) -> u64) -> u64 {
    let (a, b) = (unpack::<F>(e, x), unpack::<F>(e, y));
    if let Some(nan) = process_nans::<F>(e, &[(a.ty, x), (b.ty, y)]) {
        return nan;
    }
    let sign = a.sign != b.sign;
    if a.inf() && b.zero() || a.zero() && b.inf() {
        zero_inf(e, sign)
    } else if a.inf() || b.inf() {
        infinity::<F>(sign)
    } else if a.zero() || b.zero() {
        zero::<F>(sign)
    } else {
        round_sum::<F>(e, product(&a, &b))
    }
}

/// `FPTwo`.
fn two<F: Format>(sign: bool) -> u64 {
    signed::<F>(sign, ((F::EMAX_BIASED >> 1) + 1) << F::F)
}

/// `FPDiv`.
#[inline]
pub fn div<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    F::div(e, x, y).unwrap_or_else(|| div_slow::<F>(e, x, y))
}

#[cold]
pub(super) fn div_slow<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    let (a, b) = (unpack::<F>(e, x), unpack::<F>(e, y));
    if let Some(nan) = process_nans::<F>(e, &[(a.ty, x), (b.ty, y)]) {
        return nan;
    }
    let sign = a.sign != b.sign;
    if a.inf() && b.inf() || a.zero() && b.zero() {
        invalid::<F>(e)
    } else if a.inf() || b.zero() {
        if !a.inf() {
            e.raise(DZC);
        }
        infinity::<F>(sign)
    } else if a.zero() || b.inf() {
        zero::<F>(sign)
    } else {
        // The quotient gets at least 127 - 53 bits, far more than the result's.
        let up = a.mant.leading_zeros() + 63;
        let (numerator, denominator) = (u128::from(a.mant) << up, u128::from(b.mant));
        let sticky = u128::from(numerator % denominator != 0);
        let exp = a.exp - b.exp - up as i32;
        let rounding = e.rounding();
        round::<F>(e, sign, (numerator / denominator) | sticky, exp, rounding)
    }
}

/// `FPSqrt`.
#[inline]
pub fn sqrt<F: Format>(e: &mut Env, x: u64) -> u64 {
    F::sqrt(e, x).unwrap_or_else(|| sqrt_slow::<F>(e, x))
}

#[cold]
pub(super) fn sqrt_slow<F: Format>(e: &mut Env, x: u64) -> u64 {
    let a = unpack::<F>(e, x);
    if a.nan() {
        return process_nan::<F>(e, a.ty, x);
    }
    if a.zero() {
        return zero::<F>(a.sign);
    }
    if a.sign {
        return invalid::<F>(e);
    }
    if a.inf() {
        return infinity::<F>(false);
    }
    // An even exponent, and at least 125 bits under the root.
    let up = u128::from(a.mant).leading_zeros() - 2;
    let up = if (a.exp - up as i32) & 1 == 0 { up } else { up + 1 };
    let square = u128::from(a.mant) << up;
    let root = square.isqrt();
    let sticky = u128::from(root * root != square);
    let rounding = e.rounding();
    round::<F>(e, false, root << 1 | sticky, (a.exp - up as i32) / 2 - 1, rounding)
}

/// `FPMulAdd`: `addend + x * y`, rounded once.
#[inline]
pub fn mul_add<F: Format>(e: &mut Env, addend: u64, x: u64, y: u64) -> u64 {
    F::mul_add(e, addend, x, y).unwrap_or_else(|| mul_add_slow::<F>(e, addend, x, y))
}

#[cold]
pub(super) fn mul_add_slow<F: Format>(e: &mut Env, addend: u64, x: u64, y: u64) -> u64 {
    let (c, a, b) = (unpack::<F>(e, addend), unpack::<F>(e, x), unpack::<F>(e, y));
    let zero_inf = a.inf() && b.zero() || a.zero() && b.inf();
    let nan = process_nans::<F>(e, &[(c.ty, addend), (a.ty, x), (b.ty, y)]);
    if c.ty == Type::QNaN && zero_inf {
        return invalid::<F>(e);
    }
    if let Some(nan) = nan {
        return nan;
    }
    let sign = a.sign != b.sign;
    let (inf, zero_product) = (a.inf() || b.inf(), a.zero() || b.zero());
    if zero_inf || c.inf() && inf && c.sign != sign {
        invalid::<F>(e)
    } else if c.inf() {
        infinity::<F>(c.sign)
    } else if inf {
        infinity::<F>(sign)
    } else if c.zero() && zero_product {
        if c.sign == sign { zero::<F>(sign) } else { round_sum::<F>(e, (false, 0, 0)) }
    } else if zero_product {
        round_sum::<F>(e, exact(&c))
    } else if c.zero() {
        round_sum::<F>(e, product(&a, &b))
    } else {
        round_sum::<F>(e, sum(exact(&c), product(&a, &b)))
    }
}

/// `FPRecipStepFused`: `2 - x * y`.
pub fn recip_step<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    step::<F>(e, x, y, 2, 0)
}

/// `FPRSqrtStepFused`: `(3 - x * y) / 2`.
pub fn rsqrt_step<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    step::<F>(e, x, y, 3, 1)
}

/// `(constant - x * y) / 2^halve`, rounded once; zero times infinity counts as zero.
fn step<F: Format>(e: &mut Env, x: u64, y: u64, constant: u128, halve: i32) -> u64 {
    let x = x ^ F::SIGN;
    let (a, b) = (unpack::<F>(e, x), unpack::<F>(e, y));
    if let Some(nan) = process_nans::<F>(e, &[(a.ty, x), (b.ty, y)]) {
        return nan;
    }
    let value = if a.inf() && b.zero() || a.zero() && b.inf() {
        (false, constant, 0)
    } else if a.inf() || b.inf() {
        return infinity::<F>(a.sign != b.sign);
    } else if a.zero() || b.zero() {
        (false, constant, 0)
    } else {
        sum((false, constant, 0), product(&a, &b))
    };
    round_sum::<F>(e, (value.0, value.1, value.2 - halve))
}

/// `FPMax` (or with `MIN` `FPMin`).
pub fn max<F: Format, const MIN: bool>(e: &mut Env, x: u64, y: u64) -> u64 {
    let (x, y) = if plain::<F>(e, x, y) {
        (x, y)
    } else {
        let (a, b) = (unpack::<F>(e, x), unpack::<F>(e, y));
        if let Some(nan) = process_nans::<F>(e, &[(a.ty, x), (b.ty, y)]) {
            return nan;
        }
        let flushed = |a: Unpacked, x: u64| if a.zero() { zero::<F>(a.sign) } else { x };
        (flushed(a, x), flushed(b, y))
    };
    match (key::<F>(x) > key::<F>(y)) != MIN {
        // Of two zeros the positive one is the larger.
        _ if (x | y) & (F::SIGN - 1) == 0 => {
            if MIN {
                x | y
            } else {
                x & y
            }
        }
        true => x,
        false => y,
    }
}

/// `FPMaxNum` (or with `MIN` `FPMinNum`): a single quiet NaN loses against a number.
pub fn max_num<F: Format, const MIN: bool>(e: &mut Env, x: u64, y: u64) -> u64 {
    let (a, b) = (unpack::<F>(e, x).ty, unpack::<F>(e, y).ty);
    let least = infinity::<F>(!MIN);
    match (a == Type::QNaN, b == Type::QNaN) {
        (true, false) => max::<F, MIN>(e, least, y),
        (false, true) => max::<F, MIN>(e, x, least),
        _ => max::<F, MIN>(e, x, y),
    }
}

/// `FPAbs(FPSub)` (FABD): the difference's sign is cleared even when it is a NaN.
pub fn abs_difference<F: Format>(e: &mut Env, x: u64, y: u64) -> u64 {
    sub::<F>(e, x, y) & (F::SIGN - 1)
}
