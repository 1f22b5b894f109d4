//! Opening the files that a user names.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Opens a regular file. Directories, devices and pipes are refused, and nobody is waited for at the other end of a pipe.
/// `action` completes "cannot ...".
pub fn open(options: &mut OpenOptions, action: &'static str, path: &Path) -> Result<File> {
    let failed = |source| Error::File { action, path: path.into(), source };
    // On a regular file the flag means nothing.
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(file),
        false => Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))),
    }
}

/// Reads a whole file of at most `limit` bytes.
pub fn read(action: &'static str, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::File { action, path: path.into(), source };
    let file = open(File::options().read(true), action, path)?;
    let mut data = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut data).map_err(failed)?;
    if data.len() as u64 > limit {
        let text = format!("it is larger than {} MiB, more than there is room for", limit >> 20);
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), directory.path(), Path::new("/dev/zero")] {
            let error = read("read the kernel", path, 100).unwrap_err().to_string();
            assert!(error.starts_with("cannot read the kernel ") && error.contains("not a regular file"), "{error}");
        }
    }

    #[test]
    fn the_limit_is_the_largest_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, [7; 100]).unwrap();
        assert_eq!(read("read the kernel", &path, 100).unwrap(), [7; 100]);
        let error = read("read the kernel", &path, 99).unwrap_err().to_string();
        assert!(error.contains("larger than 0 MiB"), "{error}");
    }
}
