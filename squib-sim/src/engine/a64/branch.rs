//! Branches (C4.1.94): immediate, conditional, compare and test, register.
//!
//! They go straight on with the next block where that is possible ([`Cpu::chain`], [`Cpu::chain_indirect`]).

use super::handler::{bit, bits, end_handlers, pick, sign_extend, sized};
use super::pauth;
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Decodes the branches of the group `insn<28:26>` = 101, and pointer authentication in the hint space; exception generation
/// and all other system instructions have a module of their own.
pub(super) fn decode(insn: u32) -> Option<Decoded> {
    let op = match bits(insn, 31, 29) {
        0 | 4 => {
            let run: Handler = if bit(insn, 31) { bl } else { b };
            Op { imm: sign_extend(insn << 2, 28), ..Op::new(run, insn) }
        }
        1 | 5 => compare_or_test(insn),
        2 if insn & 0xff00_0010 == 0x5400_0000 => {
            let offset = sign_extend(bits(insn, 23, 5) << 2, 21);
            Op { imm: offset, ..Op::new(pick!(b_cond, [insn & 15; 16]), insn) }
        }
        6 if bit(insn, 25) => register(insn)?,
        6 => return pauth::decode_hint(insn),
        _ => return None,
    };
    Some(Decoded::end(op))
}

fn compare_or_test(insn: u32) -> Op {
    let (rn, nonzero) = (slot::src(insn), bit(insn, 24));
    if bit(insn, 25) {
        let imm2 = bits(insn, 31, 31) << 5 | bits(insn, 23, 19);
        let imm = sign_extend(bits(insn, 18, 5) << 2, 16);
        return Op { imm, imm2, rn, ..Op::new(pick!(test_bit, [nonzero; bool]), insn) };
    }
    let imm = sign_extend(bits(insn, 23, 5) << 2, 21);
    Op { imm, rn, ..Op::new(pick!(compare_zero, [bit(insn, 31); bool], [nonzero; bool]), insn) }
}

fn register(insn: u32) -> Option<Op> {
    let (opc, op3, op4) = (bits(insn, 24, 21), bits(insn, 15, 10), bits(insn, 4, 0));
    if bits(insn, 20, 16) != 31 {
        return None;
    }
    let run: Handler = match (opc, op3, op4) {
        (0, 0, 0) => br,
        (1, 0, 0) => blr,
        (2, 0, 0) => br,
        (0 | 1 | 2 | 8 | 9, 2 | 3, _) => return pauth::decode_branch(insn),
        _ => return None,
    };
    Some(Op { rn: slot::src(insn >> 5), ..Op::new(run, insn) })
}

end_handlers! {
    fn b(cpu, o) {
        cpu.pc = cpu.pc_of(o).wrapping_add(o.imm);
        cpu.chain::<0>()
    }
    fn bl(cpu, o) {
        let pc = cpu.pc_of(o);
        cpu.x[30] = pc.wrapping_add(4);
        cpu.pc = pc.wrapping_add(o.imm);
        cpu.chain::<0>()
    }
    fn b_cond<const COND: u32>(cpu, o) { cpu.branch_if(cpu.pc_of(o), o.imm, cpu.condition_holds(COND)) }
    fn compare_zero<const SF: bool, const NONZERO: bool>(cpu, o) {
        cpu.branch_if(cpu.pc_of(o), o.imm, (sized::<SF>(cpu.reg(o.rn)) != 0) == NONZERO)
    }
    fn test_bit<const NONZERO: bool>(cpu, o) {
        cpu.branch_if(cpu.pc_of(o), o.imm, (cpu.reg(o.rn).wrapping_shr(o.imm2) & 1 != 0) == NONZERO)
    }
    /// BR, and RET which differs from it only in what it tells a branch predictor.
    fn br(cpu, o) { cpu.branch_to(cpu.reg(o.rn)) }
    fn blr(cpu, o) {
        let target = cpu.reg(o.rn);
        cpu.x[30] = cpu.pc_of(o).wrapping_add(4);
        cpu.branch_to(target)
    }
}

impl Cpu {
    /// Ends the block with a conditional direct branch at `pc`.
    ///
    /// # Safety
    /// A handler calls it, last.
    #[inline(always)]
    pub(super) unsafe fn branch_if(&mut self, pc: u64, offset: u64, condition: bool) -> Next {
        // SAFETY: the caller's promise.
        unsafe {
            if condition {
                self.pc = pc.wrapping_add(offset);
                self.chain::<0>()
            } else {
                self.pc = pc.wrapping_add(4);
                self.chain::<1>()
            }
        }
    }

    /// Ends the block with a branch to an address from a register.
    ///
    /// # Safety
    /// A handler calls it, last.
    #[inline(always)]
    pub(super) unsafe fn branch_to(&mut self, target: u64) -> Next {
        self.pc = target;
        // SAFETY: the caller's promise.
        unsafe { self.chain_indirect() }
    }
}
