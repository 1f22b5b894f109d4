//! Folding a chain into one full pair.
//!
//! The new memory file starts as a clone of the base where the file system shares blocks between files (reflink on Linux,
//! `clonefile` on macOS); elsewhere untouched blocks are copied within the kernel where it can. Blocks that a diff touches
//! are put together from *checked* bytes and get a new checksum, untouched blocks keep theirs: damage is found now or
//! stays detectable, it is never made to look right. The result is committed like any other pair.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::chain::Chain;
use crate::digest::{HOLE, checksum, is_zero, non_zero_runs};
use crate::dirty::PageSet;
use crate::error::{Result, SnapshotError, at};
use crate::fs::{Fs, FsFile, RealFs, read_exact_at};
use crate::identity::SnapshotId;
use crate::record::{BlockSums, DEFAULT_BLOCK_SIZE, MachineRecord, MemoryRecord, SnapshotRecord, byte_ranges};
use crate::state_file::encode;
use crate::transaction::Transaction;

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeReport {
    /// Identity of the result: that of the newest link, so that diffs on top of it go on fitting.
    pub identity: SnapshotId,
    /// Diffs folded in.
    pub diffs: usize,
    /// Whether the base was cloned by the file system instead of copied.
    pub cloned: bool,
    /// Bytes put together from the links and written.
    pub bytes_written: u64,
    /// Bytes of untouched base copied.
    pub bytes_copied: u64,
}

impl MergeReport {
    /// An object with the fields' names as keys.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "identity": self.identity.to_string(),
            "diffs": self.diffs,
            "cloned": self.cloned,
            "bytes_written": self.bytes_written,
            "bytes_copied": self.bytes_copied,
        })
    }

    /// Text for a terminal.
    #[must_use]
    pub fn human(&self) -> String {
        let base =
            if self.cloned { "base cloned".into() } else { format!("{} bytes of the base copied", self.bytes_copied) };
        format!(
            "merged {} diffs into snapshot {}: {base}, {} bytes written\n",
            self.diffs, self.identity, self.bytes_written
        )
    }
}

/// Folds a chain into the full pair `(state, memory)`, which may be the very files of a link. After an error the destination is
/// as it was.
///
/// # Errors
/// [`SnapshotError::MemoryDamaged`] if bytes that have to be put together do not match their checksums, and those of
/// [`save_pair`](crate::save_pair).
pub fn merge(chain: &Chain, state_path: &Path, memory_path: &Path) -> Result<MergeReport> {
    merge_on(&RealFs, chain, state_path, memory_path)
}

pub(crate) fn merge_on(fs: &dyn Fs, chain: &Chain, state_path: &Path, memory_path: &Path) -> Result<MergeReport> {
    let newest = chain.state_file();
    let base = chain.links()[0].state_file().record();
    let ram_start = newest.record().map_or(0, |r| r.memory.ram_start);
    let mut transaction = Transaction::begin(fs, state_path, memory_path)?;
    let cloned = clone_base(&mut transaction, chain.links()[0].memory_file())?;
    let mut work = Merge {
        chain,
        base: base.map(|r| &r.memory),
        out: transaction.memory_file(),
        cloned,
        block_size: base.map_or(DEFAULT_BLOCK_SIZE, |r| r.memory.sums.block_size()),
        written: 0,
        copied: 0,
    };
    let sums = work.run().map_err(|e| match e {
        SnapshotError::Io(e) => SnapshotError::MemoryIo(at("write", memory_path)(e)),
        other => other,
    })?;
    let (bytes_written, bytes_copied) = (work.written, work.copied);
    let record = SnapshotRecord {
        identity: newest.identity(),
        parent: None,
        memory: MemoryRecord { ram_start, ram_size: chain.ram_size(), pages: None, sums },
        machine: newest.record().map_or_else(MachineRecord::default, |r| r.machine.clone()),
    };
    transaction.commit(&encode(newest.state(), &record)?)?;
    let diffs = chain.links().len() - 1;
    Ok(MergeReport { identity: record.identity, diffs, cloned, bytes_written, bytes_copied })
}

