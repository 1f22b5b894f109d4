//! The granule of dirty tracking, chosen block by block and epoch by epoch: policy for a log that write faults feed.
//!
//! An epoch lies between two snapshots. The first write to a clean part of RAM faults, and how large a part is then marked and
//! opened is the question: a whole block costs its guest one fault and the diff 2 MiB, however little was written; pages cost a
//! fault each, and the diff what was written. A block begins whole. It is tracked by pages from the second epoch in which it is
//! written on, and whole again in an epoch in which more than [`DENSE_FAULTS`] of its pages fault: then precision did not pay,
//! and it is not tried again for [`RETRY_EPOCHS`] epochs.
//!
//! All there is of a block is one word, changed by one atomic read-modify-write, so that any number of threads may answer faults on
//! it at once. Nothing is ordered by it: which pages are dirty is the log's business, and the log has a bit for every page
//! whatever the granule, so a change of granule moves no bits and can lose none.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::arch::PageGeometry;
use crate::dirty::{PageSet, TrackingGranule};

/// Pages of one block that may fault in one epoch before the rest of it is opened.
pub const DENSE_FAULTS: u32 = 32;

/// For how many epochs in which it is written a block that was dense is tracked whole.
pub const RETRY_EPOCHS: u32 = 8;

/// How often blocks changed their granule.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GranuleSteps {
    /// From whole blocks to pages.
    pub down: u64,
    /// From pages to whole blocks.
    pub up: u64,
}

/// Chooses the granule of every block of a RAM.
///
/// ```
/// use squib_snapshot::{BlockController, PageGeometry, PageSet, TrackingGranule};
/// let controller = BlockController::new(64 << 20, PageGeometry::APPLE_SILICON);
/// assert_eq!(controller.record_fault(5 << 20), TrackingGranule::Coarse);
/// controller.next_epoch(&PageSet::from_pages(16384, 4096, [320])); // the page at 5 MiB was written
/// assert_eq!(controller.record_fault(5 << 20), TrackingGranule::Fine);
/// assert_eq!(controller.record_fault(7 << 20), TrackingGranule::Coarse, "another block");
/// ```
#[derive(Debug)]
pub struct BlockController {
    block_size: u64,
    blocks: Box<[AtomicU32]>,
    down: AtomicU64,
    up: AtomicU64,
}

impl BlockController {
    /// For `ram_size` bytes in blocks of [`PageGeometry::tracking_page_default`], every block whole.
    #[must_use]
    pub fn new(ram_size: u64, geometry: PageGeometry) -> Self {
        let block_size = geometry.tracking_page_default.max(1);
        let blocks = (0..ram_size.div_ceil(block_size)).map(|_| AtomicU32::new(word::WHOLE)).collect();
        Self { block_size, blocks, down: AtomicU64::new(0), up: AtomicU64::new(0) }
    }

    /// Counts a write fault at `offset` (bytes from the start of RAM), and says what is to be marked and opened for it: the page, or
    /// the block. Beyond the end of RAM: the page.
    pub fn record_fault(&self, offset: u64) -> TrackingGranule {
        let block = usize::try_from(offset / self.block_size).ok().and_then(|n| self.blocks.get(n));
        let Some(block) = block else { return TrackingGranule::Fine };
        let before = word::update(block, word::fault);
        match (word::is_whole(before), word::is_whole(word::fault(before))) {
            (true, _) => TrackingGranule::Coarse,
            (false, false) => TrackingGranule::Fine,
            (false, true) => {
                self.up.fetch_add(1, Ordering::Relaxed);
                TrackingGranule::Coarse
            }
        }
    }

