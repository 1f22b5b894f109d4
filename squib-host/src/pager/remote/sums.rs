//! From the checksums of pages to those of blocks, which a snapshot's state knows.

use std::ops::Range;
use std::sync::OnceLock;

use squib_snapshot::MemoryRecord;
use squib_snapshot::digest::Join;

use super::protocol::PAGE;

/// Bytes whose pages a server sums up at once: the largest block a state has a checksum for.
pub(super) const CHUNK: u64 = 2 << 20;

/// Bytes of a page that a memory file holds.
pub(super) fn held_in_page(memory: &MemoryRecord, page: u64) -> Vec<Range<u64>> {
    memory.ranges_within(page * PAGE..((page + 1) * PAGE).min(memory.ram_size))
}

/// Joins checksums of pages. Whole pages are the rule, and their [`Join`] is made once for the process.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    /// For another length: a diff with smaller pages, or the last page of RAM.
    other: Option<Join>,
}

impl Joiner {
    fn by(&mut self, len: usize) -> &Join {
        static WHOLE_PAGE: OnceLock<Join> = OnceLock::new();
        if len == PAGE as usize {
            return WHOLE_PAGE.get_or_init(|| Join::new(len));
        }
        match &mut self.other {
            Some(join) if join.len() == len => {}
            other => *other = Some(Join::new(len)),
        }
        self.other.get_or_insert_with(|| Join::new(len))
    }

    /// The checksum of block `block` of a memory file, from those of its pages. The block is one page or more.
    pub(super) fn join(&mut self, memory: &MemoryRecord, block: u64, pages: &[u64]) -> u64 {
        let first = block * memory.sums.block_size() / PAGE;
        pages.iter().zip(first..).fold(0, |sum, (&next, page)| {
            let held: u64 = held_in_page(memory, page).iter().map(|part| part.end - part.start).sum();
            self.by(held as usize).join(sum, next)
        })
    }
}
