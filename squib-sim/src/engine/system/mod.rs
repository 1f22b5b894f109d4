//! Exception generation and system instructions (Arm ARM C4.1.94: the encodings `1101 0100`, `1101 0101`, and exception
//! return).

use super::op::Decoded;

/// The encoding is one of this module's.
pub fn claims(insn: u32) -> bool {
    match insn >> 24 {
        0xd4 => true,
        // HINT #7, #8 to #15, #24 to #31 are pointer authentication.
        0xd5 => !(insn & 0xffff_f01f == 0xd503_201f && matches!(insn >> 5 & 0x7f, 7 | 8..=15 | 24..=31)),
        // ERET, ERETAA, ERETAB, DRPS.
        0xd6 => insn >> 21 & 0x7ff == 0x6b4 || insn >> 21 & 0x7ff == 0x6b5,
        _ => false,
    }
}

/// Decodes one instruction; `None` when it is unallocated.
pub fn decode(insn: u32) -> Option<Decoded> {
    let _ = insn;
    None
}
