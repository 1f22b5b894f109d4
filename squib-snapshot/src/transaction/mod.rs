//! Committing two files as one.
//!
//! State and memory file are replaced together: after a crash at any point, a load finds the old pair or the new pair.
//! The steps, each of which the tests crash at:
//!
//! 1. Lock both destinations (`NAME.squib-lock`), finish or undo what an earlier crash left, remove abandoned files.
//! 2. Write memory, state and journal to new files beside their destinations (`NAME.squib-<16 hex>.new`, created exclusively,
//!    mode 0600) and sync the three. The journal names the other two, their file numbers and both destinations.
//! 3. Rename the journal to `STATE.squib-journal` and sync the directories. **This is the commit.**
//! 4. Rename memory and state over their destinations and sync the directories.
//! 5. Remove the journal.
//!
//! A crash before 3 leaves no journal: nothing was renamed, and the next save removes the new files. A crash within 3 may leave
//! the journal's name without that of a new file; its destination is another file then (the file numbers tell), and as nothing was
//! renamed yet the old pair is complete: recovery removes the journal and then the new files. A crash after 3 leaves all three
//! names: recovery renames what is still to be renamed and goes on at 4. Renames may reach the disk in any order, because the journal
//! outlives them; a journal that outlives its own removal has nothing left to rename.
//!
//! An error before 3 undoes everything. An error after it undoes the commit by removing the journal (durably, *before* the
//! new files go) as long as nothing was renamed; after that the commit stands and is finished by the next load.

#[cfg(test)]
mod crash_tests;
mod journal;
#[cfg(test)]
mod sim;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use journal::journal_path;
use journal::{JOURNAL_SUFFIX, Journal, is_pending_name};

use crate::atomic::{parent_dir, random_name};
use crate::error::{Result, SnapshotError, at};
use crate::fs::{Fs, FsFile, Kind, Lock, check_replaceable};

/// How long a load waits for a saver that is between its commit point and the end of its renames.
const WAIT_FOR_SAVER: Duration = Duration::from_secs(5);

/// A save in progress. Dropping it undoes everything.
pub(crate) struct Transaction<'f> {
    fs: &'f dyn Fs,
    state: PathBuf,
    memory: PathBuf,
    locks: Vec<(PathBuf, Option<Lock>)>,
    /// New files to be removed if the commit does not happen.
    pending: Vec<PathBuf>,
    memory_file: Box<dyn FsFile>,
}

impl<'f> Transaction<'f> {
    /// Locks the destinations, recovers what a crash left there, and creates the new memory file.
    pub(crate) fn begin(fs: &'f dyn Fs, state: &Path, memory: &Path) -> Result<Self> {
        for dest in [state, memory] {
            if dest.file_name().is_none() {
                return Err(SnapshotError::InvalidPath(format!("{} does not name a file", dest.display())));
            }
        }
        if same_file(state, memory) {
            return Err(SnapshotError::InvalidPath("state and memory must be two different files".into()));
        }
        let mut locks = Locks { fs, held: Vec::new() };
        locks.take(state)?;
        locks.take(memory)?;
        recover_locked(fs, state)?;
        sweep(fs, state);
        sweep(fs, memory);
        check_replaceable(fs, state)?;
        check_replaceable(fs, memory)?;
        let (path, memory_file) = create_pending(fs, memory)?;
        Ok(Self {
            fs,
            state: state.to_path_buf(),
            memory: memory.to_path_buf(),
            locks: std::mem::take(&mut locks.held),
            pending: vec![path],
            memory_file,
        })
    }

    /// The new memory file.
    pub(crate) fn memory_file(&self) -> &dyn FsFile {
        &*self.memory_file
    }

    /// Name of the new memory file, for calls that put a clone in its place.
    #[cfg(target_os = "macos")]
    pub(crate) fn memory_temp_path(&self) -> &Path {
        &self.pending[0]
    }

