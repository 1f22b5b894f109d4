//! Writing a memory image: reading guest memory, checksumming, finding zeros and writing all go on at once.
//!
//! The calling thread reads guest memory (or hands out slices of it) in units of up to 2 MiB; a few workers checksum each unit, look
//! for zeros and write it, and one more thread sees to it that the disk begins early with what is written. At most [`BUFFERS`] units
//! are in flight, so the extra memory is the same for every size of guest. A full image is sparse where RAM is zero; a diff image
//! holds exactly the pages of its set.
//!
//! Images go through the cache on every system. macOS could keep them out of it (`F_NOCACHE`), but then every stretch between two
//! holes would be a transfer of its own that a worker waits for, and the next thing to happen to a snapshot is often a restore
//! that maps it: what was just written is what it needs. Linux keeps little unwritten data around, because of the early start.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use crate::digest::{Checksum, non_zero_runs};
use crate::dirty::PageSet;
use crate::error::at;
use crate::fs::FsFile;
use crate::memory::PageReader;
use crate::record::{BlockSums, byte_ranges};

/// Bytes one worker handles at a time.
pub(crate) const UNIT: u64 = 2 << 20;
/// Units in flight: the whole of the extra memory.
pub(crate) const BUFFERS: usize = 8;
/// Workers; more do not write faster.
const MAX_WORKERS: usize = 4;
/// Images up to this many bytes are written by the calling thread alone: handing them to others costs more than it saves.
const SMALL: u64 = 32 << 20;
/// Bytes written after which the disk is set to work on them, while the rest is still being read.
const FLUSH: u64 = 32 << 20;

/// What to write.
pub(crate) struct Plan<'a> {
    /// Where the image will be: named by errors.
    pub(crate) dest: &'a Path,
    pub(crate) ram_size: u64,
    /// Pages of a diff; `None` for all of RAM.
    pub(crate) pages: Option<&'a PageSet>,
    /// Bytes per checksum; divides [`UNIT`].
    pub(crate) block_size: u64,
    /// Longest read asked of the source.
    pub(crate) read_size: u64,
}

/// What was written.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) sums: BlockSums,
    pub(crate) bytes: u64,
}

/// A stretch of RAM: in the source's own memory, or copied out of it.
enum Piece<'a> {
    Borrowed(&'a [u8]),
    Copied(Range<usize>),
}

struct Unit<'a> {
    /// `(offset in RAM, bytes)`, ascending.
    pieces: Vec<(u64, Piece<'a>)>,
    buffer: Vec<u8>,
}

impl Unit<'_> {
    fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pieces.iter().map(|(at, piece)| match piece {
            Piece::Borrowed(bytes) => (*at, *bytes),
            Piece::Copied(range) => (*at, &self.buffer[range.clone()]),
        })
    }
}

/// Writes the image into `file`, which is new and empty, and returns its checksums.
pub(crate) fn write(file: &dyn FsFile, source: &(impl PageReader + ?Sized), plan: &Plan<'_>) -> io::Result<Written> {
    file.set_len(plan.ram_size).map_err(at("set the length of", plan.dest))?;
    let total = plan.pages.map_or(plan.ram_size, |p| p.len().saturating_mul(p.page_size()));
    let shared = Shared {
        file,
        dest: plan.dest,
        full: plan.pages.is_none(),
        block_size: plan.block_size,
        bytes: AtomicU64::new(0),
        flush_at: AtomicU64::new(FLUSH),
        failed: AtomicBool::new(false),
        sums: Mutex::new(Vec::new()),
        error: Mutex::new(None),
    };
    if total <= SMALL {
        write_serially(source, plan, &shared)?;
    } else {
        std::thread::scope(|scope| produce(scope, source, plan, &shared))?;
    }
    if let Some(error) = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut sums = shared.sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    sums.sort_unstable();
    let sums = BlockSums::new(plan.block_size, plan.ram_size.div_ceil(plan.block_size), sums);
    Ok(Written { sums, bytes: shared.bytes.into_inner() })
}

