//! The host's arithmetic against the exact code, half precision against double, and answers from the manual.

use proptest::prelude::*;

use super::arith::*;
use super::convert::{Fixed, convert, convert_slow, from_fixed_slow, round_int, to_fixed, to_fixed_js, to_fixed_slow};
use super::estimate::*;
use super::*;

/// Bits of numbers of a format, special ones among them.
fn number<F: Format>() -> impl Strategy<Value = u64> {
    let bias = F::EMAX_BIASED / 2;
    let near = (0..=2 * u64::from(F::F) + 4).prop_map(move |e| bias + e - u64::from(F::F) - 2);
    let exponent = prop_oneof![
        Just(0),
        Just(1),
        Just(2),
        Just(F::EMAX_BIASED),
        Just(F::EMAX_BIASED - 1),
        near,
        0..=F::EMAX_BIASED
    ];
    let fraction = prop_oneof![
        Just(0),
        Just(1),
        Just(F::FRACTION),
        (0..F::F).prop_map(|n| 1 << n),
        0..=F::FRACTION,
        (0..=F::FRACTION).prop_map(|x| x & !0xff),
    ];
    (any::<bool>(), exponent, fraction).prop_map(|(sign, e, f)| (if sign { F::SIGN } else { 0 }) | e << F::F | f)
}

/// Mostly the usual control, with and without the inexact flag.
fn environment() -> impl Strategy<Value = Env> {
    let fpcr = prop_oneof![8 => Just(0), 1 => Just(DN), 1 => any::<u32>().prop_map(|x| x & 0x07c8_0000)];
    (fpcr, prop_oneof![Just(0), Just(IXC)]).prop_map(|(fpcr, fpsr)| Env { fpcr, fpsr })
}

/// Where the fast path answers, it answers like the exact one.
fn agree(e: Env, fast: impl Fn(&mut Env) -> Option<u64>, exact: impl Fn(&mut Env) -> u64) -> bool {
    let (mut f, mut s) = (e, e);
    match fast(&mut f) {
        None => {
            assert_eq!(f, e, "flags without an answer");
            false
        }
        Some(x) => {
            let y = exact(&mut s);
            assert_eq!((x, f), (y, s), "host {x:x}, exact {y:x}, control {:x}", e.fpcr);
            true
        }
    }
}

/// How many of eight operations the fast path answered.
fn all_agree<F: Format, To: Format>(e: Env, x: u64, y: u64, z: u64, int: u64, to: Fixed) -> usize {
    let rounding = e.rounding();
    let up = 64 - to.bits;
    let value = if to.unsigned { (int << up >> up) as i64 } else { (int << up) as i64 >> up };
    [
        agree(e, |e| F::add(e, x, y), |e| add_slow::<F>(e, x, y)),
        agree(e, |e| F::mul(e, x, y), |e| mul_slow::<F>(e, x, y)),
        agree(e, |e| F::div(e, x, y), |e| div_slow::<F>(e, x, y)),
        agree(e, |e| F::sqrt(e, x), |e| sqrt_slow::<F>(e, x)),
        agree(e, |e| F::mul_add(e, z, x, y), |e| mul_add_slow::<F>(e, z, x, y)),
        agree(e, |e| F::to_fixed(e, x, to, Rounding::Zero), |e| to_fixed_slow::<F>(e, x, to, Rounding::Zero)),
        agree(
            e,
            |e| F::from_integer(e, value, to.fbits, rounding),
            |e| from_fixed_slow::<F>(e, value.into(), to.fbits, rounding),
        ),
        agree(e, |e| F::convert::<To>(e, x, rounding), |e| convert_slow::<F, To>(e, x, rounding)),
    ]
    .into_iter()
    .filter(|&answered| answered)
    .count()
}

fn fixed() -> impl Strategy<Value = Fixed> {
    let fbits = prop_oneof![4 => Just(0), 1 => 0..=32u32];
    (prop_oneof![Just(32), Just(64)], fbits, any::<bool>()).prop_map(|(bits, fbits, unsigned)| Fixed {
        bits,
        fbits,
        unsigned,
    })
}