    /// Writes to another file under the new memory file's name.
    #[cfg(target_os = "macos")]
    pub(crate) fn replace_memory_file(&mut self, file: Box<dyn FsFile>) {
        self.memory_file = file;
    }

    /// Writes the state and commits both files.
    pub(crate) fn commit(mut self, state_bytes: &[u8]) -> Result<()> {
        let (state_temp, state_file) = create_pending(self.fs, &self.state)?;
        self.pending.push(state_temp);
        state_file.write_all_at(state_bytes, 0).map_err(at("write", &self.state))?;
        let journal = Journal::new(
            &self.state,
            &self.memory,
            &self.pending[1],
            &self.pending[0],
            [self.fs.file_id(&self.pending[1])?, self.fs.file_id(&self.pending[0])?],
        )?;
        let journal_path = journal_path(&self.state);
        let (journal_temp, journal_file) = create_pending(self.fs, &journal_path)?;
        self.pending.push(journal_temp.clone());
        journal_file.write_all_at(&journal.to_bytes(), 0).map_err(at("write", &journal_path))?;
        // At the same time, so that the small ones are done when the memory is. The thread that has the processor takes the memory.
        let (memory, small) = std::thread::scope(|scope| {
            let small = scope.spawn(|| state_file.sync().and_then(|()| journal_file.sync()));
            (self.memory_file.sync(), join(small))
        });
        memory.map_err(at("sync", &self.memory)).map_err(SnapshotError::MemoryIo)?;
        small.map_err(at("sync", &self.state))?;

        let placed = self.place(&journal_temp, &journal_path);
        match placed {
            Ok(()) => {
                self.pending.clear();
                Ok(())
            }
            Err((e, reached)) => Err(self.undo(e, reached, &journal_path)),
        }
    }

    /// Steps 4 to 6. The error comes with how far they got.
    fn place(&self, journal_temp: &Path, journal_path: &Path) -> Result<(), (SnapshotError, Reached)> {
        let rename = |from: &Path, to: &Path, reached| {
            self.fs.rename(from, to).map_err(|e| (SnapshotError::AtomicCommitFailed(e), reached))
        };
        rename(journal_temp, journal_path, Reached::NoJournal)?;
        self.sync_dirs().map_err(|e| (e, Reached::Journal))?;
        rename(&self.pending[0], &self.memory, Reached::Journal)?;
        rename(&self.pending[1], &self.state, Reached::Renames)?;
        self.sync_dirs().map_err(|e| (e, Reached::Renames))?;
        // From here on the pair is in place and durable; a journal that stays behind is found to be done.
        let _ = self.fs.remove(journal_path);
        Ok(())
    }

    /// After a failure at or beyond the commit point: takes the commit back if that is still possible.
    fn undo(&mut self, error: SnapshotError, reached: Reached, journal_path: &Path) -> SnapshotError {
        let dir = parent_dir(&self.state);
        let removed =
            reached != Reached::Renames && self.fs.remove(journal_path).is_ok() && self.fs.sync_dir(&dir).is_ok();
        if removed {
            return error; // Dropping `self` removes the new files.
        }
        // The new files stay: a journal may still be there that needs them. Without one the next save removes them.
        self.pending.clear();
        if reached == Reached::NoJournal {
            return error;
        }
        let source = match error {
            SnapshotError::AtomicCommitFailed(e) | SnapshotError::Io(e) => e,
            other => io::Error::other(other.to_string()),
        };
        SnapshotError::CommitInterrupted { path: self.state.clone(), source }
    }

    fn sync_dirs(&self) -> Result<()> {
        let (a, b) = (parent_dir(&self.memory), parent_dir(&self.state));
        self.fs.sync_dir(&a)?;
        if a != b {
            self.fs.sync_dir(&b)?;
        }
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        for path in &self.pending {
            let _ = self.fs.remove(path);
        }
        Locks { fs: self.fs, held: std::mem::take(&mut self.locks) };
    }
}

