//! The one error type of this crate. Every message says what went wrong and, where there is one, what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use applevisor::prelude::HypervisorError;
use squib_snapshot::SnapshotError;

/// What can go wrong between a configuration and a running guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hypervisor refused a call.
    #[error("the hypervisor refused to {action}: {source}{}", hint(action, source))]
    Hypervisor {
        /// What was attempted, as the rest of the sentence "refused to ...".
        action: String,
        /// The framework's code.
        source: HypervisorError,
    },
    /// A file could not be opened, read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An operating-system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was attempted.
        action: String,
        /// Why not.
        source: io::Error,
    },
    /// The Mach kernel refused a call.
    #[error("the Mach kernel refused to {action}: error {code:#x} (see mach/kern_return.h and mach/message.h)")]
    Mach {
        /// What was attempted, as the rest of the sentence "refused to ...".
        action: &'static str,
        /// The kernel's code, a `kern_return_t`.
        code: i32,
    },
    /// The machine as configured cannot be built.
    #[error("{0}")]
    Config(String),
    /// The kernel file is not one this loader can start.
    #[error("cannot boot {}: {reason}", path.display())]
    Kernel {
        /// The kernel file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The device tree could not be built.
    #[error("cannot build the device tree: {0}")]
    Fdt(String),
    /// Guest memory was asked for outside the guest's RAM.
    #[error("{what}: {len} bytes at {address:#x} are not inside guest RAM")]
    GuestMemory {
        /// Who asked.
        what: &'static str,
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A saved device's state cannot be taken over.
    #[error("the saved state of {device} cannot be restored: {reason}")]
    DeviceState {
        /// The device.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The snapshot is sound, but this host cannot honour it.
    #[error("this snapshot cannot be restored here: {0}")]
    Incompatible(String),
    /// The operation does not fit the machine's present state.
    #[error("{0}")]
    State(String),
    /// Only the software stand-in can do this.
    #[error("{0} needs the software stand-in: Hypervisor.framework has no such control")]
    StandInOnly(&'static str),
    /// The snapshot files could not be written or read, or do not belong together.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot file is not what it should be.
    #[error("{}: {source}{}", path.display(), file_hint(source))]
    SnapshotFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SnapshotError,
    },
    /// Absent guest memory cannot be had for now. Nothing is lost: the machine goes on when it is resumed and its source is back.
    #[error("guest memory {start:#x}..{:#x} cannot be had now: {reason}", start + len)]
    PageUnavailable {
        /// IPA.
        start: u64,
        /// Bytes.
        len: u64,
        /// What the source says.
        reason: String,
    },
    /// Absent guest memory cannot be had at all: the guest cannot go on.
    #[error("guest memory {start:#x}..{:#x} is lost, and what needs it cannot go on: {reason}", start + len)]
    PageLost {
        /// IPA.
        start: u64,
        /// Bytes.
        len: u64,
        /// What the source says.
        reason: String,
    },
    /// The vCPUs did not stop in time.
    #[error("vCPU {vcpu} did not stop within {seconds} s")]
    PauseTimeout {
        /// Index of the vCPU.
        vcpu: usize,
        /// How long was waited.
        seconds: u64,
    },
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What to do about it. `HV_DENIED` has to do with the entitlement only where a virtual machine is created.
fn hint(action: &str, source: &HypervisorError) -> &'static str {
    match source {
        HypervisorError::Denied if action.starts_with(CREATE_VM) => {
            " (the program lacks the entitlement com.apple.security.hypervisor: `codesign --sign - --force --entitlements \
             squib-cli/macos/squib.entitlements PROGRAM` gives it; cargo and make in squib's repository do that themselves)"
        }
        HypervisorError::Busy => " (one process can hold one virtual machine: is another one alive in this process?)",
        HypervisorError::Unsupported => {
            " (squib needs Apple silicon and macOS 15; where `sysctl kern.hv_support` says 0, in a virtual machine for instance, \
             there is no hypervisor, and squib built with `--features sim` (`make build SIM=1`) runs guests in software)"
        }
        HypervisorError::NoDevice => " (no virtual machine exists in this process)",
        _ => "",
    }
}

/// The action that `HV_DENIED` answers where the entitlement is missing.
pub(crate) const CREATE_VM: &str = "create a virtual machine";

/// What a bare error of a state file may mean to someone who mixed up two names.
fn file_hint(source: &SnapshotError) -> &'static str {
    match source {
        SnapshotError::CrcMismatch
        | SnapshotError::TooShort
        | SnapshotError::MagicMismatch { .. }
        | SnapshotError::SizeLimitExceeded { .. }
        | SnapshotError::Bitcode(_)
        | SnapshotError::Record(_) => "; the file is damaged or no state file",
        SnapshotError::VersionMismatch { found, expected } if found > expected => {
            "; a newer squib wrote it: use that one"
        }
        _ => "",
    }
}

impl Error {
    /// An error about a snapshot, with the file's name in front if it does not name one itself.
    pub fn of_file(path: &Path, source: SnapshotError) -> Error {
        match source.path() {
            Some(_) => Error::Snapshot(source),
            None => Error::SnapshotFile { path: path.into(), source },
        }
    }
}

/// Turns a framework result into ours, with the attempted action.
pub(crate) trait HvContext<T> {
    /// `action` completes "the hypervisor refused to ...".
    fn hv(self, action: impl Into<String>) -> Result<T>;

    /// As [`HvContext::hv`], with a text that is made only if it is needed.
    fn hv_with(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> HvContext<T> for Result<T, HypervisorError> {
    fn hv(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Hypervisor { action: action.into(), source })
    }

    fn hv_with(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Hypervisor { action: action(), source })
    }
}
