//! AdvSIMD copy (DUP, INS, SMOV, UMOV) and modified immediate (MOVI, MVNI, ORR, BIC, FMOV).

use super::lanes::*;
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Decodes AdvSIMD copy, vector and scalar.
pub fn decode(insn: u32, width: Width) -> Option<Decoded> {
    let (op_bit, imm5, imm4) = (insn >> 29 & 1, insn >> 16 & 31, insn >> 11 & 15);
    let size = imm5.trailing_zeros();
    if size > 3 {
        return None;
    }
    let index = imm5 >> (size + 1);
    let scalar = matches!(width, Width::Scalar(_));
    let q = width == Width::Full;
    let mut op;
    match (op_bit, imm4) {
        (0, 0b0000) => {
            let width = if scalar { Width::Scalar(size) } else { width };
            if size == 3 && width == Width::Half {
                return None;
            }
            let run = [dup_elem::<u8> as Handler, dup_elem::<u16>, dup_elem::<u32>, dup_elem::<u64>][size as usize];
            return masked(run, insn, width, index);
        }
        _ if scalar => return None,
        (0, 0b0001) if size < 3 || q => {
            op = vop(
                [dup_general::<u8> as Handler, dup_general::<u16>, dup_general::<u32>, dup_general::<u64>]
                    [size as usize],
                insn,
            );
            width.set(&mut op);
            op.rn = slot::src(insn >> 5);
        }
        (0, 0b0011) if q => {
            op = vop(ins_general, insn);
            op.rn = slot::src(insn >> 5);
            set_lane(&mut op, size, index);
        }
        (0, 0b0101) if size < 2 || size == 2 && q => {
            op = vop(if q { smov::<true> } else { smov::<false> }, insn);
            op.rd = slot::dst(insn);
            set_lane(&mut op, size, index);
        }
        (0, 0b0111) if q == (size == 3) => {
            op = vop(umov, insn);
            op.rd = slot::dst(insn);
            set_lane(&mut op, size, index);
        }
        (1, _) if q => {
            op = vop(ins_elem, insn);
            set_lane(&mut op, size, index);
            op.ra = ((imm4 >> size) << (3 + size)) as u8;
        }
        _ => return None,
    }
    Some(Decoded::fp(op))
}

/// `imm2`: bit position of a lane; `imm`: its mask, unshifted.
fn set_lane(op: &mut Op, size: u32, index: u32) {
    op.imm2 = index << (3 + size);
    op.imm = !0 >> (64 - (8 << size));
}

/// DUP (element): lane `ra` everywhere.
///
/// # Safety
/// See [`Handler`].
unsafe fn dup_elem<L: Lane>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let x = lanes::<L>(cpu, o.rn).as_ref()[usize::from(o.ra) % L::N];
        set_v(cpu, o.rd, map3::<L>(0, 0, 0, |_, _, _| x) & mask(o));
        Op::next(cpu, op)
    }
}

/// DUP (general).
///
/// # Safety
/// See [`Handler`].
unsafe fn dup_general<L: Lane>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let x = L::of(cpu.x[usize::from(o.rn)]);
        set_v(cpu, o.rd, map3::<L>(0, 0, 0, |_, _, _| x) & mask(o));
        Op::next(cpu, op)
    }
}

/// Replaces the lane at bit `at`.
#[inline(always)]
fn insert(cpu: &mut Cpu, o: &Op, value: u64) {
    let (at, ones) = (o.imm2 & 127, u128::from(o.imm));
    let d = v(cpu, o.rd) & !(ones << at);
    set_v(cpu, o.rd, d | (u128::from(value) & ones) << at);
}

/// INS (general).
///
/// # Safety
/// See [`Handler`].
unsafe fn ins_general(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let x = cpu.x[usize::from(o.rn)];
        insert(cpu, o, x);
        Op::next(cpu, op)
    }
}

/// INS (element): from the lane at bit `ra` of Vn.
///
/// # Safety
/// See [`Handler`].
unsafe fn ins_elem(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let x = (v(cpu, o.rn) >> (o.ra & 127)) as u64;
        insert(cpu, o, x);
        Op::next(cpu, op)
    }
}

/// UMOV.
///
/// # Safety
/// See [`Handler`].
unsafe fn umov(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        cpu.x[usize::from(o.rd)] = (v(cpu, o.rn) >> (o.imm2 & 127)) as u64 & o.imm;
        Op::next(cpu, op)
    }
}

