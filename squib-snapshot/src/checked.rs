//! Reading single pages of checked memory without reading their whole block each time.
//!
//! A checksum in the state covers a block, 2 MiB by default; a lazy restore asks for 16 KiB. The first read from a block checks
//! all of it and, from the bytes just proven right, takes a checksum of each [`SLOT`] of it. Later reads fetch only the slots
//! they need and compare those: still no byte is handed out unchecked, even if the file changed meanwhile, and a page costs a read and a
//! checksum of its own size. The checksums of slots take 1/2048 of the RAM they cover, and at most [`BUDGET`].

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::Checksum;
use crate::error::Result;
use crate::pair::Pair;
use crate::record::MemoryRecord;
use crate::verify::Damage;

/// Bytes of RAM per remembered checksum: the page of the hosts this is for.
const SLOT: u64 = 16 << 10;
/// Bytes of remembered checksums, all that comes with them included: enough for 64 GiB in blocks of 2 MiB. The oldest are forgotten
/// first, and their blocks checked again.
const BUDGET: usize = 36 << 20;
/// What a remembered block costs beyond its checksums, roughly.
const OVERHEAD: usize = 96;
/// Block buffers kept for the next first read.
const BUFFERS: usize = 2;

/// Which link of a chain, and which of its blocks.
type Key = (usize, u64);

/// The blocks checked so far.
#[derive(Debug, Default)]
pub(crate) struct CheckedBlocks {
    known: Mutex<Known>,
    buffers: Mutex<Vec<Vec<u8>>>,
}

#[derive(Debug, Default)]
struct Known {
    slots: HashMap<Key, Arc<[u64]>>,
    oldest: VecDeque<Key>,
    bytes: usize,
}

impl CheckedBlocks {
    /// Fills `part` with the RAM at `offset`, which lies in one block and is all held by the memory file of `pair`, link number `link`.
    /// `elsewhere` has the checksums of the block's slots, if somebody else has checked it.
    pub(crate) fn read(
        &self,
        (link, pair): (usize, &Pair),
        memory: &MemoryRecord,
        offset: u64,
        part: &mut [u8],
        elsewhere: impl FnOnce() -> Option<Arc<[u64]>>,
    ) -> Result<()> {
        let block = offset / memory.sums.block_size();
        let known = lock(&self.known).slots.get(&(link, block)).cloned();
        let known = known.or_else(elsewhere);
        let mut buffer = lock(&self.buffers).pop().unwrap_or_default();
        let result = match known {
            Some(slots) => read_slots(pair, memory, &slots, offset, part, &mut buffer),
            None => self.read_block((link, block), pair, memory, offset, part, &mut buffer),
        };
        let mut buffers = lock(&self.buffers);
        if buffers.len() < BUFFERS {
            buffers.push(buffer);
        }
        result
    }

    fn read_block(
        &self,
        key: Key,
        pair: &Pair,
        memory: &MemoryRecord,
        offset: u64,
        part: &mut [u8],
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        if let Some(damage) = pair.check_block(memory, key.1, buffer)? {
            return Err(damage.into_error(pair.memory_path()));
        }
        let ranges = memory.ranges_in_block(key.1);
        copy(&ranges, buffer, offset, part);
        // One slot is no finer than its block; and who takes all of a block has no reason to come back.
        if memory.sums.block_size() > SLOT && part.len() < buffer.len() {
            let slots = slot_sums(memory.sums.block_range(key.1, memory.ram_size), &ranges, buffer);
            lock(&self.known).remember(key, slots.into());
        }
        Ok(())
    }
}

