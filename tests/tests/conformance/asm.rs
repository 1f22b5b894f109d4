//! The few A64 instructions the guests of these tests are written in.

/// HVC #imm: how a guest hands over to its test.
pub fn hvc(imm: u32) -> u32 {
    0xd400_0002 | imm << 5
}

pub fn smc(imm: u32) -> u32 {
    0xd400_0003 | imm << 5
}

pub fn brk(imm: u32) -> u32 {
    0xd420_0000 | imm << 5
}

pub const NOP: u32 = 0xd503_201f;
pub const WFE: u32 = 0xd503_205f;
pub const WFI: u32 = 0xd503_207f;
pub const DSB: u32 = 0xd503_3f9f;
pub const ISB: u32 = 0xd503_3fdf;
pub const ERET: u32 = 0xd69f_03e0;
/// B to itself.
pub const SPIN: u32 = 0x1400_0000;
/// UDF #0.
pub const UDF: u32 = 0;
/// MSR DAIFClr, #2: interrupts on.
pub const IRQ_ON: u32 = 0xd503_42ff;
/// MSR DAIFClr, #1: fast interrupts on.
pub const FIQ_ON: u32 = 0xd503_41ff;

/// Xd = value.
pub fn mov(d: u32, value: u64) -> Vec<u32> {
    let part = |at: u32| (value >> (16 * at) & 0xffff) as u32;
    let mut code = vec![0xd280_0000 | part(0) << 5 | d];
    code.extend((1..4).filter(|&at| part(at) != 0).map(|at| 0xf280_0000 | at << 21 | part(at) << 5 | d));
    code
}

/// ADD Xd, Xn, #imm.
pub fn add(d: u32, n: u32, imm: u32) -> u32 {
    0x9100_0000 | imm << 10 | n << 5 | d
}

/// ADD Xd, Xn, Xm.
pub fn add_register(d: u32, n: u32, m: u32) -> u32 {
    0x8b00_0000 | m << 16 | n << 5 | d
}

/// SUBS Xd, Xn, #imm.
pub fn subs(d: u32, n: u32, imm: u32) -> u32 {
    0xf100_0000 | imm << 10 | n << 5 | d
}

/// B by that many instructions.
pub fn b(instructions: i32) -> u32 {
    0x1400_0000 | instructions as u32 & 0x3ff_ffff
}

/// B.NE by that many instructions.
pub fn b_ne(instructions: i32) -> u32 {
    0x5400_0001 | (instructions as u32 & 0x7_ffff) << 5
}

/// CBZ Xt by that many instructions.
pub fn cbz(t: u32, instructions: i32) -> u32 {
    0xb400_0000 | (instructions as u32 & 0x7_ffff) << 5 | t
}

/// MRS Xt, by the encoding op0:op1:CRn:CRm:op2 the framework uses.
pub fn mrs(t: u32, encoding: u16) -> u32 {
    0xd520_0000 | u32::from(encoding) << 5 | t
}

/// MSR, Xt.
pub fn msr(encoding: u16, t: u32) -> u32 {
    0xd500_0000 | u32::from(encoding) << 5 | t
}

/// LDR Xt, [Xn].
pub fn ldr(t: u32, n: u32) -> u32 {
    0xf940_0000 | n << 5 | t
}

/// STR Xt, [Xn].
pub fn str(t: u32, n: u32) -> u32 {
    0xf900_0000 | n << 5 | t
}

/// LDR Wt, [Xn].
pub fn ldr_w(t: u32, n: u32) -> u32 {
    0xb940_0000 | n << 5 | t
}

/// STR Wt, [Xn].
pub fn str_w(t: u32, n: u32) -> u32 {
    0xb900_0000 | n << 5 | t
}

/// DC CIVAC, Xt.
pub fn dc_civac(t: u32) -> u32 {
    0xd50b_7e20 | t
}

/// A program out of single instructions and sequences.
#[macro_export]
macro_rules! code {
    ($($part:expr),* $(,)?) => {{
        let mut code: Vec<u32> = Vec::new();
        $(code.extend($crate::asm::Part::from($part).0);)*
        code
    }};
}

/// What [`code!`] is made of.
pub struct Part(pub Vec<u32>);

impl From<u32> for Part {
    fn from(instruction: u32) -> Part {
        Part(vec![instruction])
    }
}

impl From<Vec<u32>> for Part {
    fn from(code: Vec<u32>) -> Part {
        Part(code)
    }
}
