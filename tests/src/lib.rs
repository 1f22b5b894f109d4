//! Drives the real `squib` program for the tests of this crate: finds it, finds guests, runs it with a limit on its time,
//! and keeps what it said.
//!
//! Nothing is skipped: a missing program or guest is a failed test that says what to do.

pub mod facts;
mod machines;
mod shadow;
pub mod switches;
mod watched;

use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use machines::{Output, Random, bare_image, guest, rounds, run_for, turn};
pub use shadow::Shadow;
pub use watched::{COUNT_UNTIL_TOLD, ENOUGH, Watched};

/// No single run of the program takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(300);

/// The guest's first line from user space.
pub const USER_SPACE: &str = "squib-guest: user space is up";

/// A command line that leaves out what costs an emulated guest most.
pub const QUICK_BOOT: &str =
    "console=ttyAMA0 quiet cryptomgr.notests=1 nokaslr initcall_blacklist=trace_eval_init,jent_mod_init";

/// The program, beside the directory of the running test.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let directory = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let program = directory.join("squib");
    let built =
        modified(&program).unwrap_or_else(|| panic!("{} is missing: cargo build -p squib-cli", program.display()));
    // Cargo does not know that these tests run the program: its list of sources says whether it is the present one.
    let sources = std::fs::read_to_string(directory.join("squib.d")).unwrap_or_default();
    for source in sources.split_once(": ").map_or("", |(_, list)| list).split_whitespace() {
        if modified(Path::new(source)).is_some_and(|changed| changed > built) {
            panic!("{} is older than {source}: cargo build -p squib-cli", program.display());
        }
    }
    sign(&program);
    program
}

/// On a Mac: gives a program the entitlement for the hypervisor.
pub fn sign(program: &Path) {
    if cfg!(target_os = "macos") {
        let sign = Path::new(env!("CARGO_MANIFEST_DIR")).join("../squib-cli/macos/sign.sh");
        assert!(Command::new(sign).arg(program).status().is_ok_and(|status| status.success()), "signed");
    }
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|data| data.modified()).ok()
}

/// The directory that `guest-images/` fills.
pub fn guest_cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("SQUIB_GUEST_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("squib-guest")))
        .or_else(|| Some(set("HOME")?.join(".cache/squib-guest")))
        .expect("SQUIB_GUEST_CACHE or HOME is set")
}

/// A file of the guest cache; `how` makes it.
pub fn image(name: &str, how: &str) -> PathBuf {
    let path = guest_cache().join(name);
    assert!(path.is_file(), "{} is missing: run `{how}` in the repository first", path.display());
    path
}

/// How one run of the program went.
pub struct Outcome {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output: the guest's console. Carriage returns are left out.
    pub console: String,
    /// Standard error.
    pub stderr: String,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "exit code {:?}\n--- console\n{}\n--- stderr\n{}", self.code, self.console, self.stderr)
    }
}

impl Outcome {
    /// Fails unless the program ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Outcome {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Fails unless the program ended with 1 and one plain line that holds every one of `words`.
    #[track_caller]
    pub fn expect_error(self, words: &[&str]) -> Outcome {
        let outcome = self.expect(1);
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        assert!(lines.len() == 1 && lines[0].starts_with("squib: error: "), "one plain line expected: {outcome:?}");
        for word in words {
            assert!(lines[0].contains(word), "'{word}' is missing: {outcome:?}");
        }
        outcome
    }

    /// Fails unless the console holds `text`.
    #[track_caller]
    pub fn expect_console(self, text: &str) -> Outcome {
        assert!(self.console.contains(text), "'{text}' is missing: {self:?}");
        self
    }

    /// The event `name` of a run with `--json`.
    #[track_caller]
    pub fn event(&self, name: &str) -> Value {
        self.stderr
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|event| event["event"] == name)
            .unwrap_or_else(|| panic!("no event '{name}': {self:?}"))
    }
}

/// One call of the program.
#[derive(Debug)]
pub struct Squib {
    command: Command,
    timeout: Option<u32>,
    typed: Option<(String, String)>,
}

impl Squib {
    /// `squib` with a subcommand.
    pub fn new(subcommand: &str) -> Squib {
        let mut command = Command::new(program());
        command.arg(subcommand);
        Squib { command, timeout: Some(120), typed: None }
    }

    /// `squib run` of a guest of the cache, with shell commands for its `/init`.
    pub fn run(guest: &str, commands: &str) -> Squib {
        Squib::run_with(guest, QUICK_BOOT, commands)
    }