impl Known {
    fn remember(&mut self, key: Key, slots: Arc<[u64]>) {
        let cost = |slots: &[u64]| OVERHEAD + size_of_val(slots);
        self.bytes += cost(&slots);
        match self.slots.insert(key, slots) {
            // Two threads checked the block at the same time.
            Some(before) => self.bytes -= cost(&before),
            None => self.oldest.push_back(key),
        }
        while self.bytes > BUDGET
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.bytes -= self.slots.remove(&oldest).map_or(0, |slots| cost(&slots));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The checksum of each slot of `block`, of which `buffer` holds `ranges`, one after the other.
fn slot_sums(block: Range<u64>, ranges: &[Range<u64>], buffer: &[u8]) -> Vec<u64> {
    let mut sums = Vec::new();
    sums.resize_with((block.end - block.start).div_ceil(SLOT) as usize, Checksum::new);
    let mut rest = buffer;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let stop = (at / SLOT + 1).saturating_mul(SLOT).min(range.end);
            let (head, tail) = rest.split_at((stop - at) as usize);
            sums[((at - block.start) / SLOT) as usize].update(head);
            rest = tail;
            at = stop;
        }
    }
    sums.iter().map(Checksum::finish).collect()
}

/// Reads from a block that was checked before: slot by slot, each compared with what it was then.
fn read_slots(
    pair: &Pair,
    memory: &MemoryRecord,
    slots: &[u64],
    offset: u64,
    part: &mut [u8],
    buffer: &mut Vec<u8>,
) -> Result<()> {
    let block = memory.sums.block_range(offset / memory.sums.block_size(), memory.ram_size);
    let mut at = offset;
    let mut rest = part;
    while !rest.is_empty() {
        let start = at / SLOT * SLOT;
        let slot = start..start.saturating_add(SLOT).min(block.end);
        let (head, tail) = rest.split_at_mut(rest.len().min((slot.end - at) as usize));
        let ranges = memory.ranges_within(slot.clone());
        let whole = ranges.len() == 1 && ranges[0] == (at..at + head.len() as u64);
        let found = if whole {
            pair.read_ranges(&ranges, head)?;
            crate::digest::checksum(head)
        } else {
            buffer.resize(ranges.iter().map(|r| (r.end - r.start) as usize).sum(), 0);
            pair.read_ranges(&ranges, buffer)?;
            copy(&ranges, buffer, at, head);
            crate::digest::checksum(buffer)
        };
        let expected = slots[((start - block.start) / SLOT) as usize];
        if found != expected {
            return Err(Damage { range: slot, expected, found }.into_error(pair.memory_path()));
        }
        at += head.len() as u64;
        rest = tail;
    }
    Ok(())
}

/// Copies RAM at `offset` to `part`; `buffer` holds `ranges`, one after the other.
fn copy(ranges: &[Range<u64>], buffer: &[u8], offset: u64, part: &mut [u8]) {
    let mut position = 0;
    for range in ranges {
        let (from, to) = (offset.max(range.start), (offset + part.len() as u64).min(range.end));
        if from < to {
            let source = position + (from - range.start) as usize;
            let len = (to - from) as usize;
            part[(from - offset) as usize..][..len].copy_from_slice(&buffer[source..source + len]);
        }
        position += (range.end - range.start) as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "a hundred thousand insertions")]
    fn what_is_remembered_stays_within_its_budget() {
        let mut known = Known::default();
        let blocks = 2 * BUDGET as u64 / (OVERHEAD as u64 + 1024);
        for block in 0..blocks {
            known.remember((0, block), vec![block; 128].into());
            known.remember((0, block), vec![block; 128].into());
        }
        assert!(known.bytes <= BUDGET && known.bytes > BUDGET - 2048, "{}", known.bytes);
        assert_eq!(known.slots.len(), known.oldest.len());
        assert!(!known.slots.contains_key(&(0, 0)) && known.slots.contains_key(&(0, blocks - 1)));
    }

    #[test]
    fn slots_are_checksummed_by_what_is_held_of_them() {
        let block = 4 * SLOT..7 * SLOT;
        let ranges = [4 * SLOT + 10..5 * SLOT + 20, 5 * SLOT + 30..5 * SLOT + 40];
        let bytes: Vec<u8> = (0..SLOT + 20).map(|i| ((i * 7) >> 3) as u8).collect();
        let first = (SLOT - 10) as usize;
        let expected = [&bytes[..first], &bytes[first..], &[]].map(crate::digest::checksum);
        assert_eq!(slot_sums(block, &ranges, &bytes), expected);
        let mut part = [0; 6];
        copy(&ranges, &bytes, 5 * SLOT + 32, &mut part);
        assert_eq!(part, bytes[first + 22..first + 28]);
    }
}
