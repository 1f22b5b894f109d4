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
        ($kind:ident, $part:literal) => {
            match (size, width == Width::Full) {
                (0, true) => permute::<u8, $kind, $part, true> as Handler,
                (1, true) => permute::<u16, $kind, $part, true>,
                (2, true) => permute::<u32, $kind, $part, true>,
                (_, true) => permute::<u64, $kind, $part, true>,
                (0, false) => permute::<u8, $kind, $part, false>,
                (1, false) => permute::<u16, $kind, $part, false>,
                (_, false) => permute::<u32, $kind, $part, false>,
            }
        };
    }
    macro_rules! pick_unzip {
        ($part:literal) => {
            match (size, width == Width::Full) {
                (0, true) => unzip::<u8, $part, true> as Handler,
                (1, true) => unzip::<u16, $part, true>,
                (2, true) => unzip::<u32, $part, true>,
                // Of two lanes each, UZP is TRN.
                (_, true) => permute::<u64, TRN, $part, true>,
                (0, false) => unzip::<u8, $part, false>,
                (1, false) => unzip::<u16, $part, false>,
                (_, false) => unzip::<u32, $part, false>,
            }
        };
    }
    let run = match (opcode & 3, opcode >> 2) {
        (UZP, 0) => pick_unzip!(0),
        (UZP, _) => pick_unzip!(1),
        (TRN, 0) => pick!(TRN, 0),
        (TRN, _) => pick!(TRN, 1),
        (ZIP, 0) => pick!(ZIP, 0),
        (ZIP, _) => pick!(ZIP, 1),
        _ => return None,
    };
    Some(Decoded::fp(vop(run, insn)))
}

/// UZP of lanes up to 32 bits.
///
/// # Safety
/// See [`Handler`].
unsafe fn unzip<L: Widen, const PART: u32, const Q: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        // An even and an odd lane are the two parts of one lane twice as wide.
        let (n, m) = (lanes::<L::Wide>(cpu, o.rn), lanes::<L::Wide>(cpu, o.rm));
        let mut r = L::ZEROS;
        let each = if Q { L::N / 2 } else { L::N / 4 };
        let (low, high) = r.as_mut().split_at_mut(each);
        for (r, n) in low.iter_mut().zip(n.as_ref()) {
            *r = L::of(n.u() >> (PART * L::BITS));
        }
        for (r, m) in high[..each].iter_mut().zip(m.as_ref()) {
            *r = L::of(m.u() >> (PART * L::BITS));
        }
        set_lanes::<L>(cpu, o.rd, r);
        Op::next(cpu, op)
    }
}

/// TRN, ZIP; `PART` is 0 for the "1" and 1 for the "2" forms.
///
/// # Safety
/// See [`Handler`].
unsafe fn permute<L: Lane, const KIND: u32, const PART: usize, const Q: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let count = if Q { L::N } else { L::N / 2 };
        let (n, m) = (lanes::<L>(cpu, o.rn), lanes::<L>(cpu, o.rm));
        let (n, m) = (n.as_ref(), m.as_ref());
        let mut r = L::ZEROS;
        for (i, x) in r.as_mut()[..count].iter_mut().enumerate() {
            *x = match KIND {
                TRN if i & 1 == 0 => n[i + PART],
                TRN => m[i - 1 + PART],
                _ if i & 1 == 0 => n[i / 2 + PART * count / 2],
                _ => m[i / 2 + PART * count / 2],
            };
        }
        set_lanes::<L>(cpu, o.rd, r);
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
