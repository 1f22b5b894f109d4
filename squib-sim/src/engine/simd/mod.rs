//! FP, AdvSIMD and cryptographic instructions.

use super::op::Decoded;

/// Decodes an instruction of the FP/AdvSIMD data-processing group (bits 28:25 = x111), of the AdvSIMD load/store structure
/// group, or answers `None` when the encoding is unallocated.
pub fn decode(_insn: u32) -> Option<Decoded> {
    None
}
