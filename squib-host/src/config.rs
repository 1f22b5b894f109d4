//! What a caller says about a machine: how to boot it, how to bring it back, where its console goes, and how a run ended.

use std::fmt;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use squib_snapshot::{GranuleSteps, SnapshotId};

use crate::crash::CrashReport;
use crate::pager::{PageSource, StreamObserver};

/// What drives the guest's counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockMode {
    /// The host's clock.
    #[default]
    Host,
    /// The number of executed instructions: the same guest does the same thing to the bit, every time. Only the software
    /// stand-in can do this, and only for one vCPU. Devices then answer at once, on the vCPU's thread, and the wall clock
    /// starts at a fixed date.
    Deterministic,
}

/// How much of RAM the first write to it marks as dirty, and makes writable without another fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirtyGranule {
    /// 2 MiB, stepping down to 16 KiB where few pages of a block are written, again and again.
    #[default]
    Adaptive,
    /// Always 2 MiB: the fewest faults, the largest diffs.
    Block,
    /// Always 16 KiB: a fault for every page, the smallest diffs.
    Page,
}

/// A raw disk image offered to the guest as a virtio block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image: a whole number of 512-byte sectors.
    pub path: PathBuf,
    /// The guest sees a read-only disk and the file is opened for reading only.
    pub read_only: bool,
}

/// Identifies a [`Watch`] in [`StopReason::Watch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(pub u32);

/// A text to wait for on the guest's console. The machine stops right after the guest wrote the byte that completes the
/// text: that byte is out, no later one is. A watch fires once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The caller's name for it.
    pub id: WatchId,
    /// The text, matched bytewise. Must not be empty.
    pub text: String,
}

/// Where the guest's console input comes from.
#[derive(Default)]
pub enum ConsoleInput {
    /// Nothing is ever typed.
    #[default]
    None,
    /// The process's standard input. A terminal is put into raw mode and restored on every way out; Ctrl-A x ends the run.
    Stdin,
    /// Any other source of bytes, read on a thread of its own.
    Reader(Box<dyn Read + Send>),
}

impl fmt::Debug for ConsoleInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConsoleInput::None => "None",
            ConsoleInput::Stdin => "Stdin",
            ConsoleInput::Reader(_) => "Reader",
        })
    }
}

/// The console's two ends, and what to wait for on it.
pub struct ConsoleConfig {
    /// Receives every byte the guest writes, exactly once, in order.
    pub output: Box<dyn Write + Send>,
    /// Where typed bytes come from.
    pub input: ConsoleInput,
    /// Texts that stop the machine.
    pub watches: Vec<Watch>,
}

impl Default for ConsoleConfig {
    /// Output to nowhere, no input.
    fn default() -> Self {
        ConsoleConfig { output: Box::new(std::io::sink()), input: ConsoleInput::None, watches: Vec::new() }
    }
}

impl fmt::Debug for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleConfig")
            .field("input", &self.input)
            .field("watches", &self.watches)
            .finish_non_exhaustive()
    }
}

/// A machine to boot.
#[derive(Debug)]
pub struct MachineConfig {
    /// The kernel: an arm64 `Image`, plain or compressed with gzip or zstd, or an EFI zboot image.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Disks, in the order the guest sees them (`/dev/vda`, `/dev/vdb`, ...).
    pub disks: Vec<DiskConfig>,
    /// Snapshots of this machine may be diffs.
    pub track_dirty_pages: bool,
    /// How finely, if so.
    pub dirty_granule: DirtyGranule,
    /// What drives the guest's counter.
    pub clock: ClockMode,
    /// The console.
    pub console: ConsoleConfig,
}

impl MachineConfig {
    /// A machine with one vCPU, 512 MiB and a console that goes nowhere.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        MachineConfig {
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
            memory_mib: 512,
            cpus: 1,
            disks: Vec::new(),
            track_dirty_pages: false,
            dirty_granule: DirtyGranule::default(),
            clock: ClockMode::Host,
            console: ConsoleConfig::default(),
        }
    }
}

/// How RAM arrives at a restore.
#[derive(Clone, Debug, Default)]
pub enum RestoreBackend {
    /// The memory file is mapped privately; the kernel pages it in on demand. It must not change while the machine lives. Pages of
    /// diffs are read before the guest runs.
    #[default]
    Map,
    /// The memory files are read whole, in parallel, before the guest runs.
    Copy,
    /// Each page is read from the memory file, and compared with its checksum, when it is first needed. See [`PagerConfig`].
    File,
    /// Each page is asked of this source when it is first needed; the memory file is not opened. See [`PagerConfig`].
    Source(Arc<dyn PageSource>),
}

