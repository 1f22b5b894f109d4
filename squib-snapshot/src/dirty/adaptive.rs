//! Dirty tracking that chooses its own granule: cheap 2 MiB blocks until some block is written so often that precision
//! pays, then 16 KiB pages for the whole region.
//!
//! The switch loses nothing, whenever it happens. It passes through three states: coarse, switching, fine. A marker sets its
//! coarse bit first and looks at the state afterwards; the switcher publishes "switching" first and copies the coarse bits
//! afterwards. A fence stands between on both sides, so either the copy sees the mark, or the marker sees the switch and marks
//! the fine bitmap too. [`TrackedRegion::bitmap`] gives out the fine bitmap only once the copy is complete. The model checker
//! runs this in `protocol`.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::arch::PageGeometry;
use crate::dirty::DirtyBitmap;
use crate::dirty::protocol::{self, COARSE, FINE};
use crate::error::Result;

/// Faults per window and coarse block above which tracking steps down.
pub const DEFAULT_STEP_DOWN_THRESHOLD: u32 = 32;

/// Length of the window in which faults are counted.
pub const ADAPTIVE_WINDOW: Duration = Duration::from_millis(100);

/// How finely writes are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackingGranule {
    /// Blocks of [`PageGeometry::tracking_page_default`].
    Coarse,
    /// Pages of [`PageGeometry::tracking_page_hot`].
    Fine,
}

impl TrackingGranule {
    /// Bytes of this granule.
    #[must_use]
    pub const fn page_size(self, geom: PageGeometry) -> u64 {
        match self {
            Self::Coarse => geom.tracking_page_default,
            Self::Fine => geom.tracking_page_hot,
        }
    }
}

/// Counts faults per coarse block and decides when to step down. It never steps back up.
#[derive(Debug)]
pub struct AdaptiveController {
    counts: Box<[AtomicU32]>,
    threshold: u32,
    fine: AtomicU8,
    born: Instant,
    /// Nanoseconds from `born` to the last effective tick.
    last_tick: AtomicU64,
}

impl Default for AdaptiveController {
    fn default() -> Self {
        Self::new(1)
    }
}

impl AdaptiveController {
    /// A controller with the default threshold.
    #[must_use]
    pub fn new(block_count: u64) -> Self {
        Self::with_threshold(block_count, DEFAULT_STEP_DOWN_THRESHOLD)
    }

    /// A controller that steps down when a block has **more** than `threshold` faults in a window.
    #[must_use]
    pub fn with_threshold(block_count: u64, threshold: u32) -> Self {
        let mut counts = Vec::new();
        counts.resize_with(usize::try_from(block_count).unwrap_or(usize::MAX), || AtomicU32::new(0));
        Self {
            counts: counts.into_boxed_slice(),
            threshold,
            fine: AtomicU8::new(0),
            born: Instant::now(),
            last_tick: AtomicU64::new(0),
        }
    }

    /// The granule decided on so far.
    pub fn granule(&self) -> TrackingGranule {
        if self.fine.load(Ordering::Acquire) == 0 { TrackingGranule::Coarse } else { TrackingGranule::Fine }
    }

