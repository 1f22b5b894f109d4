//! A snapshot as its two files: saved together, opened together, checked against each other.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::dirty::{DirtyBitmap, PageSet};
use crate::error::{Result, SnapshotError, at};
use crate::fs::{Fs, RealFs, open_regular};
use crate::identity::SnapshotId;
use crate::image::{self, Plan, UNIT};
use crate::memory::PageReader;
use crate::record::{DEFAULT_BLOCK_SIZE, MachineRecord, MemoryRecord, SnapshotRecord, check_block_size};
use crate::state::MicrovmState;
use crate::state_file::{StateFile, encode};
use crate::transaction::{RecoverReport, Transaction, recover_directory, recover_pair};

/// What the memory file is to hold.
#[derive(Debug, Clone, Copy)]
pub enum Contents<'a> {
    /// All of RAM; zeros become holes.
    Full,
    /// The pages of a set, zero or not.
    Diff {
        /// The snapshot that holds the other pages.
        parent: SnapshotId,
        /// The pages.
        pages: &'a PageSet,
    },
}

/// A pair to be saved.
#[derive(Clone, Copy)]
pub struct PairRequest<'a> {
    /// Destination of the state.
    pub state_path: &'a Path,
    /// Destination of the memory.
    pub memory_path: &'a Path,
    /// The machine.
    pub state: &'a MicrovmState,
    /// What a 5.0 state cannot say of it.
    pub machine: &'a MachineRecord,
    /// Its RAM. Sources that offer [`PageReader::slice_at`] are written without a copy.
    pub memory: &'a dyn PageReader,
    /// Guest physical address of the first byte of RAM.
    pub ram_start: u64,
    /// Bytes of RAM.
    pub ram_size: u64,
    /// All of it or a diff.
    pub contents: Contents<'a>,
    /// Bytes per checksum: a power of two from 4 KiB to [`DEFAULT_BLOCK_SIZE`], or 0 for that. Readers that fetch single pages
    /// check whole blocks; smaller ones make the state file larger.
    pub block_size: u64,
}

/// A pair that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairReport {
    /// Its identity: what a diff on top of it names as parent.
    pub identity: SnapshotId,
    /// Bytes written to the memory file.
    pub memory_bytes: u64,
    /// Length of the state file.
    pub state_bytes: u64,
}

/// Saves a pair in version 5.1: checksums, identity and page set included. Either both files are replaced or neither,
/// whatever happens.
///
/// ```
/// use squib_snapshot::*;
/// # let dir = tempfile::tempdir()?;
/// # let (state_path, memory_path) = (dir.path().join("vm.snap"), dir.path().join("vm.mem"));
/// let state = MicrovmState {
///     vcpu_states: vec![VcpuState::new(0)],
///     gic_state: GicState::from_bytes(vec![1]),
///     ..MicrovmState::default()
/// };
/// let ram = VecPageReader::new(vec![5; 1 << 20]);
/// let saved = save_pair(&PairRequest {
///     state_path: &state_path,
///     memory_path: &memory_path,
///     state: &state,
///     machine: &MachineRecord::default(),
///     memory: &ram,
///     ram_start: 0x8000_0000,
///     ram_size: 1 << 20,
///     contents: Contents::Full,
///     block_size: 0,
/// })?;
/// let pair = Pair::open(&state_path, &memory_path)?;
/// assert_eq!(pair.state_file().identity(), saved.identity);
/// pair.verify()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Before any file is touched: [`SnapshotError::Incompatible`], [`SnapshotError::InvalidPath`] for a geometry or a diff that
/// makes no sense. Then [`SnapshotError::Busy`] if somebody else saves to a destination, [`SnapshotError::MemoryIo`],
/// [`SnapshotError::Io`], [`SnapshotError::SizeLimitExceeded`] if the state comes out too long to be read back, and
/// [`SnapshotError::AtomicCommitFailed`] leave the old pair; [`SnapshotError::CommitInterrupted`] leaves the new.
pub fn save_pair(request: &PairRequest<'_>) -> Result<PairReport> {
    save_pair_on(&RealFs, request)
}

pub(crate) fn save_pair_on(fs: &dyn Fs, request: &PairRequest<'_>) -> Result<PairReport> {
    prepare_pair_on(fs, request)?.commit()
}

