//! Saving a pair in the published form: a version 5.0 state and its memory file, committed as one.
//!
//! [`save`] keeps the published signature and writes exactly the published bytes. What a 5.0 state cannot say (identity,
//! checksums, the pages of a diff) is written by [`save_pair`](crate::save_pair).

use std::path::Path;

pub use crate::envelope::SnapshotHdr as Header;

use crate::dirty::DirtyBitmap;
use crate::envelope::Snapshot;
use crate::error::{Result, SnapshotError};
use crate::fs::RealFs;
use crate::image::{self, Plan, UNIT};
use crate::memory::{PageReader, check_diff_geometry, pieces};
use crate::state::MicrovmState;
use crate::transaction::Transaction;

/// What a snapshot holds of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// All of it.
    Full,
    /// The pages written since another snapshot.
    Diff,
}

/// What to save, and where.
#[derive(Debug)]
pub struct SaveRequest<'a, R: PageReader + ?Sized> {
    /// Destination of the state.
    pub state_path: &'a Path,
    /// Destination of the memory.
    pub memory_path: &'a Path,
    /// Full or diff.
    pub kind: SnapshotKind,
    /// The machine.
    pub state: MicrovmState,
    /// Its RAM.
    pub memory: &'a R,
    /// Bytes of RAM.
    pub ram_size: u64,
    /// Bytes per piece of the memory file.
    pub memory_page_size: u64,
    /// The dirty pages of a diff; ignored for a full snapshot.
    pub dirty: Option<&'a DirtyBitmap>,
}

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveReport {
    /// As requested.
    pub kind: SnapshotKind,
    /// Pieces of `memory_page_size` in a diff; 0 for a full snapshot.
    pub pages_written: u64,
}

/// Saves a pair. Afterwards both destinations exist and belong together; after an error both are as they were. The
/// bitmap keeps its bits.
///
/// # Errors
/// Before any file is touched: [`SnapshotError::InvalidPath`] for a diff of a machine that does not track dirty pages,
/// [`SnapshotError::Incompatible`] from [`MicrovmState::verify_compatible`]. Then [`SnapshotError::InvalidPath`] for a
/// diff without a bitmap or with one of another geometry, and the errors of [`save_pair`](crate::save_pair).
pub fn save<R: PageReader + ?Sized>(req: SaveRequest<'_, R>) -> Result<SaveReport> {
    if req.kind == SnapshotKind::Diff && !req.state.vm_info.track_dirty_pages {
        return Err(SnapshotError::InvalidPath(
            "Diff snapshot requested but vm_info.track_dirty_pages is false".into(),
        ));
    }
    req.state.verify_compatible()?;
    if req.memory_page_size == 0 {
        return Err(SnapshotError::InvalidPath("page_size must be a power of two: 0".into()));
    }
    let dirty = match (req.kind, req.dirty) {
        (SnapshotKind::Full, _) => None,
        (SnapshotKind::Diff, Some(dirty)) => {
            check_diff_geometry(dirty, req.ram_size, req.memory_page_size)?;
            Some(dirty.snapshot())
        }
        (SnapshotKind::Diff, None) => {
            return Err(SnapshotError::InvalidPath(
                "Diff snapshot requires track_dirty_pages=true and a dirty bitmap".into(),
            ));
        }
    };
    let mut state = Vec::new();
    Snapshot::new(req.state).save(&mut state)?;
    let transaction = Transaction::begin(&RealFs, req.state_path, req.memory_path)?;
    let plan = Plan {
        dest: req.memory_path,
        ram_size: req.ram_size,
        pages: dirty.as_ref(),
        block_size: UNIT,
        read_size: req.memory_page_size,
    };
    image::write(transaction.memory_file(), req.memory, &plan).map_err(SnapshotError::MemoryIo)?;
    transaction.commit(&state)?;
    let pages_written = dirty.as_ref().map_or(0, |pages| pieces(pages, req.ram_size, req.memory_page_size));
    Ok(SaveReport { kind: req.kind, pages_written })
}
