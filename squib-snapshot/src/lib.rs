//! Snapshots of microVMs: file formats, save and load as one transaction, memory images, diff chains, dirty tracking, and the
//! traits through which a host captures and restores a machine.
//!
//! A snapshot is a **pair**: a small state file and a memory file that is raw RAM. [`save_pair`] replaces both or neither,
//! whatever happens in between; [`Pair::open`] opens both as one; every 2 MiB of memory has a checksum ([`Pair::verify`]).
//! A diff holds the pages written since another snapshot and names it; a [`Chain`] reads base and diffs as one memory, and
//! [`merge()`] folds it into a full pair. [`DirtyBitmap`] and [`TrackedRegion`] know which pages were written.
//!
//! | you want to | look at |
//! |---|---|
//! | save a machine | [`save_pair`], [`save_diff`], [`prepare_pair`], [`PairRequest`], [`MachineRecord`] |
//! | open, map, check one | [`Pair`], [`StateFile`], [`load()`], [`describe`], [`recover`] |
//! | read pages of a chain, checked | [`Chain::read_checked`], [`Chain::is_known_zero`] |
//! | check pages that come from elsewhere | [`ChainStates`], [`digest`] |
//! | know what a restored guest needs first | [`WorkingSet`] |
//! | know what was written | [`DirtyBitmap`], [`PageSet`], [`TrackedRegion`] |
//! | choose how finely writes are tracked | [`BlockController`], [`dirty`](mod@dirty) |
//! | capture and restore vCPUs, GIC, MMDS | [`vcpu_save`] |
//! | know the bytes | [`format`](mod@format) |
//!
//! # The published interface
//!
//! Everything that `squib-snapshot` 0.2.0 exports is here under the same names, [`save()`] writes the very bytes it wrote, and
//! what it wrote is read. Where it was wrong the signature stayed and the behaviour changed:
//!
//! * **Temporary files.** [`AtomicWriter`] used `DEST.tmp`, truncating what was there. Names are unique now, files are created
//!   exclusively with mode 0600 and never through a link; what a crash leaves is removed by the next writer of the same
//!   destination. [`derive_temp_path`] still answers as before. Destinations have mode 0600, too.
//! * **Commit.** The state was renamed before memory was safe, and each by itself. [`save()`] commits both as one; directories are
//!   synced; an interrupted commit is finished by the next [`load()`] or [`save()`]. Two savers to one destination:
//!   [`SnapshotError::Busy`].
//! * **`load` looks at the memory file** where a state knows how long it must be (version 5.1) and the file is where convention
//!   puts it: another length is [`SnapshotError::PairMismatch`].
//! * **Zeros** of a full image become holes; [`MemoryWriter::write_full`] wrote them. The content is the same.
//! * **A page size of 0** never came to an end; it is [`SnapshotError::InvalidPath`].
//! * **Errors before files.** A diff without a bitmap, or with one of another geometry, is refused before any file is written.
//! * **Adaptive tracking** lost marks that came during a step-down; none is lost now. A geometry whose pages are no finer than its
//!   blocks stays coarse, and an address past the end of RAM counts as no fault.
//! * **A bare file name** (`vm.snap`) is in the current directory; it was [`SnapshotError::Io`].
//! * **`describe` reads at most the size limit**, and neither it nor `load` opens devices or pipes.
//! * **Versions before data.** A file of a newer version is [`SnapshotError::VersionMismatch`] whatever its data; it was
//!   [`SnapshotError::Bitcode`] if they could not be decoded. [`SNAPSHOT_VERSION`] is what [`Snapshot`] reads and writes;
//!   [`load()`], [`describe`] and [`StateFile`] also read [`SNAPSHOT_VERSION_RECORD`], and
//!   [`SnapshotDescription::expected_version`] is the one of the two that the file belongs to.
//! * **Announced lengths are limited** (1024 vCPUs, 4096 devices, 4096 registers of one vCPU), so that a short file cannot ask for much
//!   memory.
//! * **Register keys** 48 and up exist ([`SysReg`]): a published reader loads such a state and answers `Incompatible` when it
//!   restores it.
//! * **I/O errors name their file** in their text and by [`SnapshotError::path`]; their kind is that of the system.
//! * **Generic functions take `?Sized`**, so `&dyn PageReader` and the like can be passed; [`PageReader`] has a provided method
//!   [`slice_at`](PageReader::slice_at).
//!
//! What a signature could not carry stands beside it: [`restore_vcpu_state_as_saved`] brings every vCPU back in the power state it
//! was saved in, where [`restore_vcpu_state`] turns the secondaries off as published.
#![forbid(unsafe_code)]

pub mod arch;
pub mod atomic;
mod bounded;
pub mod chain;
mod checked;
pub mod digest;
pub mod dirty;
pub mod envelope;
pub mod error;
mod fs;
mod identity;
mod image;
mod links;
pub mod load;
pub mod memory;
pub mod merge;
mod page_sums;
pub mod pair;
pub mod record;
pub mod save;
pub mod state;
mod state_file;
mod transaction;
pub mod vcpu_save;
pub mod verify;
mod working_set;

#[doc = include_str!("../FORMAT.md")]
pub mod format {}

pub use arch::{PageGeometry, SysReg};
pub use atomic::{AtomicWriter, TEMP_SUFFIX, UnlinkOnDrop, check_same_filesystem, derive_temp_path};
pub use chain::Chain;
pub use dirty::{
    ADAPTIVE_WINDOW, AdaptiveController, BlockController, DEFAULT_STEP_DOWN_THRESHOLD, DENSE_FAULTS, DirtyBitmap,
    GranuleSteps, PageSet, PageSetBuilder, RETRY_EPOCHS, TakenPages, TrackedRegion, TrackingGranule,
};
pub use envelope::{
    Crc64Writer, SNAPSHOT_DESERIALIZATION_BYTES_LIMIT, SNAPSHOT_MAGIC_AARCH64, SNAPSHOT_VERSION, Snapshot, SnapshotHdr,
    arch_magic, peek_header,
};
pub use error::{Result, SnapshotError};
pub use identity::{ParseIdError, SnapshotId};
pub use links::ChainStates;
pub use load::{LoadedSnapshot, SnapshotDescription, describe, inferred_memory_path, load};
pub use memory::{MemorySnapshotKind, MemoryWriter, PageReader, VecPageReader};
pub use merge::{MergeReport, merge};
pub use page_sums::Unreadable;
pub use pair::{
    Contents, Pair, PairReport, PairRequest, PreparedPair, check_destination, prepare_pair, recover, save_diff,
    save_pair,
};
pub use record::{
    BlockSums, ClockMode, ClockRecord, DEFAULT_BLOCK_SIZE, HostRecord, MachineRecord, MemoryRecord, RECORD_DEVICE_KIND,
    SNAPSHOT_VERSION_RECORD, SnapshotRecord, VcpuRecord,
};
pub use save::{SaveReport, SaveRequest, SnapshotKind, save};
pub use state::{
    DeviceState, DeviceStates, FpSimdRegs, GicState, GpRegs, MicrovmState, MmdsState, PsciVcpuState, VcpuState, VmInfo,
};
pub use state_file::StateFile;
pub use transaction::RecoverReport;
pub use vcpu_save::{
    GicRestoreTarget, GicSnapshotSource, MmdsRestoreTarget, MmdsSnapshotSource, VcpuRestoreTarget, VcpuSnapshotSource,
    capture_vcpu_state, normalized_psci_state, restore_vcpu_state, restore_vcpu_state_as_saved,
};
pub use verify::{Damage, VerifyReport};
pub use working_set::WorkingSet;