/// Starts the thread that sends what is written to the disk whenever it is told to.
fn start_flusher<'scope, 'env: 'scope>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    shared: &'env Shared<'env>,
) -> SyncSender<()> {
    let (due, told) = sync_channel(1);
    scope.spawn(move || {
        for () in told {
            // An error of the disk may be told only once: it must not get lost here.
            if let Err(e) = shared.file.flush() {
                shared.fail(at("write", shared.dest)(e));
            }
        }
    });
    due
}

fn write_serially<S: PageReader + ?Sized>(source: &S, plan: &Plan<'_>, shared: &Shared<'_>) -> io::Result<()> {
    let (mut buffer, mut sums) = (Vec::new(), Vec::new());
    for range in units(plan).filter(|ranges| must_be_read(source, plan, ranges)) {
        let unit = read(source, plan, range, buffer)?;
        shared.write(&unit, &mut sums)?;
        buffer = unit.buffer;
    }
    shared.done(sums);
    Ok(())
}

fn produce<'scope, 'env: 'scope, S: PageReader + ?Sized>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    source: &'env S,
    plan: &Plan<'_>,
    shared: &'env Shared<'env>,
) -> io::Result<()> {
    let flusher = start_flusher(scope, shared);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    let (work_in, work_out) = sync_channel::<Unit<'env>>(BUFFERS - workers - 1);
    let (free_in, free_out) = sync_channel::<Vec<u8>>(BUFFERS);
    let work_out = std::sync::Arc::new(Mutex::new(work_out));
    for _ in 0..workers {
        let (work_out, free_in, flusher) = (std::sync::Arc::clone(&work_out), free_in.clone(), flusher.clone());
        scope.spawn(move || {
            let mut sums = Vec::new();
            while let Some(unit) = next(&work_out) {
                if !shared.failed.load(Ordering::Relaxed)
                    && let Err(e) = shared.write(&unit, &mut sums)
                {
                    shared.fail(e);
                }
                shared.flush_if_due(&flusher);
                // The producer may be gone, and the buffer with it.
                let _ = free_in.try_send(unit.buffer);
            }
            shared.done(sums);
        });
    }
    for range in units(plan).filter(|ranges| must_be_read(source, plan, ranges)) {
        if shared.failed.load(Ordering::Relaxed) {
            break;
        }
        let buffer = free_out.try_recv().unwrap_or_default();
        let unit = read(source, plan, range, buffer)?;
        if work_in.send(unit).is_err() {
            break;
        }
    }
    Ok(())
}

fn next<'a>(work: &Mutex<Receiver<Unit<'a>>>) -> Option<Unit<'a>> {
    work.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Units that hold something to write, in order.
fn units<'a>(plan: &'a Plan<'_>) -> impl Iterator<Item = Vec<Range<u64>>> + 'a {
    let clip = |unit: u64| (unit * UNIT)..((unit + 1).saturating_mul(UNIT).min(plan.ram_size));
    let mut next = 0;
    std::iter::from_fn(move || {
        if next >= plan.ram_size.div_ceil(UNIT) {
            return None;
        }
        let Some(pages) = plan.pages else {
            next += 1;
            return Some(vec![clip(next - 1)]);
        };
        // Straight to the unit that holds the next page of the set.
        let size = pages.page_size();
        let (page, _) = pages.runs_within(next * UNIT / size, u64::MAX).next()?;
        let unit = (page * size).max(next * UNIT) / UNIT;
        next = unit + 1;
        Some(byte_ranges(pages, clip(unit)).collect())
    })
}

/// Whether a unit cannot be left out: a diff holds its pages even if they are zero.
fn must_be_read(source: &(impl PageReader + ?Sized), plan: &Plan<'_>, ranges: &[Range<u64>]) -> bool {
    plan.pages.is_some() || !ranges.iter().all(|r| source.is_known_zero(r.start, r.end - r.start))
}

