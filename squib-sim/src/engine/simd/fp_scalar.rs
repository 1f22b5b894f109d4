//! Scalar floating point: data processing with one, two and three sources, compare, conditional compare and select,
//! immediate, and conversions to and from general-purpose registers.

use super::copy::fp_immediate;
use super::fp_ops::*;
use super::lanes::*;
use crate::engine::cpu::Cpu;
use crate::engine::fp::{D, Format, H, S, compare, convert};
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Decodes the group (bit 30 clear, bits 28:25 = 1111).
pub fn decode(insn: u32) -> Option<Decoded> {
    let bit = |n: u32| insn >> n & 1;
    if bit(29) == 1 {
        return None;
    }
    // Element size as elsewhere: 1 half, 2 single, 3 double.
    let size = match insn >> 22 & 3 {
        0b00 => Some(2),
        0b01 => Some(3),
        0b11 => Some(1),
        _ => None,
    };
    if bit(24) == 0 && bit(21) == 0 {
        return decode_fixed(insn, size?);
    }
    if bit(24) == 0 && insn >> 10 & 0x3f == 0 {
        return decode_integer(insn, size);
    }
    let size = size?;
    if bit(31) == 1 {
        return None;
    }
    if bit(24) == 1 {
        let runs = match bit(21) << 1 | bit(15) {
            0 => scalars::<FMadd>(),
            1 => scalars::<FMsub>(),
            2 => scalars::<FNMadd>(),
            _ => scalars::<FNMsub>(),
        };
        let mut decoded = fp_op(runs, insn, Width::Scalar(size), size, 0)?;
        decoded.op.ra = (insn >> 10 & 31) as u8;
        return Some(decoded);
    }
    match insn >> 10 & 3 {
        0b01 => {
            let mut op = vop([ccmp::<H>, ccmp::<S>, ccmp::<D>][size as usize - 1], insn);
            op.imm = u64::from(insn & 15);
            op.imm2 = insn >> 12 & 15;
            op.ra = bit(4) as u8;
            Some(Decoded::fp(op))
        }
        0b10 => decode_two_source(insn, size),
        0b11 => {
            let mut op = vop(csel, insn);
            op.imm = u64::MAX >> (64 - (8 << size));
            op.imm2 = insn >> 12 & 15;
            Some(Decoded::fp(op))
        }
        _ if insn >> 10 & 0x1f == 0b10000 => decode_one_source(insn, size),
        _ if insn >> 10 & 0xf == 0b1000 => decode_compare(insn, size),
        _ if insn >> 10 & 7 == 0b100 && insn >> 5 & 31 == 0 => {
            let mut op = vop(fmov_immediate, insn);
            op.imm = fp_immediate(insn >> 13 & 0xff, size);
            Some(Decoded::fp(op))
        }
        _ => None,
    }
}

fn decode_one_source(insn: u32, size: u32) -> Option<Decoded> {
    let (runs, k) = match insn >> 15 & 0x3f {
        0b000000 => (scalars::<FMov>(), 0),
        0b000001 => (scalars::<FAbs>(), 0),
        0b000010 => (scalars::<FNeg>(), 0),
        0b000011 => (scalars::<FSqrt>(), 0),
        opcode @ 0b000100..=0b000111 => return decode_convert(insn, size, opcode & 3),
        0b001000 => (scalars::<FRInt>(), 0),
        0b001001 => (scalars::<FRInt>(), 1),
        0b001010 => (scalars::<FRInt>(), 2),
        0b001011 => (scalars::<FRInt>(), TO_ZERO),
        0b001100 => (scalars::<FRInt>(), TIE_AWAY),
        0b001110 => (scalars::<FRIntX>(), FPCR),
        0b001111 => (scalars::<FRInt>(), FPCR),
        _ => return None,
    };
    fp_op(runs, insn, Width::Scalar(size), size, k)
}

fn decode_convert(insn: u32, from: u32, to: u32) -> Option<Decoded> {
    let run: Handler = match (from, to) {
        (1, 0b00) => fcvt::<H, S>,
        (1, 0b01) => fcvt::<H, D>,
        (2, 0b01) => fcvt::<S, D>,
        (2, 0b11) => fcvt::<S, H>,
        (3, 0b00) => fcvt::<D, S>,
        (3, 0b11) => fcvt::<D, H>,
        _ => return None,
    };
    Some(Decoded::fp(vop(run, insn)))
}