struct Merge<'a> {
    chain: &'a Chain,
    /// `None` for a base of version 5.0: every block gets its first checksum.
    base: Option<&'a MemoryRecord>,
    out: &'a dyn FsFile,
    cloned: bool,
    block_size: u64,
    written: u64,
    copied: u64,
}

impl Merge<'_> {
    fn run(&mut self) -> Result<BlockSums> {
        let ram_size = self.chain.ram_size();
        self.out.set_len(ram_size)?;
        let touched = self.touched();
        let block_count = ram_size.div_ceil(self.block_size);
        let mut sums = Vec::new();
        let mut buffer = Vec::new();
        for block in 0..block_count {
            let start = block * self.block_size;
            let end = (start + self.block_size).min(ram_size);
            let sum = match self.base {
                Some(base) if !touched.contains(block) => {
                    if base.sums.get(block).is_some() && !self.cloned {
                        self.copy(start, end, &mut buffer)?;
                    }
                    base.sums.get(block)
                }
                _ => self.put_together(start, end, &mut buffer)?,
            };
            sums.extend(sum.map(|s| (block, s)));
        }
        Ok(BlockSums::new(self.block_size, block_count, sums))
    }

    /// Blocks of which a diff holds something, as a set of pages of one block each.
    fn touched(&self) -> PageSet {
        let count = self.chain.ram_size().div_ceil(self.block_size);
        let mut union = PageSet::empty(self.block_size, count);
        for pages in self.chain.links().iter().filter_map(|l| l.state_file().pages()) {
            let size = pages.page_size();
            let mut blocks = crate::dirty::PageSetBuilder::new(self.block_size, count);
            for (first, run) in pages.runs() {
                let (from, to) =
                    (first * size / self.block_size, (first + run).saturating_mul(size).div_ceil(self.block_size));
                blocks.push_run(from, to - from);
            }
            union = union.union(&blocks.finish());
        }
        union
    }

    /// Reads a block through the chain, checked, writes what the output does not have yet, and returns its checksum.
    fn put_together(&mut self, start: u64, end: u64, buffer: &mut Vec<u8>) -> Result<Option<u64>> {
        buffer.clear();
        buffer.resize((end - start) as usize, 0);
        self.chain.read_checked(start, buffer)?;
        if self.cloned {
            for link in &self.chain.links()[1..] {
                let Some(pages) = link.state_file().pages() else { continue };
                for range in byte_ranges(pages, start..end) {
                    let bytes = &buffer[(range.start - start) as usize..(range.end - start) as usize];
                    if !(is_zero(bytes) && punch_hole(self.out, range.start, bytes.len() as u64)) {
                        self.out.write_all_at(bytes, range.start)?;
                        self.written += bytes.len() as u64;
                    }
                }
            }
        } else {
            self.write_sparse(start, buffer)?;
            self.written += buffer.len() as u64;
        }
        Ok((!is_zero(buffer)).then(|| checksum(buffer)))
    }

    fn write_sparse(&self, start: u64, bytes: &[u8]) -> io::Result<()> {
        for run in non_zero_runs(bytes) {
            self.out.write_all_at(&bytes[run.clone()], start + run.start as u64)?;
        }
        Ok(())
    }

    /// Copies a block of the base as it is: its checksum goes on telling whether it is right.
    fn copy(&mut self, start: u64, end: u64, buffer: &mut Vec<u8>) -> Result<()> {
        self.copied += end - start;
        let base = &self.chain.links()[0];
        if let Some(out) = self.out.raw()
            && copy_in_kernel(base.memory_file(), out, start, end)
        {
            return Ok(());
        }
        buffer.clear();
        buffer.resize((end - start) as usize, 0);
        read_exact_at(base.memory_file(), buffer, start).map_err(|e| base.memory_error(e))?;
        Ok(self.write_sparse(start, buffer)?)
    }
}

