//! The crate's one error type. Its texts are part of the interface: the API server hands them to its clients as they are.
//!
//! File errors carry the path and what was being done in the text of the inner [`std::io::Error`]; its
//! [`kind`](std::io::Error::kind) is the one the operating system gave, and [`SnapshotError::path`] gives the path back.

use std::io;
use std::path::{Path, PathBuf};

use semver::Version;

use crate::SnapshotId;

/// Result of every fallible function of this crate.
pub type Result<T, E = SnapshotError> = core::result::Result<T, E>;

/// Everything that can go wrong with a snapshot.
///
/// ```
/// use squib_snapshot::SnapshotError;
/// let e = SnapshotError::SizeLimitExceeded { limit: 10 };
/// assert_eq!(e.wire_message(), "snapshot exceeds 10 byte deserialization limit");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Raised by hosts: a vCPU did not stop for the pause.
    #[error("a vCPU did not ack quiesce within the timeout")]
    QuiesceTimeout,
    /// The file is not a snapshot of this architecture.
    #[error("snapshot magic mismatch (file: {found:#x}, expected: {expected:#x})")]
    MagicMismatch {
        /// Magic in the file.
        found: u64,
        /// Magic of this build.
        expected: u64,
    },
    /// The file's version is one this reader does not read.
    #[error("snapshot version {found} is incompatible with squib's {expected}")]
    VersionMismatch {
        /// Version in the file.
        found: Version,
        /// Newest version this reader accepts.
        expected: Version,
    },
    /// The trailer does not match the body: the state file is damaged.
    #[error("snapshot CRC64 mismatch")]
    CrcMismatch,
    /// Fewer than eight bytes.
    #[error("snapshot file is too short to contain a CRC trailer")]
    TooShort,
    /// The state does not describe a machine this VMM can run.
    #[error("snapshot is from a different VMM (sysreg or GIC blob shape mismatch)")]
    Incompatible,
    /// The final rename failed.
    #[error("atomic commit (rename) failed: {0}")]
    AtomicCommitFailed(#[source] io::Error),
    /// Temporary file and destination are on different file systems.
    #[error(
        "snapshot temp-file path is on a different filesystem from the destination (dest={dest:?}, \
         temp_dir={temp_dir:?}); rename(2) cannot be atomic across mounts"
    )]
    AtomicCommitCrossFs {
        /// The destination.
        dest: PathBuf,
        /// Directory of the temporary file.
        temp_dir: PathBuf,
    },
    /// A request or a geometry that cannot be honoured.
    #[error("invalid snapshot path: {0}")]
    InvalidPath(String),
    /// The body is not what this reader expects.
    #[error("snapshot encoding error: {0}")]
    Bitcode(String),
    /// The file is larger than the reader accepts.
    #[error("snapshot exceeds {limit} byte deserialization limit")]
    SizeLimitExceeded {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Reading guest memory, or reading or writing the memory file.
    #[error("memory file I/O error: {0}")]
    MemoryIo(#[source] io::Error),
    /// Every other I/O failure.
    #[error("snapshot I/O error: {0}")]
    Io(#[source] io::Error),
    /// For implementors of the capture and restore traits.
    #[error("snapshot capture/restore failure: {0}")]
    Capture(String),

    /// Another saver is writing this destination.
    #[error("another save to {path:?} is in progress; wait for it to end or choose another destination")]
    Busy {
        /// The destination both want.
        path: PathBuf,
    },
    /// A commit reached its point of no return and was then stopped by an error: the new pair is complete on disk and
    /// the next load, save or [`recover`](crate::recover) puts it in place.
    #[error(
        "the snapshot was written, but moving it into place at {path:?} failed: {source}; the next load or \
         `squib recover` of its directory finishes the job"
    )]
    CommitInterrupted {
        /// State file of the pair.
        path: PathBuf,
        /// What stopped it.
        source: io::Error,
    },
    /// State and memory file do not belong together.
    #[error("{memory:?} is not the memory file of {state:?}: {reason}")]
    PairMismatch {
        /// The state file.
        state: PathBuf,
        /// The memory file.
        memory: PathBuf,
        /// What differs.
        reason: String,
    },
    /// Memory bytes do not match their checksum.
    #[error(
        "{path:?} is damaged, or the memory file of another snapshot: guest memory {start:#x}..{end:#x} does not match its \
         checksum (stored {expected:#018x}, found {found:#018x}); restore from another copy"
    )]
    MemoryDamaged {
        /// The memory file.
        path: PathBuf,
        /// First byte of the damaged block, counted from the start of RAM.
        start: u64,
        /// One past its last byte.
        end: u64,
        /// Checksum in the state.
        expected: u64,
        /// Checksum of the bytes in the file.
        found: u64,
    },
    /// A diff cannot be put on top of what it was given.
    #[error("{path:?} does not continue the chain: {reason}")]
    BrokenChain {
        /// State file of the link that does not fit.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// The file has no record that this operation needs, such as the checksums of a 5.0 pair.
    #[error("{path:?} is a version {version} snapshot without {what}; save it again with this version to get one")]
    NotRecorded {
        /// The state file.
        path: PathBuf,
        /// Its version.
        version: Version,
        /// What is missing.
        what: &'static str,
    },
    /// The version 5.1 record inside a state file is malformed.
    #[error("snapshot record is malformed: {0}")]
    Record(String),
    /// The journal of an interrupted commit is unusable.
    #[error("{path:?} is not a usable commit journal: {reason}; remove it if the pair beside it is the one you want")]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A working set that cannot be used. A restore is right without it.
    #[error("{path:?} is not a working set of this snapshot: {reason}")]
    WorkingSet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A snapshot with this identity was expected and another was found.
    #[error("{path:?} is snapshot {found}, expected {expected}")]
    WrongIdentity {
        /// The state file.
        path: PathBuf,
        /// Identity in the file.
        found: SnapshotId,
        /// Identity asked for.
        expected: SnapshotId,
    },
}

