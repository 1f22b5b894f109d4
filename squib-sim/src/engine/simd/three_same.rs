//! AdvSIMD three same (integer part), three same extra, and the logical operations on whole registers.

use super::lane_ops::*;
use super::lanes::*;
use super::{dot, fp_complex, fp_vector};
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op};

/// Decodes AdvSIMD three same and scalar three same.
pub fn decode(insn: u32, width: Width) -> Option<Decoded> {
    let (u, size, opcode) = (insn >> 29 & 1, insn >> 22 & 3, insn >> 11 & 31);
    if opcode >= 0b11000 {
        return fp_vector::three_same(insn, width, size >> 1, opcode & 7, 2 + (size & 1));
    }
    let scalar = matches!(width, Width::Scalar(_));
    let width = if scalar { Width::Scalar(size) } else { width };
    if scalar && !scalar_allowed(opcode, size) || width == Width::Half && size == 3 && opcode != 0b00011 {
        return None;
    }
    macro_rules! pair {
        ($s:ty, $u:ty) => {
            if u == 0 { by_size!(size, lanewise, $s) } else { by_size!(size, lanewise, $u) }
        };
    }
    let run: Handler = match opcode {
        0b00000 if size < 3 => pair!(SHAdd, UHAdd),
        0b00001 => pair!(SQAdd, UQAdd),
        0b00010 if size < 3 => pair!(SRHAdd, URHAdd),
        0b00011 => logical(u, size),
        0b00100 if size < 3 => pair!(SHSub, UHSub),
        0b00101 => pair!(SQSub, UQSub),
        0b00110 => pair!(CmGt, CmHi),
        0b00111 => pair!(CmGe, CmHs),
        0b01000 => pair!(SShl, UShl),
        0b01001 => pair!(SQShl, UQShl),
        0b01010 => pair!(SRShl, URShl),
        0b01011 => pair!(SQRShl, UQRShl),
        0b01100 if size < 3 => pair!(SMax, UMax),
        0b01101 if size < 3 => pair!(SMin, UMin),
        0b01110 if size < 3 => pair!(SAbd, UAbd),
        0b01111 if size < 3 => pair!(SAba, UAba),
        0b10000 => pair!(Add, Sub),
        0b10001 => pair!(CmTst, CmEq),
        0b10010 if size < 3 => pair!(Mla, Mls),
        0b10011 if u == 0 && size < 3 => by_size!(size, lanewise, Mul),
        0b10011 if u == 1 && size == 0 => lanewise::<PMul, u8>,
        0b10100 if size < 3 && u == 0 => pairwise_by::<SMax>(size, width),
        0b10100 if size < 3 => pairwise_by::<UMax>(size, width),
        0b10101 if size < 3 && u == 0 => pairwise_by::<SMin>(size, width),
        0b10101 if size < 3 => pairwise_by::<UMin>(size, width),
        0b10110 if size == 1 || size == 2 => pair!(SQDMulH, SQRDMulH),
        0b10111 if u == 0 => pairwise_by::<Add>(size, width),
        _ => return None,
    };
    masked(run, insn, width, 0)
}

/// Which of the vector encodings have a scalar twin.
fn scalar_allowed(opcode: u32, size: u32) -> bool {
    match opcode {
        0b00001 | 0b00101 | 0b01001 | 0b01011 => true,
        0b00110 | 0b00111 | 0b01000 | 0b01010 | 0b10000 | 0b10001 => size == 3,
        0b10110 => size == 1 || size == 2,
        _ => false,
    }
}

/// Decodes AdvSIMD (scalar) three same extra: FEAT_RDM, FEAT_DotProd, FEAT_FCMA.
pub fn decode_extra(insn: u32, width: Width) -> Option<Decoded> {
    let (u, size, opcode) = (insn >> 29 & 1, insn >> 22 & 3, insn >> 11 & 15);
    let scalar = matches!(width, Width::Scalar(_));
    match opcode {
        0b0000 | 0b0001 if u == 1 && (size == 1 || size == 2) => {
            let width = if scalar { Width::Scalar(size) } else { width };
            let run = if opcode == 0 { by_size!(size, lanewise, SQRDMlaH) } else { by_size!(size, lanewise, SQRDMlsH) };
            masked(run, insn, width, 0)
        }
        0b0010 if !scalar && size == 2 => dot::decode(insn, width, None),
        0b1000..=0b1111 if !scalar && u == 1 => fp_complex::decode(insn, width),
        _ => None,
    }
}

fn logical(u: u32, size: u32) -> Handler {
    match u << 2 | size {
        0 => bitwise::<0>,
        1 => bitwise::<1>,
        2 => bitwise::<2>,
        3 => bitwise::<3>,
        4 => bitwise::<4>,
        5 => bitwise::<5>,
        6 => bitwise::<6>,
        _ => bitwise::<7>,
    }
}

/// AND, BIC, ORR, ORN, EOR, BSL, BIT, BIF (in the order of U:size).
///
/// # Safety
/// See [`Handler`].
unsafe fn bitwise<const OP: u32>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let (d, n, m) = (v(cpu, o.rd), v(cpu, o.rn), v(cpu, o.rm));
        let r = match OP {
            0 => n & m,
            1 => n & !m,
            2 => n | m,
            3 => n | !m,
            4 => n ^ m,
            5 => m ^ (m ^ n) & d,
            6 => d ^ (d ^ n) & m,
            _ => d ^ (d ^ n) & !m,
        };
        set_v(cpu, o.rd, r & mask(o));
        Op::next(cpu, op)
    }
}

fn pairwise_by<F: LaneFn>(size: u32, width: Width) -> Handler {
    macro_rules! pick {
        ($l:ty) => {
            if width == Width::Full { pairwise::<F, $l, true> } else { pairwise::<F, $l, false> }
        };
    }
    match size {
        0 => pick!(u8),
        1 => pick!(u16),
        2 => pick!(u32),
        _ => pairwise64::<F>,
    }
}

/// Lanes of `F(pair)` over the concatenation Vm:Vn.
///
/// # Safety
/// See [`Handler`].
unsafe fn pairwise<F: LaneFn, L: Widen, const Q: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        // A pair is one lane twice as wide.
        let (n, m) = (lanes::<L::Wide>(cpu, o.rn), lanes::<L::Wide>(cpu, o.rm));
        let pair = |x: L::Wide| F::f(L::of(0), L::of(x.u()), L::of(x.u() >> L::BITS), 0, &mut false);
        let pairs = if Q { L::N / 2 } else { L::N / 4 };
        let mut r = L::ZEROS;
        let (low, high) = r.as_mut().split_at_mut(pairs);
        for (r, &n) in low.iter_mut().zip(n.as_ref()) {
            *r = pair(n);
        }
        for (r, &m) in high[..pairs].iter_mut().zip(m.as_ref()) {
            *r = pair(m);
        }
        set_lanes::<L>(cpu, o.rd, r);
        Op::next(cpu, op)
    }
}

/// [`pairwise`] of two 64-bit lanes.
///
/// # Safety
/// See [`Handler`].
unsafe fn pairwise64<F: LaneFn>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let ([n0, n1], [m0, m1]) = (lanes::<u64>(cpu, o.rn), lanes::<u64>(cpu, o.rm));
        let f = |a, b| F::f(0, a, b, 0, &mut false);
        set_lanes::<u64>(cpu, o.rd, [f(n0, n1), f(m0, m1)]);
        Op::next(cpu, op)
    }
}
