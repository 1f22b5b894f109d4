//! AdvSIMD load/store structures: LD1..LD4, ST1..ST4 (multiple and single), LD1R..LD4R, without and with post-index.
//!
//! Registers and the base are written only after every access has succeeded. Memory is accessed in pieces of a register;
//! where that is refused and the piece was not aligned, the elements are tried one by one, since the architecture asks for
//! the alignment of elements only and names the failing one in FAR_EL1.

use super::lanes::{Width, mask, set_v, v};
use crate::engine::cpu::{Cpu, Privilege, Trap};
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Decodes the group (bits 29:25 = 00110, bit 31 clear), or answers `None` for unallocated encodings.
pub fn decode(insn: u32) -> Option<Decoded> {
    if insn >> 31 == 1 || insn >> 25 & 0x1f != 0b00110 {
        return None;
    }
    let post = insn >> 23 & 1 == 1;
    let single = insn >> 24 & 1 == 1;
    // Without post-index the Rm field is zero; only single structures use bit 21 (R).
    if insn >> 16 & 0x1f != 0 && !post || insn >> 21 & 1 == 1 && !single {
        return None;
    }
    let (run, bytes) = if single { decode_single(insn)? } else { decode_multiple(insn)? };
    let mut op = Op::new(run, insn);
    op.rd = (insn & 31) as u8;
    op.rn = slot::sp(insn >> 5);
    if post {
        // Rm = 31 means the transfer's size. Otherwise `imm` stays zero and Rm is added.
        let rm = insn >> 16 & 31;
        op.rm = slot::src(rm);
        op.imm = if rm == 31 { bytes } else { 0 };
    } else {
        op.rm = slot::ZR;
    }
    Width::vector(insn).set(&mut op);
    Some(Decoded::fp(op))
}

fn decode_multiple(insn: u32) -> Option<(Handler, u64)> {
    let (q, load, size) = (insn >> 30 & 1, insn >> 22 & 1 == 1, insn >> 10 & 3);
    let (registers, structure) = match insn >> 12 & 15 {
        0b0000 => (4, 4),
        0b0010 => (4, 1),
        0b0100 => (3, 3),
        0b0110 => (3, 1),
        0b0111 => (1, 1),
        0b1000 => (2, 2),
        0b1010 => (2, 1),
        _ => return None,
    };
    if structure > 1 && size == 3 && q == 0 {
        return None;
    }
    macro_rules! pick {
        ($h:ident, $n:literal) => {
            if q == 1 { $h::<$n, 16> as Handler } else { $h::<$n, 8> }
        };
    }
    let run = match (load, structure == 1, registers) {
        (true, true, 1) => pick!(load_registers, 1),
        (true, true, 2) => pick!(load_registers, 2),
        (true, true, 3) => pick!(load_registers, 3),
        (true, true, _) => pick!(load_registers, 4),
        (false, true, 1) => pick!(store_registers, 1),
        (false, true, 2) => pick!(store_registers, 2),
        (false, true, 3) => pick!(store_registers, 3),
        (false, true, _) => pick!(store_registers, 4),
        (true, false, 2) => pick!(load_structures, 2),
        (true, false, 3) => pick!(load_structures, 3),
        (true, false, _) => pick!(load_structures, 4),
        (false, false, 2) => pick!(store_structures, 2),
        (false, false, 3) => pick!(store_structures, 3),
        (false, false, _) => pick!(store_structures, 4),
    };
    Some((run, registers * (8 << q)))
}

fn decode_single(insn: u32) -> Option<(Handler, u64)> {
    let (load, s, size) = (insn >> 22 & 1 == 1, insn >> 12 & 1, insn >> 10 & 3);
    let registers = u64::from((insn >> 13 & 1) << 1 | insn >> 21 & 1) + 1;
    let scale = match (insn >> 14 & 3, size) {
        (0, _) => 0,
        (1, 0 | 2) => 1,
        (2, 0) => 2,
        (2, 1) if s == 0 => 3,
        (3, _) if load && s == 0 => return Some((load_replicate, registers << size)),
        _ => return None,
    };
    Some((if load { load_lane } else { store_lane }, registers << scale))
}

