//! The few file-system steps a commit is made of, behind one face: the real system here, a model that crashes and fails
//! at every step in the tests.

use std::any::Any;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use crate::atomic::{exclusive, is_still_at, sync_dir};
use crate::error::{Result, SnapshotError, at};

/// An open file, read and written at given offsets from several threads.
pub(crate) trait FsFile: Send + Sync {
    /// Writes some bytes; may accept fewer than offered.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Writes what is there so far to the disk, so that less is left for [`Self::sync`]. Promises nothing.
    fn flush(&self) -> io::Result<()>;
    /// The real file, if there is one: for what only the kernel can do.
    fn raw(&self) -> Option<&File>;

    /// Writes all bytes, however many calls it takes.
    fn write_all_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    /// A device, a pipe, a socket.
    Special,
}

/// A held lock; released by [`Fs::unlock`] or, without removing the lock file, by dropping it.
pub(crate) type Lock = Box<dyn Any + Send + Sync>;

/// A file system.
pub(crate) trait Fs: Send + Sync {
    /// Creates a private file that must not exist.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;
    /// Reads a small file whole; longer ones are an error.
    fn read_small(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>>;
    /// What the path names, links not followed; `None` if nothing.
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>>;
    /// A number that stays with the file when it is renamed; 0 where there is none.
    fn file_id(&self, path: &Path) -> io::Result<u64>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names in a directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;
    /// Takes the lock file at `path`, creating it; `None` if somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;
    /// Removes the lock file and releases the lock.
    fn unlock(&self, path: &Path, lock: Lock);
}

/// The system's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RealFs;

impl Fs for RealFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(exclusive().open(path).map_err(at("create", path))?))
    }

    fn read_small(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        let file = open_no_follow(path).map_err(at("open", path))?;
        file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(at("read", path))?;
        if bytes.len() > limit {
            return Err(at("read", path)(io::Error::new(io::ErrorKind::InvalidData, "file is too long")));
        }
        Ok(bytes)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        match fs::symlink_metadata(path) {
            Ok(m) if m.is_file() => Ok(Some(Kind::File)),
            Ok(m) if m.is_dir() => Ok(Some(Kind::Directory)),
            Ok(m) if m.is_symlink() => Ok(Some(Kind::Link)),
            Ok(_) => Ok(Some(Kind::Special)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at("examine", path)(e)),
        }
    }

    fn file_id(&self, path: &Path) -> io::Result<u64> {
        #[cfg(unix)]
        return fs::symlink_metadata(path)
            .map(|m| std::os::unix::fs::MetadataExt::ino(&m))
            .map_err(at("examine", path));
        #[cfg(not(unix))]
        return fs::symlink_metadata(path).map(|_| 0).map_err(at("examine", path));
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to).map_err(at("rename into place", to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(e)),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let read = || fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>();
        read().map_err(at("list directory", dir))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            no_follow(&mut options);
            let file = options.open(path).map_err(at("create lock file", path))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                // A file system without locks: savers cannot be told apart there, but unique names keep them apart.
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(at("lock", path)(e)),
                Ok(()) => {}
            }
            // The previous holder may have removed the file between our open and our lock.
            if is_still_at(&file, path) {
                return Ok(Some(Box::new(file)));
            }
        }
    }

    fn unlock(&self, path: &Path, lock: Lock) {
        let _ = fs::remove_file(path);
        drop(lock);
    }
}

impl FsFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::write_at(self, bytes, offset);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_write(self, bytes, offset);
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn flush(&self) -> io::Result<()> {
        // Elsewhere nothing is as cheap: on macOS this would be a full sync of the drive.
        #[cfg(target_os = "linux")]
        return self.sync_data();
        #[cfg(not(target_os = "linux"))]
        Ok(())
    }

    fn raw(&self) -> Option<&File> {
        Some(self)
    }
}

/// Reads exactly `buf.len()` bytes at an offset.
pub(crate) fn read_exact_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, buf, offset);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < buf.len() {
            match std::os::windows::fs::FileExt::seek_read(file, &mut buf[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn no_follow(options: &mut OpenOptions) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600).custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32);
    }
    #[cfg(not(unix))]
    let _ = options;
}

/// Opens a regular file for reading; links and devices are refused.
pub(crate) fn open_no_follow(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    no_follow(&mut options);
    regular(options.open(path)?)
}

/// Opens a file that was just made for writing; links are refused.
#[cfg(target_os = "macos")]
pub(crate) fn open_read_write_no_follow(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    no_follow(&mut options);
    regular(options.open(path)?)
}

/// Asks the system to read a part of a file ahead. A hint: where it is not taken, nothing is lost.
pub(crate) fn will_need(file: &File, offset: u64, len: u64) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
    #[cfg(target_os = "macos")]
    let _ = rustix::fs::fcntl_rdadvise(file, offset, len);
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    let _ = (file, offset, len);
}

/// Opens a regular file for reading, through links but not through devices or pipes, which could block.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    regular(options.open(path).map_err(at("open", path))?).map_err(at("open", path))
}

/// Refuses a destination that a rename would not replace by right: a directory, or a device, pipe or socket, which are not ours to
/// remove. Files and links are replaced.
pub(crate) fn check_replaceable(fs: &dyn Fs, dest: &Path) -> Result<()> {
    let (kind, text) = match fs.kind(dest)? {
        Some(Kind::Directory) => (io::ErrorKind::IsADirectory, "destination is a directory"),
        Some(Kind::Special) => (io::ErrorKind::InvalidInput, "destination is a device, a pipe or a socket"),
        Some(Kind::File | Kind::Link) | None => return Ok(()),
    };
    Err(SnapshotError::AtomicCommitFailed(at("rename into place", dest)(io::Error::new(kind, text))))
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}
