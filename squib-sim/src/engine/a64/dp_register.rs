//! Data processing, register (C4.1.95): logic, arithmetic, flag manipulation, conditional compare and select, and the
//! one-, two- and three-source instructions.

use std::hint::select_unpredictable;

use super::dp_immediate::mov_reg;
use super::handler::{bit, bits, extend_reg, handlers, pick, shift_reg, sized};
use super::{crc, pauth};
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Decodes the group, `insn<27:25>` = 101.
pub(super) fn decode(insn: u32) -> Option<Decoded> {
    let op = match (bit(insn, 28), bits(insn, 24, 21)) {
        (false, op2) if op2 & 8 == 0 => logical_shifted(insn)?,
        (false, op2) if op2 & 1 == 0 => add_sub_shifted(insn)?,
        (false, _) => add_sub_extended(insn)?,
        (true, 0) => carry_and_flags(insn)?,
        (true, 2) => conditional_compare(insn)?,
        (true, 4) => conditional_select(insn)?,
        (true, 6) if bit(insn, 30) => one_source(insn)?,
        (true, 6) => two_source(insn)?,
        (true, op2) if op2 & 8 != 0 => three_source(insn)?,
        _ => return None,
    };
    Some(Decoded::plain(op))
}

/// An op with Rd, Rn and Rm, all of them with 31 = ZR.
fn rd_rn_rm(run: Handler, insn: u32, imm2: u32) -> Op {
    Op { imm2, rd: slot::dst(insn), rn: slot::src(insn >> 5), rm: slot::src(insn >> 16), ..Op::new(run, insn) }
}

fn logical_shifted(insn: u32) -> Option<Op> {
    let (sf, amount) = (bit(insn, 31), bits(insn, 15, 10));
    if !sf && amount > 31 {
        return None;
    }
    // AND, BIC, ORR, ORN, EOR, EON, ANDS, BICS; a shift by nothing is its own kind.
    let op = bits(insn, 30, 29) * 2 + bits(insn, 21, 21);
    let kind = if amount == 0 { 4 } else { bits(insn, 23, 22) };
    let run = match (op, kind) {
        (2, 4) if bits(insn, 9, 5) == 31 => pick!(mov_reg, [sf; bool]),
        (6, 4) if insn & 31 == 31 => pick!(tst_reg, [sf; bool]),
        _ => pick!(logical, [sf; bool], [op; 8], [kind; 5]),
    };
    Some(rd_rn_rm(run, insn, amount))
}

fn add_sub_shifted(insn: u32) -> Option<Op> {
    let (sf, amount, shift) = (bit(insn, 31), bits(insn, 15, 10), bits(insn, 23, 22));
    if shift == 3 || (!sf && amount > 31) {
        return None;
    }
    let (sub, s) = (bit(insn, 30), bit(insn, 29));
    // ROR does not exist here, its place (3) is taken by "no shift".
    let kind = if amount == 0 { 3 } else { shift };
    let run = if sub && s && kind == 3 && insn & 31 == 31 {
        pick!(cmp_reg, [sf; bool])
    } else {
        pick!(add_sub, [sf; bool], [sub; bool], [s; bool], [kind; 4])
    };
    Some(rd_rn_rm(run, insn, amount))
}

fn add_sub_extended(insn: u32) -> Option<Op> {
    let (sf, shift) = (bit(insn, 31), bits(insn, 12, 10));
    if bits(insn, 23, 22) != 0 || shift > 4 {
        return None;
    }
    let (sub, s, kind) = (bit(insn, 30), bit(insn, 29), bits(insn, 15, 13));
    let run = pick!(add_sub_ext, [sf; bool], [sub; bool], [s; bool], [kind; 8]);
    let rd = if s { slot::dst(insn) } else { slot::sp(insn) };
    Some(Op { rn: slot::sp(insn >> 5), rd, ..rd_rn_rm(run, insn, shift) })
}

