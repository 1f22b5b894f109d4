//! Checked reads of single pages for callers who may neither allocate nor wait for a lock: a thread that answers another thread's
//! page fault does not know what that one was doing.
//!
//! As in [`checked`](crate::checked), the first read from a block checks all of it, here piece by piece on the stack, and keeps a
//! checksum of each page; later reads fetch and compare their page alone. The table for that is made with the chain: eight
//! bytes for each 16 KiB of RAM, which take memory only where something was read. A page that comes from several links, or from blocks
//! smaller than a page, has no place in the table: what its blocks hold is read and checked each time ([`read_through`]). Those who may
//! allocate have [`Chain::read_checked`](crate::Chain::read_checked) for that.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use zerocopy::FromZeros;

use crate::digest::{Checksum, checksum};
use crate::fs::read_exact_at;
use crate::links;
use crate::pair::Pair;
use crate::record::{DEFAULT_BLOCK_SIZE, MemoryRecord};

/// The page of the hosts this is for.
const PAGE: u64 = 16 << 10;
/// Pages of the largest block there can be.
const PAGES: usize = (DEFAULT_BLOCK_SIZE / PAGE) as usize;

/// The bytes of a page cannot be read, or are not those of the snapshot. [`Chain::read_checked`](crate::Chain::read_checked) says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a page of the snapshot cannot be read, or is damaged")]
pub struct Unreadable;

/// For each page of RAM the checksum of its bytes, once its block was found right; 0: not yet (or it happens to be 0, which costs
/// time and nothing else).
#[derive(Debug)]
pub(crate) struct PageSums(Vec<AtomicU64>);

impl PageSums {
    /// For RAM of this size. Without memory for the table no page is found in it, and all reads go the other way.
    pub(crate) fn new(ram_size: u64) -> Self {
        // The first checksum of a process finds out what the processor can do, which is to happen here.
        let _ = checksum(&[0; 64]);
        let pages = usize::try_from(ram_size.div_ceil(PAGE)).ok();
        Self(pages.and_then(|pages| AtomicU64::new_vec_zeroed(pages).ok()).unwrap_or_default())
    }

    /// Fills `buf` with the page at `offset`, checked. `false` if this is not for us.
    pub(crate) fn read(&self, links: &[Pair], ram_size: u64, offset: u64, buf: &mut [u8]) -> Result<bool, Unreadable> {
        let end = ram_size.min(offset.saturating_add(PAGE));
        if !offset.is_multiple_of(PAGE) || offset >= end || buf.len() as u64 != end - offset {
            return Ok(false);
        }
        let (link, stop) = links::locate(links, offset, end);
        let pair = &links[link];
        let Some(record) = pair.state_file().record().filter(|_| stop == end) else { return Ok(false) };
        let block = offset / record.memory.sums.block_size();
        match record.memory.sums.get(block) {
            _ if record.memory.sums.block_size() < PAGE => return Ok(false),
            None if record.memory.is_diff() => return Ok(false),
            None => {
                // Zero when it was saved: nothing to read.
                buf.fill(0);
                return Ok(true);
            }
            Some(_) => {}
        }
        let Some(known) = self.0.get((offset / PAGE) as usize) else { return Ok(false) };
        if known.load(Ordering::Relaxed) == 0 {
            self.check_block(links, link, &record.memory, block)?;
        }
        let expected = known.load(Ordering::Relaxed);
        if expected == 0 {
            return Ok(false);
        }
        read_exact_at(pair.memory_file(), buf, offset).map_err(|_| Unreadable)?;
        if checksum(buf) == expected { Ok(true) } else { Err(Unreadable) }
    }

    /// The checksums of all pages of a block, if they are known and the block comes from this link alone.
    pub(crate) fn known_block(&self, links: &[Pair], link: usize, block: Range<u64>) -> Option<Arc<[u64]>> {
        if links::locate(links, block.start, block.end) != (link, block.end) {
            return None;
        }
        let pages = (block.start / PAGE) as usize..block.end.div_ceil(PAGE) as usize;
        let known = |sum: &AtomicU64| Some(sum.load(Ordering::Relaxed)).filter(|&sum| sum != 0);
        self.0.get(pages)?.iter().map(known).collect()
    }

