//! The commit journal: which two files become which two destinations.
//!
//! ```text
//! 0   8  magic "SQUIBJNL"
//! 8   2  layout, 1
//! 10  8  file number (inode) of the new memory file, 0 if the system has none
//! 18  8  file number of the new state file
//! 26  …  five byte strings, each a 2-byte length and its bytes:
//!        memory directory (empty: the journal's own), memory name, new memory name, state name, new state name
//! end 8  CRC-64/NVME of everything before
//! ```
//! Numbers are little-endian. Names are single path components; the new names must be of the form this crate gives to the
//! destination's, so that a forged journal can rename nothing else.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::atomic::parent_dir;
use crate::digest::checksum;
use crate::error::{Result, SnapshotError};

pub(super) const JOURNAL_SUFFIX: &str = ".squib-journal";
pub(super) const LOCK_SUFFIX: &str = ".squib-lock";
pub(super) const PENDING_SUFFIX: &str = ".new";
pub(super) const MARK: &str = ".squib-";
/// Longer journals are not ours: two paths and three names.
pub(super) const MAX_LEN: usize = 16 << 10;
const MAGIC: &[u8; 8] = b"SQUIBJNL";
const LAYOUT: u16 = 1;

/// The journal of the pair with this state file.
pub(crate) fn journal_path(state: &Path) -> PathBuf {
    super::suffixed(state, JOURNAL_SUFFIX)
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Journal {
    state_dir: PathBuf,
    /// Empty for `state_dir`, so that a directory can be moved with an interrupted commit in it.
    memory_dir: PathBuf,
    memory: OsString,
    memory_temp: OsString,
    state: OsString,
    state_temp: OsString,
    /// File numbers of the new memory and state, which tell one that was renamed already from one that is lost.
    pub(super) ids: [u64; 2],
}

impl Journal {
    pub(super) fn new(
        state: &Path,
        memory: &Path,
        state_temp: &Path,
        memory_temp: &Path,
        [state_id, memory_id]: [u64; 2],
    ) -> Result<Self> {
        let name = |p: &Path| p.file_name().map(OsStr::to_os_string).unwrap_or_default();
        let (state_dir, memory_dir) = (parent_dir(state), parent_dir(memory));
        let memory_dir = if state_dir == memory_dir {
            PathBuf::new()
        } else {
            std::path::absolute(&memory_dir).map_err(crate::error::at("resolve", &memory_dir))?
        };
        let journal = Self {
            state_dir,
            memory_dir,
            memory: name(memory),
            memory_temp: name(memory_temp),
            state: name(state),
            state_temp: name(state_temp),
            ids: [memory_id, state_id],
        };
        if journal.to_bytes().len() > MAX_LEN || journal.strings().iter().any(|s| to_bytes(s).is_none()) {
            return Err(SnapshotError::InvalidPath(format!("{} is too long or not Unicode", memory.display())));
        }
        Ok(journal)
    }

    fn strings(&self) -> [&OsStr; 5] {
        [self.memory_dir.as_os_str(), &self.memory, &self.memory_temp, &self.state, &self.state_temp]
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(LAYOUT.to_le_bytes());
        self.ids.iter().for_each(|id| out.extend(id.to_le_bytes()));
        for text in self.strings() {
            let bytes = to_bytes(text).unwrap_or_default();
            out.extend((bytes.len() as u16).to_le_bytes());
            out.extend(bytes);
        }
        out.extend(checksum(&out).to_le_bytes());
        out
    }

    /// Reads a journal found beside `state`; the error says what is wrong.
    pub(super) fn from_bytes(bytes: &[u8], state: &Path) -> Result<Self, String> {
        let (body, crc) = bytes.split_last_chunk::<8>().ok_or("it is cut short")?;
        if checksum(body) != u64::from_le_bytes(*crc) {
            return Err("its checksum is wrong".into());
        }
        let mut rest = body.strip_prefix(MAGIC).ok_or("its magic is wrong")?;
        let number = |rest: &mut &[u8]| -> Result<u16, String> {
            let (head, tail) = rest.split_first_chunk::<2>().ok_or("it is cut short")?;
            *rest = tail;
            Ok(u16::from_le_bytes(*head))
        };
        let layout = number(&mut rest)?;
        if layout != LAYOUT {
            return Err(format!("its layout {layout} is unknown"));
        }
        let mut ids = [0; 2];
        for id in &mut ids {
            let (head, tail) = rest.split_first_chunk::<8>().ok_or("it is cut short")?;
            *id = u64::from_le_bytes(*head);
            rest = tail;
        }
        let mut text = || -> Result<OsString, String> {
            let len = number(&mut rest)?;
            let (head, tail) = rest.split_at_checked(len.into()).ok_or("it is cut short")?;
            rest = tail;
            from_bytes(head).ok_or_else(|| "a name is not Unicode".into())
        };
        let journal = Self {
            state_dir: parent_dir(state),
            memory_dir: text()?.into(),
            memory: text()?,
            memory_temp: text()?,
            state: text()?,
            state_temp: text()?,
            ids,
        };
        if !rest.is_empty() {
            return Err("it has bytes left over".into());
        }
        if Some(journal.state.as_os_str()) != state.file_name() {
            return Err(format!("it belongs to {:?}", journal.state));
        }
        let single = |name: &OsStr| Path::new(name).file_name() == Some(name);
        let ours = single(&journal.memory)
            && is_pending_name(&journal.memory, &journal.memory_temp)
            && is_pending_name(&journal.state, &journal.state_temp);
        if !ours || (journal.memory_dir.as_os_str().is_empty() && journal.memory == journal.state) {
            return Err("it names files that are not a pair's".into());
        }
        Ok(journal)
    }

    /// `(new file, destination)` of both.
    pub(super) fn renames(&self) -> [(PathBuf, PathBuf); 2] {
        let [_, memory_dir] = self.directories();
        [
            (memory_dir.join(&self.memory_temp), memory_dir.join(&self.memory)),
            (self.state_dir.join(&self.state_temp), self.state_dir.join(&self.state)),
        ]
    }

    /// Directories of state and memory.
    pub(super) fn directories(&self) -> [PathBuf; 2] {
        let same = self.memory_dir.as_os_str().is_empty();
        [self.state_dir.clone(), if same { self.state_dir.clone() } else { self.memory_dir.clone() }]
    }
}

#[cfg(unix)]
fn to_bytes(text: &OsStr) -> Option<Vec<u8>> {
    Some(std::os::unix::ffi::OsStrExt::as_bytes(text).to_vec())
}

#[cfg(not(unix))]
fn to_bytes(text: &OsStr) -> Option<Vec<u8>> {
    text.to_str().map(|t| t.as_bytes().to_vec())
}

#[cfg(unix)]
fn from_bytes(bytes: &[u8]) -> Option<OsString> {
    Some(std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec()))
}