fn decode_two_source(insn: u32, size: u32) -> Option<Decoded> {
    let runs = match insn >> 12 & 15 {
        0b0000 => scalars::<FMul>(),
        0b0001 => scalars::<FDiv>(),
        0b0010 => scalars::<FAdd>(),
        0b0011 => scalars::<FSub>(),
        0b0100 => scalars::<FMax>(),
        0b0101 => scalars::<FMin>(),
        0b0110 => scalars::<FMaxNm>(),
        0b0111 => scalars::<FMinNm>(),
        0b1000 => scalars::<FNMul>(),
        _ => return None,
    };
    fp_op(runs, insn, Width::Scalar(size), size, 0)
}

fn decode_compare(insn: u32, size: u32) -> Option<Decoded> {
    if insn >> 14 & 3 != 0 || insn & 7 != 0 {
        return None;
    }
    let mut op = vop([cmp::<H>, cmp::<S>, cmp::<D>][size as usize - 1], insn);
    op.ra = (insn >> 4 & 1) as u8;
    op.imm = u64::from(insn >> 3 & 1);
    Some(Decoded::fp(op))
}

fn decode_fixed(insn: u32, size: u32) -> Option<Decoded> {
    let (sf, rmode, opcode, scale) = (insn >> 31, insn >> 19 & 3, insn >> 16 & 7, insn >> 10 & 63);
    if sf == 0 && scale < 32 {
        return None;
    }
    let k = conversion(TO_ZERO, 64 - scale, opcode & 1 == 1);
    match (rmode, opcode) {
        (0b00, 0b010 | 0b011) => Some(from_general(insn, size, k)),
        (0b11, 0b000 | 0b001) => Some(to_general(insn, size, k)),
        _ => None,
    }
}

/// Conversions between floating point and integer; the top half of a register has ptype 10, that is no `size`.
fn decode_integer(insn: u32, size: Option<u32>) -> Option<Decoded> {
    let (sf, rmode, opcode) = (insn >> 31, insn >> 19 & 3, insn >> 16 & 7);
    let unsigned = opcode & 1 == 1;
    match (rmode, opcode, size) {
        (_, 0b000 | 0b001, Some(size)) => Some(to_general(insn, size, conversion(rmode, 0, unsigned))),
        (0b00, 0b010 | 0b011, Some(size)) => Some(from_general(insn, size, conversion(FPCR, 0, unsigned))),
        (0b00, 0b100 | 0b101, Some(size)) => Some(to_general(insn, size, conversion(TIE_AWAY, 0, unsigned))),
        (0b00, 0b110, Some(size)) if moves(sf, size) => {
            let mut op = vop(fmov_to_general, insn);
            op.imm = u64::MAX >> (64 - (8 << size));
            op.rd = slot::dst(insn);
            Some(Decoded::fp(op))
        }
        (0b00, 0b111, Some(size)) if moves(sf, size) => {
            let mut op = vop(fmov_from_general, insn);
            op.imm = u64::MAX >> (64 - (8 << size));
            op.rn = slot::src(insn >> 5);
            Some(Decoded::fp(op))
        }
        (0b01, 0b110, None) if sf == 1 => {
            let mut op = vop(fmov_top_to_general, insn);
            op.rd = slot::dst(insn);
            Some(Decoded::fp(op))
        }
        (0b01, 0b111, None) if sf == 1 => {
            let mut op = vop(fmov_top_from_general, insn);
            op.rn = slot::src(insn >> 5);
            Some(Decoded::fp(op))
        }
        (0b11, 0b110, Some(3)) if sf == 0 => {
            let mut op = vop(fjcvtzs, insn);
            op.rd = slot::dst(insn);
            Some(Decoded::fp(op))
        }
        _ => None,
    }
}

/// FMOV between W and S, X and D, and either and H.
fn moves(sf: u32, size: u32) -> bool {
    size == 1 || size == 2 + sf
}

fn to_general(insn: u32, size: u32, k: u32) -> Decoded {
    let mut op = vop([fcvt_to_general::<H>, fcvt_to_general::<S>, fcvt_to_general::<D>][size as usize - 1], insn);
    op.rd = slot::dst(insn);
    op.ra = 32 << (insn >> 31);
    op.imm2 = k;
    Decoded::fp(op)
}

fn from_general(insn: u32, size: u32, k: u32) -> Decoded {
    let runs: [Handler; 3] = [fcvt_from_general::<H>, fcvt_from_general::<S>, fcvt_from_general::<D>];
    let mut op = vop(runs[size as usize - 1], insn);
    op.rn = slot::src(insn >> 5);
    op.ra = 32 << (insn >> 31);
    op.imm2 = k;
    Decoded::fp(op)
}

