//! From the checksums of pages to those of blocks, which a snapshot's state knows.

use std::ops::Range;
use std::sync::OnceLock;

use squib_snapshot::MemoryRecord;
use squib_snapshot::digest::Join;

use super::protocol::PAGE;

/// Bytes whose pages a server sums up at once: the largest block a state has a checksum for.
pub(super) const CHUNK: u64 = 2 << 20;

/// Bytes of a page that a memory file holds.
pub(super) fn held_in_page(memory: &MemoryRecord, page: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    memory.held_within(page * PAGE..((page + 1) * PAGE).min(memory.ram_size))
}

/// How many bytes these are.
pub(super) fn length(ranges: impl IntoIterator<Item = Range<u64>>) -> u64 {
    ranges.into_iter().map(|range| range.end - range.start).sum()
}

/// Joins checksums of pages, without an allocation. Whole pages are the rule, and their [`Join`] is made once for the process.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    /// For another length: a diff with smaller pages, or the last page of RAM.
    other: Option<Join>,
}

impl Joiner {
    fn whole_page() -> &'static Join {
        static WHOLE_PAGE: OnceLock<Join> = OnceLock::new();
        WHOLE_PAGE.get_or_init(|| Join::new(PAGE as usize))
    }

    /// Makes what is made once, for those who must not wait for it.
    pub(super) fn prepare() {
        Self::whole_page();
    }

    fn by(&mut self, len: usize) -> &Join {
        if len == PAGE as usize {
            return Self::whole_page();
        }
        match &mut self.other {
            Some(join) if join.len() == len => {}
            other => *other = Some(Join::new(len)),
        }
        self.other.get_or_insert_with(|| Join::new(len))
    }

    /// The checksum of block `block` of a memory file, from those of its pages. The block is one page or more.
    pub(super) fn join(&mut self, memory: &MemoryRecord, block: u64, pages: impl IntoIterator<Item = u64>) -> u64 {
        let first = block * memory.sums.block_size() / PAGE;
        pages.into_iter().zip(first..).fold(0, |sum, (next, page)| {
            let held = length(held_in_page(memory, page));
            self.by(held as usize).join(sum, next)
        })
    }
}
