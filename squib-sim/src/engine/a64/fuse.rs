//! Two instructions in one op: a comparison and the conditional branch on it, the most frequent pair of all.
//!
//! Neither can fault, and the branch ends its block, so nothing can come between them. The flags are set as ever.

use super::handler::{bit, bits, end_handlers, pick};
use crate::engine::cpu::Cpu;
use crate::engine::op::{Next, Op, slot};

/// What sets the flags, a const parameter of the handler.
mod kind {
    pub const SUBS_IMM: u32 = 0;
    pub const SUBS_REG: u32 = 1;
    pub const ANDS_IMM: u32 = 2;
    pub const ANDS_REG: u32 = 3;
}

/// The op for `first` and `second`, the instruction behind it, if they are such a pair.
pub fn fuse(first: &Op, second: &Op) -> Option<Op> {
    // B.cond.
    if second.insn & 0xff00_0010 != 0x5400_0000 {
        return None;
    }
    let kind = match (first.insn & 0x7f80_0000, first.insn & 0x7fe0_fc00) {
        (0x7100_0000, _) => kind::SUBS_IMM,
        (0x7200_0000, _) => kind::ANDS_IMM,
        (_, 0x6b00_0000) => kind::SUBS_REG,
        (_, 0x6a00_0000) => kind::ANDS_REG,
        _ => return None,
    };
    let (sf, writes, cond) = (bit(first.insn, 31), first.rd != slot::SINK, bits(second.insn, 3, 0));
    let run = pick!(compare_and_branch, [kind; 4], [sf; bool], [writes; bool], [cond; 16]);
    // The branch's offset counts from the second instruction. It has 21 bits.
    Some(Op { run, imm2: second.imm as u32, ..*first })
}

end_handlers! {
    fn compare_and_branch<const KIND: u32, const SF: bool, const WRITES: bool, const COND: u32>(cpu, o) {
        let a = cpu.reg(o.rn);
        let b = if matches!(KIND, kind::SUBS_IMM | kind::ANDS_IMM) { o.imm } else { cpu.reg(o.rm) };
        let result = if matches!(KIND, kind::SUBS_IMM | kind::SUBS_REG) {
            cpu.subs::<SF>(a, b)
        } else {
            let result = super::handler::sized::<SF>(a & b);
            cpu.set_nz_logical::<SF>(result);
            result
        };
        if WRITES {
            cpu.set_reg(o.rd, result);
        }
        let pc = cpu.pc_of(o).wrapping_add(4);
        cpu.branch_if(pc, o.imm2.cast_signed() as u64, cpu.condition_holds(COND))
    }
}