/// Reads one unit from the source, in place where it can.
fn read<'a, S: PageReader + ?Sized>(
    source: &'a S,
    plan: &Plan<'_>,
    ranges: Vec<Range<u64>>,
    mut buffer: Vec<u8>,
) -> io::Result<Unit<'a>> {
    buffer.clear();
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in ranges {
        let len = (range.end - range.start) as usize;
        if let Some(bytes) = source.slice_at(range.start, len)
            && bytes.len() == len
        {
            pieces.push((range.start, Piece::Borrowed(bytes)));
            continue;
        }
        let from = buffer.len();
        buffer.resize(from + len, 0);
        let mut at = range.start;
        for chunk in buffer[from..].chunks_mut(plan.read_size.clamp(1, UNIT) as usize) {
            source.read_at(at, chunk)?;
            at += chunk.len() as u64;
        }
        pieces.push((range.start, Piece::Copied(from..from + len)));
    }
    Ok(Unit { pieces, buffer })
}

/// A block being checksummed.
struct Block {
    index: u64,
    sum: Checksum,
    zero: bool,
}

/// What the workers have in common.
struct Shared<'a> {
    file: &'a dyn FsFile,
    dest: &'a Path,
    full: bool,
    block_size: u64,
    bytes: AtomicU64,
    /// When so many bytes are written, the next flush is due.
    flush_at: AtomicU64,
    failed: AtomicBool,
    sums: Mutex<Vec<(u64, u64)>>,
    error: Mutex<Option<io::Error>>,
}

impl Shared<'_> {
    fn write(&self, unit: &Unit<'_>, sums: &mut Vec<(u64, u64)>) -> io::Result<()> {
        let mut block: Option<Block> = None;
        for (start, bytes) in unit.pieces() {
            let mut at = start;
            let mut rest = bytes;
            while !rest.is_empty() {
                let index = at / self.block_size;
                let len = rest.len().min(((index + 1) * self.block_size - at) as usize);
                let (head, tail) = rest.split_at(len);
                let current = match block.take() {
                    Some(current) if current.index == index => block.insert(current),
                    done => {
                        self.close(done, sums);
                        block.insert(Block { index, sum: Checksum::new(), zero: self.full })
                    }
                };
                if self.full {
                    self.write_sparse(current, at, head)?;
                } else {
                    current.sum.update(head);
                }
                at += len as u64;
                rest = tail;
            }
            if !self.full {
                self.write_bytes(start, bytes)?;
            }
        }
        self.close(block, sums);
        Ok(())
    }

    /// A block of a full image that is all zero has no checksum: it is a hole.
    fn close(&self, block: Option<Block>, sums: &mut Vec<(u64, u64)>) {
        if let Some(block) = block
            && !block.zero
        {
            sums.push((block.index, block.sum.finish()));
        }
    }

    /// Checksums a part of a block and writes what is not zero. Each byte comes from memory once: what the search for zeros has
    /// just read is still in the cache for the checksum.
    fn write_sparse(&self, block: &mut Block, start: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        for run in non_zero_runs(bytes) {
            block.zero = false;
            block.sum.update_zeros(run.start - done);
            block.sum.update(&bytes[run.clone()]);
            self.write_bytes(start + run.start as u64, &bytes[run.clone()])?;
            done = run.end;
        }
        block.sum.update_zeros(bytes.len() - done);
        Ok(())
    }

    fn write_bytes(&self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(bytes, start).map_err(at("write", self.dest))
    }

    fn flush_if_due(&self, flusher: &SyncSender<()>) {
        let written = self.bytes.load(Ordering::Relaxed);
        if written >= self.flush_at.load(Ordering::Relaxed) {
            self.flush_at.store(written + FLUSH, Ordering::Relaxed);
            let _ = flusher.try_send(()); // If this fails, it has been told already.
        }
    }

    fn fail(&self, error: io::Error) {
        self.failed.store(true, Ordering::Relaxed);
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn done(&self, mut sums: Vec<(u64, u64)>) {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).append(&mut sums);
    }
}
