//! What a caller says about a machine: how to boot it, how to bring it back, where its console goes, and how a run ended.

use std::fmt;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::crash::CrashReport;
use crate::pager::PageSource;

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
            clock: ClockMode::Host,
            console: ConsoleConfig::default(),
        }
    }
}

/// How RAM arrives at a restore.
#[derive(Clone, Debug, Default)]
pub enum RestoreBackend {
    /// The memory file is mapped privately; the kernel pages it in on demand. It must not change while the machine lives.
    #[default]
    Map,
    /// The memory file is read whole, in parallel, before the guest runs.
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
    /// What streaming brings first, as ranges of bytes of RAM: the pages that an earlier run needed, say. What the
    /// vCPUs were working with comes before that by itself.
    pub first: Vec<Range<u64>>,
}

impl Default for PagerConfig {
    fn default() -> Self {
        PagerConfig { stream: true, fault_around: 8, first: Vec::new() }
    }
}

/// A machine to bring back.
#[derive(Debug)]
pub struct RestoreConfig {
    /// The state file.
    pub state: PathBuf,
    /// The memory file. Not used by [`RestoreBackend::Source`].
    pub memory: PathBuf,
    /// How RAM arrives.
    pub backend: RestoreBackend,
    /// How the pager works, if the backend has one.
    pub pager: PagerConfig,
    /// Paths to use instead of the recorded disks', by position; `None` keeps the recorded path.
    pub disks: Vec<Option<PathBuf>>,
    /// What drives the guest's counter from here on.
    pub clock: ClockMode,
    /// Whether dirty pages are tracked from here on.
    pub track_dirty_pages: bool,
    /// The console.
    pub console: ConsoleConfig,
}

impl RestoreConfig {
    /// The pair, mapped, with a console that goes nowhere.
    pub fn new(state: impl Into<PathBuf>, memory: impl Into<PathBuf>) -> Self {
        RestoreConfig {
            state: state.into(),
            memory: memory.into(),
            backend: RestoreBackend::Map,
            pager: PagerConfig::default(),
            disks: Vec::new(),
            clock: ClockMode::Host,
            track_dirty_pages: false,
            console: ConsoleConfig::default(),
        }
    }
}

/// Where a snapshot goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveTarget {
    /// The state file.
    pub state: PathBuf,
    /// The memory file.
    pub memory: PathBuf,
}

/// What a snapshot cost.
#[derive(Clone, Debug)]
pub struct SnapshotReport {
    /// How long the guest stood still: from the first vCPU stopped to the moment it may go on.
    pub pause: Duration,
    /// The part of [`SnapshotReport::pause`] spent reading registers, GIC and devices.
    pub capture: Duration,
    /// Guest RAM, bytes.
    pub ram_bytes: u64,
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
