//! squib and the terminal: raw while the guest runs, as it was whenever squib does not; and no line of squib's in the middle of a
//! line of the guest's.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

mod common;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn squib(kernel: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_squib"));
    command.args(["run", "--memory", "16", "--kernel"]).arg(kernel);
    command
}

fn write_kernel(directory: &tempfile::TempDir, kernel: Vec<u8>) -> PathBuf {
    let path = directory.path().join("kernel");
    std::fs::write(&path, kernel).expect("a file");
    path
}

/// A terminal, its other end, and a squib that has it as standard input.
struct Terminal {
    end: File,
    _other: OwnedFd,
    squib: Child,
}

impl Terminal {
    /// In a process group of its own: one whose parent is in the same group might be orphaned, and cannot be stopped then.
    fn start(directory: &tempfile::TempDir) -> Terminal {
        let other = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&other).expect("granted");
        unlockpt(&other).expect("unlocked");
        let name = ptsname(&other, Vec::new()).expect("its name").into_string().expect("UTF-8");
        let end =
            rustix::fs::open(name, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY, rustix::fs::Mode::empty());
        let end = File::from(end.expect("the other end"));
        let kernel = write_kernel(directory, common::spinning_kernel());
        let mut command = squib(&kernel);
        command.stdin(end.try_clone().expect("a copy")).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let squib = command.spawn().expect("the program starts");
        let terminal = Terminal { end, _other: other, squib };
        terminal.becomes_raw();
        terminal
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.squib)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signalled");
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(self.end.as_fd()).expect("a terminal").local_modes.contains(LocalModes::ICANON)
    }

    #[track_caller]
    fn becomes_raw(&self) {
        let started = Instant::now();
        while !self.is_raw() {
            assert!(started.elapsed() < PATIENCE, "the terminal did not become raw");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal that stops squib, and waits until it has.
    #[track_caller]
    fn stop(&self, signal: Signal) {
        self.signal(signal);
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED).expect("waited for").expect("a status");
        assert_eq!(status.stopping_signal(), Some(signal.as_raw()));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ended and waited for is the usual case; both calls then do nothing.
        let _ = self.squib.kill();
        let _ = self.squib.wait();
    }
}

#[test]
fn a_stopped_squib_gives_the_terminal_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut terminal = Terminal::start(&directory);
    // Often enough that a stop comes while other threads are still at the last one.
    for _ in 0..300 {
        terminal.stop(Signal::TSTP);
        assert!(!terminal.is_raw(), "raw while squib is stopped");
        terminal.signal(Signal::CONT);
        terminal.becomes_raw();
    }
    // Nobody can act on SIGSTOP: it is the shell that makes the terminal usable then.
    terminal.stop(Signal::STOP);
    let mut modes = tcgetattr(terminal.end.as_fd()).expect("a terminal");
    modes.local_modes.insert(LocalModes::ICANON | LocalModes::ECHO);
    tcsetattr(terminal.end.as_fd(), OptionalActions::Now, &modes).expect("set");
    terminal.signal(Signal::CONT);
    terminal.becomes_raw();
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.squib.wait().expect("it ends").code(), Some(143));
    assert!(!terminal.is_raw(), "raw after squib has ended");
}

/// The guest prints `t` without a line end and resets.
#[test]
fn a_reset_is_said_on_a_line_of_its_own() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let kernel = common::kernel(&[
        0xd2a1_2000, // movz x0, #0x900, lsl #16: the UART
        0x5280_0e81, // movz w1, #'t'
        0xb900_0001, // str  w1, [x0]: UARTDR
        0x52b0_8000, // movz w0, #0x8400, lsl #16: SYSTEM_RESET
        0x7280_0120, // movk w0, #9
        0xd400_0002, // hvc  #0
    ]);
    let path = write_kernel(&directory, kernel);
    let said = "squib: the guest asked for a reset";
    // One pipe for both, as `2>&1` makes it.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = squib(&path);
    command.stdin(Stdio::null()).stdout(writer.try_clone().expect("a copy")).stderr(writer);
    let mut child = command.spawn().expect("the program starts");
    drop(command);
    let all = std::io::read_to_string(reader).expect("text");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert!(all.starts_with(&format!("t\n{said}")) && all.lines().count() == 2, "{all:?}");
    // Apart, neither changes the other.
    let output = squib(&path).stdin(Stdio::null()).output().expect("the program starts");
    assert_eq!(output.stdout, b"t");
    assert!(output.stderr.starts_with(said.as_bytes()), "{output:?}");
}
