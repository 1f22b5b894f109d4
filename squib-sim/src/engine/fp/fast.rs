//! Host arithmetic for the frequent case.
//!
//! A method answers only when the host's IEEE 754 arithmetic (round to nearest even, nothing flushed) provably gives the
//! Arm result and flags: FPCR asks for nothing else, and the result is a finite number far enough from the denormals that
//! neither underflow nor a NaN rule is involved. Inexactness is computed, or known to be raised already. In every other
//! case the answer is `None`, and the exact code decides.

use super::convert::Fixed;
use super::round::{D, Format, H, Rounding, S};
use super::{Env, FZ, IXC, RMODE};

/// Host shortcuts of a format. The defaults take none.
#[allow(unused_variables, reason = "the defaults look at nothing")]
pub trait Fast: Sized {
    /// `FPAdd`.
    #[inline(always)]
    fn add(e: &mut Env, x: u64, y: u64) -> Option<u64> {
        None
    }
    /// `FPMul`.
    #[inline(always)]
    fn mul(e: &mut Env, x: u64, y: u64) -> Option<u64> {
        None
    }
    /// `FPDiv`.
    #[inline(always)]
    fn div(e: &mut Env, x: u64, y: u64) -> Option<u64> {
        None
    }
    /// `FPSqrt`.
    #[inline(always)]
    fn sqrt(e: &mut Env, x: u64) -> Option<u64> {
        None
    }
    /// `FPMulAdd`.
    #[inline(always)]
    fn mul_add(e: &mut Env, addend: u64, x: u64, y: u64) -> Option<u64> {
        None
    }
    /// `FPToFixed`.
    #[inline(always)]
    fn to_fixed(e: &mut Env, x: u64, to: Fixed, rounding: Rounding) -> Option<u64> {
        None
    }
    /// `FixedToFP` of `value / 2^fbits`.
    #[inline(always)]
    fn from_integer(e: &mut Env, value: i64, fbits: u32, rounding: Rounding) -> Option<u64> {
        None
    }
    /// `FPConvert`.
    #[inline(always)]
    fn convert<To: Format>(e: &mut Env, x: u64, rounding: Rounding) -> Option<u64> {
        None
    }
}

impl Fast for H {}

/// FPCR asks for what the host does.
#[inline(always)]
fn host_like(e: &Env) -> bool {
    e.fpcr & (RMODE | FZ) == 0
}

/// A finite number that is not denormal, nor next to the denormals, nor in the last binade (whose rounding errors could
/// overflow on the way).
#[inline(always)]
fn ordinary<F: Format>(bits: u64) -> bool {
    (bits >> F::F & F::EMAX_BIASED).wrapping_sub(2) < F::EMAX_BIASED - 3
}

#[inline(always)]
fn normal<F: Format>(bits: u64) -> bool {
    (bits >> F::F & F::EMAX_BIASED).wrapping_sub(1) < F::EMAX_BIASED - 1
}

/// The product of two normal numbers needs more bits than the format has.
#[inline(always)]
fn product_inexact<F: Format>(x: u64, y: u64) -> bool {
    let mant = |x: u64| x & F::FRACTION | 1 << F::F;
    let product = u128::from(mant(x)) * u128::from(mant(y));
    product.trailing_zeros() + product.leading_zeros() + F::F + 1 < 128
}

