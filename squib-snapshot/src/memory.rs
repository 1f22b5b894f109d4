//! Guest memory: where its bytes come from ([`PageReader`]) and the memory file they go to ([`MemoryWriter`]).
//!
//! A memory file is raw RAM: byte `n` is guest RAM at `ram_start + n`, nothing before it and nothing after it, so that it
//! can be mapped as it is.

use std::io;
use std::path::Path;

use crate::atomic::AtomicWriter;
use crate::dirty::{DirtyBitmap, PageSet};
use crate::error::{Result, SnapshotError};
use crate::image::{self, Plan, UNIT};

/// The two kinds of memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemorySnapshotKind {
    /// All of RAM.
    Full,
    /// Only the pages written since another snapshot.
    Diff,
}

/// Guest RAM that can be read at any offset.
///
/// ```
/// use squib_snapshot::{PageReader, VecPageReader};
/// let ram = VecPageReader::new(vec![7; 32768]);
/// let mut page = [0; 16384];
/// ram.read_at(16384, &mut page)?;
/// assert_eq!(page, [7; 16384]);
/// let as_object: &dyn PageReader = &ram; // every function of this crate takes this too
/// assert!(as_object.slice_at(0, 32768).is_some(), "in memory: nothing is copied");
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait PageReader {
    /// Fills all of `buf` with the RAM at this offset from its start.
    ///
    /// # Errors
    /// The implementor's; reported as [`SnapshotError::MemoryIo`].
    fn read_at(&self, offset_from_ram_start: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The same bytes in place, for sources that have them in memory and at rest: they are then checksummed and written
    /// without a copy. `None` (the default) makes the caller use [`PageReader::read_at`].
    fn slice_at(&self, offset_from_ram_start: u64, len: usize) -> Option<&[u8]> {
        let _ = (offset_from_ram_start, len);
        None
    }

    /// Whether these bytes are known to be zero without reading them (memory never touched): a full image then leaves a hole.
    /// `false` (the default) is always right.
    fn is_known_zero(&self, offset_from_ram_start: u64, len: u64) -> bool {
        let _ = (offset_from_ram_start, len);
        false
    }
}

impl<R: PageReader + ?Sized> PageReader for &R {
    fn is_known_zero(&self, offset_from_ram_start: u64, len: u64) -> bool {
        (**self).is_known_zero(offset_from_ram_start, len)
    }

    fn read_at(&self, offset_from_ram_start: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset_from_ram_start, buf)
    }

    fn slice_at(&self, offset_from_ram_start: u64, len: usize) -> Option<&[u8]> {
        (**self).slice_at(offset_from_ram_start, len)
    }
}

impl PageReader for [u8] {
    fn read_at(&self, offset_from_ram_start: u64, buf: &mut [u8]) -> io::Result<()> {
        let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        let start = usize::try_from(offset_from_ram_start).map_err(|_| invalid("offset > usize::MAX"))?;
        let end = start.checked_add(buf.len()).ok_or_else(|| invalid("offset overflow"))?;
        let bytes = self
            .get(start..end)
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "read past end of memory"))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn slice_at(&self, offset_from_ram_start: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset_from_ram_start).ok()?;
        self.get(start..start.checked_add(len)?)
    }
}

impl PageReader for Vec<u8> {
    fn read_at(&self, offset_from_ram_start: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset_from_ram_start, buf)
    }

    fn slice_at(&self, offset_from_ram_start: u64, len: usize) -> Option<&[u8]> {
        self.as_slice().slice_at(offset_from_ram_start, len)
    }
}

/// RAM in a `Vec`, for tests and tools.
#[derive(Debug)]
pub struct VecPageReader {
    bytes: Vec<u8>,
}

impl VecPageReader {
    /// Takes the bytes of RAM.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl PageReader for VecPageReader {
    fn read_at(&self, offset_from_ram_start: u64, buf: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset_from_ram_start, buf)
    }

    fn slice_at(&self, offset_from_ram_start: u64, len: usize) -> Option<&[u8]> {
        self.bytes.slice_at(offset_from_ram_start, len)
    }
}

