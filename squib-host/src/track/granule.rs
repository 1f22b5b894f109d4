//! How much of RAM one write fault marks and reopens: a block of 2 MiB or a page of 16 KiB, block by block.
//!
//! A whole block costs its guest one fault and the diff 2 MiB, however little was written. Pages cost a fault each and the diff what
//! was written. Under [`DirtyGranule::Adaptive`] a block begins whole, is tracked by pages from the second epoch in which
//! it is written on, and is opened whole again in an epoch in which more than [`DENSE`] of its pages fault: then precision
//! did not pay, and it is not tried again for [`RETRY_AFTER`] epochs.
//!
//! `squib_snapshot::TrackedRegion` decides for all of RAM at once, once and for ever, and by faults of one block within 100 ms. A block
//! that is reopened whole faults once an epoch, so under stage 2 its threshold is never reached; that is why the choice is
//! made here. Whatever is chosen, the log has a bit for every 16 KiB, so a change of granule moves no bits.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use squib_snapshot::PageSet;

use crate::config::DirtyGranule;

/// Bytes of a block.
pub const BLOCK: u64 = 2 << 20;
/// Pages of one block that may fault in one epoch before the rest of it is opened.
pub const DENSE: u16 = 32;
/// For how many epochs in which it is written a block that was dense is tracked whole.
pub const RETRY_AFTER: u8 = 8;

/// The choice for every block of RAM.
#[derive(Debug)]
pub struct Granules {
    policy: DirtyGranule,
    blocks: Box<[Block]>,
}

#[derive(Debug)]
struct Block {
    /// In how many more epochs with a write the block is tracked whole.
    whole_for: AtomicU8,
    /// Faults of this epoch, while it is tracked by pages.
    faults: AtomicU16,
}

impl Granules {
    /// For `ram_size` bytes, every block whole.
    pub fn new(policy: DirtyGranule, ram_size: u64) -> Granules {
        let block = |_| Block { whole_for: AtomicU8::new(1), faults: AtomicU16::new(0) };
        Granules { policy, blocks: (0..ram_size.div_ceil(BLOCK)).map(block).collect() }
    }

    /// Counts a fault at `offset`. Whether the whole block is to be marked and opened for it.
    pub fn opens_block(&self, offset: u64) -> bool {
        let block = usize::try_from(offset / BLOCK).ok().and_then(|n| self.blocks.get(n));
        let Some(block) = block else { return false };
        match self.policy {
            DirtyGranule::Block => true,
            DirtyGranule::Page => false,
            DirtyGranule::Adaptive if block.whole_for.load(Ordering::Relaxed) > 0 => true,
            DirtyGranule::Adaptive => {
                // Several vCPUs may count the same page: the block then counts as dense a little early.
                let dense = block.faults.fetch_add(1, Ordering::Relaxed) >= DENSE;
                if dense {
                    block.whole_for.store(RETRY_AFTER, Ordering::Relaxed);
                }
                dense
            }
        }
    }

    /// Begins the next epoch; `written` is what was dirty in the last one. While no vCPU runs.
    pub fn next_epoch(&self, written: &PageSet) {
        let mut done = 0;
        for (first, count) in written.runs() {
            let start = (first * written.page_size() / BLOCK) as usize;
            let end = ((first + count) * written.page_size()).div_ceil(BLOCK) as usize;
            for block in self.blocks.iter().take(end).skip(start.max(done)) {
                block.faults.store(0, Ordering::Relaxed);
                let whole_for = block.whole_for.load(Ordering::Relaxed);
                block.whole_for.store(whole_for.saturating_sub(1), Ordering::Relaxed);
            }
            done = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GRANULE;

    const RAM: u64 = 4 * BLOCK;

    fn written(offsets: &[u64]) -> PageSet {
        PageSet::from_pages(GRANULE, RAM / GRANULE, offsets.iter().map(|offset| offset / GRANULE))
    }

    #[test]
    fn a_block_that_is_written_again_is_tracked_by_pages() {
        let granules = Granules::new(DirtyGranule::Adaptive, RAM);
        assert!(granules.opens_block(BLOCK + 5));
        granules.next_epoch(&written(&[BLOCK, BLOCK + GRANULE, 2 * BLOCK - 1]));
        assert!(!granules.opens_block(BLOCK + 5));
        assert!(granules.opens_block(0) && granules.opens_block(2 * BLOCK), "never written before");
    }

    #[test]
    fn a_dense_block_is_opened_whole_and_left_alone_for_a_while() {
        let granules = Granules::new(DirtyGranule::Adaptive, RAM);
        granules.next_epoch(&written(&[0]));
        let opened = (0..100).position(|page| granules.opens_block(page * GRANULE));
        assert_eq!(opened, Some(usize::from(DENSE)));
        for _ in 0..RETRY_AFTER {
            assert!(granules.opens_block(0));
            granules.next_epoch(&written(&[]));
            granules.next_epoch(&written(&[GRANULE]));
        }
        assert!(!granules.opens_block(0));
    }

    #[test]
    fn a_fixed_granule_stays() {
        let (block, page) = (Granules::new(DirtyGranule::Block, RAM), Granules::new(DirtyGranule::Page, RAM));
        for _ in 0..200 {
            assert!(block.opens_block(0) && !page.opens_block(0));
            block.next_epoch(&written(&[0]));
        }
        assert!(!block.opens_block(RAM), "outside RAM");
    }
}
