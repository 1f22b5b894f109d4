//! Snapshots of microVMs: file formats, save and load, memory images, dirty bitmap, capture and restore traits.
#![forbid(unsafe_code)]

pub mod arch;
pub mod atomic;
mod bounded;
pub mod chain;
mod digest;
pub mod dirty;
pub mod envelope;
pub mod error;
mod fs;
mod identity;
mod image;
pub mod load;
pub mod memory;
pub mod merge;
pub mod pair;
pub mod record;
pub mod save;
pub mod state;
mod state_file;
mod transaction;
pub mod vcpu_save;
pub mod verify;

pub use arch::{PageGeometry, SysReg};
pub use atomic::{AtomicWriter, TEMP_SUFFIX, UnlinkOnDrop, check_same_filesystem, derive_temp_path};
pub use chain::Chain;
pub use dirty::{
    ADAPTIVE_WINDOW, AdaptiveController, DEFAULT_STEP_DOWN_THRESHOLD, DirtyBitmap, PageSet, PageSetBuilder, TakenPages,
    TrackedRegion, TrackingGranule,
};
pub use envelope::{
    Crc64Writer, SNAPSHOT_DESERIALIZATION_BYTES_LIMIT, SNAPSHOT_MAGIC_AARCH64, SNAPSHOT_VERSION, Snapshot, SnapshotHdr,
    arch_magic, peek_header,
};
pub use error::{Result, SnapshotError};
pub use identity::{ParseIdError, SnapshotId};
pub use load::{LoadedSnapshot, SnapshotDescription, describe, inferred_memory_path, load};
pub use memory::{MemorySnapshotKind, MemoryWriter, PageReader, VecPageReader};
pub use merge::{MergeReport, merge};
pub use pair::{Contents, Pair, PairReport, PairRequest, recover, save_diff, save_pair};
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
