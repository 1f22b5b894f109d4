//! The integer lane functions of AdvSIMD, each once, for every element size and for the scalar forms.

use super::lanes::{Lane, lane_fns, sat_s, sat_u};

/// `n << shift` for SQSHL, SRSHL and kin: shift is the signed low byte of `m`, `n` the element's value; `round` adds half of
/// the last place on the way right. The answer is exact where it matters: results too large to hold stay out of range of
/// every element.
#[inline(always)]
fn shift_reg(n: i128, m: u64, round: bool) -> i128 {
    let shift = i32::from(m as i8);
    if shift >= 0 {
        // |n| < 2^64, so anything moved by 64 or more and not zero is far outside every element's range.
        if shift < 64 { n << shift } else { n.signum() << 126 }
    } else {
        shift_right(n, shift.unsigned_abs(), round)
    }
}

/// `(n + round_const) >> by`, exact.
#[inline(always)]
pub fn shift_right(n: i128, by: u32, round: bool) -> i128 {
    if round { if by > 66 { 0 } else { (n + (1i128 << (by - 1))) >> by } } else { n >> by.min(127) }
}

/// SSHL and USHL: left by 0..=127, or as `right` says by 1..=128.
#[inline(always)]
fn shift<L: Lane>(n: u64, m: L, right: impl Fn(u32) -> u64) -> L {
    let by = i32::from(m.u() as i8);
    L::of(match by {
        ..0 => right(by.unsigned_abs()),
        0..64 => n << by,
        _ => 0,
    })
}

#[inline(always)]
fn s<L: Lane>(x: L) -> i128 {
    i128::from(x.s())
}
#[inline(always)]
fn u<L: Lane>(x: L) -> i128 {
    i128::from(x.u())
}

/// `2 * n * m`, optionally rounded, high half: the product of SQDMULH and SQRDMULH, before saturation, plus or minus an
/// accumulator `d` scaled to it.
#[inline(always)]
fn dmulh<L: Lane>(d: i128, n: L, m: L, sign: i128, round: bool) -> i128 {
    let round = if round { 1i128 << (L::BITS - 1) } else { 0 };
    ((d << L::BITS) + sign * 2 * s(n) * s(m) + round) >> L::BITS
}