macro_rules! host {
    ($format:ident, $float:ident, $bits:ident, $other:ident, $other_float:ident) => {
        impl Fast for $format {
            #[inline(always)]
            fn add(e: &mut Env, x: u64, y: u64) -> Option<u64> {
                let (a, b) = ($float::from_bits(x as $bits), $float::from_bits(y as $bits));
                let sum = a + b;
                let bits = u64::from(sum.to_bits());
                if !host_like(e) || !ordinary::<Self>(bits) && sum != 0.0 {
                    return None;
                }
                if e.fpsr & IXC == 0 {
                    // TwoSum: the rounding error, exactly.
                    let b2 = sum - a;
                    let error = (a - (sum - b2)) + (b - b2);
                    e.fpsr |= if error != 0.0 { IXC } else { 0 };
                }
                Some(bits)
            }

            #[inline(always)]
            fn mul(e: &mut Env, x: u64, y: u64) -> Option<u64> {
                let (a, b) = ($float::from_bits(x as $bits), $float::from_bits(y as $bits));
                let product = a * b;
                let bits = u64::from(product.to_bits());
                if !host_like(e) {
                    return None;
                }
                if product == 0.0 && (a == 0.0 || b == 0.0) {
                    return Some(bits);
                }
                if !ordinary::<Self>(bits) {
                    return None;
                }
                if e.fpsr & IXC == 0 {
                    if !normal::<Self>(x) || !normal::<Self>(y) {
                        return None;
                    }
                    e.fpsr |= if product_inexact::<Self>(x, y) { IXC } else { 0 };
                }
                Some(bits)
            }

            #[inline(always)]
            fn div(e: &mut Env, x: u64, y: u64) -> Option<u64> {
                let quotient = $float::from_bits(x as $bits) / $float::from_bits(y as $bits);
                let bits = u64::from(quotient.to_bits());
                if !host_like(e) || !ordinary::<Self>(bits) {
                    return None;
                }
                if e.fpsr & IXC == 0 {
                    // Exact if, and only if, the quotient times the divisor is the dividend without rounding.
                    if !normal::<Self>(x) || !normal::<Self>(y) {
                        return None;
                    }
                    let back = $float::from_bits(x as $bits) == quotient * $float::from_bits(y as $bits);
                    e.fpsr |= if !back || product_inexact::<Self>(bits, y) { IXC } else { 0 };
                }
                Some(bits)
            }

            #[inline(always)]
            fn sqrt(e: &mut Env, x: u64) -> Option<u64> {
                let root = $float::from_bits(x as $bits).sqrt();
                let bits = u64::from(root.to_bits());
                let known = e.fpsr & IXC != 0;
                (host_like(e) && known && ordinary::<Self>(bits)).then_some(bits)
            }

            #[inline(always)]
            fn mul_add(e: &mut Env, addend: u64, x: u64, y: u64) -> Option<u64> {
                if !host_like(e) || e.fpsr & IXC == 0 {
                    return None;
                }
                let (a, b) = ($float::from_bits(x as $bits), $float::from_bits(y as $bits));
                let sum = a.mul_add(b, $float::from_bits(addend as $bits));
                let bits = u64::from(sum.to_bits());
                ordinary::<Self>(bits).then_some(bits)
            }

            #[inline(always)]
            fn to_fixed(e: &mut Env, x: u64, to: Fixed, rounding: Rounding) -> Option<u64> {
                let value = $float::from_bits(x as $bits);
                // In this range the host's conversion is in range for every signed type of 32 bits and more, and for the
                // unsigned ones when not negative.
                let limit = (1i64 << 31) as $float;
                let fits = value.abs() < limit && (!to.unsigned || value >= 0.0);
                if rounding != Rounding::Zero || to.fbits != 0 || to.bits < 32 || e.fpcr & FZ != 0 || !fits {
                    return None;
                }
                let int = value as i64;
                e.fpsr |= if int as $float != value { IXC } else { 0 };
                Some(int as u64 & u64::MAX >> (64 - to.bits))
            }

            #[inline(always)]
            fn from_integer(e: &mut Env, value: i64, fbits: u32, rounding: Rounding) -> Option<u64> {
                // Integers of up to 2^F are exact, whatever the mode.
                let exact = value.unsigned_abs() <= 1 << Self::F;
                if fbits != 0 || !exact && rounding != Rounding::TieEven {
                    return None;
                }
                let converted = value as $float;
                if !exact && e.fpsr & IXC == 0 {
                    e.fpsr |= if converted as i128 != i128::from(value) { IXC } else { 0 };
                }
                Some(u64::from(converted.to_bits()))
            }

            #[inline(always)]
            fn convert<To: Format>(e: &mut Env, x: u64, rounding: Rounding) -> Option<u64> {
                if To::BITS != <$other as Format>::BITS || rounding != Rounding::TieEven || e.fpcr & FZ != 0 {
                    return None;
                }
                let value = $float::from_bits(x as $bits);
                let converted = value as $other_float;
                let bits = u64::from(converted.to_bits());
                if !normal::<Self>(x) || !ordinary::<$other>(bits) {
                    return None;
                }
                e.fpsr |= if converted as $float != value { IXC } else { 0 };
                Some(bits)
            }
        }
    };
}
host!(S, f32, u32, D, f64);
host!(D, f64, u64, S, f32);
