//! Reciprocal and reciprocal square root estimates, and FRECPX.

use super::round::{Format, infinity, invalid, max_normal, overflow_to_inf, process_nan, signed, unpack, zero};
use super::{DZC, Env, FZ, FZ16, IXC, OFC, UFC};

/// `RecipEstimate`: a is 256..=511, for 0.5 <= x < 1; so is the result, for 1 <= r < 2.
fn recip_estimate(a: u64) -> u64 {
    let b = (1 << 19) / (2 * a + 1);
    b.div_ceil(2)
}

/// `RecipSqrtEstimate`: a is 128..=511; the result 256..=511.
fn recip_sqrt_estimate(a: u64) -> u64 {
    let a = if a < 256 { a * 2 + 1 } else { ((a >> 1 << 1) + 1) * 2 };
    let mut b = 512;
    while a * (b + 1) * (b + 1) < 1 << 28 {
        b += 1;
    }
    b.div_ceil(2)
}

fn flushing<F: Format>(e: &Env) -> bool {
    e.fpcr & if F::BITS == 16 { FZ16 } else { FZ } != 0
}

/// The exponent field, and the fraction moved up to 52 bits.
fn fields<F: Format>(x: u64) -> (i32, u64) {
    ((x >> F::F & F::EMAX_BIASED) as i32, (x & F::FRACTION) << (52 - F::F))
}

/// `FPRecipEstimate`.
pub fn recip<F: Format>(e: &mut Env, x: u64) -> u64 {
    let a = unpack::<F>(e, x);
    if a.nan() {
        return process_nan::<F>(e, a.ty, x);
    }
    if a.inf() {
        return zero::<F>(a.sign);
    }
    if a.zero() {
        e.raise(DZC);
        return infinity::<F>(a.sign);
    }
    let magnitude = x & (F::SIGN - 1);
    // Below a quarter of the smallest normal number the reciprocal is too large.
    if magnitude < 1 << (F::F - 2) {
        let rounding = e.rounding();
        e.raise(OFC | IXC);
        return if overflow_to_inf(rounding, a.sign) { infinity::<F>(a.sign) } else { max_normal::<F>(a.sign) };
    }
    let bias2 = F::EMAX_BIASED as i32 - 2;
    // From 2^(-EMIN) on it is denormal.
    if flushing::<F>(e) && magnitude >> F::F >= bias2 as u64 {
        e.raise(UFC);
        return zero::<F>(a.sign);
    }
    let (mut exp, mut fraction) = fields::<F>(x);
    if exp == 0 {
        if fraction >> 51 == 0 {
            exp = -1;
            fraction <<= 2;
        } else {
            fraction <<= 1;
        }
    }
    let scaled = 256 | fraction >> 44 & 255;
    let mut result_exp = bias2 - exp;
    let mut fraction = (recip_estimate(scaled) & 255) << 44;
    if result_exp == 0 {
        fraction = 1 << 51 | fraction >> 1;
    } else if result_exp == -1 {
        fraction = 1 << 50 | fraction >> 2;
        result_exp = 0;
    }
    signed::<F>(a.sign, (result_exp as u64) << F::F | fraction >> (52 - F::F))
}

/// `FPRSqrtEstimate`.
pub fn rsqrt<F: Format>(e: &mut Env, x: u64) -> u64 {
    let a = unpack::<F>(e, x);
    if a.nan() {
        return process_nan::<F>(e, a.ty, x);
    }
    if a.zero() {
        e.raise(DZC);
        return infinity::<F>(a.sign);
    }
    if a.sign {
        return invalid::<F>(e);
    }
    if a.inf() {
        return zero::<F>(false);
    }
    let (mut exp, mut fraction) = fields::<F>(x);
    if exp == 0 {
        // Left until the leading one has left the 52 bits.
        let by = fraction.leading_zeros() - 12;
        exp = -(by as i32);
        fraction <<= by + 1;
    }
    let fraction = fraction >> 44 & 255;
    let scaled = if exp & 1 == 0 { 256 | fraction } else { 128 | fraction >> 1 };
    let bias3 = 3 * (F::EMAX_BIASED as i32 >> 1) - 1;
    let result_exp = ((bias3 - exp) / 2) as u64;
    result_exp << F::F | (recip_sqrt_estimate(scaled) & 255) << (F::F - 8)
}

/// `FPRecpX`.
pub fn recpx<F: Format>(e: &mut Env, x: u64) -> u64 {
    let a = unpack::<F>(e, x);
    if a.nan() {
        return process_nan::<F>(e, a.ty, x);
    }
    let biased = x >> F::F & F::EMAX_BIASED;
    let exp = if biased == 0 { F::EMAX_BIASED - 1 } else { biased ^ F::EMAX_BIASED };
    signed::<F>(a.sign, exp << F::F)
}

/// `UnsignedRecipEstimate`.
pub fn unsigned_recip(x: u32) -> u32 {
    if x >> 31 == 0 { !0 } else { (recip_estimate(u64::from(x >> 23)) as u32) << 23 }
}

/// `UnsignedRSqrtEstimate`.
pub fn unsigned_rsqrt(x: u32) -> u32 {
    if x >> 30 == 0 { !0 } else { (recip_sqrt_estimate(u64::from(x >> 23)) as u32) << 23 }
}