/// Makes the new memory file share all blocks with the base, if the file system can.
#[cfg(target_os = "linux")]
fn clone_base(transaction: &mut Transaction<'_>, base: &File) -> Result<bool> {
    let Some(out) = transaction.memory_file().raw() else { return Ok(false) };
    Ok(rustix::fs::ioctl_ficlone(out, base).is_ok())
}

/// Makes the new memory file share all blocks with the base, if the file system can. `clonefile` creates the file, so it takes
/// the place of the empty one.
#[cfg(target_os = "macos")]
fn clone_base(transaction: &mut Transaction<'_>, base: &File) -> Result<bool> {
    use rustix::fs::{AtFlags, CloneFlags, Mode, chmodat, fclonefileat};
    if transaction.memory_file().raw().is_none() {
        return Ok(false);
    }
    let path = transaction.memory_temp_path().to_path_buf();
    let dir = crate::atomic::parent_dir(&path);
    let dir = File::open(&dir).map_err(at("open directory", &dir))?;
    let Some(name) = path.file_name() else { return Ok(false) };
    RealFs.remove(&path)?;
    // A clone has its original's mode, which may be to be read only.
    let open = || {
        fclonefileat(base, &dir, name, CloneFlags::empty()).ok()?;
        chmodat(&dir, name, Mode::RUSR | Mode::WUSR, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        crate::fs::open_read_write_no_follow(&path).ok()
    };
    let (file, cloned): (Box<dyn FsFile>, bool) = match open() {
        Some(file) => (Box::new(file), true),
        None => (RealFs.remove(&path).and_then(|()| RealFs.create_new(&path))?, false),
    };
    transaction.replace_memory_file(file);
    Ok(cloned)
}

/// Other systems copy.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn clone_base(_transaction: &mut Transaction<'_>, _base: &File) -> Result<bool> {
    Ok(false)
}

/// Copies `[start, end)` with `copy_file_range`, skipping holes; false if the kernel cannot, with nothing lost: the caller then writes
/// the whole range.
#[cfg(target_os = "linux")]
fn copy_in_kernel(from: &File, to: &File, start: u64, end: u64) -> bool {
    use rustix::fs::{SeekFrom, copy_file_range, seek};
    let mut position = start;
    while position < end {
        let data = match seek(from, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return true, // Only holes up to the end of the file.
            Err(_) => return false,
        };
        if data >= end {
            return true;
        }
        let Ok(hole) = seek(from, SeekFrom::Hole(data)) else { return false };
        let (mut source, mut target) = (data, data);
        while source < hole.min(end) {
            let len = (hole.min(end) - source) as usize;
            match copy_file_range(from, Some(&mut source), to, Some(&mut target), len) {
                Ok(0) => return false,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        position = hole;
    }
    true
}

#[cfg(not(target_os = "linux"))]
fn copy_in_kernel(_from: &File, _to: &File, _start: u64, _end: u64) -> bool {
    false
}

/// Gives the blocks of a zero range back; false if the range has to be written instead.
#[cfg(target_os = "linux")]
fn punch_hole(file: &dyn FsFile, start: u64, len: u64) -> bool {
    use rustix::fs::FallocateFlags;
    let aligned = start.is_multiple_of(HOLE as u64) && len.is_multiple_of(HOLE as u64);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    aligned && file.raw().is_some_and(|f| rustix::fs::fallocate(f, flags, start, len).is_ok())
}

/// No safe call for it here (on macOS `F_PUNCHHOLE`): zeros are written, which reads the same.
#[cfg(not(target_os = "linux"))]
fn punch_hole(_file: &dyn FsFile, _start: u64, _len: u64) -> bool {
    let _ = HOLE;
    false
}
