//! A file system in memory that forgets: what was not synced may be lost, in any combination, when the power goes.
//!
//! Every step of [`Fs`] and [`FsFile`] is counted; a step can be made to fail, to be cut short, or to be the last one before
//! the crash. Directories keep their durable entries and the operations since the last sync of the directory; a crash keeps
//! any chosen subset of these, in order. File contents keep what was durable at the last sync of the file and the writes since, of which
//! a crash keeps any chosen subset, each whole or torn in half.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::fs::{Fs, FsFile, Kind, Lock};

type Inode = usize;
type Entries = BTreeMap<PathBuf, Inode>;

#[derive(Clone, Debug, Default)]
struct Content {
    durable: Vec<u8>,
    pending: Vec<Write>,
}

#[derive(Clone, Debug)]
enum Write {
    At(u64, Vec<u8>),
    Len(u64),
}

#[derive(Clone, Debug)]
enum DirOp {
    Link(PathBuf, Inode),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Clone, Default, Debug)]
pub(super) struct Disk {
    files: Vec<Content>,
    durable: Entries,
    pending: Vec<DirOp>,
    /// What running programs see.
    visible: Entries,
}

/// What happens at the step with a given number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The machine stops before the step.
    Crash,
    /// The step fails with this error and has no effect.
    Error(io::ErrorKind),
    /// As `Error`, and so does every later step.
    Broken(io::ErrorKind),
    /// A write accepts one byte.
    Short,
    /// The step is interrupted once.
    Interrupted,
}

#[derive(Default)]
struct Shared {
    disk: Disk,
    steps: usize,
    fault: Option<(usize, Fault)>,
    crashed: bool,
    log: Vec<String>,
}

/// The file system; clones share one disk.
#[derive(Clone, Default)]
pub(super) struct SimFs(Arc<Mutex<Shared>>);

/// Which of the un-synced operations survive a crash.
pub(super) trait Choose {
    fn keep(&mut self) -> bool;
}

impl<F: FnMut() -> bool> Choose for F {
    fn keep(&mut self) -> bool {
        self()
    }
}

impl SimFs {
    pub(super) fn of(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(Shared { disk, ..Shared::default() })))
    }

    pub(super) fn with_fault(disk: Disk, step: usize, fault: Fault) -> Self {
        let fs = Self::of(disk);
        fs.0.lock().unwrap().fault = Some((step, fault));
        fs
    }

    pub(super) fn steps(&self) -> usize {
        self.0.lock().unwrap().steps
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }

    pub(super) fn disk(&self) -> Disk {
        self.0.lock().unwrap().disk.clone()
    }

    /// The bytes of a file, if it exists.
    pub(super) fn read(&self, path: &str) -> Option<Vec<u8>> {
        let shared = self.0.lock().unwrap();
        let inode = *shared.disk.visible.get(Path::new(path))?;
        Some(shared.disk.content(inode))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().disk.visible.keys().map(|p| p.display().to_string()).collect()
    }

    /// Counts a step; true if a fault of kind `Short` is due at it.
    fn step(&self, what: &str) -> io::Result<bool> {
        let mut shared = self.0.lock().unwrap();
        if shared.crashed {
            return Err(io::Error::other("the machine has stopped"));
        }
        let now = shared.steps;
        shared.steps += 1;
        shared.log.push(what.to_string());
        match shared.fault {
            Some((at, Fault::Crash)) if at == now => {
                shared.crashed = true;
                Err(io::Error::other("the machine has stopped"))
            }
            Some((at, Fault::Error(kind))) if at == now => Err(kind.into()),
            Some((at, Fault::Broken(kind))) if at <= now => Err(kind.into()),
            Some((at, Fault::Short)) if at == now => Ok(true),
            Some((at, Fault::Interrupted)) if at == now && what.starts_with("write") => {
                Err(io::ErrorKind::Interrupted.into())
            }
            _ => Ok(false),
        }
    }
}

impl Disk {
    fn content(&self, inode: Inode) -> Vec<u8> {
        let file = &self.files[inode];
        let mut bytes = file.durable.clone();
        file.pending.iter().for_each(|w| w.apply(&mut bytes));
        bytes
    }

    /// Puts a durable file there.
    pub(super) fn put(&mut self, path: &str, bytes: &[u8]) {
        self.files.push(Content { durable: bytes.to_vec(), pending: Vec::new() });
        self.durable.insert(path.into(), self.files.len() - 1);
        self.visible.insert(path.into(), self.files.len() - 1);
    }

    /// Number of un-synced directory operations.
    pub(super) fn pending_names(&self) -> usize {
        self.pending.len()
    }

    /// The process died: the kernel goes on and loses nothing.
    pub(super) fn after_kill(&self) -> Disk {
        self.clone()
    }