/// The first half of [`save_pair`], for which memory must stand still: writes it to a new file, which is neither synced nor in
/// place yet. [`PreparedPair::commit`] is the other half; the machine may run meanwhile.
///
/// # Errors
/// Those of [`save_pair`].
pub fn prepare_pair(request: &PairRequest<'_>) -> Result<PreparedPair<'static>> {
    prepare_pair_on(&RealFs, request)
}

fn prepare_pair_on<'f>(fs: &'f dyn Fs, request: &PairRequest<'_>) -> Result<PreparedPair<'f>> {
    let block_size = if request.block_size == 0 { DEFAULT_BLOCK_SIZE } else { request.block_size };
    check_request(request, block_size)?;
    let (parent, pages) = match request.contents {
        Contents::Full => (None, None),
        Contents::Diff { parent, pages } => (Some(parent), Some(pages)),
    };
    let transaction = Transaction::begin(fs, request.state_path, request.memory_path)?;
    let plan = Plan { dest: request.memory_path, ram_size: request.ram_size, pages, block_size, read_size: UNIT };
    let written = image::write(transaction.memory_file(), request.memory, &plan).map_err(SnapshotError::MemoryIo)?;
    let record = SnapshotRecord {
        identity: SnapshotId::random()?,
        parent,
        memory: MemoryRecord {
            ram_start: request.ram_start,
            ram_size: request.ram_size,
            pages: pages.cloned(),
            sums: written.sums,
        },
        machine: request.machine.clone(),
    };
    let state = encode(request.state, &record)?;
    let report = PairReport { identity: record.identity, memory_bytes: written.bytes, state_bytes: state.len() as u64 };
    Ok(PreparedPair { transaction, state, report })
}

/// A pair that is written but not in place; see [`prepare_pair`]. Dropping it removes what was written.
#[must_use = "a pair that is not committed is removed"]
pub struct PreparedPair<'f> {
    transaction: Transaction<'f>,
    state: Vec<u8>,
    report: PairReport,
}

impl PreparedPair<'_> {
    /// Makes the pair durable and puts it in place.
    ///
    /// # Errors
    /// Those of [`save_pair`] that come after the memory is written.
    pub fn commit(self) -> Result<PairReport> {
        self.transaction.commit(&self.state)?;
        Ok(self.report)
    }
}

impl std::fmt::Debug for PreparedPair<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedPair").field("report", &self.report).finish_non_exhaustive()
    }
}

fn check_request(request: &PairRequest<'_>, block_size: u64) -> Result<()> {
    let invalid = |text: String| Err(SnapshotError::InvalidPath(text));
    request.state.verify_compatible()?;
    check_block_size(block_size)?;
    if request.ram_size == 0 || request.ram_start.checked_add(request.ram_size).is_none() {
        return invalid(format!(
            "RAM range overflows or is empty: start={:#x}, size={:#x}",
            request.ram_start, request.ram_size
        ));
    }
    let vcpus = (request.machine.vcpus.len(), request.state.vcpu_states.len());
    if vcpus.0 != 0 && vcpus.0 != vcpus.1 {
        return invalid(format!("{} vCPU records for {} vCPUs", vcpus.0, vcpus.1));
    }
    if let Contents::Diff { pages, .. } = request.contents {
        if !request.state.vm_info.track_dirty_pages {
            return invalid("Diff snapshot requested but vm_info.track_dirty_pages is false".into());
        }
        if !pages.page_size().is_power_of_two() || pages.page_count() != request.ram_size.div_ceil(pages.page_size()) {
            return invalid(format!(
                "the page set covers {} pages of {} bytes, RAM has {} bytes",
                pages.page_count(),
                pages.page_size(),
                request.ram_size
            ));
        }
    }
    Ok(())
}

/// Saves the pages that `dirty` marks as a diff on top of `parent`, and makes them clean once the diff is durable. If it
/// fails, every page is still dirty. The guest must stand still for the whole call; for one that runs on, see
/// [`DirtyBitmap::take`].
///
/// `request.contents` is not used.
///
/// # Errors
/// Those of [`save_pair`].
pub fn save_diff(request: &PairRequest<'_>, parent: SnapshotId, dirty: &DirtyBitmap) -> Result<PairReport> {
    crate::memory::check_diff_geometry(dirty, request.ram_size, dirty.page_size())?;
    let pages = dirty.snapshot();
    let report = save_pair(&PairRequest { contents: Contents::Diff { parent, pages: &pages }, ..*request })?;
    dirty.clear(&pages);
    Ok(report)
}