/// Adds the post-index offset (zero without one) to the base.
#[inline(always)]
fn write_back(cpu: &mut Cpu, o: &Op) {
    let base = usize::from(o.rn);
    cpu.x[base] = cpu.x[base].wrapping_add(o.imm).wrapping_add(if o.imm == 0 { cpu.x[usize::from(o.rm)] } else { 0 });
}

#[inline(always)]
fn load_bytes<const BYTES: usize>(cpu: &mut Cpu, va: u64) -> Result<u128, Trap> {
    if BYTES == 16 {
        cpu.load::<u128>(va, Privilege::Current)
    } else {
        Ok(cpu.load::<u64>(va, Privilege::Current)?.into())
    }
}

#[inline(always)]
fn store_bytes<const BYTES: usize>(cpu: &mut Cpu, va: u64, x: u128) -> Result<(), Trap> {
    if BYTES == 16 {
        cpu.store::<u128>(va, x, Privilege::Current)
    } else {
        cpu.store::<u64>(va, x as u64, Privilege::Current)
    }
}

/// The base address.
#[inline(always)]
fn base(cpu: &mut Cpu, o: &Op) -> Result<u64, Trap> {
    if o.rn == slot::SP {
        cpu.check_sp_alignment()?;
    }
    Ok(cpu.x[usize::from(o.rn)])
}

/// Reads `N` registers' worth of consecutive memory.
#[inline(always)]
fn load_all<const N: usize, const BYTES: usize>(cpu: &mut Cpu, o: &Op) -> Result<[u128; N], Trap> {
    let va = base(cpu, o)?;
    let mut r = [0; N];
    for (i, r) in r.iter_mut().enumerate() {
        let va = va.wrapping_add((i * BYTES) as u64);
        *r = match load_bytes::<BYTES>(cpu, va) {
            Ok(x) => x,
            Err(trap) if va.is_multiple_of(BYTES as u64) => return Err(trap),
            Err(_) => load_elements::<BYTES>(cpu, va, o.insn >> 10 & 3)?,
        };
    }
    Ok(r)
}

#[cold]
#[inline(never)]
fn load_elements<const BYTES: usize>(cpu: &mut Cpu, va: u64, scale: u32) -> Result<u128, Trap> {
    let mut r = 0;
    for at in (0..BYTES).step_by(1 << scale) {
        r |= u128::from(load_element(cpu, va.wrapping_add(at as u64), scale)?) << (8 * at);
    }
    Ok(r)
}

#[cold]
#[inline(never)]
fn store_elements<const BYTES: usize>(cpu: &mut Cpu, va: u64, scale: u32, x: u128) -> Result<(), Trap> {
    for at in (0..BYTES).step_by(1 << scale) {
        store_element(cpu, va.wrapping_add(at as u64), scale, (x >> (8 * at)) as u64)?;
    }
    Ok(())
}

#[inline(always)]
fn store_all<const N: usize, const BYTES: usize>(cpu: &mut Cpu, o: &Op, values: [u128; N]) -> Result<(), Trap> {
    let va = base(cpu, o)?;
    for (i, value) in values.into_iter().enumerate() {
        let va = va.wrapping_add((i * BYTES) as u64);
        match store_bytes::<BYTES>(cpu, va, value) {
            Ok(()) => {}
            Err(trap) if va.is_multiple_of(BYTES as u64) => return Err(trap),
            Err(_) => store_elements::<BYTES>(cpu, va, o.insn >> 10 & 3, value)?,
        }
    }
    Ok(())
}

