//! A directory that holds one chain: a full snapshot and the diffs on top of it, numbered, none ever replaced.
//!
//! ```text
//! DIR/0000.state  DIR/0000.mem     the full snapshot
//! DIR/0001.state  DIR/0001.mem     what changed since 0000
//! DIR/0002.state  DIR/0002.mem     what changed since 0001
//! DIR/chain.lock                   held by the one machine that continues the chain
//! ```
//!
//! Every pair is committed as one, and a number is given away only after the commit of the one before: whatever interrupts a
//! diff, the links up to the last number are a chain.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use squib_snapshot::{SnapshotId, SnapshotKind, StateFile};

use crate::checkpoint::PendingSnapshot;
use crate::config::{RestoreConfig, SaveTarget, SnapshotReport};
use crate::error::{Error, Result};
use crate::machine::Machine;

const LOCK: &str = "chain.lock";

/// A chain to be restored from.
#[derive(Clone, Debug)]
pub struct ChainDir {
    dir: PathBuf,
    links: Vec<SaveTarget>,
}

impl ChainDir {
    /// Finds the links in `dir`. Finishes a commit that a crash interrupted.
    pub fn open(dir: impl Into<PathBuf>) -> Result<ChainDir> {
        let chain = ChainDir::list(dir.into())?;
        if chain.links.is_empty() {
            let dir = chain.dir.display();
            return Err(Error::Config(format!("{dir} holds no chain: it has no 0000.state")));
        }
        Ok(chain)
    }

    fn list(dir: PathBuf) -> Result<ChainDir> {
        squib_snapshot::recover(&dir)?;
        let failed = |source| Error::File { action: "list", path: dir.clone(), source };
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".state")).and_then(number);
            numbers.extend(number);
        }
        numbers.sort_unstable();
        if let Some((missing, _)) = (0..).zip(&numbers).find(|(expected, found)| expected != *found) {
            let missing = link(&dir, missing).state;
            return Err(Error::Config(format!("{} is missing: later links continue it", missing.display())));
        }
        let links = numbers.into_iter().map(|number| link(&dir, number)).collect();
        Ok(ChainDir { dir, links })
    }

    /// The links, the full snapshot first.
    pub fn links(&self) -> &[SaveTarget] {
        &self.links
    }

    /// What brings back the machine of link `at`, or of the last one.
    pub fn restore_config(&self, at: Option<usize>) -> Result<RestoreConfig> {
        let last = self.links.len() - 1;
        let at = at.unwrap_or(last);
        if at > last {
            let dir = self.dir.display();
            return Err(Error::Config(format!("{dir} has no link {at}: its last one is {last}")));
        }
        let base = &self.links[0];
        let mut config = RestoreConfig::new(&base.state, &base.memory);
        config.diffs = self.links[1..=at].to_vec();
        Ok(config)
    }
}

/// Four digits or more, without further leading zeros.
fn number(text: &str) -> Option<usize> {
    let number = text.parse().ok()?;
    (name(number) == text).then_some(number)
}

fn name(number: usize) -> String {
    format!("{number:04}")
}

fn link(dir: &Path, number: usize) -> SaveTarget {
    let file = |extension| dir.join(format!("{}.{extension}", name(number)));
    SaveTarget { state: file("state"), memory: file("mem") }
}

/// A chain that a machine writes: the full snapshot first if there is none, diffs afterwards.
#[derive(Debug)]
pub struct ChainWriter {
    dir: PathBuf,
    /// Held open: the lock goes with it.
    _lock: File,
    next: usize,
    tip: Option<SnapshotId>,
    pending: Option<PendingSnapshot>,
}

