//! Checksums and zero detection of guest memory, at the speed of memory.
//!
//! A checksum of a snapshot covers a block of up to 2 MiB. CRCs can be joined: from the checksums of its pieces follows the one of the
//! block. So whoever fetches single pages can check each by itself: get the checksums of all pages of the block, see
//! that joined they are the block's, and from then on trust each.

use crc_fast::{CrcAlgorithm, Digest};

/// Granule at which zeros become holes: the block of most file systems, and the smallest page of a guest.
pub(crate) const HOLE: usize = 4096;

static ZEROS: [u8; HOLE] = [0; HOLE];

/// CRC-64/NVME: finds every error burst of up to 64 bits, and any other with a chance of 1 in 2^64 to miss it.
///
/// ```
/// assert_eq!(squib_snapshot::digest::checksum(b"123456789"), 0xae8b_1486_0a79_9888);
/// ```
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// A checksum over several pieces.
pub(crate) struct Checksum(Digest);

impl Checksum {
    pub(crate) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64Nvme))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// As [`Self::update`] with this many zeros, which need not exist.
    pub(crate) fn update_zeros(&mut self, mut len: usize) {
        while len > 0 {
            let part = len.min(HOLE);
            self.0.update(&ZEROS[..part]);
            len -= part;
        }
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.finalize()
    }
}

/// Joins checksums: from those of two byte strings to the one of both together, when the second has [`Join::len`] bytes. Costs
/// nanoseconds, whatever the length.
///
/// ```
/// use squib_snapshot::digest::{Join, checksum};
/// let join = Join::new(9);
/// assert_eq!(join.join(checksum(b"hello, "), checksum(b"checksums")), checksum(b"hello, checksums"));
/// ```
#[derive(Clone, Debug)]
pub struct Join {
    len: usize,
    /// What `len` zero bytes make of each bit of a checksum.
    columns: [u64; 64],
}

impl Join {
    /// For second parts of `len` bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let column = |bit: usize| {
            let mut zeros = Checksum(Digest::new_with_init_state(CrcAlgorithm::Crc64Nvme, 1 << bit));
            zeros.update_zeros(len);
            !zeros.finish()
        };
        Self { len, columns: std::array::from_fn(column) }
    }

    /// Bytes of the second part.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // A length to join with, not of a container.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The checksum of both parts together.
    #[must_use]
    pub fn join(&self, first: u64, second: u64) -> u64 {
        let shifted = self.columns.iter().enumerate().map(|(bit, column)| column & (first >> bit & 1).wrapping_neg());
        shifted.fold(second, |sum, column| sum ^ column)
    }
}

/// Whether every byte is zero; stops at the first granule that is not.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Slice comparison is the platform's `memcmp`: vectorised in every build profile.
    bytes.chunks(HOLE).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// Maximal stretches of `bytes` that are not zero, in granules, as offsets.
pub(crate) fn non_zero_runs(bytes: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && is_zero(&bytes[at..bytes.len().min(at + HOLE)]) {
            at += HOLE;
        }
        if at >= bytes.len() {
            return None;
        }
        let start = at;
        while at < bytes.len() && !is_zero(&bytes[at..bytes.len().min(at + HOLE)]) {
            at += HOLE;
        }
        Some(start..at.min(bytes.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answer_and_pieces() {
        assert_eq!(checksum(b"123456789"), 0xae8b_1486_0a79_9888);
        let mut pieces = Checksum::new();
        pieces.update(b"1234");
        pieces.update(b"56789");
        assert_eq!(pieces.finish(), checksum(b"123456789"));
        let mut zeros = Checksum::new();
        zeros.update_zeros(10_000);
        assert_eq!(zeros.finish(), checksum(&[0; 10_000]));
        assert_ne!(checksum(&[0; 4096]), 0, "zeros are not invisible");
        assert_ne!(checksum(&[0; 4096]), checksum(&[0; 8192]));
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes to checksum, without the processor's help")]
    fn checksums_join() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        for cut in [0, 1, 7, 4096, 16384, 99_999, 100_000] {
            let (first, second) = bytes.split_at(cut);
            let joined = Join::new(second.len()).join(checksum(first), checksum(second));
            assert_eq!(joined, checksum(&bytes), "cut at {cut}");
            let reference = crc_fast::checksum_combine(
                CrcAlgorithm::Crc64Nvme,
                checksum(first),
                checksum(second),
                second.len() as u64,
            );
            assert_eq!(joined, reference);
        }
    }

    #[test]
    fn runs_are_exact() {
        let mut bytes = vec![0; 5 * HOLE + 10];
        assert!(is_zero(&bytes));
        assert_eq!(non_zero_runs(&bytes).count(), 0);
        bytes[HOLE + 5] = 1;
        bytes[2 * HOLE] = 1;
        bytes[5 * HOLE + 9] = 1;
        assert!(!is_zero(&bytes));
        let runs: Vec<_> = non_zero_runs(&bytes).collect();
        assert_eq!(runs, [HOLE..3 * HOLE, 5 * HOLE..5 * HOLE + 10]);
    }
}
