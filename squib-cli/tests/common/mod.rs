//! Guests of a few instructions.

/// An `Image` (Linux' Documentation/arch/arm64/booting.rst) that executes `code`.
pub fn kernel(code: &[u32]) -> Vec<u8> {
    let mut image = vec![0; 4096];
    // `b` over the header.
    image[..4].copy_from_slice(&0x1400_0010u32.to_le_bytes());
    image[16..24].copy_from_slice(&(1u64 << 20).to_le_bytes());
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    for (word, place) in code.iter().zip(image[0x40..].chunks_exact_mut(4)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    image
}

/// A kernel that is a branch to itself.
pub fn spinning_kernel() -> Vec<u8> {
    kernel(&[0x1400_0000])
}