fn integer() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32, any::<bool>()).prop_map(|(x, by, negative)| {
        let x = x >> by;
        if negative { x.wrapping_neg() } else { x }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn host_arithmetic_agrees_in_single(
        e in environment(), x in number::<S>(), y in number::<S>(), z in number::<S>(), i in integer(), to in fixed(),
    ) {
        all_agree::<S, D>(e, x, y, z, i, to);
    }

    #[test]
    fn host_arithmetic_agrees_in_double(
        e in environment(), x in number::<D>(), y in number::<D>(), z in number::<D>(), i in integer(), to in fixed(),
    ) {
        all_agree::<D, S>(e, x, y, z, i, to);
    }

    /// Sums and products of half-precision numbers are exact in double precision, so rounding those once, by the conversion,
    /// must give the half-precision operation: for every rounding mode, with every flag.
    #[test]
    fn half_arithmetic_is_double_arithmetic_rounded(x in number::<H>(), y in number::<H>(), mode in 0..4u32) {
        let finite = |x: u64| x & H::INFINITY != H::INFINITY && x & (H::SIGN - 1) != 0;
        if !(finite(x) && finite(y)) {
            return Ok(());
        }
        let new = Env { fpcr: mode << 22, fpsr: 0 };
        let rounding = new.rounding();
        let wide = |x: u64| f64::from_bits(convert::<H, D>(&mut new.clone(), x, rounding));
        for (half, exact) in [
            (add::<H> as fn(&mut Env, u64, u64) -> u64, wide(x) + wide(y)),
            (sub::<H>, wide(x) - wide(y)),
            (mul::<H>, wide(x) * wide(y)),
        ] {
            let (mut got, mut expected) = (new, new);
            let r = half(&mut got, x, y);
            if exact != 0.0 {
                let wanted = convert::<D, H>(&mut expected, exact.to_bits(), rounding);
                assert_eq!((r, got), (wanted, expected), "{x:x} {y:x}");
            } else {
                assert_eq!((r & (H::SIGN - 1), got.fpsr), (0, 0), "{x:x} {y:x}");
            }
        }
    }

    /// A quotient or root times itself surrounds the operand: the rounded result is one of the two neighbours.
    #[test]
    fn quotients_and_roots_bracket_the_exact_value(x in number::<H>(), y in number::<H>()) {
        let positive = |x: u64| x & (H::SIGN - 1);
        let (x, y) = (positive(x), positive(y));
        if !(x < H::INFINITY && y < H::INFINITY && x != 0 && y != 0) {
            return Ok(());
        }
        let env = |mode: u32| Env { fpcr: mode << 22, fpsr: 0 };
        let wide = |x: u64| f64::from_bits(convert::<H, D>(&mut env(0), x, Rounding::TieEven));
        let both = |f: &dyn Fn(&mut Env) -> u64| (wide(f(&mut env(2))), wide(f(&mut env(1))));
        let (low, high) = both(&|e| div::<H>(e, x, y));
        assert!(low * wide(y) <= wide(x) && wide(x) <= high * wide(y), "{x:x} / {y:x}");
        let (low, high) = both(&|e| sqrt::<H>(e, x));
        assert!(low * low <= wide(x) && wide(x) <= high * high, "sqrt {x:x}");
    }
}

#[test]
fn the_fast_path_is_taken() {
    let (x, y) = (1.7f64.to_bits(), 2.3f64.to_bits());
    let to = Fixed { bits: 64, fbits: 0, unsigned: false };
    assert_eq!(all_agree::<D, S>(Env { fpcr: 0, fpsr: IXC }, x, y, x, 17, to), 8);
    let (x, y) = (1.7f32.to_bits().into(), 2.3f32.to_bits().into());
    assert_eq!(all_agree::<S, D>(Env { fpcr: 0, fpsr: IXC }, x, y, x, 17, to), 8);
}

fn env() -> Env {
    Env { fpcr: 0, fpsr: 0 }
}

#[test]
fn nans_propagate_in_the_order_of_the_manual() {
    let (q1, q2, s2, s3) = (0x7fc0_0001, 0xffc0_0002, 0x7f80_0002, 0xff80_0003);
    let one = 0x3f80_0000;
    let mut e = env();
    assert_eq!(add::<S>(&mut e, q1, q2), q1);
    assert_eq!(e.fpsr, 0);
    // A signalling NaN comes first, quieted.
    assert_eq!(sub::<S>(&mut e, q1, s2), 0x7fc0_0002);
    assert_eq!(e.fpsr, IOC);
    assert_eq!(mul_add::<S>(&mut env(), q1, one, s3), 0xffc0_0003);
    assert_eq!(mul_add::<S>(&mut env(), q1, q2, one), q1);
    // Infinity times zero with a quiet addend is the default NaN, and invalid.
    let mut e = env();
    assert_eq!(mul_add::<S>(&mut e, q2, S::INFINITY, 0), S::DEFAULT_NAN);
    assert_eq!(e.fpsr, IOC);
    assert_eq!(add::<S>(&mut Env { fpcr: DN, fpsr: 0 }, q2, one), S::DEFAULT_NAN);
    // FMAXNM prefers the number to a quiet NaN, but not to a signalling one.
    assert_eq!(max_num::<S, false>(&mut env(), q1, one), one);
    assert_eq!(max_num::<S, true>(&mut env(), one, s2), 0x7fc0_0002);
    // FABD clears the sign of a NaN, too.
    assert_eq!(abs_difference::<S>(&mut env(), q2, one), 0x7fc0_0002);
}

#[test]
fn flushing_and_tininess() {
    let (tiny, min_normal) = (1, 0x0080_0000u64);
    let mut e = Env { fpcr: FZ, fpsr: 0 };
    assert_eq!((add::<S>(&mut e, tiny, 0x3f80_0000), e.fpsr), (0x3f80_0000, IDC));
    let mut e = Env { fpcr: FZ, fpsr: 0 };
    // A denormal result is zero, and counts as underflow but not as inexact.
    assert_eq!((mul::<S>(&mut e, min_normal, 0x3f00_0000), e.fpsr), (0, UFC));
    // Tininess is detected before rounding: this one rounds up to the smallest normal number.
    let mut e = env();
    assert_eq!((mul::<S>(&mut e, 0x3f7f_ffff, min_normal), e.fpsr), (min_normal, UFC | IXC));
    // Half precision has a flush control of its own, and reports no input denormal.
    let mut e = Env { fpcr: FZ16, fpsr: 0 };
    assert_eq!((add::<H>(&mut e, 1, 0x3c00), e.fpsr), (0x3c00, 0));
    let mut e = Env { fpcr: FZ, fpsr: 0 };
    assert_eq!((add::<H>(&mut e, 1, 1), e.fpsr), (2, 0));
}

#[test]
fn conversions_saturate() {
    let to = |bits, unsigned| Fixed { bits, fbits: 0, unsigned };
    let fixed = |x: f64, to: Fixed, r: Rounding| {
        let mut e = env();
        (to_fixed::<D>(&mut e, x.to_bits(), to, r), e.fpsr)
    };
    assert_eq!(fixed(-1.0, to(32, true), Rounding::Zero), (0, IOC));
    assert_eq!(fixed(-0.5, to(32, true), Rounding::Zero), (0, IXC));
    assert_eq!(fixed(f64::NAN, to(64, false), Rounding::Zero), (0, IOC));
    assert_eq!(fixed(1e300, to(64, false), Rounding::Zero), (i64::MAX as u64, IOC));
    assert_eq!(fixed(-1e300, to(32, false), Rounding::Zero), (0x8000_0000, IOC));
    assert_eq!(fixed(2.5, to(32, false), Rounding::TieEven), (2, IXC));
    assert_eq!(fixed(2.5, to(32, false), Rounding::TieAway), (3, IXC));
    assert_eq!(fixed(-2.5, to(32, false), Rounding::TieAway), (0xffff_fffd, IXC));
    assert_eq!(fixed(-2.5, to(32, false), Rounding::NegInf), (0xffff_fffd, IXC));
    // Alternative half precision has no infinity and no NaN.
    let mut e = Env { fpcr: AHP, fpsr: 0 };
    assert_eq!((convert::<D, H>(&mut e, 1e6f64.to_bits(), Rounding::TieEven), e.fpsr), (0x7fff, IOC));
    let mut e = Env { fpcr: AHP, fpsr: 0 };
    assert_eq!((convert::<H, D>(&mut e, 0x7c00, Rounding::TieEven), e.fpsr), (65536f64.to_bits(), 0));
    // Round to odd keeps the evidence of what was cut off.
    let mut e = env();
    assert_eq!(convert::<D, S>(&mut e, (1.0 + f64::EPSILON).to_bits(), Rounding::Odd), 0x3f80_0001);
    assert_eq!(convert::<D, S>(&mut env(), 1e300f64.to_bits(), Rounding::Odd), 0x7f7f_ffff);
    assert_eq!(round_int::<D>(&mut env(), (-0.3f64).to_bits(), Rounding::Zero, true), (-0.0f64).to_bits());
}

#[test]
fn javascript_conversion() {
    let js = |x: f64| {
        let mut e = env();
        let (r, z) = to_fixed_js(&mut e, x.to_bits());
        (r, z, e.fpsr)
    };
    assert_eq!(js(-7.0), (-7i32 as u32, true, 0));
    assert_eq!(js(-0.0), (0, false, 0));
    assert_eq!(js(1.5), (1, false, IXC));
    assert_eq!(js(4_294_967_303.0), (7, false, IOC));
    assert_eq!(js(-2_147_483_649.0), (0x7fff_ffff, false, IOC));
    assert_eq!(js(f64::INFINITY), (0, false, IOC));
    // A flushed denormal is not an exact zero.
    let mut e = Env { fpcr: FZ, fpsr: 0 };
    assert_eq!((to_fixed_js(&mut e, 1), e.fpsr), ((0, false), IDC));
}

#[test]
fn estimates() {
    // 1.0 and 2.0, just below a power of two, the extremes.
    assert_eq!(recip::<S>(&mut env(), 0x3f80_0000), 0x3f7f_8000);
    assert_eq!(recip::<D>(&mut env(), 2.0f64.to_bits()), 0x3fdf_f000_0000_0000);
    assert_eq!(recip::<H>(&mut env(), 0x3c00), 0x3bfc);
    assert_eq!(rsqrt::<S>(&mut env(), 0x3f80_0000), 0x3f7f_8000);
    assert_eq!(rsqrt::<S>(&mut env(), 0x4080_0000), 0x3eff_8000);
    let mut e = env();
    assert_eq!((recip::<S>(&mut e, 0x8000_0000), e.fpsr), (0xff80_0000, DZC));
    // The reciprocal of a very small denormal overflows.
    let mut e = env();
    assert_eq!((recip::<S>(&mut e, 1), e.fpsr), (0x7f80_0000, OFC | IXC));
    assert_eq!(recip::<S>(&mut Env { fpcr: 3 << 22, fpsr: 0 }, 1), 0x7f7f_ffff);
    // That of a very large number is denormal.
    assert_eq!(recip::<S>(&mut env(), 0x7f00_0000), 0x003f_e000);
    let mut e = Env { fpcr: FZ, fpsr: 0 };
    assert_eq!((recip::<S>(&mut e, 0x7f00_0000), e.fpsr), (0, UFC));
    assert_eq!(recpx::<S>(&mut env(), 0x3f80_0000), 0x4000_0000);
    assert_eq!((unsigned_recip(0x7fff_ffff), unsigned_recip(0x8000_0000)), (!0, 0xff80_0000));
    assert_eq!((unsigned_rsqrt(0x3fff_ffff), unsigned_rsqrt(0x4000_0000)), (!0, 0xff80_0000));
}

#[test]
fn newton_steps_are_fused() {
    // The product is 2 - 2^-45: only a fused step sees the difference to 2.
    let mut e = env();
    let step = recip_step::<S>(&mut e, 0x4000_0001, 0x3f7f_fffe);
    assert_eq!((step, e.fpsr), (0x2900_0000, 0));
    assert_eq!(recip_step::<S>(&mut env(), S::INFINITY, 0), 0x4000_0000);
    assert_eq!(rsqrt_step::<S>(&mut env(), 0, S::INFINITY), 0x3fc0_0000);
    assert_eq!(mulx::<S>(&mut env(), S::INFINITY | S::SIGN, 0), 0xc000_0000);
}
