//! The state of one processing element, and the operations instruction handlers are written with.

use super::op::{Next, Op};

/// Marker of a synchronous exception in the making; what it is stands in [`Cpu::fault`]. Zero-sized, so that the good path
/// of a memory access costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Trap;

/// With whose rights an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The current exception level's.
    Current,
    /// EL0's (LDTR, STTR and the like; at EL0 the same as `Current`).
    Unprivileged,
}

/// Architectural state of one vCPU. Hot fields first.
#[repr(C)]
pub struct Cpu {
    /// X0..X30, ZR, SP, sink: see [`super::op::slot`]. `x[31]` is always zero.
    pub x: [u64; 34],
    /// Next instruction, valid between blocks. Inside a block use [`Cpu::pc_of`].
    pub pc: u64,
    /// Guest virtual address of the running block's first instruction.
    pub block_va: u64,
    /// N is bit 63 of this.
    pub nf: u64,
    /// Z is set when this is zero.
    pub zf: u64,
    /// C, 0 or 1.
    pub cf: u64,
    /// V, 0 or 1.
    pub vf: u64,
    /// V0..V31.
    pub v: [u128; 32],
    /// Floating-point control.
    pub fpcr: u32,
    /// Floating-point status (cumulative exception flags and QC).
    pub fpsr: u32,
}

impl Cpu {
    /// Guest virtual address of the instruction `op` stands for.
    ///
    /// # Safety
    /// `op` is inside the running block.
    #[inline(always)]
    pub unsafe fn pc_of(&self, op: *const Op) -> u64 {
        // SAFETY: the caller's promise.
        self.block_va.wrapping_add(u64::from(unsafe { (*op).off }))
    }

    /// PSTATE.{N,Z,C,V} as bits 3..0.
    #[inline]
    pub fn nzcv(&self) -> u32 {
        ((self.nf >> 63) as u32) << 3 | u32::from(self.zf == 0) << 2 | (self.cf as u32) << 1 | self.vf as u32
    }

    /// Sets PSTATE.{N,Z,C,V} from bits 3..0.
    #[inline]
    pub fn set_nzcv(&mut self, nzcv: u32) {
        self.nf = u64::from(nzcv >> 3 & 1) << 63;
        self.zf = u64::from(nzcv >> 2 & 1 ^ 1);
        self.cf = u64::from(nzcv >> 1 & 1);
        self.vf = u64::from(nzcv & 1);
    }

    /// `ConditionHolds(cond)`, cond in bits 3..0.
    #[inline(always)]
    pub fn condition_holds(&self, cond: u32) -> bool {
        let n = (self.nf as i64) < 0;
        let z = self.zf == 0;
        let (c, v) = (self.cf != 0, self.vf != 0);
        let holds = match cond >> 1 & 7 {
            0 => z,
            1 => c,
            2 => n,
            3 => v,
            4 => c && !z,
            5 => n == v,
            6 => n == v && !z,
            _ => return true,
        };
        holds != (cond & 1 == 1)
    }
}

/// The memory and exception operations every handler uses. (Signatures are the seam between the decoder's families; the
/// bodies belong to the memory and exception modules.)
impl Cpu {
    /// Ends the block with the synchronous exception recorded in `cpu.fault`.
    ///
    /// # Safety
    /// `op` is inside the running block.
    pub unsafe fn take_trap(&mut self, op: *const Op, _trap: Trap) -> Next {
        // SAFETY: the caller's promise.
        self.pc = unsafe { self.pc_of(op) };
        Next::Lookup
    }
}