/// An element of Vn.
#[inline(always)]
fn low<F: Format>(cpu: &Cpu, r: u8) -> u64 {
    v(cpu, r) as u64 & F::ONES
}

#[inline(never)]
fn cmp_body<F: Format>(cpu: &mut Cpu, o: &Op, with_zero: bool) {
    let mut e = env(cpu);
    let m = if with_zero { 0 } else { low::<F>(cpu, o.rm) };
    let nzcv = compare::compare_nzcv::<F>(&mut e, low::<F>(cpu, o.rn), m, o.ra != 0);
    settle(cpu, e);
    cpu.set_nzcv(nzcv);
}

#[inline(never)]
fn fcvt_body<From: Format, To: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let rounding = e.rounding();
    let r = convert::convert::<From, To>(&mut e, low::<From>(cpu, o.rn), rounding);
    settle(cpu, e);
    set_v(cpu, o.rd, r.into());
}

#[inline(never)]
fn to_general_body<F: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let rounding = rounding(&e, o.imm2);
    let r = convert::to_fixed::<F>(&mut e, low::<F>(cpu, o.rn), fixed(o.imm2, o.ra.into()), rounding);
    settle(cpu, e);
    cpu.x[usize::from(o.rd)] = r;
}

#[inline(never)]
fn from_general_body<F: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let rounding = e.rounding();
    let r = convert::from_fixed::<F>(&mut e, cpu.x[usize::from(o.rn)], fixed(o.imm2, o.ra.into()), rounding);
    settle(cpu, e);
    set_v(cpu, o.rd, r.into());
}

#[inline(never)]
fn fjcvtzs_body(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let (r, exact) = convert::to_fixed_js(&mut e, v(cpu, o.rn) as u64);
    settle(cpu, e);
    cpu.set_nzcv(u32::from(exact) << 2);
    cpu.x[usize::from(o.rd)] = r.into();
}

/// Declares handlers whose body is an expression over the CPU and the op.
macro_rules! handlers {
    ($($(#[$doc:meta])* $name:ident$(<$($f:ident),*>)? = |$cpu:ident, $o:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// See [`Handler`].
        unsafe fn $name$(<$($f: Format),*>)?($cpu: &mut Cpu, op: *const Op) -> Next {
            // SAFETY: the caller's promise.
            unsafe {
                let $o = &*op;
                $body;
                Op::next($cpu, op)
            }
        }
    )*};
}

handlers! {
    /// FCMP, FCMPE (`ra`), with zero (`imm`).
    cmp<F> = |cpu, o| cmp_body::<F>(cpu, o, o.imm != 0);
    /// FCCMP, FCCMPE (`ra`): condition `imm2`, else flags `imm`.
    ccmp<F> = |cpu, o| if cpu.condition_holds(o.imm2) { cmp_body::<F>(cpu, o, false) } else { cpu.set_nzcv(o.imm as u32) };
    /// FCSEL.
    csel = |cpu, o| {
        let x = v(cpu, if cpu.condition_holds(o.imm2) { o.rn } else { o.rm });
        set_v(cpu, o.rd, x & u128::from(o.imm))
    };
    /// FMOV (scalar, immediate).
    fmov_immediate = |cpu, o| set_v(cpu, o.rd, o.imm.into());
    /// FCVT.
    fcvt<From, To> = |cpu, o| fcvt_body::<From, To>(cpu, o);
    /// FCVT{N,P,M,Z,A}{S,U} to a general-purpose register.
    fcvt_to_general<F> = |cpu, o| to_general_body::<F>(cpu, o);
    /// SCVTF, UCVTF from a general-purpose register.
    fcvt_from_general<F> = |cpu, o| from_general_body::<F>(cpu, o);
    /// FMOV to a general-purpose register.
    fmov_to_general = |cpu, o| cpu.x[usize::from(o.rd)] = v(cpu, o.rn) as u64 & o.imm;
    /// FMOV from a general-purpose register.
    fmov_from_general = |cpu, o| set_v(cpu, o.rd, u128::from(cpu.x[usize::from(o.rn)] & o.imm));
    /// FMOV Xd, Vn.D[1].
    fmov_top_to_general = |cpu, o| cpu.x[usize::from(o.rd)] = half(v(cpu, o.rn), true);
    /// FMOV Vd.D[1], Xn.
    fmov_top_from_general = |cpu, o| {
        let low = v(cpu, o.rd) & u128::from(u64::MAX);
        set_v(cpu, o.rd, low | u128::from(cpu.x[usize::from(o.rn)]) << 64)
    };
    /// FJCVTZS.
    fjcvtzs = |cpu, o| fjcvtzs_body(cpu, o);
}