    /// The power went: of everything un-synced, only what is chosen survives.
    pub(super) fn after_power_loss(&self, names: &mut dyn Choose, data: &mut dyn Choose) -> Disk {
        let mut entries = self.durable.clone();
        for op in &self.pending {
            if names.keep() {
                op.apply(&mut entries);
            }
        }
        let files = self
            .files
            .iter()
            .map(|file| {
                let mut bytes = file.durable.clone();
                for write in &file.pending {
                    if data.keep() {
                        write.apply(&mut bytes);
                    } else if let (Write::At(at, data_bytes), true) = (write, data.keep()) {
                        Write::At(*at, data_bytes[..data_bytes.len() / 2].to_vec()).apply(&mut bytes);
                    }
                }
                Content { durable: bytes, pending: Vec::new() }
            })
            .collect();
        Disk { files, durable: entries.clone(), pending: Vec::new(), visible: entries }
    }

    fn apply(&mut self, op: DirOp) {
        op.apply(&mut self.visible);
        self.pending.push(op);
    }
}

impl Write {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Len(len) => bytes.resize(*len as usize, 0),
            Self::At(at, data) => {
                let end = *at as usize + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at as usize..end].copy_from_slice(data);
            }
        }
    }
}

impl DirOp {
    fn apply(&self, entries: &mut Entries) {
        match self {
            Self::Link(path, inode) => {
                entries.insert(path.clone(), *inode);
            }
            Self::Unlink(path) => {
                entries.remove(path);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = entries.remove(from) {
                    entries.insert(to.clone(), inode);
                }
            }
        }
    }

    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path) => path.parent(),
        }
    }
}

struct SimFile {
    fs: SimFs,
    inode: Inode,
}

impl FsFile for SimFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let short = self.fs.step("write")?;
        let accepted = if short { &bytes[..bytes.len().min(1)] } else { bytes };
        let mut shared = self.fs.0.lock().unwrap();
        shared.disk.files[self.inode].pending.push(Write::At(offset, accepted.to_vec()));
        Ok(accepted.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fs.step("set length")?;
        self.fs.0.lock().unwrap().disk.files[self.inode].pending.push(Write::Len(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.fs.step("sync file")?;
        let mut shared = self.fs.0.lock().unwrap();
        let bytes = shared.disk.content(self.inode);
        shared.disk.files[self.inode] = Content { durable: bytes, pending: Vec::new() };
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.fs.step("flush").map(drop)
    }

    fn raw(&self) -> Option<&File> {
        None
    }
}

impl Fs for SimFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        self.step(&format!("create {}", path.display()))?;
        let mut shared = self.0.lock().unwrap();
        if shared.disk.visible.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        shared.disk.files.push(Content::default());
        let inode = shared.disk.files.len() - 1;
        shared.disk.apply(DirOp::Link(path.to_path_buf(), inode));
        Ok(Box::new(SimFile { fs: self.clone(), inode }))
    }

    fn read_small(&self, path: &Path, _limit: usize) -> io::Result<Vec<u8>> {
        self.step("read")?;
        let shared = self.0.lock().unwrap();
        let inode = *shared.disk.visible.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(shared.disk.content(inode))
    }

    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        self.step("examine")?;
        Ok(self.0.lock().unwrap().disk.visible.contains_key(path).then_some(Kind::File))
    }

    fn file_id(&self, path: &Path) -> io::Result<u64> {
        self.step("examine")?;
        let shared = self.0.lock().unwrap();
        let inode = shared.disk.visible.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(*inode as u64 + 1)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(&format!("rename {}", to.display()))?;
        self.0.lock().unwrap().disk.apply(DirOp::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(&format!("remove {}", path.display()))?;
        let mut shared = self.0.lock().unwrap();
        if shared.disk.visible.contains_key(path) {
            shared.disk.apply(DirOp::Unlink(path.to_path_buf()));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(&format!("sync {}", dir.display()))?;
        let mut shared = self.0.lock().unwrap();
        let (durable, pending) =
            std::mem::take(&mut shared.disk.pending).into_iter().partition(|op| op.dir() == Some(dir));
        let durable: Vec<DirOp> = durable;
        durable.iter().for_each(|op| op.apply(&mut shared.disk.durable));
        shared.disk.pending = pending;
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        self.step("list")?;
        let shared = self.0.lock().unwrap();
        let inside = shared.disk.visible.keys().filter(|p| p.parent() == Some(dir));
        Ok(inside.filter_map(|p| p.file_name().map(OsString::from)).collect())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        self.step("lock")?;
        let mut shared = self.0.lock().unwrap();
        if !shared.disk.visible.contains_key(path) {
            shared.disk.files.push(Content::default());
            let inode = shared.disk.files.len() - 1;
            shared.disk.apply(DirOp::Link(path.to_path_buf(), inode));
        }
        Ok(Some(Box::new(())))
    }

    fn unlock(&self, path: &Path, lock: Lock) {
        drop(lock);
        if self.step("unlock").is_ok() {
            self.0.lock().unwrap().disk.apply(DirOp::Unlink(path.to_path_buf()));
        }
    }
}
