//! Data processing, immediate (C4.1.92): PC-relative addresses, arithmetic, logic, move wide, bitfield, extract.

use super::handler::{bit, bits, handlers, pick, shift_reg, sign_extend, sized};
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Decodes the group, `insn<28:26>` = 100.
pub(super) fn decode(insn: u32) -> Option<Decoded> {
    let op = match bits(insn, 25, 23) {
        0 | 1 => pc_relative(insn),
        2 => add_sub(insn),
        4 => logical(insn)?,
        5 => move_wide(insn)?,
        6 => bitfield(insn)?,
        7 => extract(insn)?,
        _ => return None,
    };
    Some(Decoded::plain(op))
}

fn pc_relative(insn: u32) -> Op {
    let imm = sign_extend(bits(insn, 23, 5) << 2 | bits(insn, 30, 29), 21);
    let (run, imm): (Handler, u64) = if bit(insn, 31) { (adrp, imm << 12) } else { (adr, imm) };
    Op { imm, rd: slot::dst(insn), ..Op::new(run, insn) }
}

fn add_sub(insn: u32) -> Op {
    let (sf, sub, s) = (bit(insn, 31), bit(insn, 30), bit(insn, 29));
    let imm = u64::from(bits(insn, 21, 10)) << if bit(insn, 22) { 12 } else { 0 };
    let rn = slot::sp(insn >> 5);
    if s {
        let run = match (sub, insn & 31 == 31) {
            (true, true) => pick!(cmp_imm, [sf; bool]),
            (true, false) => pick!(subs_imm, [sf; bool]),
            (false, _) => pick!(adds_imm, [sf; bool]),
        };
        return Op { imm, rn, rd: slot::dst(insn), ..Op::new(run, insn) };
    }
    let imm = if sub { imm.wrapping_neg() } else { imm };
    let run = if imm == 0 { pick!(mov_reg, [sf; bool]) } else { pick!(add_imm, [sf; bool]) };
    // `mov_reg` takes its source from rm, the others from rn.
    Op { imm, rn, rm: rn, rd: slot::sp(insn), ..Op::new(run, insn) }
}

/// The first mask of `DecodeBitMasks(N, imms, immr, TRUE)`, replicated to 64 bits.
fn decode_bit_mask(n: u32, imms: u32, immr: u32) -> Option<u64> {
    let len = 31u32.checked_sub((n << 6 | (!imms & 0x3f)).leading_zeros())?;
    if len == 0 {
        return None;
    }
    let esize = 1 << len;
    let levels = esize - 1;
    let (s, r) = (imms & levels, immr & levels);
    if s == levels {
        return None;
    }
    let ones = u64::MAX >> (63 - s);
    // Replicated first, a rotation of the whole is a rotation of each element.
    let mut mask = ones;
    let mut size = esize;
    while size < 64 {
        mask |= mask << size;
        size *= 2;
    }
    Some(mask.rotate_right(r))
}

fn logical(insn: u32) -> Option<Op> {
    let sf = bit(insn, 31);
    if !sf && bit(insn, 22) {
        return None;
    }
    let mask = decode_bit_mask(bits(insn, 22, 22), bits(insn, 15, 10), bits(insn, 21, 16))?;
    let imm = if sf { mask } else { mask & 0xffff_ffff };
    let (rn, rd) = (slot::src(insn >> 5), slot::sp(insn));
    let op = |run: Handler, rd: u8| Op { imm, rn, rd, ..Op::new(run, insn) };
    Some(match bits(insn, 30, 29) {
        0 => op(and_imm, rd),
        1 if rn == slot::ZR => op(mov_const, rd),
        1 => op(pick!(orr_imm, [sf; bool]), rd),
        2 => op(pick!(eor_imm, [sf; bool]), rd),
        _ if insn & 31 == 31 => op(pick!(tst_imm, [sf; bool]), slot::SINK),
        _ => op(pick!(ands_imm, [sf; bool]), slot::dst(insn)),
    })
}

