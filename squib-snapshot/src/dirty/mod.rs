//! Which pages of guest RAM were written since the last snapshot.
//!
//! [`DirtyBitmap`] is the lock-free log that fault handlers and devices write to; [`TrackedRegion`] chooses its granule by
//! itself, from 2 MiB blocks down to 16 KiB pages; [`PageSet`] is the frozen result that a diff snapshot stores.

mod adaptive;
mod bitmap;
mod page_set;
mod protocol;

pub use adaptive::{ADAPTIVE_WINDOW, AdaptiveController, DEFAULT_STEP_DOWN_THRESHOLD, TrackedRegion, TrackingGranule};
pub use bitmap::{DirtyBitmap, TakenPages};
pub use page_set::{PageSet, PageSetBuilder};
