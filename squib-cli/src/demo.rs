//! `squib demo`: the whole point in half a minute. Boots a guest that counts, freezes it in the middle, ends the process,
//! brings it back in a new one, and checks that no number is missing and none came twice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use indicatif::BinaryBytes;
use serde_json::{Value, json};

use crate::child::{self, Sign, Watched};
use crate::error::{Error, IoContext, Result};
use crate::exit::Exit;
use crate::guest_cache::GuestArgs;
use crate::options::mebibytes;
use crate::progress::Spinner;
use crate::report::{micros, millis};

/// The guest's first line from user space.
pub const USER_SPACE: &str = "squib-guest: user space is up";
/// A command line that leaves out what costs an emulated guest most: crypto self-tests, jitter entropy, KASLR.
pub const QUICK_BOOT: &str =
    "console=ttyAMA0 quiet cryptomgr.notests=1 nokaslr initcall_blacklist=trace_eval_init,jent_mod_init";

const PATIENCE: Duration = Duration::from_secs(120);
/// The same for the processes of the guest, which end by it even if this one is killed.
const PATIENCE_SECS: &str = "120";

const AFTER_HELP: &str = "\
Examples:
  squib demo
  squib demo --keep snapshots      and afterwards: squib restore --state snapshots/demo.state ...
  squib demo --kernel Image --initrd initramfs.cpio

The initramfs must be one that guest-images/initramfs.sh made: its /init does the counting.";

/// Boot, count, freeze, end the process, resume in a new one, go on counting.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    guest: GuestArgs,
    /// RAM in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = mebibytes)]
    memory: u64,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: u32,
    /// How far the guest counts; the snapshot is taken halfway
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    count: u32,
    /// Keep the snapshot's files in DIR
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// What the console of both processes together showed, and when.
#[derive(Debug, Default)]
struct Story {
    console: Vec<u8>,
    shown: usize,
    user_space: Option<Duration>,
    running: Option<Duration>,
    snapshot: Value,
    complaint: Option<String>,
}

impl Story {
    /// Follows one process to its end; returns its id.
    fn follow(&mut self, command: &mut Command, spinner: &Spinner, quiet: bool) -> Result<u32> {
        let process = Watched::spawn(command)?;
        let id = process.id();
        while let Some((at, sign)) = process.next(PATIENCE)? {
            match sign {
                Sign::Console(bytes) => {
                    self.console.extend(bytes);
                    while let Some(line) = self.next_line() {
                        if line.contains(USER_SPACE) {
                            self.user_space.get_or_insert(at);
                            spinner.say("the guest counts");
                        }
                        if !quiet && !line.is_empty() {
                            spinner.line(&format!("   guest | {line}"));
                        }
                    }
                }
                Sign::Message(line) => match child::event(&line) {
                    Some((name, _)) if name == "running" => self.running = Some(at),
                    Some((name, value)) if name == "snapshot" => self.snapshot = value,
                    Some(_) => {}
                    None => self.complaint = Some(line),
                },
            }
        }
        let status = process.wait()?;
        match (status.success(), self.complaint.take()) {
            (true, _) => Ok(id),
            (false, Some(complaint)) => Err(Error::Message(complaint.trim_start_matches("squib: error: ").into())),
            (false, None) => Err(Error::Message(format!("the process of the guest ended with {status}"))),
        }
    }

