//! Pages from the files of a snapshot: a pair, or a base with its diffs.

use squib_snapshot::{Chain, SnapshotError};

use super::source::{Origin, PageSource, SourceError};

/// The RAM of a chain of snapshots, every byte compared with its checksum as it arrives.
///
/// The files stay open, so a save that replaces them by name (the saver's rename) leaves the source what it was.
#[derive(Debug)]
pub struct FileSource {
    chain: Chain,
}

impl FileSource {
    /// The RAM that `chain` restores.
    pub fn new(chain: Chain) -> FileSource {
        FileSource { chain }
    }

    /// The chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

impl PageSource for FileSource {
    fn size(&self) -> u64 {
        self.chain.ram_size()
    }

    /// A file that is short or altered is damaged for good. An error of the system (a network file system that is away, say)
    /// may pass, unless it says that the file ends too early.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError> {
        if self.chain.is_known_zero(offset, buf.len() as u64) {
            buf.fill(0);
            return Ok(Origin::Zero);
        }
        match self.chain.read_checked(offset, buf) {
            Ok(()) => Ok(Origin::File),
            Err(SnapshotError::MemoryIo(e)) if e.kind() != std::io::ErrorKind::UnexpectedEof => {
                Err(SourceError::Unavailable(e.to_string()))
            }
            Err(SnapshotError::MemoryIo(e)) => Err(SourceError::Damaged(format!("the memory file is too short: {e}"))),
            Err(error) => Err(SourceError::Damaged(error.to_string())),
        }
    }

    fn known_zero(&self, offset: u64, len: u64) -> u64 {
        if self.chain.is_known_zero(offset, len) { len } else { 0 }
    }
}