/// Writes one memory file and puts it in place atomically. A memory file *and* its state are written by
/// [`save_pair`](crate::save_pair).
///
/// ```
/// use squib_snapshot::{MemoryWriter, VecPageReader};
/// # let dir = tempfile::tempdir()?;
/// # let dest = dir.path().join("vm.mem");
/// let ram = VecPageReader::new(vec![1; 65536]);
/// let mut writer = MemoryWriter::open(&dest, 65536, 16384)?;
/// writer.write_full(&ram)?;
/// writer.commit()?;
/// assert_eq!(std::fs::read(&dest)?, vec![1; 65536]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MemoryWriter {
    file: AtomicWriter,
    ram_size: u64,
    page_size: u64,
}

impl MemoryWriter {
    /// Creates the temporary file for `ram_size` bytes of RAM, read and written in pieces of `page_size`.
    ///
    /// # Errors
    /// Those of [`AtomicWriter::open`]; [`SnapshotError::InvalidPath`] if `page_size` is 0.
    pub fn open(dest: &Path, ram_size: u64, page_size: u64) -> Result<Self> {
        if page_size == 0 {
            return Err(SnapshotError::InvalidPath(format!("page_size must be a power of two: {page_size}")));
        }
        Ok(Self { file: AtomicWriter::open(dest)?, ram_size, page_size })
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.ram_size
    }

    /// Bytes per piece.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Writes all of RAM. Stretches of zeros become holes where the file system has them.
    ///
    /// # Errors
    /// [`SnapshotError::MemoryIo`] if the reader or the file fails.
    pub fn write_full<R: PageReader + ?Sized>(&mut self, reader: &R) -> Result<()> {
        self.write(reader, None)
    }

    /// Writes the pages that `dirty` marks, zero or not, each at its own offset, and leaves the rest as holes. Returns the
    /// number of `page_size` pieces written. The bitmap keeps its bits.
    ///
    /// # Errors
    /// [`SnapshotError::InvalidPath`] if the bitmap is not one of this RAM, or its page is not a multiple of this
    /// writer's; [`SnapshotError::MemoryIo`] if the reader or the file fails.
    pub fn write_diff<R: PageReader + ?Sized>(&mut self, reader: &R, dirty: &DirtyBitmap) -> Result<u64> {
        check_diff_geometry(dirty, self.ram_size, self.page_size)?;
        let pages = dirty.snapshot();
        self.write(reader, Some(&pages))?;
        Ok(pieces(&pages, self.ram_size, self.page_size))
    }

    fn write<R: PageReader + ?Sized>(&self, reader: &R, pages: Option<&PageSet>) -> Result<()> {
        let plan = Plan {
            dest: self.file.dest_path(),
            ram_size: self.ram_size,
            pages,
            block_size: UNIT,
            read_size: self.page_size,
        };
        image::write(self.file.file(), reader, &plan).map(drop).map_err(SnapshotError::MemoryIo)
    }

    /// Puts the file in place.
    ///
    /// # Errors
    /// Those of [`AtomicWriter::commit`].
    pub fn commit(self) -> Result<()> {
        self.file.commit()
    }
}

/// A diff's bitmap must cover the RAM in pages that are multiples of the writer's.
pub(crate) fn check_diff_geometry(dirty: &DirtyBitmap, ram_size: u64, page_size: u64) -> Result<()> {
    let bitmap_page = dirty.page_size();
    if dirty.ram_size() != ram_size {
        return Err(SnapshotError::InvalidPath(format!(
            "diff bitmap covers {} bytes, memory file expects {ram_size}",
            dirty.ram_size()
        )));
    }
    if bitmap_page < page_size || !bitmap_page.is_multiple_of(page_size) {
        return Err(SnapshotError::InvalidPath(format!(
            "diff bitmap page ({bitmap_page}) must be a multiple of memory-file page ({page_size})"
        )));
    }
    Ok(())
}

/// Number of `page_size` pieces that the pages of a diff are.
pub(crate) fn pieces(pages: &PageSet, ram_size: u64, page_size: u64) -> u64 {
    let bytes = |(first, count): (u64, u64)| {
        let start = first * pages.page_size();
        (first + count).saturating_mul(pages.page_size()).min(ram_size) - start
    };
    pages.runs().map(|run| bytes(run).div_ceil(page_size)).sum()
}