/// Whether a pair could be saved there now, told by making ready for it and undoing that: names the mistake before a machine runs that
/// cannot be saved in the end. A destination that somebody else saves to at this moment is no mistake.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let p = |n: &str| dir.path().join(n);
/// squib_snapshot::check_destination(&p("vm.state"), &p("vm.mem"))?;
/// assert!(squib_snapshot::check_destination(&p("vm.state"), &p("no/such/directory/vm.mem")).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those with which [`save_pair`] would begin: [`SnapshotError::InvalidPath`], [`SnapshotError::Io`],
/// [`SnapshotError::AtomicCommitFailed`].
pub fn check_destination(state_path: &Path, memory_path: &Path) -> Result<()> {
    match Transaction::begin(&RealFs, state_path, memory_path) {
        Ok(_) | Err(SnapshotError::Busy { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Finishes every interrupted commit of a directory and removes what dead savers left in it. Loading a state does the same for
/// its own pair.
///
/// # Errors
/// [`SnapshotError::Io`] and [`SnapshotError::Journal`].
pub fn recover(dir: &Path) -> Result<RecoverReport> {
    recover_directory(&RealFs, dir)
}

/// A state and its memory file, both open.
#[derive(Debug)]
pub struct Pair {
    state: StateFile,
    memory_path: PathBuf,
    memory: File,
}

impl Pair {
    /// Opens both files as one snapshot: after finishing an interrupted commit, and so that a save going on at the same time cannot
    /// mix an old file with a new one. Checks the memory file's length; [`Self::verify`] checks its content.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], those of [`StateFile::open`], [`SnapshotError::Incompatible`], and
    /// [`SnapshotError::PairMismatch`] if the memory file has the wrong length.
    pub fn open(state_path: &Path, memory_path: &Path) -> Result<Self> {
        loop {
            recover_pair(&RealFs, state_path)?;
            let before = RealFs.file_id(state_path)?;
            let state = StateFile::open_as_is(state_path)?;
            let memory = open_regular(memory_path)?;
            // Nothing was committed between the two opens if the state is still the same file and no journal is there.
            let journal = RealFs.kind(&crate::transaction::journal_path(state_path))?;
            if journal.is_some() || RealFs.file_id(state_path)? != before {
                continue;
            }
            return Self::from_files(state, memory_path, memory);
        }
    }

    fn from_files(state: StateFile, memory_path: &Path, memory: File) -> Result<Self> {
        state.state().verify_compatible()?;
        let len = memory.metadata().map_err(at("examine", memory_path))?.len();
        if let Some(record) = state.record()
            && record.memory.ram_size != len
        {
            return Err(SnapshotError::PairMismatch {
                state: state.path().to_path_buf(),
                memory: memory_path.to_path_buf(),
                reason: format!("it has {len} bytes, the state was saved with {} bytes of RAM", record.memory.ram_size),
            });
        }
        Ok(Self { state, memory_path: memory_path.to_path_buf(), memory })
    }

    /// The state.
    #[must_use]
    pub fn state_file(&self) -> &StateFile {
        &self.state
    }

    /// The memory file, open for reading: map it, or hand it to a pager. It stays the right one even if the path is replaced.
    #[must_use]
    pub fn memory_file(&self) -> &File {
        &self.memory
    }

    /// Where the memory file is.
    #[must_use]
    pub fn memory_path(&self) -> &Path {
        &self.memory_path
    }

    /// Bytes of RAM.
    ///
    /// # Errors
    /// [`SnapshotError::MemoryIo`] if a 5.0 file has to be asked and does not answer.
    pub fn ram_size(&self) -> Result<u64> {
        match self.state.record() {
            Some(record) => Ok(record.memory.ram_size),
            None => Ok(self.memory.metadata().map_err(|e| self.memory_error(e))?.len()),
        }
    }

    /// Splits into state and memory file.
    #[must_use]
    pub fn into_parts(self) -> (StateFile, File) {
        (self.state, self.memory)
    }

    pub(crate) fn memory_error(&self, e: io::Error) -> SnapshotError {
        SnapshotError::MemoryIo(at("read", &self.memory_path)(e))
    }
}

impl AsRef<StateFile> for Pair {
    fn as_ref(&self) -> &StateFile {
        &self.state
    }
}