fn move_wide(insn: u32) -> Option<Op> {
    let (sf, hw) = (bit(insn, 31), bits(insn, 22, 21));
    if !sf && hw > 1 {
        return None;
    }
    let value = u64::from(bits(insn, 20, 5)) << (16 * hw);
    let (run, imm): (Handler, u64) = match bits(insn, 30, 29) {
        0 if sf => (mov_const, !value),
        0 => (mov_const, !value & 0xffff_ffff),
        2 => (mov_const, value),
        3 => (pick!(movk, [sf; bool], [hw; 4]), value),
        _ => return None,
    };
    Some(Op { imm, rd: slot::dst(insn), ..Op::new(run, insn) })
}

fn bitfield(insn: u32) -> Option<Op> {
    let (sf, immr, imms) = (bit(insn, 31), bits(insn, 21, 16), bits(insn, 15, 10));
    if sf != bit(insn, 22) || (!sf && (immr > 31 || imms > 31)) {
        return None;
    }
    let top = if sf { 63 } else { 31 };
    // The field's length, and its place in the source (extract) or in the destination (insert).
    let extract = imms >= immr;
    let (len, lsb) = if extract { (imms - immr + 1, immr) } else { (imms + 1, top + 1 - immr) };
    let ones = u64::MAX >> (64 - len);
    let op = |run: Handler, imm: u64, imm2: u32| Op {
        imm,
        imm2,
        rn: slot::src(insn >> 5),
        rd: slot::dst(insn),
        ..Op::new(run, insn)
    };
    Some(match bits(insn, 30, 29) {
        // SBFM. Both of its forms are a shift to the left end and an arithmetic shift back.
        0 if imms == top => op(pick!(shift_imm, [sf; bool], [2; 4]), 0, immr),
        0 if immr == 0 && imms == 7 => op(pick!(sign_extend_imm, [sf; bool], [0; 4]), 0, 0),
        0 if immr == 0 && imms == 15 => op(pick!(sign_extend_imm, [sf; bool], [1; 4]), 0, 0),
        0 if immr == 0 && imms == 31 => op(pick!(sign_extend_imm, [sf; bool], [2; 4]), 0, 0),
        0 => op(pick!(sbfm, [sf; bool]), u64::from(top - imms), (top - imms).wrapping_add(immr) & top),
        // BFM.
        1 => op(pick!(bfm, [sf; bool]), if extract { ones } else { ones << lsb }, immr),
        // UBFM.
        2 if imms == top => op(pick!(shift_imm, [sf; bool], [1; 4]), 0, immr),
        2 if imms + 1 == immr => op(pick!(shift_imm, [sf; bool], [0; 4]), 0, lsb),
        2 if immr == 0 => op(and_imm, ones, 0),
        2 if extract => op(ubfx, ones, lsb),
        2 => op(ubfiz, ones, lsb),
        _ => return None,
    })
}

fn extract(insn: u32) -> Option<Op> {
    let (sf, lsb) = (bit(insn, 31), bits(insn, 15, 10));
    if bits(insn, 30, 29) != 0 || sf != bit(insn, 22) || bit(insn, 21) || (!sf && lsb > 31) {
        return None;
    }
    let (rn, rm) = (slot::src(insn >> 5), slot::src(insn >> 16));
    let run = match (lsb == 0, rn == rm) {
        (true, _) => pick!(mov_reg, [sf; bool]),
        (_, true) => pick!(shift_imm, [sf; bool], [3; 4]),
        _ => pick!(extr, [sf; bool]),
    };
    Some(Op { imm2: lsb, rn, rm, rd: slot::dst(insn), ..Op::new(run, insn) })
}

