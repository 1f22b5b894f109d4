//! Standard output and standard error of a program whose reader may have gone and whose disk may be full. The macros of std panic
//! then; those here do not, and are used under the same names in all of this program.

use std::fmt::{Arguments, Display};
use std::io::{self, Write};
use std::sync::OnceLock;

use crate::error::{IoContext, Result};

/// Why standard output could not be written, if so.
static LOST: OnceLock<io::Error> = OnceLock::new();

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

/// Behind `eprintln!`.
pub fn tell(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
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
