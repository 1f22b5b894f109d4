//! Standard output of the commands that print a result and end.

use std::fmt::Display;
use std::io::{self, Write};

use crate::error::{IoContext, Result};

/// Prints a text and a line end. A reader that has seen enough (`squib describe vm.state | head -1`) is no error.
pub fn line(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context(|| "write to standard output".into()),
    }
}