fn carry_and_flags(insn: u32) -> Option<Op> {
    let (sf, sub, s) = (bit(insn, 31), bit(insn, 30), bit(insn, 29));
    if bits(insn, 15, 10) == 0 {
        return Some(rd_rn_rm(pick!(add_sub_carry, [sf; bool], [sub; bool], [s; bool]), insn, 0));
    }
    let rn = slot::src(insn >> 5);
    // RMIF.
    if sf && !sub && s && bits(insn, 14, 10) == 1 && !bit(insn, 4) {
        return Some(Op { imm: u64::from(insn & 15), imm2: bits(insn, 20, 15), rn, ..Op::new(rmif, insn) });
    }
    // SETF8, SETF16.
    if !sf && !sub && s && insn & 0x001f_bc1f == 0x80d {
        return Some(Op { rn, ..Op::new(pick!(setf, [bit(insn, 14); bool]), insn) });
    }
    None
}

fn conditional_compare(insn: u32) -> Option<Op> {
    if !bit(insn, 29) || bit(insn, 10) || bit(insn, 4) {
        return None;
    }
    let (sf, sub, cond) = (bit(insn, 31), bit(insn, 30), bits(insn, 15, 12));
    let immediate = bit(insn, 11);
    // The second operand is rm + imm, one of which is zero.
    let rm = if immediate { slot::ZR } else { slot::src(insn >> 16) };
    let imm = if immediate { u64::from(bits(insn, 20, 16)) } else { 0 };
    let run = pick!(ccmp, [sf; bool], [sub; bool], [cond; 16]);
    Some(Op { imm, imm2: insn & 15, rn: slot::src(insn >> 5), rm, ..Op::new(run, insn) })
}

fn conditional_select(insn: u32) -> Option<Op> {
    if bit(insn, 29) || bit(insn, 11) {
        return None;
    }
    // CSEL, CSINC, CSINV, CSNEG.
    let kind = bits(insn, 30, 30) * 2 + bits(insn, 10, 10);
    Some(rd_rn_rm(pick!(csel, [bit(insn, 31); bool], [kind; 4], [bits(insn, 15, 12); 16]), insn, 0))
}

fn one_source(insn: u32) -> Option<Op> {
    let (sf, opcode) = (bit(insn, 31), bits(insn, 15, 10));
    if bit(insn, 29) {
        return None;
    }
    match bits(insn, 20, 16) {
        0 => {}
        1 if sf => return pauth::decode_one_source(insn),
        _ => return None,
    }
    let run = match opcode {
        0 => pick!(rbit, [sf; bool]),
        1 => pick!(rev16, [sf; bool]),
        2 if sf => rev32,
        2 => rev_w,
        3 if sf => rev_x,
        4 => pick!(clz, [sf; bool]),
        5 => pick!(cls, [sf; bool]),
        _ => return None,
    };
    Some(rd_rn_rm(run, insn, 0))
}

fn two_source(insn: u32) -> Option<Op> {
    let (sf, opcode) = (bit(insn, 31), bits(insn, 15, 10));
    if bit(insn, 29) {
        return None;
    }
    let run = match opcode {
        2 => pick!(div, [sf; bool], [false; bool]),
        3 => pick!(div, [sf; bool], [true; bool]),
        8..=11 => pick!(shift_var, [sf; bool], [opcode & 3; 4]),
        12 if sf => return Some(pauth::decode_pacga(insn)),
        16..=23 if sf == (opcode & 3 == 3) => pick!(crc32, [bit(opcode, 2); bool], [opcode & 3; 4]),
        _ => return None,
    };
    Some(rd_rn_rm(run, insn, 0))
}

fn three_source(insn: u32) -> Option<Op> {
    let (sf, sub) = (bit(insn, 31), bit(insn, 15));
    if bits(insn, 30, 29) != 0 {
        return None;
    }
    let run = match bits(insn, 23, 21) {
        0 if !sub && bits(insn, 14, 10) == 31 => pick!(mul, [sf; bool]),
        0 => pick!(madd, [sf; bool], [sub; bool]),
        1 if sf => pick!(madd_long, [true; bool], [sub; bool]),
        5 if sf => pick!(madd_long, [false; bool], [sub; bool]),
        2 if sf && !sub => smulh,
        6 if sf && !sub => umulh,
        _ => return None,
    };
    Some(Op { ra: slot::src(insn >> 10), ..rd_rn_rm(run, insn, 0) })
}

