//! The exit codes: part of the command-line contract.

use std::process::{ExitCode, Termination};

/// How the program ends. Wrong usage that clap sees itself is 2 as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: the guest switched itself off or asked for a reset, or what was asked for is done.
    Done,
    /// 1: an error of ours, already said.
    Error,
    /// 2: wrong usage.
    Usage,
    /// 3: the host gave up on the guest.
    GuestCrash,
    /// 124: the time is up, as `timeout(1)` says it.
    TimedOut,
    /// 128 and the signal's number, as shells say it: ended by that signal.
    Signal(i32),
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::GuestCrash => 3,
            Exit::TimedOut => 124,
            Exit::Signal(signal) => 128 | (signal & 0x7f) as u8,
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}
