//! Everything of squib that touches the machine: VM, vCPUs, GIC, guest memory, devices, live snapshots.
//!
//! A caller builds a [`MachineConfig`], boots a [`Machine`] from it and runs it; [`Machine::snapshot`] writes a pair of
//! files, [`Machine::restore`] brings the machine back in another process (one process holds one machine).
//!
//! ```no_run
//! use squib_host::{ConsoleConfig, Machine, MachineConfig, RunOutcome, SaveTarget, StopReason, Watch, WatchId};
//!
//! # fn main() -> squib_host::Result<()> {
//! let mut config = MachineConfig::new("vmlinuz");
//! config.initrd = Some("initramfs.cpio".into());
//! config.console = ConsoleConfig {
//!     output: Box::new(std::io::stdout()),
//!     watches: vec![Watch { id: WatchId(0), text: "ready".into() }],
//!     ..Default::default()
//! };
//! let mut machine = Machine::boot(config)?;
//! if let RunOutcome::Stopped(StopReason::Watch(_)) = machine.run(None)? {
//!     machine.snapshot(&SaveTarget { state: "vm.state".into(), memory: "vm.mem".into() })?;
//! }
//! # Ok(())
//! # }
//! ```

mod boot;
mod build;
mod chain;
mod checkpoint;
mod clock;
mod config;
mod crash;
mod devices;
mod error;
mod fault;
mod files;
mod frozen;
mod host;
mod hv;
mod layout;
mod machine;
mod memory;
pub mod pager;
mod priority;
mod restore;
mod save;
mod standin;
mod terminal;
mod track;
mod vcpu;

pub use chain::{ChainDir, ChainWriter};
pub use checkpoint::PendingSnapshot;
pub use config::{
    ClockMode, ConsoleConfig, ConsoleInput, DirtyGranule, DiskConfig, MachineConfig, PagerConfig, RestoreBackend,
    RestoreConfig, RunOutcome, SaveTarget, SnapshotReport, StopReason, Watch, WatchId,
};
pub use crash::CrashReport;
pub use error::{Error, Result};
pub use hv::baseline::protect_and_resume;
pub use machine::{Machine, Stopper};
pub use squib_snapshot::{GranuleSteps, SnapshotId, SnapshotKind};