handlers! {
    fn logical<const SF: bool, const OP: u32, const KIND: u32>(cpu, o) {
        let a = cpu.reg(o.rn);
        let b = shift_reg::<SF, KIND>(cpu.reg(o.rm), o.imm2);
        let b = if OP & 1 == 0 { b } else { !b };
        let result = sized::<SF>(match OP >> 1 {
            1 => a | b,
            2 => a ^ b,
            _ => a & b,
        });
        if OP >> 1 == 3 {
            cpu.set_nz_logical::<SF>(result);
        }
        cpu.set_reg(o.rd, result);
    }
    fn tst_reg<const SF: bool>(cpu, o) {
        cpu.set_nz_logical::<SF>(sized::<SF>(cpu.reg(o.rn) & cpu.reg(o.rm)));
    }

    fn add_sub<const SF: bool, const SUB: bool, const S: bool, const KIND: u32>(cpu, o) {
        let a = cpu.reg(o.rn);
        let b = cpu.reg(o.rm);
        let b = if KIND == 3 { b } else { shift_reg::<SF, KIND>(b, o.imm2) };
        let result = cpu.add_or_sub::<SF, SUB, S>(a, b);
        cpu.set_reg(o.rd, result);
    }
    fn cmp_reg<const SF: bool>(cpu, o) { cpu.subs::<SF>(cpu.reg(o.rn), cpu.reg(o.rm)); }
    fn add_sub_ext<const SF: bool, const SUB: bool, const S: bool, const KIND: u32>(cpu, o) {
        let (a, b) = (cpu.reg(o.rn), extend_reg::<KIND>(cpu.reg(o.rm), o.imm2));
        let result = cpu.add_or_sub::<SF, SUB, S>(a, b);
        cpu.set_reg(o.rd, result);
    }
    fn add_sub_carry<const SF: bool, const SUB: bool, const S: bool>(cpu, o) {
        let (a, b) = (cpu.reg(o.rn), cpu.reg(o.rm));
        let result = cpu.adc::<SF, S>(a, if SUB { !b } else { b });
        cpu.set_reg(o.rd, result);
    }

    fn rmif(cpu, o) {
        let value = cpu.reg(o.rn).rotate_right(o.imm2) as u32;
        let mask = o.imm as u32;
        let nzcv = cpu.nzcv() & !mask | value & mask;
        cpu.set_nzcv(nzcv);
    }
    fn setf<const HALFWORD: bool>(cpu, o) {
        let value = cpu.reg(o.rn);
        let msb = if HALFWORD { 15 } else { 7 };
        cpu.nf = value << (63 - msb);
        cpu.zf = value << (63 - msb);
        cpu.vf = (value >> (msb + 1) ^ value >> msb) & 1;
    }

    fn ccmp<const SF: bool, const SUB: bool, const COND: u32>(cpu, o) {
        if cpu.condition_holds(COND) {
            let (a, b) = (cpu.reg(o.rn), cpu.reg(o.rm) + o.imm);
            if SUB {
                cpu.subs::<SF>(a, b);
            } else {
                cpu.adds::<SF>(a, b);
            }
        } else {
            cpu.set_nzcv(o.imm2);
        }
    }
    fn csel<const SF: bool, const KIND: u32, const COND: u32>(cpu, o) {
        let (a, b) = (cpu.reg(o.rn), cpu.reg(o.rm));
        let b = match KIND {
            0 => b,
            1 => b.wrapping_add(1),
            2 => !b,
            _ => b.wrapping_neg(),
        };
        // Compilers emit these where a branch would be mispredicted: so would one here.
        let result = select_unpredictable(cpu.condition_holds(COND), a, b);
        cpu.set_reg(o.rd, sized::<SF>(result));
    }

    fn rbit<const SF: bool>(cpu, o) {
        let value = cpu.reg(o.rn);
        cpu.set_reg(o.rd, if SF { value.reverse_bits() } else { u64::from((value as u32).reverse_bits()) });
    }
    fn rev16<const SF: bool>(cpu, o) {
        let value = cpu.reg(o.rn);
        let even = 0x00ff_00ff_00ff_00ff;
        cpu.set_reg(o.rd, sized::<SF>((value & even) << 8 | value >> 8 & even));
    }
    fn rev32(cpu, o) { cpu.set_reg(o.rd, cpu.reg(o.rn).swap_bytes().rotate_right(32)); }
    fn rev_w(cpu, o) { cpu.set_reg(o.rd, u64::from((cpu.reg(o.rn) as u32).swap_bytes())); }
    fn rev_x(cpu, o) { cpu.set_reg(o.rd, cpu.reg(o.rn).swap_bytes()); }
    fn clz<const SF: bool>(cpu, o) {
        let value = cpu.reg(o.rn);
        cpu.set_reg(o.rd, u64::from(if SF { value.leading_zeros() } else { (value as u32).leading_zeros() }));
    }
    fn cls<const SF: bool>(cpu, o) {
        let value = if SF { cpu.reg(o.rn) } else { cpu.reg(o.rn) as i32 as u64 };
        // Bits that equal their left neighbour; the sign bit has none, so it does not count.
        let same = (value ^ (value.cast_signed() >> 63).cast_unsigned()).leading_zeros() - 1;
        cpu.set_reg(o.rd, u64::from(if SF { same } else { same - 32 }));
    }

    fn div<const SF: bool, const SIGNED: bool>(cpu, o) {
        let (a, b) = (cpu.reg(o.rn), cpu.reg(o.rm));
        let result = match (SF, SIGNED) {
            (true, true) if b == 0 => 0,
            (true, true) => a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned(),
            (true, false) => a.checked_div(b).unwrap_or(0),
            (false, true) if b as u32 == 0 => 0,
            (false, true) => u64::from((a as i32).wrapping_div(b as i32).cast_unsigned()),
            (false, false) => u64::from((a as u32).checked_div(b as u32).unwrap_or(0)),
        };
        cpu.set_reg(o.rd, result);
    }
    /// LSLV, LSRV, ASRV, RORV: the amount is taken modulo the register's width.
    fn shift_var<const SF: bool, const KIND: u32>(cpu, o) {
        cpu.set_reg(o.rd, shift_reg::<SF, KIND>(cpu.reg(o.rn), cpu.reg(o.rm) as u32));
    }
    /// CRC32B/H/W/X and CRC32CB/CH/CW/CX.
    fn crc32<const CASTAGNOLI: bool, const SIZE: u32>(cpu, o) {
        let result = crc::crc32::<CASTAGNOLI, SIZE>(cpu.reg(o.rn) as u32, cpu.reg(o.rm));
        cpu.set_reg(o.rd, u64::from(result));
    }

    fn mul<const SF: bool>(cpu, o) {
        cpu.set_reg(o.rd, sized::<SF>(cpu.reg(o.rn).wrapping_mul(cpu.reg(o.rm))));
    }
    fn madd<const SF: bool, const SUB: bool>(cpu, o) {
        let product = cpu.reg(o.rn).wrapping_mul(cpu.reg(o.rm));
        let addend = cpu.reg(o.ra);
        let result = if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) };
        cpu.set_reg(o.rd, sized::<SF>(result));
    }
    fn madd_long<const SIGNED: bool, const SUB: bool>(cpu, o) {
        let (a, b) = (cpu.reg(o.rn), cpu.reg(o.rm));
        let product = if SIGNED {
            (a as i32 as u64).wrapping_mul(b as i32 as u64)
        } else {
            u64::from(a as u32).wrapping_mul(u64::from(b as u32))
        };
        let addend = cpu.reg(o.ra);
        cpu.set_reg(o.rd, if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) });
    }
    fn smulh(cpu, o) {
        let product = i128::from(cpu.reg(o.rn).cast_signed()) * i128::from(cpu.reg(o.rm).cast_signed());
        cpu.set_reg(o.rd, (product >> 64) as u64);
    }
    fn umulh(cpu, o) {
        let product = u128::from(cpu.reg(o.rn)) * u128::from(cpu.reg(o.rm));
        cpu.set_reg(o.rd, (product >> 64) as u64);
    }
}
