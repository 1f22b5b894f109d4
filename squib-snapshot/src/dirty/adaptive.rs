//! Dirty tracking that chooses its own granule: cheap 2 MiB blocks until some block is written so often that precision
//! pays, then 16 KiB pages for the whole region.
//!
//! The switch loses nothing, whenever it happens. It passes through three states: `COARSE`, `SWITCHING`, `FINE`. A marker
//! sets its coarse bit first and looks at the state afterwards; the switcher publishes `SWITCHING` first and copies the
//! coarse bits afterwards. Both orders are sequentially consistent, so either the copy sees the mark or the marker sees
//! the switch and marks the fine bitmap too. [`TrackedRegion::bitmap`] gives out the fine bitmap only once the copy is
//! complete.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::arch::PageGeometry;
use crate::dirty::DirtyBitmap;
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

const COARSE: u8 = 0;
const SWITCHING: u8 = 1;
const FINE: u8 = 2;

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
        if self.state.load(Ordering::SeqCst) == FINE {
            return self.fine.get().is_some_and(|fine| fine.set_dirty(addr));
        }
        let was_clean = self.coarse.set_dirty(addr);
        // The mark must be visible before the state is read: see the module's argument.
        fence(Ordering::SeqCst);
        match self.fine.get() {
            Some(fine) if self.state.load(Ordering::SeqCst) != COARSE => fine.set_dirty(addr),
            _ => was_clean,
        }
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
        self.state.store(SWITCHING, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if let Some(fine) = self.fine.get()
            && self.coarse.fold_into_finer(fine).is_ok()
        {
            self.state.store(FINE, Ordering::SeqCst);
        }
    }
}
