//! The one error type of the program. Each prints as one plain line.

use std::path::{Path, PathBuf};

use squib_snapshot::SnapshotError;

/// Why a command could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine.
    #[error(transparent)]
    Host(#[from] squib_host::Error),
    /// A snapshot file.
    #[error("{}{source}{}", about(path, source), hint(source))]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SnapshotError,
    },
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

/// The file's name in front of a text that does not name it already.
fn about(path: &Path, source: &SnapshotError) -> String {
    if source.path().is_some() { String::new() } else { format!("{}: ", path.display()) }
}

/// What a bare error of a state file may mean to someone who mixed up two names.
fn hint(source: &SnapshotError) -> &'static str {
    match source {
        SnapshotError::CrcMismatch | SnapshotError::TooShort | SnapshotError::MagicMismatch { .. } => {
            "; the file is damaged or no state file"
        }
        _ => "",
    }
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
        self.map_err(|source| Error::Snapshot { path: path.to_owned(), source })
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
