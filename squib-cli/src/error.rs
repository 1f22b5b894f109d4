//! The one error type of the program. Each prints as one plain line.

use std::path::Path;

/// Why a command could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine, or a snapshot file.
    #[error(transparent)]
    Host(#[from] squib_host::Error),
    /// A file or a process.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was attempted.
        action: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Options that do not go together, in words; exit code 2.
    #[error("{0} (see --help)")]
    Usage(String),
    /// Anything else, in words.
    #[error("{0}")]
    Message(String),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the file when squib-snapshot does not.
pub trait SnapshotContext<T> {
    /// `path` is what the call was about.
    fn about(self, path: &Path) -> Result<T>;
}

impl<T> SnapshotContext<T> for squib_snapshot::Result<T> {
    fn about(self, path: &Path) -> Result<T> {
        self.map_err(|source| squib_host::Error::of_file(path, source).into())
    }
}

/// Says what was attempted when an I/O call fails.
pub trait IoContext<T> {
    /// `action` completes "cannot ...".
    fn context(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { action: action(), source })
    }
}
