//! The user's terminal in raw mode, and back again on every way out: return, panic, `exit`, a fatal signal. A stopped process
//! leaves it as it was too, and takes it again when it is continued in the foreground.
//!
//! Output processing stays on, so that our own messages still start at the left margin.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

/// What the terminal was before and what it is in raw mode, once it has been changed.
static MODES: OnceLock<(libc::termios, libc::termios)> = OnceLock::new();
/// It is to be raw as long as this process runs.
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end a process by default and can come from outside or from a crash.
const FATAL: [i32; 10] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGXCPU,
];

/// Signals that stop this process and let it go on, but for those that cannot be caught.
const STOPS: [i32; 2] = [libc::SIGTSTP, libc::SIGCONT];

/// Holds the terminal in raw mode.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal.
    pub fn enter() -> io::Result<Option<RawTerminal>> {
        // SAFETY: an all-zero termios is a valid place for tcgetattr to write to.
        let mut now: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `now` is a valid place for the result; on a descriptor that is no terminal the call fails.
        if unsafe { libc::isatty(0) == 0 || libc::tcgetattr(0, &mut now) != 0 } {
            return Ok(None);
        }
        let (_, raw) = MODES.get_or_init(|| {
            let mut raw = now;
            // SAFETY: `raw` is a termios read from the terminal.
            unsafe { libc::cfmakeraw(&mut raw) };
            raw.c_oflag |= libc::OPOST | libc::ONLCR;
            (now, raw)
        });
        static HOOKS: Once = Once::new();
        HOOKS.call_once(install_hooks);
        RAW.store(true, Ordering::SeqCst);
        without_stops(|| {
            let _turn = Turn::wait();
            // SAFETY: `raw` was made of a termios read from this terminal.
            if unsafe { libc::tcsetattr(0, libc::TCSAFLUSH, raw) } != 0 {
                RAW.store(false, Ordering::SeqCst);
                return Err(io::Error::last_os_error());
            }
            Ok(Some(RawTerminal(())))
        })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Sets the terminal's mode. Safe to call at any time, from a signal handler too.
fn set(mode: &libc::termios) {
    // SAFETY: `mode` is one of `MODES`, which were made for this terminal; tcsetattr is async-signal-safe.
    unsafe { libc::tcsetattr(0, libc::TCSANOW, mode) };
}

/// Puts the terminal back. Safe to call at any time, from a signal handler too.
extern "C" fn restore() {
    if let (true, Some((before, _))) = (RAW.swap(false, Ordering::SeqCst), MODES.get()) {
        set(before);
    }
}

/// One thread at a time gives the terminal up or takes it, however many handle signals: else one that takes it, after the last
/// stop, could do so in the middle of the next. The handlers block each other's signal, so none waits for what it interrupted.
struct Turn;

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Turn {
    fn wait() -> Turn {
        while TAKEN.swap(true, Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::SeqCst);
    }
}

/// A set of signals.
fn signals(members: &[i32]) -> libc::sigset_t {
    // SAFETY: an all-zero set is a valid place for sigemptyset to make one of; both calls are async-signal-safe.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in members {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}

/// Runs `work` with SIGTSTP and SIGCONT held back from this thread.
fn without_stops<T>(work: impl FnOnce() -> T) -> T {
    let (both, mut before) = (signals(&STOPS), signals(&[]));
    // SAFETY: both sets were made by sigemptyset.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &both, &mut before) };
    let done = work();
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    done
}

/// Catches SIGTSTP or SIGCONT, with both held back in the handler.
fn catch(signal: i32, handler: extern "C" fn(i32)) {
    // SAFETY: an all-zero sigaction is one to fill in; the call is async-signal-safe, and so are the handlers.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        (action.sa_flags, action.sa_mask) = (libc::SA_RESTART, signals(&STOPS));
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// SIGTSTP: puts the terminal back, stops as if the signal had never been caught, and takes the terminal again.
extern "C" fn on_stop(signal: i32) {
    let interrupted = errno::errno();
    {
        let _turn = Turn::wait();
        if let (true, Some((before, _))) = (RAW.load(Ordering::SeqCst), MODES.get()) {
            set(before);
        }
        let stop = signals(&[signal]);
        // SAFETY: all calls are async-signal-safe. The signal is blocked in its handler, so it stops the process where it is unblocked;
        // an orphaned process group is not stopped, and just goes on.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &stop, std::ptr::null_mut());
            libc::pthread_sigmask(libc::SIG_BLOCK, &stop, std::ptr::null_mut());
        }
        catch(signal, on_stop);
        take();
    }
    errno::set_errno(interrupted);
}

/// SIGCONT: whatever stopped the process, SIGSTOP too, the terminal may have been somebody else's meanwhile.
extern "C" fn on_continue(_signal: i32) {
    let interrupted = errno::errno();
    {
        let _turn = Turn::wait();
        take();
    }
    errno::set_errno(interrupted);
}

/// Makes the terminal raw, if it is to be and this process is in the foreground.
fn take() {
    let (true, Some((before, raw))) = (RAW.load(Ordering::SeqCst), MODES.get()) else { return };
    // SAFETY: both calls are async-signal-safe and take or return numbers.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(0), libc::getpgrp()) };
    // In the background it would stop the process again; a terminal that does not control this process has no background.
    if foreground == own || foreground == -1 {
        set(raw);
        if !RAW.load(Ordering::SeqCst) {
            // Put back by another thread meanwhile.
            set(before);
        }
    }
}

extern "C" fn on_fatal_signal(signal: i32) {
    restore();
    // SAFETY: both calls are async-signal-safe; with the default action back in place, the signal then ends the process as
    // if we had never caught it.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn install_hooks() {
    // SAFETY: `restore` takes and returns nothing, as atexit wants.
    unsafe { libc::atexit(restore) };
    let handlers: [extern "C" fn(i32); 2] = [on_stop, on_continue];
    let is_default = |signal| {
        // SAFETY: an all-zero sigaction is a valid place for the result, which is all that is asked for.
        unsafe {
            let mut current: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut current) == 0 && current.sa_sigaction == libc::SIG_DFL
        }
    };
    // A handler somebody else installed is left in place.
    for signal in FATAL.into_iter().filter(|signal| is_default(*signal)) {
        // SAFETY: the handler only makes async-signal-safe calls.
        unsafe { libc::signal(signal, on_fatal_signal as *const () as libc::sighandler_t) };
    }
    for (signal, handler) in STOPS.into_iter().zip(handlers).filter(|(signal, _)| is_default(*signal)) {
        catch(signal, handler);
    }
}

/// What the user typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// Ctrl-A x.
    Quit,
}

