//! A listening Unix socket that is nobody else's: mode 0600 from the first moment, never taken from a server that lives, gone
//! when it is dropped.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The listener, and the name it is found by.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file: what is there now may be another's.
    file: (u64, u64),
    /// Released last.
    _lock: NameLock,
}

/// Held by whoever listens at a path, or is about to.
#[derive(Debug)]
struct NameLock {
    path: PathBuf,
    _file: File,
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // While it is held: the next one makes its own.
        let _ = fs::remove_file(&self.path);
    }
}

/// `path` with something appended to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Socket {
    /// Listens at `path`. What a server that died left there is replaced.
    pub(super) fn bind(path: &Path) -> Result<Socket> {
        let failed = |action| move |source| Error::File { action, path: path.to_owned(), source };
        let lock = lock(path)?;
        check_free(path)?;
        // Made under another name, so that it has its mode before anyone can find it; a rename replaces what is dead.
        let new = beside(path, ".new");
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidInput => {
                Error::Config(format!("{} is too long for the name of a socket: choose a shorter one", path.display()))
            }
            _ => failed("listen at")(e),
        })?;
        let named = || {
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
            let data = fs::symlink_metadata(&new)?;
            fs::rename(&new, path)?;
            Ok((data.dev(), data.ino()))
        };
        match named() {
            Ok(file) => Ok(Socket { listener, path: path.to_owned(), file, _lock: lock }),
            Err(e) => {
                // It may never have come to be there.
                let _ = fs::remove_file(&new);
                Err(failed("listen at")(e))
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|data| (data.dev(), data.ino()) == self.file) {
            // Somebody may remove it in this moment; then it is gone, as it should be.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes the lock on a socket's name.
fn lock(path: &Path) -> Result<NameLock> {
    let lock_path = beside(path, ".lock");
    let failed = |source| Error::File { action: "lock", path: lock_path.clone(), source };
    loop {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(taken(path)),
            Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        // Its last holder may have removed it between our opening and our locking: then it locks nothing.
        let ours = file.metadata().map_err(failed)?;
        if fs::metadata(&lock_path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(NameLock { path: lock_path, _file: file });
        }
    }
}

fn taken(path: &Path) -> Error {
    Error::Config(format!(
        "another server listens at {}: end it, or give this one another socket with --listen",
        path.display()
    ))
}

/// Refuses a name at which somebody answers, or at which something else is.
fn check_free(path: &Path) -> Result<()> {
    let data = match fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::File { action: "examine", path: path.to_owned(), source }),
    };
    if !data.file_type().is_socket() {
        let text = "exists and is not a socket: remove it, or give another name with --listen";
        return Err(Error::Config(format!("{} {text}", path.display())));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(taken(path)),
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        Err(source) => Err(Error::File { action: "listen at", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_socket_is_not_taken_and_a_dead_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let first = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("another server listens"), "{error}");
        drop(first);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing is left");
        // A socket whose process ended without cleaning up, and one of a server that does not use our lock.
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(Socket::bind(&path).is_err());
        drop(foreign);
        drop(Socket::bind(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_a_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing is left beside it");
        let long = directory.path().join("s".repeat(120));
        let error = Socket::bind(&long).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn the_socket_of_somebody_else_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