#[inline(always)]
fn load_registers_body<const N: usize, const BYTES: usize>(cpu: &mut Cpu, o: &Op) -> Result<(), Trap> {
    for (i, value) in load_all::<N, BYTES>(cpu, o)?.into_iter().enumerate() {
        set_v(cpu, o.rd.wrapping_add(i as u8), value);
    }
    write_back(cpu, o);
    Ok(())
}

#[inline(always)]
fn store_registers_body<const N: usize, const BYTES: usize>(cpu: &mut Cpu, o: &Op) -> Result<(), Trap> {
    let values = std::array::from_fn(|i| v(cpu, o.rd.wrapping_add(i as u8)));
    store_all::<N, BYTES>(cpu, o, values)?;
    write_back(cpu, o);
    Ok(())
}

/// Splits the structures in `memory` into registers: element e of register r is element `e * N + r` of memory.
fn deinterleave<const N: usize, const BYTES: usize>(memory: [u128; N], size: u32) -> [u128; N] {
    let esize = 8u32 << size;
    let per = BYTES * 8 / esize as usize;
    let ones = u128::MAX >> (128 - esize);
    let mut registers = [0; N];
    for i in 0..N * per {
        let element = memory[i / per] >> (i % per * esize as usize) & ones;
        registers[i % N] |= element << (i / N * esize as usize);
    }
    registers
}

/// The inverse of [`deinterleave`].
fn interleave<const N: usize, const BYTES: usize>(registers: [u128; N], size: u32) -> [u128; N] {
    let esize = 8u32 << size;
    let per = BYTES * 8 / esize as usize;
    let ones = u128::MAX >> (128 - esize);
    let mut memory = [0; N];
    for i in 0..N * per {
        let element = registers[i % N] >> (i / N * esize as usize) & ones;
        memory[i / per] |= element << (i % per * esize as usize);
    }
    memory
}

#[inline(never)]
fn load_structures_body<const N: usize, const BYTES: usize>(cpu: &mut Cpu, o: &Op) -> Result<(), Trap> {
    let memory = load_all::<N, BYTES>(cpu, o)?;
    for (i, value) in deinterleave::<N, BYTES>(memory, o.insn >> 10 & 3).into_iter().enumerate() {
        set_v(cpu, o.rd.wrapping_add(i as u8), value);
    }
    write_back(cpu, o);
    Ok(())
}

#[inline(never)]
fn store_structures_body<const N: usize, const BYTES: usize>(cpu: &mut Cpu, o: &Op) -> Result<(), Trap> {
    let registers = std::array::from_fn(|i| v(cpu, o.rd.wrapping_add(i as u8)));
    store_all::<N, BYTES>(cpu, o, interleave::<N, BYTES>(registers, o.insn >> 10 & 3))?;
    write_back(cpu, o);
    Ok(())
}

/// Lane number, log2 of its bytes, and the number of registers of a single-structure instruction.
fn single_fields(insn: u32) -> (u32, u32, u8) {
    let (q, s, size) = (insn >> 30 & 1, insn >> 12 & 1, insn >> 10 & 3);
    let registers = ((insn >> 13 & 1) << 1 | insn >> 21 & 1) as u8 + 1;
    match insn >> 14 & 3 {
        0 => (q << 3 | s << 2 | size, 0, registers),
        1 => (q << 2 | s << 1 | size >> 1, 1, registers),
        2 if size == 0 => (q << 1 | s, 2, registers),
        2 => (q, 3, registers),
        _ => (0, size, registers),
    }
}

fn load_element(cpu: &mut Cpu, va: u64, scale: u32) -> Result<u64, Trap> {
    Ok(match scale {
        0 => cpu.load::<u8>(va, Privilege::Current)?.into(),
        1 => cpu.load::<u16>(va, Privilege::Current)?.into(),
        2 => cpu.load::<u32>(va, Privilege::Current)?.into(),
        _ => cpu.load::<u64>(va, Privilege::Current)?,
    })
}