    /// Counts one fault; blocks out of range are ignored.
    pub fn record_fault(&self, block_idx: u64) {
        if let Some(count) = usize::try_from(block_idx).ok().and_then(|i| self.counts.get(i)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends the window if [`ADAPTIVE_WINDOW`] has passed since the last one ended: reads and zeroes the counts, and steps
    /// down if one exceeds the threshold.
    pub fn tick(&self) -> TrackingGranule {
        let now = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let last = self.last_tick.load(Ordering::Acquire);
        let due = now.saturating_sub(last) >= ADAPTIVE_WINDOW.as_nanos() as u64;
        // One thread wins the window; the others see it as already ended.
        if due && self.last_tick.compare_exchange(last, now, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let mut hottest = 0;
            for count in &self.counts {
                hottest = hottest.max(count.swap(0, Ordering::Relaxed));
            }
            if hottest > self.threshold {
                self.fine.store(1, Ordering::Release);
            }
        }
        self.granule()
    }
}

/// A RAM region whose dirty log adapts its granule.
///
/// ```
/// use squib_snapshot::{PageGeometry, TrackedRegion, TrackingGranule};
/// let region = TrackedRegion::new(0x8000_0000, 64 << 20, PageGeometry::APPLE_SILICON)?;
/// assert!(region.mark_dirty(0x8020_0000));
/// assert_eq!(region.granule(), TrackingGranule::Coarse);
/// assert_eq!(region.bitmap().drain(), [1]);
/// # Ok::<(), squib_snapshot::SnapshotError>(())
/// ```
#[derive(Debug)]
pub struct TrackedRegion {
    geometry: PageGeometry,
    controller: AdaptiveController,
    coarse: Arc<DirtyBitmap>,
    fine: OnceLock<Arc<DirtyBitmap>>,
    state: AtomicU8,
    /// Held while switching, so that one thread does it.
    switch: Mutex<()>,
}

impl TrackedRegion {
    /// Starts coarse, with the default threshold.
    ///
    /// # Errors
    /// Those of [`DirtyBitmap::new`].
    pub fn new(ram_start: u64, ram_size: u64, geometry: PageGeometry) -> Result<Self> {
        Self::with_threshold(ram_start, ram_size, geometry, DEFAULT_STEP_DOWN_THRESHOLD)
    }

    /// Starts coarse, with a threshold of the caller's.
    ///
    /// # Errors
    /// Those of [`DirtyBitmap::new`].
    pub fn with_threshold(ram_start: u64, ram_size: u64, geometry: PageGeometry, threshold: u32) -> Result<Self> {
        let coarse = DirtyBitmap::new(ram_start, ram_size, geometry.tracking_page_default)?;
        Ok(Self {
            geometry,
            controller: AdaptiveController::with_threshold(coarse.page_count(), threshold),
            coarse: Arc::new(coarse),
            fine: OnceLock::new(),
            state: AtomicU8::new(COARSE),
            switch: Mutex::new(()),
        })
    }

    /// The active bitmap. A clone from before a step-down is no longer fed after it.
    pub fn bitmap(&self) -> Arc<DirtyBitmap> {
        match self.fine.get() {
            Some(fine) if self.state.load(Ordering::SeqCst) == FINE => Arc::clone(fine),
            _ => Arc::clone(&self.coarse),
        }
    }

    /// The active granule.
    pub fn granule(&self) -> TrackingGranule {
        if self.state.load(Ordering::SeqCst) == FINE { TrackingGranule::Fine } else { TrackingGranule::Coarse }
    }

    /// Records a fault and marks the page; true if its bit was clean in the active bitmap.
    pub fn mark_dirty(&self, addr: u64) -> bool {
        let Some(block) = self.coarse.page_index_of(addr) else { return false };
        self.controller.record_fault(block);
        let fine = || self.fine.get().is_some_and(|fine| fine.set_dirty(addr));
        protocol::mark(&self.state, || self.coarse.set_dirty(addr), fine)
    }

    /// Ends the controller's window if it is due; on a step-down the finer bitmap takes over with every bit set so far.
    pub fn tick_adaptive(&self) -> TrackingGranule {
        if self.controller.tick() == TrackingGranule::Fine {
            self.step_down();
        }
        self.granule()
    }

    fn step_down(&self) {
        let _one_at_a_time = self.switch.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.load(Ordering::SeqCst) != COARSE {
            return;
        }
        let page = self.geometry.tracking_page_hot;
        let (start, size) = (self.coarse.ram_start(), self.coarse.ram_size());
        // A geometry whose pages are no finer than its blocks stays coarse: precise enough, and nothing is lost.
        let Ok(fine) = DirtyBitmap::new(start, size, page) else { return };
        if page >= self.coarse.page_size() || self.fine.set(Arc::new(fine)).is_err() {
            return;
        }
        if let Some(fine) = self.fine.get() {
            // The geometry was checked above: the fold cannot fail.
            protocol::switch(&self.state, || drop(self.coarse.fold_into_finer(fine)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: PageGeometry = PageGeometry {
        host_page: 4096,
        hvf_stage2_granule: 4096,
        tracking_page_default: 65536,
        tracking_page_hot: 4096,
    };

    fn wait_for_window() {
        std::thread::sleep(ADAPTIVE_WINDOW + Duration::from_millis(5));
    }

    #[test]
    fn steps_down_only_above_the_threshold_and_after_the_window() {
        let controller = AdaptiveController::with_threshold(2, 3);
        (0..3).for_each(|_| controller.record_fault(1));
        controller.record_fault(7);
        wait_for_window();
        assert_eq!(controller.tick(), TrackingGranule::Coarse, "equal is not above");
        (0..4).for_each(|_| controller.record_fault(1));
        assert_eq!(controller.tick(), TrackingGranule::Coarse, "the window is not over");
        wait_for_window();
        assert_eq!(controller.tick(), TrackingGranule::Fine);
        wait_for_window();
        assert_eq!(controller.tick(), TrackingGranule::Fine, "never back");
    }

    #[test]
    fn a_uniform_low_rate_stays_coarse() {
        let blocks = if cfg!(miri) { 10 } else { 1000 };
        let controller = AdaptiveController::new(blocks);
        (0..blocks).for_each(|block| (0..DEFAULT_STEP_DOWN_THRESHOLD).for_each(|_| controller.record_fault(block)));
        wait_for_window();
        assert_eq!(controller.tick(), TrackingGranule::Coarse);
    }

    #[test]
    fn a_region_keeps_its_bits_and_its_old_bitmap_is_no_longer_fed() {
        let region = TrackedRegion::with_threshold(0x10000, 4 * 65536, SMALL, 2).unwrap();
        let old = region.bitmap();
        (0..3).for_each(|_| {
            region.mark_dirty(0x10000 + 65536 + 5);
        });
        assert!(!region.mark_dirty(0xffff) && !region.mark_dirty(0x10000 + 4 * 65536));
        wait_for_window();
        assert_eq!(region.tick_adaptive(), TrackingGranule::Fine);
        let fine = region.bitmap();
        assert_eq!((fine.page_size(), old.page_size()), (4096, 65536));
        assert_eq!(fine.drain(), (16..32).collect::<Vec<_>>());
        assert!(region.mark_dirty(0x10000));
        assert!(!region.mark_dirty(0x10001));
        assert!(!old.is_dirty(0x10000));
        assert_eq!(fine.drain(), [0]);
        assert!(TrackedRegion::new(0, 0, SMALL).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        /// Writes, drains and a switch in any order: every page written since the last drain is in the next one.
        #[test]
        fn a_page_written_is_never_missed(steps in proptest::collection::vec((0u8..20, 0u64..64 * 4096), 1..200), switch_at in 0usize..200) {
            let region = TrackedRegion::new(0, 64 * 4096, SMALL).unwrap();
            let mut written = std::collections::BTreeSet::new();
            for (n, (what, addr)) in steps.into_iter().enumerate() {
                if n == switch_at {
                    region.step_down();
                }
                if what == 0 {
                    let bitmap = region.bitmap();
                    let set = bitmap.snapshot();
                    for page in std::mem::take(&mut written) {
                        let page: u64 = page;
                        prop_assert!(set.contains(page * 4096 / bitmap.page_size()), "page {} is missing", page);
                    }
                    bitmap.clear(&set);
                } else {
                    region.mark_dirty(addr);
                    written.insert(addr / 4096);
                }
            }
            let bitmap = region.bitmap();
            for page in written {
                prop_assert!(bitmap.is_dirty(page * 4096));
            }
        }
    }

    #[test]
    fn a_switch_under_load_loses_nothing() {
        for round in 0..20 {
            let region = TrackedRegion::new(0, 1024 * 4096, SMALL).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4u64 {
                    let region = &region;
                    scope.spawn(move || {
                        for i in 0..256 {
                            region.mark_dirty((thread * 256 + i) * 4096);
                        }
                    });
                }
                (0..round * 50).for_each(|_| std::hint::spin_loop());
                region.step_down();
            });
            assert_eq!(region.granule(), TrackingGranule::Fine);
            assert_eq!(region.bitmap().drain(), (0..1024).collect::<Vec<_>>());
        }
    }
}
