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

#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
extern crate squib_sim as _;

mod config;
mod crash;
mod error;
mod machine;

pub use config::{
    ClockMode, ConsoleConfig, ConsoleInput, DiskConfig, MachineConfig, RestoreBackend, RestoreConfig, RunOutcome,
    SaveTarget, SnapshotReport, StopReason, Watch, WatchId,
};
pub use crash::CrashReport;
pub use error::{Error, Result};
pub use machine::{Machine, Stopper};
