//! AdvSIMD permute (UZP, TRN, ZIP), extract (EXT) and table lookup (TBL, TBX).

use super::lanes::*;
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op};

const UZP: u32 = 1;
const TRN: u32 = 2;
const ZIP: u32 = 3;

/// Decodes AdvSIMD permute.
pub fn decode(insn: u32, width: Width) -> Option<Decoded> {
    let (size, opcode) = (insn >> 22 & 3, insn >> 12 & 7);
    if size == 3 && width == Width::Half {
        return None;
    }
    macro_rules! pick {
        ($kind:ident) => {
            match size {
                0 => permute::<u8, $kind> as Handler,
                1 => permute::<u16, $kind>,
                2 => permute::<u32, $kind>,
                _ => permute::<u64, $kind>,
            }
        };
    }
    let run = match opcode & 3 {
        UZP => pick!(UZP),
        TRN => pick!(TRN),
        ZIP => pick!(ZIP),
        _ => return None,
    };
    masked(run, insn, width, opcode >> 2)
}

/// UZP, TRN, ZIP; `ra` is the part, 0 for the "1" and 1 for the "2" forms.
///
/// # Safety
/// See [`Handler`].
unsafe fn permute<L: Lane, const KIND: u32>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let part = usize::from(o.ra & 1);
        let lanes = if o.imm2 == 0 { L::N / 2 } else { L::N };
        let (n, m) = (L::split(v(cpu, o.rn)), L::split(v(cpu, o.rm)));
        let (n, m) = (n.as_ref(), m.as_ref());
        let mut r = L::split(0);
        for (i, x) in r.as_mut()[..lanes].iter_mut().enumerate() {
            *x = match KIND {
                UZP => {
                    let at = 2 * i + part;
                    if at < lanes { n[at] } else { m[at - lanes] }
                }
                TRN if i & 1 == 0 => n[i + part],
                TRN => m[i - 1 + part],
                _ if i & 1 == 0 => n[i / 2 + part * lanes / 2],
                _ => m[i / 2 + part * lanes / 2],
            };
        }
        set_v(cpu, o.rd, L::join(r));
        Op::next(cpu, op)
    }
}

/// Decodes EXT.
pub fn decode_ext(insn: u32, width: Width) -> Option<Decoded> {
    let position = insn >> 11 & 15;
    let run = match width {
        Width::Half if position >= 8 => return None,
        Width::Full => ext,
        _ => ext64,
    };
    let mut op = vop(run, insn);
    op.imm2 = 8 * position;
    Some(Decoded::fp(op))
}

/// EXT of 16 bytes.
///
/// # Safety
/// See [`Handler`].
unsafe fn ext(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let (n, m) = (v(cpu, o.rn), v(cpu, o.rm));
        let by = o.imm2 & 127;
        // Two shifts, so that by = 0 takes nothing of m.
        set_v(cpu, o.rd, n >> by | m << 1 << (127 - by));
        Op::next(cpu, op)
    }
}

/// EXT of 8 bytes.
///
/// # Safety
/// See [`Handler`].
unsafe fn ext64(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let both = v(cpu, o.rn) & u128::from(u64::MAX) | v(cpu, o.rm) << 64;
        set_v(cpu, o.rd, u128::from((both >> (o.imm2 & 63)) as u64));
        Op::next(cpu, op)
    }
}

/// Decodes TBL and TBX.
pub fn decode_table(insn: u32, width: Width) -> Option<Decoded> {
    masked(table, insn, width, insn >> 12 & 7)
}

/// TBL, TBX: `ra` is len:op.
///
/// # Safety
/// See [`Handler`].
unsafe fn table(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let registers = o.ra >> 1 & 3;
        let mut bytes = [0u8; 64];
        for i in 0..=registers {
            let at = 16 * usize::from(i);
            bytes[at..at + 16].copy_from_slice(&v(cpu, o.rn.wrapping_add(i)).to_le_bytes());
        }
        let limit = 16 * (registers + 1);
        let index = v(cpu, o.rm).to_le_bytes();
        let mut r = if o.ra & 1 == 1 { v(cpu, o.rd).to_le_bytes() } else { [0; 16] };
        for (r, &i) in r.iter_mut().zip(&index) {
            if i < limit {
                *r = bytes[usize::from(i & 63)];
            }
        }
        set_v(cpu, o.rd, u128::from_le_bytes(r) & mask(o));
        Op::next(cpu, op)
    }
}