lane_fns! {
    Add = |d, n, m, k, q| n.add(m);
    Sub = |d, n, m, k, q| n.sub(m);
    Mul = |d, n, m, k, q| n.mul(m);
    Mla = |d, n, m, k, q| d.add(n.mul(m));
    Mls = |d, n, m, k, q| d.sub(n.mul(m));
    PMul = |d, n, m, k, q| {
        let mut r = 0;
        for i in 0..L::BITS {
            r ^= (n.u() << i) & (m.u() >> i & 1).wrapping_neg();
        }
        L::of(r)
    };
    SHAdd = |d, n, m, k, q| L::of(((s(n) + s(m)) >> 1) as u64);
    UHAdd = |d, n, m, k, q| L::of(((u(n) + u(m)) >> 1) as u64);
    SRHAdd = |d, n, m, k, q| L::of(((s(n) + s(m) + 1) >> 1) as u64);
    URHAdd = |d, n, m, k, q| L::of(((u(n) + u(m) + 1) >> 1) as u64);
    SHSub = |d, n, m, k, q| L::of(((s(n) - s(m)) >> 1) as u64);
    UHSub = |d, n, m, k, q| L::of(((u(n) - u(m)) >> 1) as u64);
    SQAdd = |d, n, m, k, q| { *q |= n.sqadd(m) != n.add(m); n.sqadd(m) };
    UQAdd = |d, n, m, k, q| { *q |= n.uqadd(m) != n.add(m); n.uqadd(m) };
    SQSub = |d, n, m, k, q| { *q |= n.sqsub(m) != n.sub(m); n.sqsub(m) };
    UQSub = |d, n, m, k, q| { *q |= n.uqsub(m) != n.sub(m); n.uqsub(m) };
    SUQAdd = |d, n, m, k, q| sat_s(u(n) + s(d), q);
    USQAdd = |d, n, m, k, q| sat_u(s(n) + u(d), q);
    CmGt = |d, n, m, k, q| L::mask(n.s() > m.s());
    CmGe = |d, n, m, k, q| L::mask(n.s() >= m.s());
    CmHi = |d, n, m, k, q| L::mask(n.u() > m.u());
    CmHs = |d, n, m, k, q| L::mask(n.u() >= m.u());
    CmEq = |d, n, m, k, q| L::mask(n == m);
    CmTst = |d, n, m, k, q| L::mask(n.u() & m.u() != 0);
    CmGt0 = |d, n, m, k, q| L::mask(n.s() > 0);
    CmGe0 = |d, n, m, k, q| L::mask(n.s() >= 0);
    CmEq0 = |d, n, m, k, q| L::mask(n.u() == 0);
    CmLe0 = |d, n, m, k, q| L::mask(n.s() <= 0);
    CmLt0 = |d, n, m, k, q| L::mask(n.s() < 0);
    SMax = |d, n, m, k, q| if n.s() > m.s() { n } else { m };
    UMax = |d, n, m, k, q| if n.u() > m.u() { n } else { m };
    SMin = |d, n, m, k, q| if n.s() < m.s() { n } else { m };
    UMin = |d, n, m, k, q| if n.u() < m.u() { n } else { m };
    SAbd = |d, n, m, k, q| if n.s() > m.s() { n.sub(m) } else { m.sub(n) };
    UAbd = |d, n, m, k, q| if n.u() > m.u() { n.sub(m) } else { m.sub(n) };
    SAba = |d, n, m, k, q| d.add(if n.s() > m.s() { n.sub(m) } else { m.sub(n) });
    UAba = |d, n, m, k, q| d.add(if n.u() > m.u() { n.sub(m) } else { m.sub(n) });
    SShl = |d, n, m, k, q| shift(n.s() as u64, m, |by| (n.s() >> by.min(63)) as u64);
    UShl = |d, n, m, k, q| shift(n.u(), m, |by| ushr(n, by).u());
    SRShl = |d, n, m, k, q| L::of(shift_reg(s(n), m.u(), true) as u64);
    URShl = |d, n, m, k, q| L::of(shift_reg(u(n), m.u(), true) as u64);
    SQShl = |d, n, m, k, q| sat_s(shift_reg(s(n), m.u(), false), q);
    UQShl = |d, n, m, k, q| sat_u(shift_reg(u(n), m.u(), false), q);
    SQRShl = |d, n, m, k, q| sat_s(shift_reg(s(n), m.u(), true), q);
    UQRShl = |d, n, m, k, q| sat_u(shift_reg(u(n), m.u(), true), q);
    SQDMulH = |d, n, m, k, q| sat_s(dmulh(0, n, m, 1, false), q);
    SQRDMulH = |d, n, m, k, q| sat_s(dmulh(0, n, m, 1, true), q);
    SQRDMlaH = |d, n, m, k, q| sat_s(dmulh(s(d), n, m, 1, true), q);
    SQRDMlsH = |d, n, m, k, q| sat_s(dmulh(s(d), n, m, -1, true), q);
    Abs = |d, n, m, k, q| if n.s() < 0 { L::of(0).sub(n) } else { n };
    Neg = |d, n, m, k, q| L::of(0).sub(n);
    SQAbs = |d, n, m, k, q| sat_s(s(n).abs(), q);
    SQNeg = |d, n, m, k, q| sat_s(-s(n), q);
    Clz = |d, n, m, k, q| L::of(u64::from(n.u().leading_zeros() - (64 - L::BITS)));
    Cls = |d, n, m, k, q| L::of(u64::from((n.s() ^ n.s() >> 1).leading_zeros().wrapping_sub(64 - L::BITS + 1)));
    Cnt = |d, n, m, k, q| L::of(u64::from(n.u().count_ones()));
    RBit = |d, n, m, k, q| L::of(n.u().reverse_bits() >> (64 - L::BITS));
    Not = |d, n, m, k, q| L::of(!n.u());
    SShr = |d, n, m, k, q| n.sar(k.min(L::BITS - 1));
    UShr = |d, n, m, k, q| ushr(n, k);
    SSra = |d, n, m, k, q| d.add(n.sar(k.min(L::BITS - 1)));
    USra = |d, n, m, k, q| d.add(ushr(n, k));
    SRShr = |d, n, m, k, q| L::of(shift_right(s(n), k, true) as u64);
    URShr = |d, n, m, k, q| L::of(shift_right(u(n), k, true) as u64);
    SRSra = |d, n, m, k, q| d.add(L::of(shift_right(s(n), k, true) as u64));
    URSra = |d, n, m, k, q| d.add(L::of(shift_right(u(n), k, true) as u64));
    Sri = |d, n, m, k, q| {
        let keep = !ushr(L::of(!0), k).u();
        L::of(d.u() & keep | ushr(n, k).u())
    };
    Shl = |d, n, m, k, q| n.shl(k);
    Sli = |d, n, m, k, q| d.and(L::of(!(!0 << (k & 63)))).add(n.shl(k));
    SQShlU = |d, n, m, k, q| sat_u(s(n) << k, q);
    SQShlImm = |d, n, m, k, q| sat_s(s(n) << k, q);
    UQShlImm = |d, n, m, k, q| sat_u(u(n) << k, q);
}

/// Logical shift right by 1 or more.
#[inline(always)]
fn ushr<L: Lane>(n: L, k: u32) -> L {
    if k < L::BITS { n.shr(k) } else { L::of(0) }
}
