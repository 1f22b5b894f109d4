//! Floating-point arithmetic of half, single and double precision, exactly as the `FP*` functions of the Arm ARM's
//! pseudocode define it: results, NaN propagation, flushing, default NaN and the cumulative flags of FPSR.
//!
//! One generic integer implementation serves the three formats; values travel as raw bits in a `u64`. The most frequent
//! operations first try the host's arithmetic (module `fast`), which answers only where it cannot differ.

pub mod arith;
pub mod compare;
pub mod convert;
pub mod estimate;
mod fast;
mod round;

pub use round::{D, Format, H, Rounding, S};

/// FPSR.IOC, invalid operation.
pub const IOC: u32 = 1;
/// FPSR.DZC, division by zero.
pub const DZC: u32 = 1 << 1;
/// FPSR.OFC, overflow.
pub const OFC: u32 = 1 << 2;
/// FPSR.UFC, underflow.
pub const UFC: u32 = 1 << 3;
/// FPSR.IXC, inexact.
pub const IXC: u32 = 1 << 4;
/// FPSR.IDC, denormal input flushed.
pub const IDC: u32 = 1 << 7;

const FZ16: u32 = 1 << 19;
const RMODE: u32 = 3 << 22;
const FZ: u32 = 1 << 24;
const DN: u32 = 1 << 25;
const AHP: u32 = 1 << 26;

/// What an operation reads (FPCR) and accumulates (FPSR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Env {
    /// Control: RMode, FZ, FZ16, DN, AHP.
    pub fpcr: u32,
    /// Flags so far; operations only set bits.
    pub fpsr: u32,
}

impl Env {
    #[inline(always)]
    fn raise(&mut self, flags: u32) {
        self.fpsr |= flags;
    }

    /// `FPRoundingMode`.
    #[inline]
    pub fn rounding(&self) -> Rounding {
        match self.fpcr >> 22 & 3 {
            0 => Rounding::TieEven,
            1 => Rounding::PosInf,
            2 => Rounding::NegInf,
            _ => Rounding::Zero,
        }
    }
}

#[cfg(test)]
mod tests;