/// SMOV, to X when `X`.
///
/// # Safety
/// See [`Handler`].
unsafe fn smov<const X: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let up = o.imm.leading_zeros();
        let x = (v(cpu, o.rn) >> (o.imm2 & 127)) as u64;
        let x = ((x << up) as i64 >> up) as u64;
        cpu.x[usize::from(o.rd)] = if X { x } else { u64::from(x as u32) };
        Op::next(cpu, op)
    }
}

/// Decodes AdvSIMD modified immediate.
pub fn decode_immediate(insn: u32, width: Width) -> Option<Decoded> {
    let (op_bit, cmode, o2) = (insn >> 29 & 1, insn >> 12 & 15, insn >> 11 & 1);
    let imm8 = insn >> 11 & 0xe0 | insn >> 5 & 0x1f;
    if o2 == 1 && !(op_bit == 0 && cmode == 0b1111) || op_bit == 1 && cmode == 0b1111 && width == Width::Half {
        return None;
    }
    let imm64 = if o2 == 1 { splat16(fp_immediate(imm8, 1)) } else { adv_simd_expand_imm(op_bit, cmode, imm8) };
    let combine = cmode < 0b1100 && cmode & 1 == 1;
    let run: Handler = match (combine, op_bit) {
        (false, _) => mov_immediate,
        (true, 0) => orr_immediate,
        (true, _) => bic_immediate,
    };
    // MVNI: the inverted constant. cmode 111x with op set are constants of their own (64-bit MOVI, FMOV).
    let invert = op_bit == 1 && !combine && cmode < 0b1110;
    let mut op = vop(run, insn);
    width.set(&mut op);
    op.imm = if invert { !imm64 } else { imm64 };
    Some(Decoded::fp(op))
}

fn splat16(x: u64) -> u64 {
    x * 0x0001_0001_0001_0001
}

/// `AdvSIMDExpandImm`.
fn adv_simd_expand_imm(op_bit: u32, cmode: u32, imm8: u32) -> u64 {
    let imm = u64::from(imm8);
    let splat32 = |x: u64| x << 32 | x;
    match cmode >> 1 {
        shift @ 0..=3 => splat32(imm << (8 * shift)),
        shift @ 4..=5 => splat16(imm << (8 * (shift & 1))),
        6 => splat32(if cmode & 1 == 0 { imm << 8 | 0xff } else { imm << 16 | 0xffff }),
        _ => match (cmode & 1, op_bit) {
            (0, 0) => imm * 0x0101_0101_0101_0101,
            (0, _) => (0..8).fold(0, |r, i| r | ((imm >> i & 1) * 0xff) << (8 * i)),
            (_, 0) => splat32(fp_immediate(imm8, 2)),
            (_, _) => fp_immediate(imm8, 3),
        },
    }
}

/// `VFPExpandImm` for an element of `8 << size` bits.
pub fn fp_immediate(imm8: u32, size: u32) -> u64 {
    let imm8 = u64::from(imm8);
    let (sign, not_b, b, low) = (imm8 >> 7, !imm8 >> 6 & 1, imm8 >> 6 & 1, imm8 & 0x3f);
    let replicate = |n: u32| b.wrapping_neg() & ((1 << n) - 1);
    match size {
        1 => sign << 15 | not_b << 14 | replicate(2) << 12 | low << 6,
        2 => sign << 31 | not_b << 30 | replicate(5) << 25 | low << 19,
        _ => sign << 63 | not_b << 62 | replicate(8) << 54 | low << 48,
    }
}

#[inline(always)]
fn constant(o: &Op) -> u128 {
    (u128::from(o.imm) | u128::from(o.imm) << 64) & mask(o)
}

/// MOVI, MVNI, FMOV (vector, immediate).
///
/// # Safety
/// See [`Handler`].
unsafe fn mov_immediate(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        set_v(cpu, o.rd, constant(o));
        Op::next(cpu, op)
    }
}

/// ORR (vector, immediate).
///
/// # Safety
/// See [`Handler`].
unsafe fn orr_immediate(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let d = v(cpu, o.rd);
        set_v(cpu, o.rd, (d | constant(o)) & mask(o));
        Op::next(cpu, op)
    }
}

/// BIC (vector, immediate).
///
/// # Safety
/// See [`Handler`].
unsafe fn bic_immediate(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let d = v(cpu, o.rd);
        set_v(cpu, o.rd, d & !constant(o) & mask(o));
        Op::next(cpu, op)
    }
}
