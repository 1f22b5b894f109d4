//! The A64 encodings of the features the engine implements, as tables of bit patterns.
//!
//! The tables serve twice: sequences are drawn from them, and an instruction word that no row matches must be UNDEFINED.
//! The names are the Arm ARM's mnemonics (section C4.1, "A64 instruction set encoding").

mod beyond;
mod fp;
mod integer;
mod memory;
mod simd;
mod simd_misc;

use std::sync::LazyLock;

pub use beyond::{beyond, comparable, excluded};

/// What a campaign runs at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Data processing, immediate and register.
    Integer,
    /// Branches, within the sequence.
    Branch,
    /// Loads and stores of general-purpose and of single FP/SIMD registers, and pairs.
    Memory,
    /// Exclusives, acquire/release, LSE atomics.
    Atomic,
    /// Scalar floating point.
    Fp,
    /// AdvSIMD on integers, permutations.
    Simd,
    /// AdvSIMD on floating-point values.
    SimdFp,
    /// AES, SHA, PMULL.
    Crypto,
    /// LD1..LD4, ST1..ST4.
    Structure,
    /// NZCV, FPCR, FPSR, barriers, hints.
    System,
}

/// How an instruction addresses memory, for the generator to aim it at the scratch window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// No memory.
    None,
    /// `[Xn]`, nothing else; also LD1 and the like with post-index.
    Base,
    /// imm12 scaled by the access size.
    Scaled,
    /// imm9, offset, pre- or post-indexed or unprivileged.
    Imm9,
    /// imm7 scaled, bits 24:23 select the mode.
    Pair,
    /// Extended or shifted register.
    Register,
    /// PC-relative.
    Literal,
    /// A branch of the sequence; the generator sets the target.
    Branch,
}

/// One row: an instruction, or a family that differs only in operand fields.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The mnemonic.
    pub name: &'static str,
    /// Where it belongs.
    pub class: Class,
    /// Bits that are fixed.
    pub mask: u32,
    /// Their values.
    pub value: u32,
    /// Low bit positions of the 5-bit register fields.
    pub registers: [Option<u8>; 4],
    /// Allowed values of bits 23:22 as a bit mask.
    pub sizes: u8,
    /// The rest of what makes the encoding allocated.
    pub valid: fn(u32) -> bool,
    /// Addressing.
    pub form: Form,
}

impl Row {
    /// The word is an allocated encoding of this row.
    pub fn matches(&self, insn: u32) -> bool {
        insn & self.mask == self.value && self.sizes >> field(insn, 23, 22) & 1 == 1 && (self.valid)(insn)
    }
}

/// Bits `hi:lo` of an instruction.
pub fn field(insn: u32, hi: u32, lo: u32) -> u32 {
    insn >> lo & ((1u64 << (hi - lo + 1)) - 1) as u32
}

/// Bit `n` of an instruction.
pub fn bit(insn: u32, n: u32) -> bool {
    insn >> n & 1 == 1
}

fn always(_: u32) -> bool {
    true
}

/// Reads a pattern of 32 characters, spaces ignored: `0` and `1` are fixed, five of the same letter out of `dnmatsu` are a
/// register field, everything else is free.
fn row(name: &'static str, class: Class, pattern: &str) -> Row {
    let bits: Vec<u8> = pattern.bytes().filter(|b| *b != b' ').collect();
    assert_eq!(bits.len(), 32, "{name}: {pattern}");
    let mut row =
        Row { name, class, mask: 0, value: 0, registers: [None; 4], sizes: 15, valid: always, form: Form::None };
    for (i, b) in bits.iter().enumerate() {
        let bit = 1 << (31 - i);
        match b {
            b'0' => row.mask |= bit,
            b'1' => {
                row.mask |= bit;
                row.value |= bit;
            }
            _ => {}
        }
    }
    for (slot, low) in row.registers.iter_mut().zip([0u8, 5, 10, 16]) {
        let end = 31 - usize::from(low);
        let letter = bits[end];
        *slot = (b"dnmatsu".contains(&letter) && bits[end - 4..=end].iter().all(|b| *b == letter)).then_some(low);
    }
    row
}

impl Row {
    fn when(self, valid: fn(u32) -> bool) -> Row {
        Row { valid, ..self }
    }
    fn form(self, form: Form) -> Row {
        Row { form, ..self }
    }
    fn sizes(self, sizes: u8) -> Row {
        Row { sizes, ..self }
    }
}

/// Every row.
pub fn rows() -> &'static [Row] {
    static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
        let mut rows = Vec::new();
        integer::rows(&mut rows);
        memory::rows(&mut rows);
        fp::rows(&mut rows);
        simd::rows(&mut rows);
        simd_misc::rows(&mut rows);
        rows
    });
    &ROWS
}

/// The row an instruction word belongs to.
pub fn find(insn: u32) -> Option<&'static Row> {
    rows().iter().find(|row| row.matches(insn))
}