#[cfg(not(unix))]
fn from_bytes(bytes: &[u8]) -> Option<OsString> {
    std::str::from_utf8(bytes).ok().map(OsString::from)
}

/// `name` without `suffix`, if that leaves something.
pub(super) fn strip(name: &OsStr, suffix: &str) -> Option<OsString> {
    let bytes = to_bytes(name)?;
    let rest = bytes.strip_suffix(suffix.as_bytes())?;
    if rest.is_empty() { None } else { from_bytes(rest) }
}

pub(super) fn is_lock(name: &OsStr) -> bool {
    strip(name, LOCK_SUFFIX).is_some()
}

/// The destination that a new file's name is made for: `DEST.squib-<16 hex>.new`.
pub(super) fn pending_dest(candidate: &OsStr) -> Option<OsString> {
    let bytes = to_bytes(candidate)?;
    let rest = bytes.strip_suffix(PENDING_SUFFIX.as_bytes())?;
    let (dest, random) = rest.split_at_checked(rest.len().checked_sub(16)?)?;
    let dest = dest.strip_suffix(MARK.as_bytes())?;
    let ours = !dest.is_empty() && random.iter().all(u8::is_ascii_hexdigit);
    if ours { from_bytes(dest) } else { None }
}

/// Whether `candidate` is a name this crate gives to a new file for the destination `name`.
pub(super) fn is_pending_name(name: &OsStr, candidate: &OsStr) -> bool {
    let single = Path::new(candidate).file_name() == Some(candidate);
    single && pending_dest(candidate).is_some_and(|dest| dest == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE_TEMP: &str = "s.snap.squib-0123456789abcdef.new";
    const MEMORY_TEMP: &str = "m.mem.squib-fedcba9876543210.new";

    fn journal(state: &str, memory: &str) -> Journal {
        let beside = |dest: &str, temp: &str| Path::new(dest).with_file_name(temp);
        Journal::new(
            Path::new(state),
            Path::new(memory),
            &beside(state, STATE_TEMP),
            &beside(memory, MEMORY_TEMP),
            [77, 78],
        )
        .unwrap()
    }

    #[test]
    fn survives_its_bytes_in_one_directory_and_in_two() {
        for (state, memory) in [("/a/s.snap", "/a/m.mem"), ("/a/s.snap", "/b/m.mem"), ("s.snap", "m.mem")] {
            let journal = journal(state, memory);
            let back = Journal::from_bytes(&journal.to_bytes(), Path::new(state)).unwrap();
            assert_eq!(back, journal);
            let dir = parent_dir(Path::new(memory));
            assert_eq!(back.renames()[0], (dir.join(MEMORY_TEMP), dir.join("m.mem")));
        }
        let moved =
            Journal::from_bytes(&journal("/a/s.snap", "/a/m.mem").to_bytes(), Path::new("/new/s.snap")).unwrap();
        assert_eq!(moved.renames()[1].1, Path::new("/new/s.snap"));
    }

    #[test]
    fn forged_and_damaged_journals_are_refused() {
        let state = Path::new("/a/s.snap");
        let good = journal("/a/s.snap", "/a/m.mem");
        let bytes = good.to_bytes();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Journal::from_bytes(&bad, state).is_err(), "byte {at}");
            assert!(Journal::from_bytes(&bytes[..at], state).is_err(), "length {at}");
        }
        let forge = |change: fn(&mut Journal)| {
            let mut forged = journal("/a/s.snap", "/a/m.mem");
            change(&mut forged);
            Journal::from_bytes(&forged.to_bytes(), state).unwrap_err()
        };
        assert!(forge(|j| j.memory = "../x".into()).contains("not a pair's"));
        assert!(forge(|j| j.memory_temp = "passwd".into()).contains("not a pair's"));
        assert!(forge(|j| j.memory_temp = "../m.mem.squib-fedcba9876543210.new".into()).contains("not a pair's"));
        assert!(forge(|j| j.state = "other".into()).contains("belongs to"));
    }

    #[test]
    fn names_of_new_files() {
        assert_eq!(pending_dest(OsStr::new(MEMORY_TEMP)), Some("m.mem".into()));
        for no in ["m.mem", "m.mem.squib-xyz.new", ".squib-0123456789abcdef.new", "m.mem.squib-0123456789abcdeg.new"] {
            assert_eq!(pending_dest(OsStr::new(no)), None, "{no}");
        }
        assert_eq!(strip(OsStr::new("a.snap.squib-journal"), JOURNAL_SUFFIX), Some("a.snap".into()));
        assert!(is_lock(OsStr::new("a.squib-lock")) && !is_lock(OsStr::new(".squib-lock")));
    }
}