/// Finds Ctrl-A x in what is typed. Ctrl-A twice is one Ctrl-A for the guest; Ctrl-A and anything else is both.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    pending: bool,
}

const CTRL_A: u8 = 1;

impl EscapeFilter {
    /// Filters one read. Bytes in front of a quit are given up with it.
    pub fn filter(&mut self, input: &[u8]) -> Typed {
        let mut out = Vec::with_capacity(input.len() + 1);
        for &byte in input {
            match (std::mem::take(&mut self.pending), byte) {
                (false, CTRL_A) => self.pending = true,
                (false, _) => out.push(byte),
                (true, b'x' | b'X') => return Typed::Quit,
                (true, CTRL_A) => out.push(CTRL_A),
                (true, _) => out.extend([CTRL_A, byte]),
            }
        }
        Typed::Bytes(out)
    }
}

/// Reads until the end of the input or until `deliver` says no.
pub fn pump(mut input: impl Read, escape: bool, mut deliver: impl FnMut(Typed) -> bool) {
    let mut filter = EscapeFilter::default();
    let mut buf = [0; 1024];
    loop {
        let typed = match input.read(&mut buf) {
            Ok(0) => return,
            Ok(n) if escape => filter.filter(&buf[..n]),
            Ok(n) => Typed::Bytes(buf[..n].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::warn!(%error, "console input ended");
                return;
            }
        };
        if !deliver(typed) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_is_found_across_reads() {
        let mut filter = EscapeFilter::default();
        assert_eq!(filter.filter(b"ls\x01"), Typed::Bytes(b"ls".to_vec()));
        assert_eq!(filter.filter(b"\x01\x01b"), Typed::Bytes(b"\x01\x01b".to_vec()));
        assert_eq!(filter.filter(b"\x01"), Typed::Bytes(vec![]));
        assert_eq!(filter.filter(b"x"), Typed::Quit);
    }

    #[test]
    fn pumping_ends_with_the_input_or_the_receiver() {
        let mut got = Vec::new();
        pump(&b"a\x01xb"[..], false, |typed| {
            got.push(typed);
            true
        });
        assert_eq!(got, [Typed::Bytes(b"a\x01xb".to_vec())]);
        let mut count = 0;
        pump(io::repeat(b'z'), true, |_| {
            count += 1;
            count < 3
        });
        assert_eq!(count, 3);
    }
}