handlers! {
    fn adr(cpu, o) {
        let value = cpu.pc_of(o).wrapping_add(o.imm);
        cpu.set_reg(o.rd, value);
    }
    fn adrp(cpu, o) {
        let value = (cpu.pc_of(o) & !0xfff).wrapping_add(o.imm);
        cpu.set_reg(o.rd, value);
    }

    fn add_imm<const SF: bool>(cpu, o) { cpu.set_reg(o.rd, sized::<SF>(cpu.reg(o.rn).wrapping_add(o.imm))); }
    fn adds_imm<const SF: bool>(cpu, o) {
        let result = cpu.adds::<SF>(cpu.reg(o.rn), o.imm);
        cpu.set_reg(o.rd, result);
    }
    fn subs_imm<const SF: bool>(cpu, o) {
        let result = cpu.subs::<SF>(cpu.reg(o.rn), o.imm);
        cpu.set_reg(o.rd, result);
    }
    fn cmp_imm<const SF: bool>(cpu, o) { cpu.subs::<SF>(cpu.reg(o.rn), o.imm); }

    /// MOV (register, or to and from SP).
    fn mov_reg<const SF: bool>(cpu, o) { cpu.set_reg(o.rd, sized::<SF>(cpu.reg(o.rm))); }
    /// MOVZ, MOVN, MOV (bitmask immediate).
    fn mov_const(cpu, o) { cpu.set_reg(o.rd, o.imm); }
    fn movk<const SF: bool, const HW: u32>(cpu, o) {
        cpu.set_reg(o.rd, sized::<SF>(cpu.reg(o.rd) & !(0xffff << (16 * HW)) | o.imm));
    }

    /// AND of either size (the mask cuts the upper half off), and UBFX at bit 0.
    fn and_imm(cpu, o) { cpu.set_reg(o.rd, cpu.reg(o.rn) & o.imm); }
    fn orr_imm<const SF: bool>(cpu, o) { cpu.set_reg(o.rd, sized::<SF>(cpu.reg(o.rn) | o.imm)); }
    fn eor_imm<const SF: bool>(cpu, o) { cpu.set_reg(o.rd, sized::<SF>(cpu.reg(o.rn) ^ o.imm)); }
    fn ands_imm<const SF: bool>(cpu, o) {
        let result = cpu.reg(o.rn) & o.imm;
        cpu.set_nz_logical::<SF>(result);
        cpu.set_reg(o.rd, result);
    }
    fn tst_imm<const SF: bool>(cpu, o) { cpu.set_nz_logical::<SF>(cpu.reg(o.rn) & o.imm); }

    /// LSL, LSR, ASR, ROR by an immediate.
    fn shift_imm<const SF: bool, const KIND: u32>(cpu, o) {
        cpu.set_reg(o.rd, shift_reg::<SF, KIND>(cpu.reg(o.rn), o.imm2));
    }
    /// SXTB, SXTH, SXTW.
    fn sign_extend_imm<const SF: bool, const SIZE: u32>(cpu, o) {
        let value = cpu.reg(o.rn);
        cpu.set_reg(o.rd, sized::<SF>(match SIZE {
            0 => value as i8 as u64,
            1 => value as i16 as u64,
            _ => value as i32 as u64,
        }));
    }
    /// SBFX, SBFIZ.
    fn sbfm<const SF: bool>(cpu, o) {
        let left = shift_reg::<SF, 0>(cpu.reg(o.rn), o.imm as u32);
        cpu.set_reg(o.rd, shift_reg::<SF, 2>(left, o.imm2));
    }
    fn ubfx(cpu, o) { cpu.set_reg(o.rd, cpu.reg(o.rn).wrapping_shr(o.imm2) & o.imm); }
    fn ubfiz(cpu, o) { cpu.set_reg(o.rd, (cpu.reg(o.rn) & o.imm).wrapping_shl(o.imm2)); }
    /// BFI, BFC, BFXIL: the mask is the field in the destination.
    fn bfm<const SF: bool>(cpu, o) {
        let field = shift_reg::<SF, 3>(cpu.reg(o.rn), o.imm2) & o.imm;
        cpu.set_reg(o.rd, sized::<SF>(cpu.reg(o.rd) & !o.imm) | field);
    }
    fn extr<const SF: bool>(cpu, o) {
        let (high, low) = (cpu.reg(o.rn), cpu.reg(o.rm));
        let result = if SF {
            high.wrapping_shl(64 - o.imm2) | low.wrapping_shr(o.imm2)
        } else {
            sized::<false>((high << 32 | sized::<false>(low)).wrapping_shr(o.imm2))
        };
        cpu.set_reg(o.rd, result);
    }
}