/// How a pager works, for the backends that have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagerConfig {
    /// Bring in everything in the background, until nothing is absent.
    pub stream: bool,
    /// Pages of 16 KiB that one fault may put within reach, the needed one included, where the others cost no I/O: an aligned
    /// window, at least 1.
    pub fault_around: u32,
    /// What streaming brings first, as ranges of bytes of RAM: the pages that an earlier run needed
    /// ([`WorkingSetFile`](crate::pager::WorkingSetFile)), say. What the vCPUs were working with comes before that by itself.
    pub first: Vec<Range<u64>>,
    /// Is told what streaming meets while the guest runs on: memory that is damaged, a source that is away.
    pub observer: Option<StreamObserver>,
}

impl Default for PagerConfig {
    fn default() -> Self {
        PagerConfig { stream: true, fault_around: 8, first: Vec::new(), observer: None }
    }
}

/// A machine to bring back.
#[derive(Debug)]
pub struct RestoreConfig {
    /// The state file.
    pub state: PathBuf,
    /// The memory file. Not used by [`RestoreBackend::Source`].
    pub memory: PathBuf,
    /// Diffs on top of that pair, oldest first: the machine is the one of the last.
    pub diffs: Vec<SaveTarget>,
    /// How RAM arrives.
    pub backend: RestoreBackend,
    /// How the pager works, if the backend has one.
    pub pager: PagerConfig,
    /// Paths to use instead of the recorded disks', by position; `None` keeps the recorded path.
    pub disks: Vec<Option<PathBuf>>,
    /// What drives the guest's counter from here on.
    pub clock: ClockMode,
    /// Whether dirty pages are tracked from here on: the next snapshot may be a diff on top of this one.
    pub track_dirty_pages: bool,
    /// How finely, if so.
    pub dirty_granule: DirtyGranule,
    /// The console.
    pub console: ConsoleConfig,
}

impl RestoreConfig {
    /// The pair, mapped, with a console that goes nowhere.
    pub fn new(state: impl Into<PathBuf>, memory: impl Into<PathBuf>) -> Self {
        RestoreConfig {
            state: state.into(),
            memory: memory.into(),
            diffs: Vec::new(),
            backend: RestoreBackend::Map,
            pager: PagerConfig::default(),
            disks: Vec::new(),
            clock: ClockMode::Host,
            track_dirty_pages: false,
            dirty_granule: DirtyGranule::default(),
            console: ConsoleConfig::default(),
        }
    }
}

/// The two files of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveTarget {
    /// The state file.
    pub state: PathBuf,
    /// The memory file.
    pub memory: PathBuf,
}

/// What a snapshot is and what it cost.
#[derive(Clone, Debug)]
pub struct SnapshotReport {
    /// Which snapshot it is.
    pub identity: SnapshotId,
    /// For a diff: the snapshot it continues.
    pub parent: Option<SnapshotId>,
    /// How long the guest stood still: from the first vCPU stopped to the moment it may go on.
    pub pause: Duration,
    /// How long all of it took: from the first vCPU stopped to the moment the files are durable and in place.
    pub total: Duration,
    /// The part of [`SnapshotReport::pause`] spent reading registers, GIC and devices.
    pub capture: Duration,
    /// Guest RAM, bytes.
    pub ram_bytes: u64,
    /// Where dirty pages are tracked: those since the last snapshot, bytes. A diff holds these.
    pub dirty_bytes: Option<u64>,
    /// Write faults of the guest since the last snapshot.
    pub write_faults: u64,
    /// With [`DirtyGranule::Adaptive`]: how often blocks of RAM came to be tracked by pages, and whole again, so far.
    pub granule_steps: GranuleSteps,
    /// Length of the memory file, bytes.
    pub memory_file_bytes: u64,
    /// What the memory file occupies on disk, bytes (holes are not counted).
    pub memory_disk_bytes: u64,
    /// Length of the state file, bytes.
    pub state_file_bytes: u64,
}

/// How a run ended. The vCPUs stand still in every case.
#[derive(Debug)]
pub enum RunOutcome {
    /// The guest switched itself off (PSCI SYSTEM_OFF).
    PowerOff,
    /// The guest asked for a reset (PSCI SYSTEM_RESET).
    Reset,
    /// The guest did something the host cannot answer.
    GuestCrash(Box<CrashReport>),
    /// Something on our side stopped it; it can go on.
    Stopped(StopReason),
    /// The time given to [`Machine::run`](crate::Machine::run) is up; the guest can go on.
    TimedOut,
}

/// Why a machine that could go on stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// [`Machine::pause`](crate::Machine::pause) or a [`Stopper`](crate::Stopper) asked for it.
    Requested,
    /// The text of a [`Watch`] appeared.
    Watch(WatchId),
    /// The number of instructions set by [`Machine::stop_after_instructions`](crate::Machine::stop_after_instructions) has
    /// been executed.
    InstructionLimit,
    /// The user typed Ctrl-A x.
    EscapeKey,
}
