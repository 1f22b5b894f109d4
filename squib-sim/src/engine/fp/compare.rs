//! `FPCompare` and its vector relatives.

use super::round::{Format, Type, Unpacked, unpack};
use super::{Env, FZ, FZ16, IOC};
use std::cmp::Ordering;

/// The order of two operands, or `None` when a NaN is among them: then Invalid Operation is raised for a signalling NaN,
/// and with `signal_nans` for any.
pub fn compare<F: Format>(e: &mut Env, x: u64, y: u64, signal_nans: bool) -> Option<Ordering> {
    if plain::<F>(e, x, y) {
        return Some(key::<F>(x).cmp(&key::<F>(y)));
    }
    compare_unpacked::<F>(e, x, y, signal_nans)
}

/// No NaN among the operands and nothing to flush: bits can be compared.
#[inline]
pub(super) fn plain<F: Format>(e: &Env, x: u64, y: u64) -> bool {
    let magnitude = F::SIGN - 1;
    (x & magnitude).max(y & magnitude) <= F::INFINITY && e.fpcr & (FZ | FZ16) == 0
}

/// A key that orders numbers (not NaNs) by value.
#[inline]
pub(super) fn key<F: Format>(x: u64) -> i64 {
    // Infinity is the largest magnitude, so even double precision leaves room for the sign.
    let magnitude = (x & (F::SIGN - 1)) as i64;
    if x & F::SIGN != 0 { -magnitude } else { magnitude }
}

#[cold]
fn compare_unpacked<F: Format>(e: &mut Env, x: u64, y: u64, signal_nans: bool) -> Option<Ordering> {
    let (a, b) = (unpack::<F>(e, x), unpack::<F>(e, y));
    if a.nan() || b.nan() {
        if signal_nans || a.ty == Type::SNaN || b.ty == Type::SNaN {
            e.raise(IOC);
        }
        return None;
    }
    let value = |a: Unpacked, x: u64| if a.zero() { 0 } else { key::<F>(x) };
    Some(value(a, x).cmp(&value(b, y)))
}

/// `FPCompare`: NZCV.
pub fn compare_nzcv<F: Format>(e: &mut Env, x: u64, y: u64, signal_nans: bool) -> u32 {
    let flags = |x: i64, y: i64| u32::from(x < y) << 3 | u32::from(x == y) << 2 | u32::from(x >= y) << 1;
    if plain::<F>(e, x, y) {
        return flags(key::<F>(x), key::<F>(y));
    }
    compare_unpacked::<F>(e, x, y, signal_nans).map_or(0b0011, |order| flags(order as i64, 0))
}