fn store_element(cpu: &mut Cpu, va: u64, scale: u32, x: u64) -> Result<(), Trap> {
    match scale {
        0 => cpu.store(va, x as u8, Privilege::Current),
        1 => cpu.store(va, x as u16, Privilege::Current),
        2 => cpu.store(va, x as u32, Privilege::Current),
        _ => cpu.store(va, x, Privilege::Current),
    }
}

/// Reads one element for each of up to four registers.
fn load_single(cpu: &mut Cpu, o: &Op) -> Result<[u64; 4], Trap> {
    let (_, scale, registers) = single_fields(o.insn);
    let va = base(cpu, o)?;
    let mut elements = [0; 4];
    for (i, element) in (0..registers).zip(&mut elements) {
        *element = load_element(cpu, va.wrapping_add(u64::from(i) << scale), scale)?;
    }
    Ok(elements)
}

#[inline(never)]
fn load_lane_body(cpu: &mut Cpu, o: &Op) -> Result<(), Trap> {
    let (lane, scale, registers) = single_fields(o.insn);
    let elements = load_single(cpu, o)?;
    let at = lane << (scale + 3);
    let ones = u128::MAX >> (128 - (8 << scale));
    for (i, element) in (0..registers).zip(elements) {
        let reg = o.rd.wrapping_add(i);
        set_v(cpu, reg, v(cpu, reg) & !(ones << at) | u128::from(element) << at);
    }
    write_back(cpu, o);
    Ok(())
}

#[inline(never)]
fn load_replicate_body(cpu: &mut Cpu, o: &Op) -> Result<(), Trap> {
    let (_, scale, registers) = single_fields(o.insn);
    let elements = load_single(cpu, o)?;
    for (i, element) in (0..registers).zip(elements) {
        let splat = match scale {
            0 => 0x0101_0101_0101_0101,
            1 => 0x0001_0001_0001_0001,
            2 => 0x0000_0001_0000_0001,
            _ => 1,
        };
        let low = element.wrapping_mul(splat);
        let both = u128::from(low) | u128::from(low & (mask(o) >> 64) as u64) << 64;
        set_v(cpu, o.rd.wrapping_add(i), both);
    }
    write_back(cpu, o);
    Ok(())
}

#[inline(never)]
fn store_lane_body(cpu: &mut Cpu, o: &Op) -> Result<(), Trap> {
    let (lane, scale, registers) = single_fields(o.insn);
    let va = base(cpu, o)?;
    for i in 0..registers {
        let x = (v(cpu, o.rd.wrapping_add(i)) >> (lane << (scale + 3))) as u64;
        store_element(cpu, va.wrapping_add(u64::from(i) << scale), scale, x)?;
    }
    write_back(cpu, o);
    Ok(())
}

macro_rules! handlers {
    ($($(#[$doc:meta])* $name:ident$(<$(const $c:ident),*>)? = $body:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// See [`Handler`].
        unsafe fn $name$(<$(const $c: usize),*>)?(cpu: &mut Cpu, op: *const Op) -> Next {
            // SAFETY: the caller's promise.
            unsafe {
                match $body(cpu, &*op) {
                    Ok(()) => Op::next(cpu, op),
                    Err(trap) => cpu.take_trap(op, trap),
                }
            }
        }
    )*};
}

handlers! {
    /// LD1 (multiple structures): registers follow each other in memory.
    load_registers<const N, const BYTES> = load_registers_body::<N, BYTES>;
    /// ST1 (multiple structures).
    store_registers<const N, const BYTES> = store_registers_body::<N, BYTES>;
    /// LD2, LD3, LD4 (multiple structures).
    load_structures<const N, const BYTES> = load_structures_body::<N, BYTES>;
    /// ST2, ST3, ST4 (multiple structures).
    store_structures<const N, const BYTES> = store_structures_body::<N, BYTES>;
    /// LD1..LD4 (single structure).
    load_lane = load_lane_body;
    /// LD1R..LD4R.
    load_replicate = load_replicate_body;
    /// ST1..ST4 (single structure).
    store_lane = store_lane_body;
}
