//! Where absent pages come from.

use std::fmt;

use thiserror::Error;

/// How a page's bytes were come by, for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Known to be zero, without any I/O.
    Zero,
    /// Read from a file.
    File,
    /// Fetched from a page server.
    Server,
}

/// Why a source could not give a page.
#[derive(Debug, Error)]
pub enum SourceError {
    /// For now: the server is away. The page may be asked for again once the machine is resumed.
    #[error("{0}")]
    Unavailable(String),
    /// For now: the server answers, with bytes that are not the snapshot's. Another one may be at its place when the page is asked
    /// for again.
    #[error("{0}")]
    Wrong(String),
    /// For good: the bytes are wrong, or the source says it does not have them.
    #[error("{0}")]
    Damaged(String),
}

/// What came of a read that may neither allocate nor wait for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// The bytes are in the buffer.
    Done(Origin),
    /// They cannot be had; [`PageSource::read`] tells why.
    Failed,
    /// This takes [`PageSource::read`].
    Unable,
}

/// The content of RAM at the moment of a snapshot. Asked by many threads at once.
pub trait PageSource: Send + Sync + fmt::Debug {
    /// Bytes of RAM.
    fn size(&self) -> u64;

    /// Fills all of `buf` with the bytes of RAM from `offset` on (multiples of 16 KiB, but for the end of RAM), verified as far as
    /// the source can. Blocks, but never for ever. When it fails, the content of `buf` means nothing.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError>;

    /// As [`PageSource::read`], for one page, for a thread that answers another one's exception: that one may hold any lock, the
    /// allocator's included, so this allocates nothing, waits for no lock, prints nothing, and does not explain itself.
    fn read_quietly(&self, offset: u64, buf: &mut [u8]) -> Quiet {
        let _ = (offset, buf);
        Quiet::Unable
    }

    /// These bytes of RAM will be asked for soon. A hint, given once for each block of 2 MiB: must not wait for what it asks for.
    fn expect(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// How far from `offset` on, at most `len` bytes, RAM is known to be zero without asking anyone. Allocates nothing and takes no lock.
    fn known_zero(&self, offset: u64, len: u64) -> u64 {
        let _ = (offset, len);
        0
    }
}
