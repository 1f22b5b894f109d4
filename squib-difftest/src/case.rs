//! One test case and its outcome, and the addresses both sides agree on.
//!
//! A [`State`] is kept in the layout of the Linux AArch64 signal frame (`struct sigcontext` followed by
//! `struct fpsimd_context`): the reference program then loads a case by returning from a signal and saves its outcome by
//! taking one, without an instruction of its own in between.

/// Cases that travel together.
pub const BATCH: usize = 128;
/// Code bytes of one case.
pub const SLOT: usize = 512;
/// Where the code of a batch lies: case `i` starts at `CODE_BASE + i * SLOT`.
pub const CODE_BASE: u64 = 0x5000_0000;
/// Bytes of code in a batch.
pub const CODE_LEN: usize = BATCH * SLOT;
/// Readable and writable memory around the scratch window.
pub const SCRATCH_BASE: u64 = 0x6000_0000;
/// Its size; the page behind it is not mapped.
pub const SCRATCH_LEN: usize = 0x8000;
/// Memory full of zeroes that can be read but not written.
pub const READ_ONLY_BASE: u64 = SCRATCH_BASE + 0x10_0000;
/// Its size.
pub const READ_ONLY_LEN: usize = 0x4000;
/// The compared bytes: a window over a page boundary (of 4 and of 16 KiB pages).
pub const WINDOW_BASE: u64 = SCRATCH_BASE + 0x4000 - WINDOW_LEN as u64 / 2;
/// Bytes in the window.
pub const WINDOW_LEN: usize = 1024;
/// `BRK #0`: ends every sequence, and fills the rest of its slot.
pub const BRK: u32 = 0xd420_0000;

/// Bytes of a [`State`] on the wire.
pub const FRAME_LEN: usize = 816;
/// Bytes of one case in a batch: frame and window.
pub const INPUT_LEN: usize = FRAME_LEN + WINDOW_LEN;
/// Bytes of one outcome: signal number (and padding), frame and window.
pub const OUTPUT_LEN: usize = 16 + INPUT_LEN;

const FPSIMD_MAGIC: u32 = 0x4650_8001;

/// The registers a sequence can see and change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// X0..X30.
    pub x: [u64; 31],
    /// SP_EL0.
    pub sp: u64,
    /// Program counter.
    pub pc: u64,
    /// NZCV in bits 31:28.
    pub nzcv: u32,
    /// Floating-point control.
    pub fpcr: u32,
    /// Floating-point status.
    pub fpsr: u32,
    /// V0..V31.
    pub v: [u128; 32],
}

/// Initial state, memory and code.
#[derive(Clone, Debug)]
pub struct Case {
    /// Registers at the first instruction. `pc` is the start of the case's slot.
    pub state: State,
    /// The scratch window.
    pub window: Vec<u8>,
    /// Instructions; `BRK #0` follows.
    pub code: Vec<u32>,
}

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It met a `BRK`.
    Breakpoint,
    /// An UNDEFINED instruction.
    Undefined,
    /// An abort of a data access or of a fetch.
    Abort,
    /// An alignment fault of a data access.
    Alignment,
    /// A PC alignment fault.
    PcAlignment,
    /// Anything else, with the side's own code (signal number, syndrome).
    Other(u64),
}

/// What one side made of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Registers at the end; `pc` is the instruction that ended it.
    pub state: State,
    /// The faulting address, when `end` is an abort.
    pub fault: u64,
    /// The scratch window.
    pub window: Vec<u8>,
}

impl Case {
    /// The code as it lies in its slot: the instructions, then breakpoints.
    pub fn slot(&self) -> Vec<u8> {
        let words = self.code.iter().copied().chain(std::iter::repeat(BRK)).take(SLOT / 4);
        words.flat_map(u32::to_le_bytes).collect()
    }

    /// The same case, ending after its first `n` instructions.
    pub fn prefix(&self, n: usize) -> Case {
        Case { code: self.code[..n].to_vec(), ..self.clone() }
    }
}

impl State {
    /// Appends the state as a signal frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&0u64.to_le_bytes());
        for x in self.x.iter().chain([&self.sp, &self.pc, &u64::from(self.nzcv)]) {
            out.extend_from_slice(&x.to_le_bytes());
        }
        out.resize(start + 288, 0);
        for word in [FPSIMD_MAGIC, 528, self.fpsr, self.fpcr] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for v in &self.v {
            out.extend_from_slice(&v.to_le_bytes());
        }
        debug_assert_eq!(out.len() - start, FRAME_LEN);
    }

    /// Reads a signal frame back: the state and the fault address.
    pub fn decode(frame: &[u8]) -> (State, u64) {
        let u32_at = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().expect("eight bytes"));
        let u128_at = |at: usize| u128::from_le_bytes(frame[at..at + 16].try_into().expect("sixteen bytes"));
        let state = State {
            x: std::array::from_fn(|i| u64_at(8 + 8 * i)),
            sp: u64_at(256),
            pc: u64_at(264),
            nzcv: u64_at(272) as u32 & 0xf000_0000,
            fpsr: u32_at(296),
            fpcr: u32_at(300),
            v: std::array::from_fn(|i| u128_at(304 + 16 * i)),
        };
        (state, u64_at(0))
    }
}
