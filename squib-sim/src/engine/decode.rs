//! The top level of the A64 decoder (Arm ARM C4.1): sends each group to the module that owns it.

use super::cpu::Cpu;
use super::op::{Decoded, Next, Op};
use super::{a64, simd, system};

/// Decodes one instruction; an unallocated encoding becomes the op that raises UNDEFINED.
pub fn decode(insn: u32) -> Decoded {
    let decoded = match insn >> 25 & 15 {
        0b0000..=0b0011 => None,
        // Exception generation, system instructions, ERET and DRPS.
        0b1010 | 0b1011 if system::claims(insn) => system::decode(insn),
        0b0110 if insn >> 31 == 0 && insn >> 29 & 1 == 0 => simd::decode(insn),
        0b0111 | 0b1111 => simd::decode(insn),
        _ => a64::decode(insn),
    };
    decoded.unwrap_or_else(|| Decoded::end(Op::new(undefined, insn)))
}

/// UNDEFINED.
///
/// # Safety
/// As for every [`Handler`](super::op::Handler).
pub unsafe fn undefined(cpu: &mut Cpu, op: *const Op) -> Next {
    let trap = cpu.undefined();
    // SAFETY: the caller's promise.
    unsafe { cpu.take_trap(op, trap) }
}

/// The op that ends a block whose next instruction is simply the one behind it.
pub fn fall_through() -> Op {
    unsafe fn run(cpu: &mut Cpu, op: *const Op) -> Next {
        // SAFETY: the caller's promise.
        unsafe {
            cpu.pc = cpu.pc_of(op);
            cpu.chain::<0>()
        }
    }
    Op::new(run, 0)
}

/// The op in front of a block's first FP/SIMD instruction (`CheckFPAdvSIMDEnabled64`).
pub fn check_fp(insn: u32) -> Op {
    unsafe fn run(cpu: &mut Cpu, op: *const Op) -> Next {
        if !cpu.fp_enabled {
            let trap = cpu.fp_access_trap();
            // SAFETY: the caller's promise.
            return unsafe { cpu.take_trap(op, trap) };
        }
        // SAFETY: the block goes on with the FP instruction itself.
        unsafe { Op::next(cpu, op) }
    }
    Op::new(run, insn)
}