impl ChainWriter {
    /// For `machine`, into `dir`, which is made if it is not there. A directory that holds a chain already is taken only if `machine`
    /// was restored from its last link.
    pub fn open(dir: impl Into<PathBuf>, machine: &Machine) -> Result<ChainWriter> {
        let dir = dir.into();
        if !machine.tracks_dirty_pages() {
            let text = "a chain of diffs needs a machine that tracks its dirty pages (--track-dirty-pages)";
            return Err(Error::Config(text.into()));
        }
        fs::create_dir_all(&dir).map_err(|source| Error::File { action: "make", path: dir.clone(), source })?;
        let lock = lock(&dir)?;
        let chain = ChainDir::list(dir)?;
        let tip = match chain.links.last() {
            None => None,
            Some(last) => {
                let tip = StateFile::open(&last.state).map_err(|e| Error::of_file(&last.state, e))?;
                Some(tip.identity())
            }
        };
        let dir = chain.dir;
        if tip.is_some() && tip != machine.last_snapshot() {
            return Err(Error::Config(format!(
                "{} holds a chain that this machine does not continue: restore its last link with dirty tracking on (squib \
                 restore --chain {0} --track-dirty-pages), or name an empty directory",
                dir.display()
            )));
        }
        Ok(ChainWriter { dir, _lock: lock, next: chain.links.len(), tip, pending: None })
    }

    /// The files of the link that is under way, or that comes next.
    pub fn next_link(&self) -> SaveTarget {
        link(&self.dir, self.next)
    }

    /// Links that are complete.
    pub fn links(&self) -> usize {
        self.next
    }

    /// Takes the next link of a machine that runs, which goes on at once; [`ChainWriter::finish`] tells how it went. Returns how long
    /// the guest stood still (`None`: it did before, and does).
    pub fn checkpoint(&mut self, machine: &mut Machine) -> Result<Option<Duration>> {
        if let Some(result) = self.finish() {
            result?;
        }
        let kind = match self.tip {
            None => SnapshotKind::Full,
            Some(_) if self.tip == machine.last_snapshot() => SnapshotKind::Diff,
            Some(_) => {
                return Err(Error::State(format!(
                    "a snapshot outside {} was taken, so a diff would not continue the chain: start a new one",
                    self.dir.display()
                )));
            }
        };
        let pending = machine.checkpoint(kind, &self.next_link())?;
        let pause = pending.pause();
        self.pending = Some(pending);
        Ok(pause)
    }

    /// Waits for the link that is under way. `None` if none is. One that failed leaves the chain as it was, and its number to the
    /// next one, which holds its pages too.
    pub fn finish(&mut self) -> Option<Result<(SaveTarget, SnapshotReport)>> {
        let result = self.pending.take()?.wait();
        Some(self.settle(result))
    }

    /// As [`ChainWriter::finish`], but waits at most `timeout`.
    pub fn poll(&mut self, timeout: Duration) -> Option<Result<(SaveTarget, SnapshotReport)>> {
        match self.pending.take()?.wait_timeout(timeout) {
            Ok(result) => Some(self.settle(result)),
            Err(pending) => {
                self.pending = Some(pending);
                None
            }
        }
    }

    /// Whether a link is under way.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    fn settle(&mut self, result: Result<SnapshotReport>) -> Result<(SaveTarget, SnapshotReport)> {
        let report = result?;
        let files = self.next_link();
        self.tip = Some(report.identity);
        self.next += 1;
        Ok((files, report))
    }
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let failed = |source| Error::File { action: "lock", path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Config(format!(
            "another squib continues the chain in {}: name another directory, or wait for it to end",
            dir.display()
        ))),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_numbered_without_gaps() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        assert!(ChainDir::open(dir).unwrap_err().to_string().contains("holds no chain"));
        for name in ["0000.state", "0001.state", "1.state", "00002.state", "vm.state", "0003.mem"] {
            fs::write(dir.join(name), b"").unwrap();
        }
        let chain = ChainDir::open(dir).unwrap();
        assert_eq!(chain.links(), [link(dir, 0), link(dir, 1)]);
        assert_eq!(chain.restore_config(None).unwrap().diffs, [link(dir, 1)]);
        assert_eq!(chain.restore_config(Some(0)).unwrap().diffs, []);
        assert!(chain.restore_config(Some(2)).unwrap_err().to_string().contains("no link 2: its last one is 1"));
        fs::write(dir.join("0004.state"), b"").unwrap();
        let error = ChainDir::open(dir).unwrap_err().to_string();
        assert!(error.contains("0002.state is missing"), "{error}");
        assert_eq!((number("12345"), name(12345)), (Some(12345), "12345".into()));
    }
}