/// How far the steps beyond the commit point got before one failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    NoJournal,
    Journal,
    Renames,
}

fn join(thread: std::thread::ScopedJoinHandle<'_, io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("syncing panicked")))
}

/// Locks that are given back, lock files removed, when this is dropped.
struct Locks<'f> {
    fs: &'f dyn Fs,
    held: Vec<(PathBuf, Option<Lock>)>,
}

impl Locks<'_> {
    fn take(&mut self, dest: &Path) -> Result<()> {
        let path = suffixed(dest, journal::LOCK_SUFFIX);
        match self.fs.lock(&path)? {
            Some(lock) => {
                self.held.push((path, Some(lock)));
                Ok(())
            }
            None => Err(SnapshotError::Busy { path: dest.to_path_buf() }),
        }
    }
}

impl Drop for Locks<'_> {
    fn drop(&mut self) {
        for (path, lock) in &mut self.held {
            if let Some(lock) = lock.take() {
                self.fs.unlock(path, lock);
            }
        }
    }
}

/// What [`recover_pair`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// No commit was interrupted.
    Nothing,
    /// An interrupted commit was finished: the new pair is in place.
    Finished,
    /// An interrupted commit was undone: the old pair is in place.
    Undone,
}

/// Finishes the interrupted commit of `state`, if there is one. If a living saver holds it, waits for that.
pub(crate) fn recover_pair(fs: &dyn Fs, state: &Path) -> Result<Recovered> {
    let journal = journal_path(state);
    let deadline = Instant::now() + WAIT_FOR_SAVER;
    while fs.kind(&journal)?.is_some() {
        let mut locks = Locks { fs, held: Vec::new() };
        match locks.take(state) {
            Ok(()) => return recover_locked(fs, state),
            Err(SnapshotError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2))
            }
            Err(e) => return Err(e),
        }
    }
    Ok(Recovered::Nothing)
}

/// As [`recover_pair`], by who holds the lock of the state.
fn recover_locked(fs: &dyn Fs, state: &Path) -> Result<Recovered> {
    let path = journal_path(state);
    if fs.kind(&path)?.is_none() {
        return Ok(Recovered::Nothing);
    }
    let bytes = fs.read_small(&path, journal::MAX_LEN)?;
    let journal =
        Journal::from_bytes(&bytes, state).map_err(|reason| SnapshotError::Journal { path: path.clone(), reason })?;
    let exists = |path: &Path| Ok::<_, SnapshotError>(fs.kind(path)? == Some(Kind::File));
    let mut waiting = Vec::new();
    let mut lost = false;
    for ((temp, dest), id) in journal.renames().into_iter().zip(journal.ids) {
        if exists(&temp)? {
            waiting.push(temp);
        } else {
            lost |= !exists(&dest)? || fs.file_id(&dest)? != id;
        }
    }
    if lost && !waiting.is_empty() {
        // A new file is gone and not in place: nothing was renamed, the old pair is complete.
        fs.remove(&path)?;
        fs.sync_dir(&parent_dir(state))?;
        waiting.iter().try_for_each(|temp| fs.remove(temp))?;
        return Ok(Recovered::Undone);
    }
    // The crash may have come before the three names were durable; they must be before the first rename is.
    for dir in journal.directories() {
        fs.sync_dir(&dir)?;
    }
    let mut result = Recovered::Nothing;
    for (temp, dest) in journal.renames() {
        if exists(&temp)? {
            fs.rename(&temp, &dest).map_err(SnapshotError::AtomicCommitFailed)?;
            result = Recovered::Finished;
        }
    }
    for dir in journal.directories() {
        fs.sync_dir(&dir)?;
    }
    fs.remove(&path)?;
    fs.sync_dir(&parent_dir(state))?;
    Ok(result)
}

