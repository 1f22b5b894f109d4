//! Working sets on disk: where a restore looks for the one of its snapshot, and what becomes of it.
//!
//! A run that was restored lazily knows which pages were needed, and in which order. Written beside the state file, that list tells
//! the next restores what to bring first. To record one, let a restore bring only what is needed (`stream` off, `fault_around` 1) up
//! to the moment that later restores are to reach soon, and call [`WorkingSetFile::record`].

use std::ops::Range;
use std::path::{Path, PathBuf};

use squib_snapshot::{SnapshotError, SnapshotId, StateFile, WorkingSet};

use super::Monitor;
use crate::config::RestoreConfig;
use crate::error::{Error, Result};
use crate::memory::GRANULE;

/// The file that holds the working set of one snapshot, whether or not it is there.
#[derive(Clone, Debug)]
pub struct WorkingSetFile {
    path: PathBuf,
    identity: SnapshotId,
    ram_size: u64,
}

impl WorkingSetFile {
    /// For the snapshot that `config` restores: at `path`, or beside its newest state file.
    ///
    /// # Errors
    /// Those of opening the state file.
    pub fn new(config: &RestoreConfig, path: Option<PathBuf>) -> Result<WorkingSetFile> {
        let newest = config.diffs.last().map_or(&config.state, |diff| &diff.state);
        let state = StateFile::open(newest).map_err(|e| Error::of_file(newest, e))?;
        let path = path.unwrap_or_else(|| WorkingSet::path_for(newest));
        Ok(WorkingSetFile { path, identity: state.identity(), ram_size: state.state().vm_info.mem_size_mib << 20 })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to bring first, for [`PagerConfig::first`](crate::PagerConfig::first); `None` if there is no file.
    ///
    /// # Errors
    /// Why the file cannot be used: it is damaged, or of another snapshot. A restore without it is as right, and slower.
    pub fn load(&self) -> Result<Option<Vec<Range<u64>>>> {
        match WorkingSet::open(&self.path, self.identity, self.ram_size) {
            Ok(set) => Ok(Some(set.ranges().collect())),
            Err(SnapshotError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes down what the machine watched by `monitor` has needed so far. Returns the number of pages.
    ///
    /// # Errors
    /// Those of writing the file; what was there before is then still there.
    pub fn record(&self, monitor: &Monitor) -> Result<u64> {
        let set = WorkingSet::new(self.identity, self.ram_size, GRANULE as u32, monitor.touched());
        set.save(&self.path)?;
        Ok(set.pages())
    }
}
