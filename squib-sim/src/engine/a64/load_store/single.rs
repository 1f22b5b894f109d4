//! Loads and stores of one register, in every addressing mode.

use super::super::handler::{bit, bits, extend_reg, pick, sign_extend};
use super::access::*;
use super::{prefetch, trapping_handlers};
use crate::engine::cpu::{Cpu, Privilege, Trap};
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Addressing modes, a const parameter of the handlers.
mod mode {
    pub const OFFSET: u32 = 0;
    pub const PRE: u32 = 1;
    pub const POST: u32 = 2;
    /// Register offset, shifted left.
    pub const REG: u32 = 3;
    /// Register offset, UXTW.
    pub const REG_UXTW: u32 = 4;
    /// Register offset, SXTW.
    pub const REG_SXTW: u32 = 5;
    /// PC-relative.
    pub const LITERAL: u32 = 6;
}

/// The instance for what `insn`'s size, V and opc fields say; `None` when they say nothing.
fn instance(insn: u32, mode: u32, sp: bool) -> Option<Handler> {
    macro_rules! of {
        ($f:ident, $t:ident) => {
            pick!($f<$t>, [mode; 8], [sp; bool])
        };
    }
    let (size, opc) = (bits(insn, 31, 30), bits(insn, 23, 22));
    Some(if bit(insn, 26) {
        match (opc, size) {
            (0, 0) => of!(store, FpB),
            (0, 1) => of!(store, FpH),
            (0, 2) => of!(store, FpS),
            (0, 3) => of!(store, FpD),
            (1, 0) => of!(load, FpB),
            (1, 1) => of!(load, FpH),
            (1, 2) => of!(load, FpS),
            (1, 3) => of!(load, FpD),
            (2, 0) => of!(store, FpQ),
            (3, 0) => of!(load, FpQ),
            _ => return None,
        }
    } else {
        match (opc, size) {
            (0, 0) => of!(store, Byte),
            (0, 1) => of!(store, Half),
            (0, 2) => of!(store, Word),
            (0, 3) => of!(store, Double),
            (1, 0) => of!(load, Byte),
            (1, 1) => of!(load, Half),
            (1, 2) => of!(load, Word),
            (1, 3) => of!(load, Double),
            (2, 0) => of!(load, SignedByte),
            (2, 1) => of!(load, SignedHalf),
            (2, 2) => of!(load, SignedWord),
            (3, 0) => of!(load, SignedByteW),
            (3, 1) => of!(load, SignedHalfW),
            _ => return None,
        }
    })
}

/// Is it a store, by V and opc? Then Rt is a source.
fn is_store(insn: u32) -> bool {
    let opc = bits(insn, 23, 22);
    opc == 0 || (bit(insn, 26) && opc == 2)
}

/// PRFM and PRFUM take the place of a signed 64-bit load.
fn is_prefetch(insn: u32) -> bool {
    insn & 0xc4c0_0000 == 0xc080_0000
}

fn decoded(insn: u32, op: Op) -> Decoded {
    let fp = bit(insn, 26);
    let rd = match (fp, is_store(insn)) {
        (true, _) => (insn & 31) as u8,
        (false, true) => slot::src(insn),
        (false, false) => slot::dst(insn),
    };
    let op = Op { rd, ..op };
    if fp { Decoded::fp(op) } else { Decoded::plain(op) }
}

/// A load or store by Rn and an immediate.
fn immediate(insn: u32, mode: u32, imm: u64) -> Option<Decoded> {
    let rn = slot::sp(insn >> 5);
    let run = instance(insn, mode, rn == slot::SP)?;
    Some(decoded(insn, Op { imm, rn, ..Op::new(run, insn) }))
}

/// log2 of the access's size, which scales offsets: Q registers have theirs in opc.
fn scale(insn: u32) -> u32 {
    if bit(insn, 26) && bit(insn, 23) { 4 } else { bits(insn, 31, 30) }
}

/// Unsigned, scaled immediate offset.
pub(super) fn decode_unsigned_offset(insn: u32) -> Option<Decoded> {
    if is_prefetch(insn) {
        return Some(Decoded::plain(Op::new(prefetch, insn)));
    }
    immediate(insn, mode::OFFSET, u64::from(bits(insn, 21, 10)) << scale(insn))
}

/// Unscaled (0), post-indexed (1) and pre-indexed (3) with a signed immediate.
pub(super) fn decode_imm9(insn: u32, kind: u32) -> Option<Decoded> {
    if kind == 0 && is_prefetch(insn) {
        return Some(Decoded::plain(Op::new(prefetch, insn)));
    }
    let mode = [mode::OFFSET, mode::POST, mode::OFFSET, mode::PRE][kind as usize & 3];
    immediate(insn, mode, sign_extend(bits(insn, 20, 12), 9))
}

/// Register offset.
pub(super) fn decode_register_offset(insn: u32) -> Option<Decoded> {
    let mode = match bits(insn, 15, 13) {
        2 => mode::REG_UXTW,
        3 | 7 => mode::REG,
        6 => mode::REG_SXTW,
        _ => return None,
    };
    if is_prefetch(insn) {
        return Some(Decoded::plain(Op::new(prefetch, insn)));
    }
    let rn = slot::sp(insn >> 5);
    let imm2 = if bit(insn, 12) { scale(insn) } else { 0 };
    let run = instance(insn, mode, rn == slot::SP)?;
    Some(decoded(insn, Op { imm2, rn, rm: slot::src(insn >> 16), ..Op::new(run, insn) }))
}

