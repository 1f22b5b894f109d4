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

/// The bytes cannot be had, or are not right. [`PageSource::read`] tells why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a page cannot be had")]
pub struct Unexplained;

/// The content of RAM at the moment of a snapshot. Asked by many threads at once.
pub trait PageSource: Send + Sync + fmt::Debug {
    /// Bytes of RAM.
    fn size(&self) -> u64;

    /// Fills all of `buf` with the bytes of RAM from `offset` on (multiples of 16 KiB, but for the end of RAM), verified as far as
    /// the source can. Blocks, but never for ever. When it fails, the content of `buf` means nothing.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError>;

    /// As [`PageSource::read`], for one page (`offset` is a multiple of 16 KiB, `buf` as long as the page), for a thread that answers
    /// another one's exception. That one may have been stopped anywhere, in the allocator, in a print, in [`PageSource::read`] even, and
    /// goes on when this returns. So an implementation allocates and frees nothing, prints nothing, waits for no lock that a thread
    /// can hold while it does such things, and touches no absent memory; not on its way to an error either. Buffers and whatever else it
    /// takes are made with the source. Called by two threads at once, beside threads that read.
    ///
    /// When it fails, a page that is needed ends the process: so it is as patient as [`PageSource::read`].
    fn read_quietly(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, Unexplained>;

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