    /// Begins the next epoch; `written` holds the pages that were dirty in the last one. No fault may be answered meanwhile, or it
    /// is counted to either epoch.
    pub fn next_epoch(&self, written: &PageSet) {
        let mut done = 0;
        for (first, count) in written.runs() {
            let start = first.saturating_mul(written.page_size()) / self.block_size;
            let end = first.saturating_add(count).saturating_mul(written.page_size()).div_ceil(self.block_size);
            let (start, end) = (start.max(done), end.min(self.blocks.len() as u64));
            for block in start..end {
                let before = word::update(&self.blocks[block as usize], word::epoch);
                if word::is_whole(before) && !word::is_whole(word::epoch(before)) {
                    self.down.fetch_add(1, Ordering::Relaxed);
                }
            }
            done = end.max(done);
        }
    }

    /// How often blocks changed their granule so far.
    pub fn steps(&self) -> GranuleSteps {
        GranuleSteps { down: self.down.load(Ordering::Relaxed), up: self.up.load(Ordering::Relaxed) }
    }
}

/// The word of a block: in the upper half, for how many more epochs with a write it is tracked whole; in the lower half, the faults of
/// this epoch while it is tracked by pages.
mod word {
    use super::{DENSE_FAULTS, Ordering, RETRY_EPOCHS};

    const EPOCH: u32 = 1 << 16;
    /// Whole for one epoch more.
    pub(super) const WHOLE: u32 = EPOCH;

    pub(super) fn is_whole(word: u32) -> bool {
        word >= EPOCH
    }

    /// After a fault.
    pub(super) fn fault(word: u32) -> u32 {
        match word {
            _ if is_whole(word) => word,
            DENSE_FAULTS.. => RETRY_EPOCHS * EPOCH,
            faults => faults + 1,
        }
    }

    /// After an epoch with a write.
    pub(super) fn epoch(word: u32) -> u32 {
        (word & !(EPOCH - 1)).saturating_sub(EPOCH)
    }

    /// Where a word is kept.
    pub(super) trait Cell {
        fn load(&self) -> u32;
        fn exchange(&self, old: u32, new: u32) -> Result<u32, u32>;
    }

    impl Cell for std::sync::atomic::AtomicU32 {
        fn load(&self) -> u32 {
            self.load(Ordering::Relaxed)
        }