impl SnapshotError {
    /// The text sent to API clients: the same as `to_string()`.
    #[must_use]
    pub fn wire_message(&self) -> String {
        self.to_string()
    }

    /// The file this error is about, when one is known.
    ///
    /// ```
    /// # use squib_snapshot::load;
    /// # use std::path::Path;
    /// let missing = Path::new("/nonexistent/vm.snap");
    /// assert_eq!(load(missing).unwrap_err().path(), Some(missing));
    /// ```
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io(e) | Self::MemoryIo(e) | Self::AtomicCommitFailed(e) => path_of(e),
            Self::AtomicCommitCrossFs { dest, .. } => Some(dest),
            Self::PairMismatch { memory, .. } => Some(memory),
            Self::Busy { path }
            | Self::CommitInterrupted { path, .. }
            | Self::MemoryDamaged { path, .. }
            | Self::BrokenChain { path, .. }
            | Self::NotRecorded { path, .. }
            | Self::Journal { path, .. }
            | Self::WorkingSet { path, .. }
            | Self::WrongIdentity { path, .. } => Some(path),
            _ => None,
        }
    }
}

impl From<io::Error> for SnapshotError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<bitcode::Error> for SnapshotError {
    fn from(e: bitcode::Error) -> Self {
        Self::Bitcode(e.to_string())
    }
}

/// What was being done to which file; lives inside an [`io::Error`] so that the variants keep their published shape.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path:?}: {source}")]
struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Adds the path and the action to an I/O error, keeping its kind.
pub(crate) fn at(action: &'static str, path: &Path) -> impl Fn(io::Error) -> io::Error + use<> {
    let path = path.to_path_buf();
    move |source| {
        if path_of(&source).is_some() {
            return source;
        }
        io::Error::new(source.kind(), FileError { action, path: path.clone(), source })
    }
}

fn path_of(e: &io::Error) -> Option<&Path> {
    e.get_ref()?.downcast_ref::<FileError>().map(|f| f.path.as_path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_sources_are_the_contract() {
        let v = |s: &str| s.parse::<Version>().unwrap();
        let cases: Vec<(SnapshotError, &str, bool)> = vec![
            (SnapshotError::QuiesceTimeout, "a vCPU did not ack quiesce within the timeout", false),
            (
                SnapshotError::MagicMismatch { found: 0x0710_1984_AAAA_0000, expected: 1 },
                "snapshot magic mismatch (file: 0x7101984aaaa0000, expected: 0x1)",
                false,
            ),
            (
                SnapshotError::VersionMismatch { found: v("6.0.0"), expected: v("5.0.0") },
                "snapshot version 6.0.0 is incompatible with squib's 5.0.0",
                false,
            ),
            (SnapshotError::CrcMismatch, "snapshot CRC64 mismatch", false),
            (SnapshotError::TooShort, "snapshot file is too short to contain a CRC trailer", false),
            (
                SnapshotError::Incompatible,
                "snapshot is from a different VMM (sysreg or GIC blob shape mismatch)",
                false,
            ),
            (SnapshotError::AtomicCommitFailed(io::Error::other("x")), "atomic commit (rename) failed: x", true),
            (
                SnapshotError::AtomicCommitCrossFs { dest: "/a".into(), temp_dir: "/b".into() },
                "snapshot temp-file path is on a different filesystem from the destination (dest=\"/a\", \
                 temp_dir=\"/b\"); rename(2) cannot be atomic across mounts",
                false,
            ),
            (SnapshotError::InvalidPath("p".into()), "invalid snapshot path: p", false),
            (SnapshotError::Bitcode("p".into()), "snapshot encoding error: p", false),
            (SnapshotError::SizeLimitExceeded { limit: 7 }, "snapshot exceeds 7 byte deserialization limit", false),
            (SnapshotError::MemoryIo(io::Error::other("x")), "memory file I/O error: x", true),
            (SnapshotError::Io(io::Error::other("x")), "snapshot I/O error: x", true),
            (SnapshotError::Capture("c".into()), "snapshot capture/restore failure: c", false),
        ];
        for (error, text, has_source) in cases {
            assert_eq!(error.to_string(), text);
            assert_eq!(error.wire_message(), text);
            assert_eq!(std::error::Error::source(&error).is_some(), has_source, "{text}");
        }
    }

    #[test]
    fn a_file_error_keeps_its_kind_and_names_its_path_once() {
        let e = at("open", Path::new("/x/y"))(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
        assert!(e.to_string().starts_with("open \"/x/y\": "), "{e}");
        let again = at("read", Path::new("/other"))(e);
        assert_eq!(SnapshotError::Io(again).path(), Some(Path::new("/x/y")));
    }
}