/// Literal. Its opc is in the place of size; V as everywhere.
pub(super) fn decode_literal(insn: u32) -> Option<Decoded> {
    let imm = sign_extend(bits(insn, 23, 5) << 2, 21);
    let fp = bit(insn, 26);
    let run = match (fp, bits(insn, 31, 30)) {
        (false, 0) => load::<Word, { mode::LITERAL }, false>,
        (false, 1) => load::<Double, { mode::LITERAL }, false>,
        (false, 2) => load::<SignedWord, { mode::LITERAL }, false>,
        (false, _) => return Some(Decoded::plain(Op::new(prefetch, insn))),
        (true, 0) => load::<FpS, { mode::LITERAL }, false>,
        (true, 1) => load::<FpD, { mode::LITERAL }, false>,
        (true, 2) => load::<FpQ, { mode::LITERAL }, false>,
        (true, _) => return None,
    } as Handler;
    let op = Op { imm, rd: slot::dst(insn), ..Op::new(run, insn) };
    Some(if fp { Decoded::fp(Op { rd: (insn & 31) as u8, ..op }) } else { Decoded::plain(op) })
}

/// LDTR, STTR and their like.
pub(super) fn decode_unprivileged(insn: u32) -> Option<Decoded> {
    let run = match (bit(insn, 26), bits(insn, 23, 22), bits(insn, 31, 30)) {
        (false, 0, 0) => store_unprivileged::<Byte>,
        (false, 0, 1) => store_unprivileged::<Half>,
        (false, 0, 2) => store_unprivileged::<Word>,
        (false, 0, 3) => store_unprivileged::<Double>,
        (false, 1, 0) => load_unprivileged::<Byte>,
        (false, 1, 1) => load_unprivileged::<Half>,
        (false, 1, 2) => load_unprivileged::<Word>,
        (false, 1, 3) => load_unprivileged::<Double>,
        (false, 2, 0) => load_unprivileged::<SignedByte>,
        (false, 2, 1) => load_unprivileged::<SignedHalf>,
        (false, 2, 2) => load_unprivileged::<SignedWord>,
        (false, 3, 0) => load_unprivileged::<SignedByteW>,
        (false, 3, 1) => load_unprivileged::<SignedHalfW>,
        _ => return None,
    } as Handler;
    let imm = sign_extend(bits(insn, 20, 12), 9);
    Some(decoded(insn, Op { imm, rn: slot::sp(insn >> 5), ..Op::new(run, insn) }))
}

/// The address of the access; for PRE it is also what is written back.
///
/// # Safety
/// `o` was made by the decoder, and is in the running block.
#[inline(always)]
unsafe fn address<P: Path, const MODE: u32, const SP: bool>(cpu: &mut Cpu, o: &Op) -> Result<u64, Trap> {
    if SP {
        P::check_sp_alignment(cpu)?;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let base = cpu.reg(o.rn);
        Ok(match MODE {
            mode::OFFSET | mode::PRE => base.wrapping_add(o.imm),
            mode::POST => base,
            mode::REG => base.wrapping_add(cpu.reg(o.rm).wrapping_shl(o.imm2)),
            mode::REG_UXTW => base.wrapping_add(extend_reg::<2>(cpu.reg(o.rm), o.imm2)),
            mode::REG_SXTW => base.wrapping_add(extend_reg::<6>(cpu.reg(o.rm), o.imm2)),
            _ => cpu.pc_of(o).wrapping_add(o.imm),
        })
    }
}

/// Updates the base register after an access at `address`.
///
/// # Safety
/// `o` was made by the decoder.
#[inline(always)]
unsafe fn write_back<const MODE: u32>(cpu: &mut Cpu, o: &Op, address: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        match MODE {
            mode::PRE => cpu.set_reg(o.rn, address),
            mode::POST => cpu.set_reg(o.rn, address.wrapping_add(o.imm)),
            _ => {}
        }
    }
}

access_handlers! {
    fn load<P; T: Transfer, const MODE: u32, const SP: bool>(cpu, o) {
        let address = address::<P, MODE, SP>(cpu, o)?;
        let value = P::load::<T::Memory>(cpu, address)?;
        T::write(cpu, o.rd, value);
        write_back::<MODE>(cpu, o, address);
    }
    fn store<P; T: Transfer, const MODE: u32, const SP: bool>(cpu, o) {
        let address = address::<P, MODE, SP>(cpu, o)?;
        P::store::<T::Memory>(cpu, address, T::read(cpu, o.rd))?;
        write_back::<MODE>(cpu, o, address);
    }
}

trapping_handlers! {
    fn load_unprivileged[T: Transfer][T](cpu, o) {
        let address = super::base(cpu, o)?.wrapping_add(o.imm);
        let value = cpu.load::<T::Memory>(address, Privilege::Unprivileged)?;
        T::write(cpu, o.rd, value);
    }
    fn store_unprivileged[T: Transfer][T](cpu, o) {
        let address = super::base(cpu, o)?.wrapping_add(o.imm);
        cpu.store::<T::Memory>(address, T::read(cpu, o.rd), Privilege::Unprivileged)?;
    }
}
