//! AES, SHA-1 and SHA-256 instructions (FEAT_AES, FEAT_SHA1, FEAT_SHA256).

use super::lanes::{Lane, Width, set_v, v, vop};
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op};

/// Decodes cryptographic AES and two-register SHA.
pub fn decode_two(insn: u32, width: Width) -> Option<Decoded> {
    if insn >> 29 & 1 == 1 || insn >> 22 & 3 != 0 {
        return None;
    }
    let run: Handler = match (width, insn >> 12 & 31) {
        (Width::Full, 0b00100) => aese,
        (Width::Full, 0b00101) => aesd,
        (Width::Full, 0b00110) => aesmc,
        (Width::Full, 0b00111) => aesimc,
        (Width::Scalar(_), 0b00000) => sha1h,
        (Width::Scalar(_), 0b00001) => sha1su1,
        (Width::Scalar(_), 0b00010) => sha256su0,
        _ => return None,
    };
    Some(Decoded::fp(vop(run, insn)))
}

/// Decodes cryptographic three-register SHA.
pub fn decode_three(insn: u32) -> Option<Decoded> {
    if insn >> 22 & 3 != 0 {
        return None;
    }
    let run: Handler = match insn >> 12 & 7 {
        0 => sha1_hash::<0>,
        1 => sha1_hash::<1>,
        2 => sha1_hash::<2>,
        3 => sha1su0,
        4 => sha256_hash::<1>,
        5 => sha256_hash::<2>,
        6 => sha256su1,
        _ => return None,
    };
    Some(Decoded::fp(vop(run, insn)))
}

/// Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn gf_mul(mut a: u8, mut b: u8) -> u8 {
    let mut r = 0;
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    r
}

/// The S-box of FIPS 197 and its inverse, computed from their definition.
const SBOXES: ([u8; 256], [u8; 256]) = {
    let (mut sbox, mut inverse) = ([0; 256], [0; 256]);
    let mut i = 0;
    while i < 256 {
        // x^254 is the multiplicative inverse, and 0 for 0.
        let x = i as u8;
        let mut power = 1;
        let mut k = 0;
        while k < 254 {
            power = gf_mul(power, x);
            k += 1;
        }
        let b = power;
        let s = b ^ b.rotate_left(1) ^ b.rotate_left(2) ^ b.rotate_left(3) ^ b.rotate_left(4) ^ 0x63;
        sbox[i] = s;
        inverse[s as usize] = x;
        i += 1;
    }
    (sbox, inverse)
};
static SBOX: [u8; 256] = SBOXES.0;
static INVERSE_SBOX: [u8; 256] = SBOXES.1;

/// One column of (inverse) MixColumns for each value of its first byte; the other rows are rotations.
const fn mix_table(coefficients: [u8; 4]) -> [u32; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let x = i as u8;
        table[i] = u32::from_le_bytes([
            gf_mul(x, coefficients[0]),
            gf_mul(x, coefficients[1]),
            gf_mul(x, coefficients[2]),
            gf_mul(x, coefficients[3]),
        ]);
        i += 1;
    }
    table
}
static MIX: [u32; 256] = mix_table([2, 1, 1, 3]);
static INVERSE_MIX: [u32; 256] = mix_table([0x0e, 0x09, 0x0d, 0x0b]);

/// Substitutes after rotating row r of the state by `step * r` columns.
#[inline(always)]
fn shift_sub(state: u128, sbox: &[u8; 256], step: usize) -> u128 {
    let s = state.to_le_bytes();
    let mut r = [0; 16];
    for (i, x) in r.iter_mut().enumerate() {
        *x = sbox[usize::from(s[(i + 4 * step * (i % 4)) % 16])];
    }
    u128::from_le_bytes(r)
}

#[inline(always)]
fn mix(state: u128, table: &[u32; 256]) -> u128 {
    let mut columns = u32::split(state);
    for column in &mut columns {
        let b = column.to_le_bytes().map(usize::from);
        *column = table[b[0]] ^ table[b[1]].rotate_left(8) ^ table[b[2]].rotate_left(16) ^ table[b[3]].rotate_left(24);
    }
    u32::join(columns)
}