        fn exchange(&self, old: u32, new: u32) -> Result<u32, u32> {
            self.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed)
        }
    }

    /// Changes a word by `step`; what it was before. A word that stays as it is is not written.
    pub(super) fn update(cell: &impl Cell, step: fn(u32) -> u32) -> u32 {
        let mut old = cell.load();
        while step(old) != old {
            match cell.exchange(old, step(old)) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TrackingGranule::{Coarse, Fine};
    use proptest::prelude::*;

    const PAGE: u64 = 16384;
    const BLOCK: u64 = 2 << 20;
    const RAM: u64 = 4 * BLOCK;

    fn controller() -> BlockController {
        BlockController::new(RAM, PageGeometry::APPLE_SILICON)
    }

    fn written(offsets: &[u64]) -> PageSet {
        PageSet::from_pages(PAGE, RAM / PAGE, offsets.iter().map(|offset| offset / PAGE))
    }

    #[test]
    fn a_block_that_is_written_again_is_tracked_by_pages() {
        let blocks = controller();
        assert_eq!(blocks.record_fault(BLOCK + 5), Coarse);
        // Several runs in one block are one epoch of it.
        blocks.next_epoch(&written(&[BLOCK, BLOCK + 2 * PAGE, 2 * BLOCK - 1]));
        assert_eq!(blocks.record_fault(BLOCK + 5), Fine);
        assert_eq!((blocks.record_fault(0), blocks.record_fault(2 * BLOCK)), (Coarse, Coarse), "never written before");
        assert_eq!(blocks.steps(), GranuleSteps { down: 1, up: 0 });
        assert_eq!((blocks.record_fault(RAM), blocks.record_fault(u64::MAX)), (Fine, Fine), "outside RAM");
    }

    #[test]
    fn a_dense_block_is_opened_whole_and_left_alone_for_a_while() {
        let blocks = controller();
        blocks.next_epoch(&written(&[0]));
        let opened = (0..100).position(|page| blocks.record_fault(page * PAGE) == Coarse);
        assert_eq!(opened, Some(DENSE_FAULTS as usize));
        for _ in 0..RETRY_EPOCHS {
            assert_eq!(blocks.record_fault(0), Coarse);
            blocks.next_epoch(&written(&[]));
            blocks.next_epoch(&written(&[PAGE]));
        }
        assert_eq!(blocks.record_fault(0), Fine);
        assert_eq!(blocks.steps(), GranuleSteps { down: 2, up: 1 });
    }

    /// The rule in plain words, one block at a time: the reference for any history.
    #[derive(Clone)]
    struct Model {
        whole_for: u32,
        faults: u32,
    }

    impl Model {
        fn fault(&mut self) -> TrackingGranule {
            if self.whole_for == 0 {
                self.faults += 1;
                if self.faults <= DENSE_FAULTS {
                    return Fine;
                }
                self.whole_for = RETRY_EPOCHS;
            }
            Coarse
        }

        fn epoch(&mut self) {
            (self.whole_for, self.faults) = (self.whole_for.saturating_sub(1), 0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 128 }, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any history of faults and epochs: each block is where the rule says, whatever happens to the others; and a guest pays
        /// for one epoch of a block with at most `DENSE_FAULTS` faults and one, if what is open does not fault again.
        #[test]
        fn every_block_follows_the_rule(history in proptest::collection::vec((0u8..8, 0u64..4, 0u64..128), 1..400)) {
            let (blocks, mut model) = (controller(), vec![Model { whole_for: 1, faults: 0 }; 4]);
            let (mut open, mut paid) = ([0u128; 4], [0u32; 4]);
            for (what, block, page) in history {
                let n = block as usize;
                if what > 0 {
                    if open[n] >> page & 1 == 1 {
                        continue;
                    }
                    let granule = blocks.record_fault(block * BLOCK + page * PAGE);
                    prop_assert_eq!(granule, model[n].fault());
                    open[n] |= if granule == Coarse { u128::MAX } else { 1 << page };
                    paid[n] += 1;
                    prop_assert!(paid[n] <= DENSE_FAULTS + 1);
                    continue;
                }
                let pages = (0..4u64).flat_map(|n| (0..128).filter(move |p| open[n as usize] >> p & 1 == 1).map(move |p| n * 128 + p));
                blocks.next_epoch(&PageSet::from_pages(PAGE, RAM / PAGE, pages));
                model.iter_mut().zip(&open).filter(|(_, open)| **open != 0).for_each(|(model, _)| model.epoch());
                (open, paid) = ([0; 4], [0; 4]);
            }
        }
    }

    impl word::Cell for loom::sync::atomic::AtomicU32 {
        fn load(&self) -> u32 {
            self.load(Ordering::Relaxed)
        }

        fn exchange(&self, old: u32, new: u32) -> Result<u32, u32> {
            self.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
        }
    }

    /// Every interleaving of two faults on a block one fault short of dense: one is for its page, one opens the block, and it counts as
    /// one step.
    #[test]
    #[cfg_attr(miri, ignore = "the model checker explores by itself")]
    fn faults_at_the_same_moment_are_counted_one_by_one() {
        loom::model(|| {
            let block = loom::sync::Arc::new(loom::sync::atomic::AtomicU32::new(DENSE_FAULTS - 1));
            let other = {
                let block = loom::sync::Arc::clone(&block);
                loom::thread::spawn(move || word::update(&*block, word::fault))
            };
            let mut seen = [word::update(&*block, word::fault), other.join().unwrap()];
            seen.sort_unstable();
            assert_eq!(seen, [DENSE_FAULTS - 1, DENSE_FAULTS]);
            assert!(word::is_whole(word::Cell::load(&*block)));
        });
    }
}