    /// Checks what a link holds of a block, and remembers the checksums of its whole pages.
    fn check_block(&self, links: &[Pair], link: usize, memory: &MemoryRecord, block: u64) -> Result<(), Unreadable> {
        let range = memory.sums.block_range(block, memory.ram_size);
        let place = |at: u64| ((at - range.start) / PAGE) as usize;
        let (mut all, mut pages) = (Checksum::new(), [0; PAGES]);
        let mut bytes = [0; PAGE as usize];
        for part in memory.held_within(range.clone()).flat_map(pieces) {
            let bytes = &mut bytes[..(part.end - part.start) as usize];
            read_exact_at(links[link].memory_file(), bytes, part.start).map_err(|_| Unreadable)?;
            all.update(bytes);
            if part.start.is_multiple_of(PAGE) && (part.end.is_multiple_of(PAGE) || part.end == memory.ram_size) {
                pages[place(part.start)] = checksum(bytes);
            }
        }
        if memory.sums.get(block) != Some(all.finish()) {
            return Err(Unreadable);
        }
        for at in range.clone().step_by(PAGE as usize) {
            let end = memory.ram_size.min(at + PAGE);
            // A newer link's page has another checksum.
            if links::locate(links, at, end) == (link, end)
                && let Some(known) = self.0.get((at / PAGE) as usize)
            {
                known.store(pages[place(at)], Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Fills `buf` with RAM at `offset`, checked, whichever links it comes from, by reading all that its blocks hold. Links of
/// version 5.0 have no checksums and are read as they are.
pub(crate) fn read_through(links: &[Pair], ram_size: u64, offset: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
    let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= ram_size).ok_or(Unreadable)?;
    let (mut at, mut rest) = (offset, buf);
    while at < end {
        let (link, mut stop) = links::locate(links, at, end);
        let pair = &links[link];
        let memory = pair.state_file().record().map(|record| &record.memory);
        let block = memory.map(|memory| at / memory.sums.block_size());
        if let (Some(memory), Some(block)) = (memory, block) {
            stop = stop.min(memory.sums.block_range(block, ram_size).end);
        }
        let (part, tail) = rest.split_at_mut((stop - at) as usize);
        match memory.zip(block) {
            Some((memory, block)) => read_block(pair, memory, block, at, part)?,
            None => read_exact_at(pair.memory_file(), part, at).map_err(|_| Unreadable)?,
        }
        (at, rest) = (stop, tail);
    }
    Ok(())
}

/// Fills `part` with RAM at `at`, which lies in one block and is held by `pair`, from the very bytes that the block's checksum is taken of.
fn read_block(pair: &Pair, memory: &MemoryRecord, block: u64, at: u64, part: &mut [u8]) -> Result<(), Unreadable> {
    let Some(expected) = memory.sums.get(block) else {
        // Zero when it was saved: nothing to read. A diff would not have been asked for it.
        part.fill(0);
        return if memory.is_diff() { Err(Unreadable) } else { Ok(()) };
    };
    let mut all = Checksum::new();
    let mut bytes = [0; PAGE as usize];
    for piece in memory.held_within(memory.sums.block_range(block, memory.ram_size)).flat_map(pieces) {
        let bytes = &mut bytes[..(piece.end - piece.start) as usize];
        read_exact_at(pair.memory_file(), bytes, piece.start).map_err(|_| Unreadable)?;
        all.update(bytes);
        let (from, to) = (piece.start.max(at), piece.end.min(at + part.len() as u64));
        if from < to {
            let bytes = &bytes[(from - piece.start) as usize..(to - piece.start) as usize];
            part[(from - at) as usize..(to - at) as usize].copy_from_slice(bytes);
        }
    }
    if all.finish() == expected { Ok(()) } else { Err(Unreadable) }
}

/// A range, cut where pages end.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = (start / PAGE + 1).saturating_mul(PAGE).min(range.end);
        (start < range.end).then_some(start..at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_where_pages_end() {
        let cut = |range| pieces(range).collect::<Vec<_>>();
        assert_eq!(cut(5..5), []);
        assert_eq!(cut(PAGE..3 * PAGE), [PAGE..2 * PAGE, 2 * PAGE..3 * PAGE]);
        assert_eq!(cut(PAGE - 1..PAGE + 7), [PAGE - 1..PAGE, PAGE..PAGE + 7]);
    }
}