    /// The same with parameters of one's own for the kernel.
    pub fn run_with(guest: &str, parameters: &str, commands: &str) -> Squib {
        let how = if guest == "minimal" { "make minimal-kernel" } else { "guest-images/fetch.sh" };
        Squib::new("run")
            .option("--kernel", image(&format!("{guest}/Image"), how))
            .option("--initrd", image(&format!("{guest}/initramfs.cpio"), how))
            .option("--cmdline", format!("{parameters} run=\"{commands}\""))
            .option("--memory", "256")
    }

    /// `squib restore` of a snapshot.
    pub fn restore(snapshot: &Snapshot) -> Squib {
        Squib::new("restore").option("--state", &snapshot.state).option("--memory-file", &snapshot.memory)
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Squib {
        self.command.arg(arg);
        self
    }

    /// Adds an option and its value.
    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Squib {
        self.arg(name).arg(value)
    }

    /// `--snapshot-on` for `squib run`.
    pub fn snapshot_on(self, text: &str, snapshot: &Snapshot) -> Squib {
        self.option("--snapshot-on", text).option("--state", &snapshot.state).option("--memory-file", &snapshot.memory)
    }

    /// Sets a variable of the program's environment.
    pub fn environment(mut self, name: &str, value: &str) -> Squib {
        self.command.env(name, value);
        self
    }

    /// The guest's time, in seconds; 120 if not said.
    pub fn timeout(mut self, seconds: u32) -> Squib {
        self.timeout = Some(seconds);
        self
    }

    /// For subcommands that have no guest.
    pub fn without_timeout(mut self) -> Squib {
        self.timeout = None;
        self
    }

    /// Types `text` when the console shows `prompt`.
    pub fn typed(mut self, prompt: &str, text: &str) -> Squib {
        self.typed = Some((prompt.into(), text.into()));
        self
    }

    /// Runs to the end.
    #[track_caller]
    pub fn outcome(mut self) -> Outcome {
        let started = Instant::now();
        if let Some(seconds) = self.timeout {
            self.command.arg("--timeout").arg(seconds.to_string());
        }
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("the program starts");
        let typist = self.typed.take().zip(child.stdin.take());
        let console = collect(child.stdout.take().expect("piped"), typist);
        let stderr = collect(child.stderr.take().expect("piped"), None);
        let status = loop {
            match child.try_wait().expect("the program can be waited for") {
                Some(status) => break Some(status),
                None if started.elapsed() > PATIENCE => break end(&mut child),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let outcome = Outcome {
            code: status.and_then(|status| status.code()),
            console: console.join().expect("reader").replace('\r', ""),
            stderr: stderr.join().expect("reader"),
        };
        assert!(status.is_some(), "{:?} did not end within {PATIENCE:?}: {outcome:?}", self.command);
        outcome
    }
}

fn end(child: &mut Child) -> Option<std::process::ExitStatus> {
    // It may end by itself in this very moment; either way it is gone afterwards.
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Reads to the end; types the text when the prompt shows.
fn collect(
    mut from: impl Read + Send + 'static,
    mut typist: Option<((String, String), ChildStdin)>,
) -> JoinHandle<String> {
    thread::spawn(move || {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            bytes.extend(&buffer[..length]);
            if let Some(((prompt, text), input)) = &mut typist
                && String::from_utf8_lossy(&bytes).contains(prompt.as_str())
            {
                input.write_all(text.as_bytes()).expect("the program reads its input");
                typist = None;
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Where a snapshot's files go.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The state file.
    pub state: PathBuf,
    /// The memory file.
    pub memory: PathBuf,
}

impl Snapshot {
    /// Files called `name` in a directory.
    pub fn new(directory: &tempfile::TempDir, name: &str) -> Snapshot {
        let file = |extension| directory.path().join(format!("{name}.{extension}"));
        Snapshot { state: file("state"), memory: file("mem") }
    }
}

/// The numbers that the guest's `count` printed, in order.
pub fn counted(console: &str) -> Vec<u32> {
    console.lines().filter_map(|line| line.strip_prefix("count ")?.trim_end().parse().ok()).collect()
}

/// Restores a guest of [`COUNT_UNTIL_TOLD`], which must go on where it was frozen, no later than `last`, and stop when it is told to.
#[track_caller]
pub fn counts_on_until_told(restore: Squib, last: u32) {
    let outcome = restore.typed("count ", "\n").outcome().expect(0).expect_console(ENOUGH);
    let rest = counted(&outcome.console);
    assert!(rest.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{outcome:?}");
    // None if it was frozen when it had been told already.
    assert!(rest.first().is_none_or(|first| (1..=last + 1).contains(first)), "{outcome:?}");
}

/// Every number from 1 to `last`.
pub fn all_to(last: u32) -> Vec<u32> {
    (1..=last).collect()
}
