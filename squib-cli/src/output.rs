//! Standard output and standard error of a program whose reader may have gone and whose disk may be full. The macros of std panic
//! then; those here do not, and are used under the same names in all of this program.

use std::fmt::{Arguments, Display};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{IoContext, Result};

/// Why standard output could not be written, if so.
static LOST: OnceLock<io::Error> = OnceLock::new();
/// The guest's console stands in the middle of a line.
static UNFINISHED: AtomicBool = AtomicBool::new(false);

/// A line on standard output; a failure is told by [`check`].
macro_rules! println {
    () => { $crate::output::print(format_args!("\n")) };
    ($($text:tt)*) => { $crate::output::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// The same without the line end.
macro_rules! print {
    ($($text:tt)*) => { $crate::output::print(format_args!($($text)*)) };
}

/// A line on standard error. If that is closed, there is nobody to tell.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::output::tell(format_args!("{}\n", format_args!($($text)*))) };
}

/// The same without the line end.
macro_rules! eprint {
    ($($text:tt)*) => { $crate::output::tell(format_args!($($text)*)) };
}

/// Behind `println!`.
pub fn print(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    if let Err(e) = out.write_fmt(text).and_then(|()| out.flush()) {
        // Only the first counts.
        let _ = LOST.set(e);
    }
}

/// Behind `eprintln!`. Where standard error is where the guest's console is, a line of the guest that is not finished is ended.
pub fn tell(text: Arguments<'_>) {
    let mut err = io::stderr().lock();
    if UNFINISHED.swap(false, Ordering::Relaxed) && outputs_are_one() {
        let _ = err.write_all(b"\n");
    }
    let _ = err.write_fmt(text);
}

/// Bytes of the guest's console have been written to standard output.
pub fn console_wrote(bytes: &[u8]) {
    if let Some(last) = bytes.iter().rfind(|byte| **byte != b'\r') {
        UNFINISHED.store(*last != b'\n', Ordering::Relaxed);
    }
}

/// Whether standard output and standard error are the same terminal, pipe or file.
fn outputs_are_one() -> bool {
    let identity = |fd: BorrowedFd<'_>| -> io::Result<(u64, u64)> {
        let data = File::from(fd.try_clone_to_owned()?).metadata()?;
        Ok((data.dev(), data.ino()))
    };
    match (identity(io::stdout().as_fd()), identity(io::stderr().as_fd())) {
        (Ok(out), Ok(err)) => out == err,
        _ => false,
    }
}

/// Whether all of standard output was written. A reader that has seen enough (`squib describe vm.state | head -1`) is no error.
pub fn check() -> Result<()> {
    match LOST.get() {
        Some(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::new(e.kind(), e.to_string())).context(|| "write to standard output".into())
        }
        _ => Ok(()),
    }
}

/// A text and a line end on standard output.
pub fn line(text: impl Display) -> Result<()> {
    println!("{text}");
    check()
}
