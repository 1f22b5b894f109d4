//! Replacing one file so that its name always holds the old bytes or the new ones.
//!
//! [`AtomicWriter`] writes a temporary file beside the destination, syncs it, renames it over the destination and syncs the
//! directory. The temporary file has a unique name, is created with `O_EXCL` and mode 0600, never through a link, and is
//! locked while its writer lives: one that nobody holds was left by a crash and is removed when the same destination is
//! next written. A *pair* of files is committed by [`save_pair`](crate::save_pair) instead.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Result, SnapshotError, at};
use crate::fs::{RealFs, check_replaceable};

/// Suffix of temporary files.
pub const TEMP_SUFFIX: &str = ".tmp";

/// Between the destination's name and the random part of a temporary name.
const MARK: &str = ".squib-";

/// Fails unless both paths lie in directories of one file system.
///
/// # Errors
/// [`SnapshotError::AtomicCommitCrossFs`] if they do not, [`SnapshotError::Io`] if either directory cannot be examined. On
/// systems other than Unix always `Ok`.
pub fn check_same_filesystem(dest: &Path, temp: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| {
            let dir = parent_dir(path);
            fs::metadata(&dir).map(|m| m.dev()).map_err(at("examine directory", &dir))
        };
        if device(dest)? != device(temp)? {
            return Err(SnapshotError::AtomicCommitCrossFs { dest: dest.to_path_buf(), temp_dir: parent_dir(temp) });
        }
    }
    #[cfg(not(unix))]
    let _ = (dest, temp);
    Ok(())
}

/// The destination's name with [`TEMP_SUFFIX`] appended: `x.snap` gives `x.snap.tmp`. The temporary files of this crate
/// have a unique part before the suffix, so that no two writers ever share one.
#[must_use]
pub fn derive_temp_path(dest: &Path) -> PathBuf {
    let mut name = dest.as_os_str().to_os_string();
    name.push(TEMP_SUFFIX);
    PathBuf::from(name)
}

/// Removes a file when dropped, unless disarmed. Errors are ignored.
#[derive(Debug)]
pub struct UnlinkOnDrop {
    path: Option<PathBuf>,
}

impl UnlinkOnDrop {
    /// Armed for `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path: Some(path) }
    }

    /// Makes the drop do nothing.
    pub fn disarm(&mut self) {
        self.path = None;
    }

    /// The path, while armed.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl Drop for UnlinkOnDrop {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// A temporary file that becomes the destination at [`AtomicWriter::commit`] and vanishes if it is dropped before.
///
/// ```
/// use squib_snapshot::AtomicWriter;
/// use std::io::Write;
/// # let dir = tempfile::tempdir()?;
/// # let dest = dir.path().join("vm.snap");
/// let mut writer = AtomicWriter::open(&dest)?;
/// writer.write_all(b"new")?;
/// assert!(!dest.exists());
/// writer.commit()?;
/// assert_eq!(std::fs::read(&dest)?, b"new");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AtomicWriter {
    // Before `file`, so that the name goes while the lock is still held.
    temp: UnlinkOnDrop,
    temp_path: PathBuf,
    dest: PathBuf,
    file: File,
}

impl AtomicWriter {
    /// Creates the temporary file, after removing those that crashed writers of the same destination left. The directory
    /// must exist.
    ///
    /// # Errors
    /// [`SnapshotError::Io`], and those of [`check_same_filesystem`].
    pub fn open(dest: &Path) -> Result<Self> {
        check_same_filesystem(dest, &derive_temp_path(dest))?;
        remove_abandoned(dest);
        let (temp_path, file) = create_temp(dest)?;
        let temp = UnlinkOnDrop::new(temp_path.clone());
        Ok(Self { temp, temp_path, dest: dest.to_path_buf(), file })
    }

    /// The temporary file.
    #[must_use]
    pub fn temp_path(&self) -> &Path {
        &self.temp_path
    }

    /// The destination.
    #[must_use]
    pub fn dest_path(&self) -> &Path {
        &self.dest
    }

    /// The open file, for seeks and `set_len`.
    pub fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file, renames it over the destination and syncs the directory.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if syncing fails, [`SnapshotError::AtomicCommitFailed`] if the rename does; the temporary
    /// file is removed in both cases.
    pub fn commit(mut self) -> Result<()> {
        self.file.flush()?;
        self.file.sync_all().map_err(at("sync", &self.temp_path))?;
        check_replaceable(&RealFs, &self.dest)?;
        fs::rename(&self.temp_path, &self.dest)
            .map_err(at("rename into place", &self.dest))
            .map_err(SnapshotError::AtomicCommitFailed)?;
        self.temp.disarm();
        sync_dir(&parent_dir(&self.dest))?;
        Ok(())
    }
}

impl Write for AtomicWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The directory a path lies in; `.` for a bare name.
pub(crate) fn parent_dir(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        Some(_) => PathBuf::from("."),
        None => path.to_path_buf(),
    }
}

/// Makes renames and unlinks in `dir` durable. Systems that cannot sync a directory order them by themselves.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        let file = File::open(dir).map_err(at("open directory", dir))?;
        file.sync_all().map_err(at("sync directory", dir))?;
    }
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

/// Options for a file that must not exist yet: exclusive, private, never through a link.
pub(crate) fn exclusive() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

/// A random part for a file name.
pub(crate) fn random_name() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

fn create_temp(dest: &Path) -> Result<(PathBuf, File)> {
    let Some(name) = dest.file_name() else {
        return Err(SnapshotError::InvalidPath(format!("{} does not name a file", dest.display())));
    };
    loop {
        let mut temp_name = name.to_os_string();
        temp_name.push(format!("{MARK}{}{TEMP_SUFFIX}", random_name()?));
        let path = parent_dir(dest).join(temp_name);
        let file = match exclusive().open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(at("create", &path)(e).into()),
        };
        // A cleaner may have seen the file before it was locked; then it is gone and another name is tried.
        if !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && is_still_at(&file, &path) {
            return Ok((path, file));
        }
    }
}