/// Declares handlers: Vd = f(Vd, Vn, Vm).
macro_rules! handlers {
    ($($(#[$doc:meta])* $name:ident$(<const $c:ident>)? = |$d:ident, $n:ident, $m:ident| $e:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// See [`Handler`].
        unsafe fn $name$(<const $c: u32>)?(cpu: &mut Cpu, op: *const Op) -> Next {
            // SAFETY: the caller's promise.
            unsafe {
                let o = &*op;
                let ($d, $n, $m) = (v(cpu, o.rd), v(cpu, o.rn), v(cpu, o.rm));
                set_v(cpu, o.rd, $e);
                Op::next(cpu, op)
            }
        }
    )*};
}

handlers! {
    /// AESE: AddRoundKey, ShiftRows, SubBytes.
    aese = |d, n, _m| shift_sub(d ^ n, &SBOX, 1);
    /// AESD: AddRoundKey, inverse ShiftRows, inverse SubBytes.
    aesd = |d, n, _m| shift_sub(d ^ n, &INVERSE_SBOX, 3);
    /// AESMC: MixColumns.
    aesmc = |_d, n, _m| mix(n, &MIX);
    /// AESIMC: inverse MixColumns.
    aesimc = |_d, n, _m| mix(n, &INVERSE_MIX);
    /// SHA1H.
    sha1h = |_d, n, _m| u128::from((n as u32).rotate_left(30));
    /// SHA1C (choose), SHA1P (parity), SHA1M (majority): four rounds.
    sha1_hash<const F> = |d, n, m| sha1_rounds::<F>(d, n as u32, m);
    /// SHA1SU0.
    sha1su0 = |d, n, m| (d >> 64 | n << 64) ^ d ^ m;
    /// SHA1SU1.
    sha1su1 = |d, n, _m| {
        let t = u32::split(d ^ n >> 32).map(|x| x.rotate_left(1));
        u32::join([t[0], t[1], t[2], t[3] ^ t[0].rotate_left(1)])
    };
    /// SHA256H (1) and SHA256H2 (2): four rounds, of which each returns one half of the state.
    sha256_hash<const PART> = |d, n, m| if PART == 1 { sha256_rounds(d, n, m).0 } else { sha256_rounds(n, d, m).1 };
    /// SHA256SU0.
    sha256su0 = |d, n, _m| {
        let (w, n) = (u32::split(d), n as u32);
        let next = [w[1], w[2], w[3], n];
        let mut r = w;
        for (r, x) in r.iter_mut().zip(next) {
            *r = r.wrapping_add(x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3);
        }
        u32::join(r)
    };
    /// SHA256SU1.
    sha256su1 = |d, n, m| {
        let (mut r, n, m) = (u32::split(d), u32::split(n), u32::split(m));
        let sigma = |x: u32| x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10;
        let t0 = [n[1], n[2], n[3], m[0]];
        for (r, t) in r.iter_mut().zip(t0) {
            *r = r.wrapping_add(t);
        }
        r[0] = r[0].wrapping_add(sigma(m[2]));
        r[1] = r[1].wrapping_add(sigma(m[3]));
        r[2] = r[2].wrapping_add(sigma(r[0]));
        r[3] = r[3].wrapping_add(sigma(r[1]));
        u32::join(r)
    };
}

#[inline(always)]
fn sha1_rounds<const F: u32>(abcd: u128, mut e: u32, wk: u128) -> u128 {
    let [mut a, mut b, mut c, mut d] = u32::split(abcd);
    for w in u32::split(wk) {
        let t = match F {
            0 => b & (c ^ d) ^ d,
            1 => b ^ c ^ d,
            _ => b & c | (b | c) & d,
        };
        let sum = e.wrapping_add(a.rotate_left(5)).wrapping_add(t).wrapping_add(w);
        (e, d, c, b, a) = (d, c, b.rotate_left(30), a, sum);
    }
    u32::join([a, b, c, d])
}

/// `SHA256hash` on x = abcd, y = efgh: the new (abcd, efgh).
#[inline(always)]
fn sha256_rounds(x: u128, y: u128, wk: u128) -> (u128, u128) {
    let [mut a, mut b, mut c, mut d] = u32::split(x);
    let [mut e, mut f, mut g, mut h] = u32::split(y);
    for w in u32::split(wk) {
        let choose = (f ^ g) & e ^ g;
        let majority = a & b | (a | b) & c;
        let sigma1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sigma0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t = h.wrapping_add(sigma1).wrapping_add(choose).wrapping_add(w);
        (h, g, f, e) = (g, f, e, d.wrapping_add(t));
        (d, c, b, a) = (c, b, a, t.wrapping_add(sigma0).wrapping_add(majority));
    }
    (u32::join([a, b, c, d]), u32::join([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(hex: &str) -> u128 {
        u128::from_str_radix(hex, 16).unwrap().swap_bytes()
    }

    /// FIPS 197 appendix B, round 1: start of round, after SubBytes and ShiftRows, after MixColumns.
    #[test]
    fn aes_round_of_fips_197() {
        let start = state("193de3bea0f4e22b9ac68d2ae9f84808");
        let shifted = state("d4bf5d30e0b452aeb84111f11e2798e5");
        let mixed = state("046681e5e0cb199a48f8d37a2806264c");
        assert_eq!(shift_sub(start, &SBOX, 1), shifted);
        assert_eq!(mix(shifted, &MIX), mixed);
        assert_eq!(mix(mixed, &INVERSE_MIX), shifted);
        assert_eq!(shift_sub(shifted, &INVERSE_SBOX, 3), start);
    }

    /// SHA-256 of "abc" (FIPS 180-4 example), with the schedule by the definition.
    #[test]
    fn sha256_of_abc() {
        // The round constants are the fractional parts of the cube roots of the first 64 primes.
        let primes = (2u64..).filter(|n| (2..*n).all(|d| n % d != 0)).take(64);
        let k: Vec<u32> = primes.map(|p| fraction_of_root(p, 3)).collect();
        let mut w = vec![0x6162_6380u32];
        w.resize(16, 0);
        w[15] = 24;
        for i in 16..64 {
            let (a, b) = (w[i - 15], w[i - 2]);
            let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ a >> 3;
            let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ b >> 10;
            w.push(w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1));
        }
        let h: Vec<u32> = [2, 3, 5, 7, 11, 13, 17, 19].iter().map(|p| fraction_of_root(*p, 2)).collect();
        let (x0, y0) = (u32::join([h[0], h[1], h[2], h[3]]), u32::join([h[4], h[5], h[6], h[7]]));
        let (mut x, mut y) = (x0, y0);
        for i in (0..64).step_by(4) {
            let wk = std::array::from_fn(|j| w[i + j].wrapping_add(k[i + j]));
            (x, y) = sha256_rounds(x, y, u32::join(wk));
        }
        let add = |a: u128, b: u128| super::super::lanes::map3::<u32>(0, a, b, |_, a, b| a.wrapping_add(b));
        assert_eq!(u32::split(add(x, x0)), [0xba78_16bf, 0x8f01_cfea, 0x4141_40de, 0x5dae_2223]);
        assert_eq!(u32::split(add(y, y0)), [0xb003_61a3, 0x9617_7a9c, 0xb410_ff61, 0xf200_15ad]);
    }

    /// The first 32 bits behind the point of the `n`-th root of `p`.
    fn fraction_of_root(p: u64, n: u32) -> u32 {
        let target = u128::from(p) << (32 * n);
        let (mut low, mut high) = (0u128, 1u128 << 37);
        while high - low > 1 {
            let mid = (low + high) / 2;
            if mid.pow(n) <= target { low = mid } else { high = mid }
        }
        low as u32
    }

    /// SHA-1 of "abc" (FIPS 180-4 example).
    #[test]
    fn sha1_of_abc() {
        let mut w = vec![0x6162_6380u32];
        w.resize(16, 0);
        w[15] = 24;
        for i in 16..80 {
            w.push((w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16]).rotate_left(1));
        }
        let h = [0x6745_2301u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        let (mut abcd, mut e) = (u32::join([h[0], h[1], h[2], h[3]]), h[4]);
        for i in (0..80).step_by(4) {
            let k = [0x5a82_7999u32, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6][i / 20];
            let wk = u32::join(std::array::from_fn(|j| w[i + j].wrapping_add(k)));
            let next_e = (abcd as u32).rotate_left(30);
            abcd = match i / 20 {
                0 => sha1_rounds::<0>(abcd, e, wk),
                2 => sha1_rounds::<2>(abcd, e, wk),
                _ => sha1_rounds::<1>(abcd, e, wk),
            };
            e = next_e;
        }
        let got = u32::split(abcd);
        let sum: Vec<u32> = got.iter().chain([&e]).zip(h).map(|(a, b)| a.wrapping_add(b)).collect();
        assert_eq!(sum, [0xa999_3e36, 0x4706_816a, 0xba3e_2571, 0x7850_c26c, 0x9cd0_d89d]);
    }
}
