//! Which pages of guest RAM were written since the last snapshot.
//!
//! [`DirtyBitmap`] is the lock-free log that fault handlers and devices write to; [`PageSet`] is the frozen result that a diff
//! snapshot stores. How much one write marks, from 2 MiB blocks down to 16 KiB pages, is chosen by one of two controllers.
//!
//! # Two controllers
//!
//! [`BlockController`] is for a log that is fed by **write protection**, and decides for each block by itself, in both directions,
//! at the borders of epochs (the times between two snapshots). squib's own machines use it, over one log of 16 KiB pages.
//!
//! [`AdaptiveController`], and [`TrackedRegion`] around it, are for a log that hears of **every write** (an emulator's, a device
//! model's): more than 32 writes to one block within 100 ms, and all of RAM is tracked by pages from then on, in a second log.
//! They belong to the interface of the published crate and behave as they did there.
//!
//! The second is of no use under write protection. A block that was opened whole does not fault again before the next snapshot,
//! so it makes one fault an epoch and never more than 32 in 100 ms: nothing would ever step down. If something did, it
//! would be all of RAM, for ever: one page of a large guest that is written often would cost the rest of it 128 faults a block.

mod adaptive;
mod bitmap;
mod blocks;
mod page_set;
mod protocol;

pub use adaptive::{ADAPTIVE_WINDOW, AdaptiveController, DEFAULT_STEP_DOWN_THRESHOLD, TrackedRegion, TrackingGranule};
pub use bitmap::{DirtyBitmap, TakenPages};
pub use blocks::{BlockController, DENSE_FAULTS, GranuleSteps, RETRY_EPOCHS};
pub use page_set::{PageSet, PageSetBuilder};
