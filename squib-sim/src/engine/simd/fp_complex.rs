//! FCADD and FCMLA, by vector and by element (FEAT_FCMA).

use super::fp_ops::{ByFormat, NO_INDEX, element, env, fp_op, settle};
use super::lanes::{Width, set_v, v};
use crate::engine::cpu::Cpu;
use crate::engine::fp::{D, Format, H, S, arith};
use crate::engine::op::{Decoded, Next, Op};

const FCADD: ByFormat = [complex_add::<H>, complex_add::<S>, complex_add::<D>];
const FCMLA: ByFormat = [complex_mul_add::<H>, complex_mul_add::<S>, complex_mul_add::<D>];

/// Decodes the forms by vector (three same extra, opcode 1xxx).
pub fn decode(insn: u32, width: Width) -> Option<Decoded> {
    let (size, opcode) = (insn >> 22 & 3, insn >> 11 & 15);
    if size == 0 {
        return None;
    }
    match opcode {
        0b1000..=0b1011 => fp_op(FCMLA, insn, width, size, opcode & 3),
        0b1100 | 0b1110 => fp_op(FCADD, insn, width, size, opcode >> 1 & 1),
        _ => None,
    }
}

/// Decodes FCMLA by element.
pub fn decode_elem(insn: u32, width: Width, size: u32, index: u32) -> Option<Decoded> {
    let mut decoded = fp_op(FCMLA, insn, width, size, insn >> 13 & 3)?;
    decoded.op.imm = u64::from(index);
    Some(decoded)
}

#[inline(never)]
fn complex_add_body<F: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let (n, m) = (v(cpu, o.rn), v(cpu, o.rm));
    let mut r = 0;
    for i in (0..u32::from(o.ra)).step_by(2) {
        let (mut re, mut im) = (element::<F>(m, i), element::<F>(m, i + 1));
        // Rotation by 90 degrees makes (re, im) into (-im, re); by 270 degrees into (im, -re).
        if o.imm2 == 0 {
            im ^= F::SIGN;
        } else {
            re ^= F::SIGN;
        }
        let x = arith::add::<F>(&mut e, element::<F>(n, i), im);
        let y = arith::add::<F>(&mut e, element::<F>(n, i + 1), re);
        r |= u128::from(x) << (i * F::BITS) | u128::from(y) << ((i + 1) * F::BITS);
    }
    settle(cpu, e);
    set_v(cpu, o.rd, r);
}

/// FCADD, rotation in `imm2`.
///
/// # Safety
/// See [`Handler`](crate::engine::op::Handler).
unsafe fn complex_add<F: Format>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        complex_add_body::<F>(cpu, &*op);
        Op::next(cpu, op)
    }
}

#[inline(never)]
fn complex_mul_add_body<F: Format>(cpu: &mut Cpu, o: &Op) {
    let mut e = env(cpu);
    let (d, n, m) = (v(cpu, o.rd), v(cpu, o.rn), v(cpu, o.rm));
    let mut r = 0;
    for i in (0..u32::from(o.ra)).step_by(2) {
        let at = if o.imm == NO_INDEX { i } else { 2 * o.imm as u32 };
        let (re, im) = (element::<F>(m, at), element::<F>(m, at + 1));
        let (x, y) = match o.imm2 {
            0 => (re, im),
            1 => (im ^ F::SIGN, re),
            2 => (re ^ F::SIGN, im ^ F::SIGN),
            _ => (im, re ^ F::SIGN),
        };
        // Odd rotations multiply by the imaginary part of Vn.
        let part = element::<F>(n, i + (o.imm2 & 1));
        let x = arith::mul_add::<F>(&mut e, element::<F>(d, i), part, x);
        let y = arith::mul_add::<F>(&mut e, element::<F>(d, i + 1), part, y);
        r |= u128::from(x) << (i * F::BITS) | u128::from(y) << ((i + 1) * F::BITS);
    }
    settle(cpu, e);
    set_v(cpu, o.rd, r);
}

/// FCMLA, rotation in `imm2`.
///
/// # Safety
/// See [`Handler`](crate::engine::op::Handler).
unsafe fn complex_mul_add<F: Format>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        complex_mul_add_body::<F>(cpu, &*op);
        Op::next(cpu, op)
    }
}
