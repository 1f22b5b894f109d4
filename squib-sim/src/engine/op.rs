//! One decoded instruction, and how control passes from one to the next.
//!
//! A block is a straight run of [`Op`]s whose last one always ends the block. A handler finishes by calling the next op's
//! handler ([`Op::next`]); with optimisation that call is a tail jump (direct threading), without it the stack grows by one
//! frame an instruction and is bounded by [`MAX_BLOCK_OPS`]: correctness never depends on the optimisation.

use super::cpu::Cpu;

/// The longest block, in ops. Bounds the native stack where tail calls are not made.
pub const MAX_BLOCK_OPS: usize = 64;

/// What a handler answers to the run loop once the block has ended. `cpu.pc` holds the next guest address in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Next {
    /// Look the next block up by `cpu.pc`: indirect branch, exception, exception return, context change.
    Lookup,
    /// The block's direct successor (branch taken, or fall-through at the end of a block): may be chained.
    Taken,
    /// The not-taken successor of a conditional branch: may be chained.
    NotTaken,
    /// Leave the run loop: `cpu.exit` says why.
    Stop,
}

/// Executes one op, and through [`Op::next`] the rest of its block.
///
/// # Safety
/// The pointer is to an op inside a live block whose last op ends the block.
pub type Handler = unsafe fn(&mut Cpu, *const Op) -> Next;

/// One decoded instruction. Register fields are slots of [`Cpu::x`](super::cpu::Cpu::x), resolved at decode time
/// (see [`slot`]), so that handlers never test for register 31. The meaning of `imm` and `imm2` is the handler's own.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Op {
    /// The handler.
    pub run: Handler,
    /// First immediate (offset, mask, constant).
    pub imm: u64,
    /// The instruction word: for handlers of rare instructions that take their fields from it, and for fault syndromes.
    pub insn: u32,
    /// Second immediate (shift amount, condition, lane, ...).
    pub imm2: u32,
    /// Byte offset of the instruction from the start of its block (set by the block builder).
    pub off: u16,
    /// Destination (or transfer) register slot.
    pub rd: u8,
    /// First source (or base) register slot.
    pub rn: u8,
    /// Second source register slot.
    pub rm: u8,
    /// Third source (or second transfer) register slot.
    pub ra: u8,
}

impl Op {
    /// An op with every operand zero; the decoder fills in what its handler uses.
    pub fn new(run: Handler, insn: u32) -> Op {
        Op { run, imm: 0, insn, imm2: 0, off: 0, rd: 0, rn: 0, rm: 0, ra: 0 }
    }

    /// Goes on to the op behind `op`.
    ///
    /// # Safety
    /// `op` is inside a live block and not its last op.
    #[inline(always)]
    pub unsafe fn next(cpu: &mut Cpu, op: *const Op) -> Next {
        // SAFETY: the caller's promise: the block goes on behind `op`.
        unsafe {
            let op = op.add(1);
            ((*op).run)(cpu, op)
        }
    }
}

/// A decoded instruction and what it means for the block around it.
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    /// The op itself.
    pub op: Op,
    /// It ends the block (branch, exception-generating, anything that may change the execution context). Its handler must
    /// return instead of calling [`Op::next`].
    pub ends_block: bool,
    /// It needs FP/SIMD access: the block builder puts the CPACR_EL1.FPEN check in front.
    pub needs_fp: bool,
}

impl Decoded {
    /// An ordinary op, in the middle of a block.
    pub fn plain(op: Op) -> Decoded {
        Decoded { op, ends_block: false, needs_fp: false }
    }
    /// An op that ends its block.
    pub fn end(op: Op) -> Decoded {
        Decoded { op, ends_block: true, needs_fp: false }
    }
    /// An ordinary op on FP/SIMD registers.
    pub fn fp(op: Op) -> Decoded {
        Decoded { op, ends_block: false, needs_fp: true }
    }
}

/// Slots of the general-purpose register file.
pub mod slot {
    /// Reads as zero. Never written.
    pub const ZR: u8 = 31;
    /// The current stack pointer.
    pub const SP: u8 = 32;
    /// Where writes to XZR go.
    pub const SINK: u8 = 33;

    /// Source register, 31 = ZR.
    #[inline]
    pub fn src(n: u32) -> u8 {
        (n & 31) as u8
    }
    /// Destination register, 31 = ZR.
    #[inline]
    pub fn dst(n: u32) -> u8 {
        if n & 31 == 31 { SINK } else { (n & 31) as u8 }
    }
    /// Source or destination, 31 = SP.
    #[inline]
    pub fn sp(n: u32) -> u8 {
        if n & 31 == 31 { SP } else { (n & 31) as u8 }
    }
}
