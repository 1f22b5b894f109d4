//! Decoding of A64, and the handlers of everything but the system group, and FP and AdvSIMD data processing and structure
//! accesses.

mod branch;
mod crc;
mod dp_immediate;
mod dp_register;
mod fuse;
mod handler;
mod load_store;
pub mod pauth;

pub use fuse::fuse;

use super::op::Decoded;
use handler::bits;

/// Decodes one instruction; `None` when it is unallocated, or belongs to a feature the ID registers do not announce.
///
/// Exception generation and system instructions are decoded by their own module.
pub fn decode(insn: u32) -> Option<Decoded> {
    match bits(insn, 28, 25) {
        8 | 9 => dp_immediate::decode(insn),
        10 | 11 => branch::decode(insn),
        5 | 13 => dp_register::decode(insn),
        4 | 6 | 12 | 14 => load_store::decode(insn),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