/// Recovers every interrupted commit of a directory and removes the new files and locks of saves that died before their
/// commit.
pub(crate) fn recover_directory(fs: &dyn Fs, dir: &Path) -> Result<RecoverReport> {
    let mut report = RecoverReport::default();
    let mut names = fs.list(dir)?;
    names.sort();
    for name in &names {
        let Some(state) = journal::strip(name, JOURNAL_SUFFIX) else { continue };
        let state = dir.join(state);
        match recover_pair(fs, &state)? {
            Recovered::Finished => report.finished.push(state),
            Recovered::Undone => report.undone.push(state),
            Recovered::Nothing => {}
        }
    }
    for name in &names {
        let dest = journal::pending_dest(name).or_else(|| journal::strip(name, journal::LOCK_SUFFIX));
        let Some(dest) = dest else { continue };
        let path = dir.join(name);
        let mut locks = Locks { fs, held: Vec::new() };
        match locks.take(&dir.join(dest)) {
            Ok(()) => {}
            Err(SnapshotError::Busy { path }) => {
                if !report.busy.contains(&path) {
                    report.busy.push(path);
                }
                continue;
            }
            Err(e) => return Err(e),
        }
        if fs.kind(&path)? == Some(Kind::File) && !journal::is_lock(name) {
            fs.remove(&path)?;
            report.removed.push(path);
        }
    }
    Ok(report)
}

/// What [`recover`](crate::recover) did in a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoverReport {
    /// State files whose interrupted commit was finished.
    pub finished: Vec<PathBuf>,
    /// State files whose interrupted commit was undone because its memory file had been removed.
    pub undone: Vec<PathBuf>,
    /// Files of saves that died before their commit, removed.
    pub removed: Vec<PathBuf>,
    /// Destinations that a living saver is writing, left alone.
    pub busy: Vec<PathBuf>,
}

impl RecoverReport {
    /// Whether there was nothing to do.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    /// An object with the fields' names as keys.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let list = |paths: &[PathBuf]| paths.iter().map(|p| p.to_string_lossy().into_owned()).collect::<Vec<_>>();
        serde_json::json!({
            "finished": list(&self.finished),
            "undone": list(&self.undone),
            "removed": list(&self.removed),
            "busy": list(&self.busy),
        })
    }

    /// Text for a terminal.
    #[must_use]
    pub fn human(&self) -> String {
        if self.is_clean() {
            return "nothing to recover\n".into();
        }
        let lines = [
            ("finished an interrupted save of", &self.finished),
            ("undid an interrupted save of", &self.undone),
            ("removed", &self.removed),
            ("left alone, a save is going on:", &self.busy),
        ];
        let each = |(what, paths): (&str, &Vec<PathBuf>)| -> String {
            paths.iter().map(|p| format!("{what} {}\n", p.display())).collect()
        };
        lines.into_iter().map(each).collect()
    }
}

/// Removes the new files that died savers of `dest` left. The caller holds its lock and has recovered.
fn sweep(fs: &dyn Fs, dest: &Path) {
    let (dir, Some(name)) = (parent_dir(dest), dest.file_name()) else { return };
    let journal = suffixed(Path::new(name), JOURNAL_SUFFIX);
    for candidate in fs.list(&dir).unwrap_or_default() {
        if is_pending_name(name, &candidate) || is_pending_name(journal.as_os_str(), &candidate) {
            let _ = fs.remove(&dir.join(candidate));
        }
    }
}

fn create_pending(fs: &dyn Fs, dest: &Path) -> Result<(PathBuf, Box<dyn FsFile>)> {
    loop {
        let path = suffixed(dest, &format!("{}{}{}", journal::MARK, random_name()?, journal::PENDING_SUFFIX));
        match fs.create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether both paths name one file, as far as can be told without it existing.
fn same_file(a: &Path, b: &Path) -> bool {
    if a == b {
        return true;
    }
    let dir = |p: &Path| std::fs::canonicalize(parent_dir(p)).ok();
    a.file_name() == b.file_name() && dir(a).is_some() && dir(a) == dir(b)
}