    fn next_line(&mut self) -> Option<String> {
        let rest = &self.console[self.shown..];
        let length = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..length]).trim_end().to_owned();
        self.shown += length + 1;
        Some(line)
    }

    /// The numbers the guest counted, as they came.
    fn numbers(&self) -> Vec<u32> {
        let text = String::from_utf8_lossy(&self.console);
        text.lines().filter_map(|line| line.trim_end().strip_prefix("count ")?.parse().ok()).collect()
    }
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let guest = args.guest.named_or_cached()?;
    let scratch = tempfile::Builder::new().prefix("squib-demo-").tempdir().context(|| "create a directory".into())?;
    let directory = args.keep.as_deref().unwrap_or(scratch.path());
    std::fs::create_dir_all(directory).context(|| format!("create {}", directory.display()))?;
    let (state, memory) = (directory.join("demo.state"), directory.join("demo.mem"));
    let halfway = args.count / 2;
    let say = |spinner: &Spinner, text: String| {
        if !args.json {
            spinner.line(&text);
        }
    };

    let mut story = Story::default();
    let spinner = Spinner::new("the guest boots");
    say(&spinner, format!("1. Boot {} and let the guest count.", guest.kernel.display()));
    let mut run = child::myself()?;
    run.arg("run").arg("--json").arg("--kernel").arg(&guest.kernel).arg("--initrd").arg(&guest.initrd);
    run.args(["--memory", &args.memory.to_string(), "--cpus", &args.cpus.to_string()]);
    run.args(["--cmdline", &format!("{QUICK_BOOT} run=\"count {}\"", args.count)]);
    run.args(["--snapshot-on", &format!("count {halfway}\r\n"), "--then", "exit"]);
    run.arg("--state").arg(&state).arg("--memory-file").arg(&memory).args(["--timeout", PATIENCE_SECS]);
    let first = story.follow(&mut run, &spinner, args.json)?;
    let booted = story.user_space.ok_or_else(|| {
        Error::Message("the guest never reached user space: is the initramfs one of guest-images/?".into())
    })?;

    say(
        &spinner,
        format!("2. Frozen here. The snapshot is on disk; the virtual machine and its process ({first}) are gone."),
    );
    spinner.say("the guest goes on");
    say(&spinner, "3. Restore it in a new process.".into());
    let mut restore = child::myself()?;
    restore.arg("restore").arg("--json").arg("--state").arg(&state).arg("--memory-file").arg(&memory);
    restore.args(["--timeout", PATIENCE_SECS]);
    let second = story.follow(&mut restore, &spinner, args.json)?;
    let restored = story.running.ok_or_else(|| Error::Message("the restored guest never ran".into()))?;
    drop(spinner);
    if first == second {
        return Err(Error::Message(format!("both halves ran in process {first}")));
    }

    let expected: Vec<u32> = (1..=args.count).collect();
    let numbers = story.numbers();
    if numbers != expected {
        return Err(Error::Message(format!("the guest was to count to {}, and counted {numbers:?}", args.count)));
    }
    let figures = Figures { booted, restored, snapshot: story.snapshot };
    match args.json {
        true => println!("{:#}", figures.to_json()),
        false => figures.print(args.count, second, args.keep.as_deref()),
    }
    Ok(Exit::Done)
}

struct Figures {
    booted: Duration,
    restored: Duration,
    snapshot: Value,
}

impl Figures {
    fn bytes(&self, name: &str) -> u64 {
        self.snapshot[name].as_u64().unwrap_or_default()
    }

    fn pause(&self) -> Duration {
        Duration::from_micros(self.bytes("pause_us"))
    }

    fn to_json(&self) -> Value {
        json!({
            "boot_to_user_space_us": micros(self.booted),
            "snapshot_pause_us": micros(self.pause()),
            "snapshot_logical_bytes": self.bytes("memory_file_bytes") + self.bytes("state_file_bytes"),
            "snapshot_disk_bytes": self.bytes("memory_disk_bytes") + self.bytes("state_file_bytes"),
            "restore_to_first_instruction_us": micros(self.restored),
        })
    }

    fn print(&self, count: u32, second: u32, kept: Option<&Path>) {
        let state = self.bytes("state_file_bytes");
        println!("4. All numbers from 1 to {count} came (process {second} went on): none is missing, none came twice.");
        println!();
        println!("   boot to user space                   {}", millis(self.booted));
        println!("   snapshot pause                       {}", millis(self.pause()));
        println!(
            "   snapshot size                        {} logical, {} on disk",
            BinaryBytes(self.bytes("memory_file_bytes") + state),
            BinaryBytes(self.bytes("memory_disk_bytes") + state),
        );
        println!("   restore to first guest instruction   {}  (a new process, from its start)", millis(self.restored));
        println!();
        println!(
            "A running Linux was written to disk between two lines of its output, the program that ran it ended, and"
        );
        println!("another one took it up again: the guest did not notice.");
        match kept {
            Some(kept) => {
                let (state, memory) = (kept.join("demo.state"), kept.join("demo.mem"));
                println!("Try next: squib describe {}", state.display());
                println!("          squib restore --state {} --memory-file {}", state.display(), memory.display());
            }
            None => println!("Try next: squib demo --keep snapshots, and restore what is kept as often as you like."),
        }
    }
}