/// Whether `path` still names the open file.
pub(crate) fn is_still_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        match (file.metadata(), fs::symlink_metadata(path)) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// Removes temporary files for `dest` that no living writer holds. Best effort: what cannot be removed harms nobody.
fn remove_abandoned(dest: &Path) {
    let Some(name) = dest.file_name() else { return };
    let Ok(entries) = fs::read_dir(parent_dir(dest)) else { return };
    for entry in entries.flatten() {
        let regular = entry.file_type().is_ok_and(|t| t.is_file());
        if !regular || !is_temp_name(name, &entry.file_name()) {
            continue;
        }
        let path = entry.path();
        if let Ok(file) = OpenOptions::new().read(true).open(&path)
            && file.try_lock().is_ok()
            && is_still_at(&file, &path)
        {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Whether `candidate` is a temporary name for a destination called `name`.
fn is_temp_name(name: &OsStr, candidate: &OsString) -> bool {
    let random = candidate
        .as_encoded_bytes()
        .strip_prefix(name.as_encoded_bytes())
        .and_then(|rest| rest.strip_prefix(MARK.as_bytes()))
        .and_then(|rest| rest.strip_suffix(TEMP_SUFFIX.as_bytes()));
    random.is_some_and(|r| r.len() == 16 && r.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn dropped_writers_leave_nothing_and_two_never_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("x.snap");
        fs::write(&dest, b"old").unwrap();
        let mut a = AtomicWriter::open(&dest).unwrap();
        let mut b = AtomicWriter::open(&dest).unwrap();
        assert_ne!(a.temp_path(), b.temp_path());
        assert_eq!(a.dest_path(), dest);
        a.write_all(b"aaaa").unwrap();
        b.write_all(b"b").unwrap();
        a.flush().unwrap();
        drop(a);
        assert_eq!(fs::read(&dest).unwrap(), b"old");
        b.file_mut().set_len(3).unwrap();
        b.commit().unwrap();
        assert_eq!(fs::read(&dest).unwrap(), b"b\0\0");
        assert_eq!(names(dir.path()), ["x.snap"]);
    }

    #[test]
    fn abandoned_files_are_removed_and_foreign_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("x.snap");
        let foreign = ["x.snap.squib-zz.tmp", "x.snap.tmp", "y.snap.squib-0123456789abcdef.tmp"];
        for name in foreign {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        fs::write(dir.path().join("x.snap.squib-0123456789abcdef.tmp"), b"left by a crash").unwrap();
        drop(AtomicWriter::open(&dest).unwrap());
        assert_eq!(names(dir.path()), foreign);
    }

    #[test]
    fn a_failed_rename_is_told_apart_and_cleaned_up() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("is-a-directory");
        fs::create_dir(&dest).unwrap();
        let e = AtomicWriter::open(&dest).unwrap().commit().unwrap_err();
        assert!(matches!(e, SnapshotError::AtomicCommitFailed(_)), "{e}");
        assert_eq!(names(dir.path()), ["is-a-directory"]);
        let socket = dir.path().join("a-socket");
        #[cfg(unix)]
        {
            let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let e = AtomicWriter::open(&socket).unwrap().commit().unwrap_err();
            assert!(e.to_string().contains("a device, a pipe or a socket"), "{e}");
            assert_eq!(names(dir.path()), ["a-socket", "is-a-directory"]);
        }
        let missing = dir.path().join("no/such/dir.snap");
        assert!(
            matches!(AtomicWriter::open(&missing), Err(SnapshotError::Io(e)) if e.kind() == io::ErrorKind::NotFound)
        );
    }

    #[cfg(unix)]
    #[test]
    fn files_are_private_and_links_are_replaced_not_followed() {
        use std::os::unix::fs::{MetadataExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (dest, target) = (dir.path().join("x"), dir.path().join("target"));
        fs::write(&target, b"untouched").unwrap();
        symlink(&target, &dest).unwrap();
        let mut w = AtomicWriter::open(&dest).unwrap();
        assert_eq!(fs::metadata(w.temp_path()).unwrap().mode() & 0o777, 0o600);
        w.write_all(b"new").unwrap();
        w.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"untouched");
        assert!(fs::symlink_metadata(&dest).unwrap().is_file());
    }

    #[test]
    fn names_and_parents() {
        assert_eq!(derive_temp_path(Path::new("a/x.snap")), Path::new("a/x.snap.tmp"));
        assert_eq!(parent_dir(Path::new("x")), Path::new("."));
        assert_eq!(parent_dir(Path::new("/a/x")), Path::new("/a"));
        check_same_filesystem(Path::new("x"), Path::new("y")).unwrap();
        if Path::new("/proc/self").exists() {
            let e = check_same_filesystem(Path::new("/tmp/x"), Path::new("/proc/x")).unwrap_err();
            assert!(matches!(e, SnapshotError::AtomicCommitCrossFs { temp_dir, .. } if temp_dir == Path::new("/proc")));
        }
    }

    #[test]
    fn the_guard_unlinks_only_while_armed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"").unwrap();
        let mut guard = UnlinkOnDrop::new(path.clone());
        assert_eq!(guard.path(), Some(path.as_path()));
        guard.disarm();
        assert_eq!(guard.path(), None);
        drop(guard);
        assert!(path.exists());
        drop(UnlinkOnDrop::new(path.clone()));
        assert!(!path.exists());
    }
}
