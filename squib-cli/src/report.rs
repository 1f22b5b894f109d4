//! What a run says on standard error: sentences on a terminal, nothing in a pipe, JSON lines where asked for; and the
//! guest's console on standard output.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanDuration};
use serde_json::{Value, json};
use squib_host::pager::PagerStats;
use squib_host::{CrashReport, SaveTarget, SnapshotReport};

use crate::error::Error;
use crate::output;
use crate::pager;
use crate::progress;

/// Standard output as the guest's console: every write is out when it returns, so that prompts and single keys show. The guest
/// runs on when nobody takes its output any more, and that is said once.
#[derive(Debug, Default)]
pub struct Console {
    lost: bool,
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(e) if !self.lost => {
                self.lost = true;
                eprintln!("squib: the console's output is lost from here on, the guest runs on: {e}");
            }
            _ => output::console_wrote(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The snapshot is taken and nothing else was asked for.
    Snapshot,
    /// The text of `--exit-on` appeared.
    ExitText,
    /// The user typed Ctrl-A x.
    EscapeKey,
    /// A signal asked for the end.
    Signal(i32),
    /// Asked to stop from inside this process.
    Stopped,
    /// The host gave up.
    GuestCrash,
    /// The time is up.
    TimedOut(Duration),
}

impl End {
    fn name(self) -> &'static str {
        match self {
            End::PowerOff => "power-off",
            End::Reset => "reset",
            End::Snapshot => "snapshot",
            End::ExitText => "exit-on",
            End::EscapeKey => "escape-key",
            End::Signal(_) => "signal",
            End::Stopped => "stopped",
            End::GuestCrash => "guest-crash",
            End::TimedOut(_) => "timed-out",
        }
    }
}

/// Says what happens.
#[derive(Clone, Debug)]
pub enum Report {
    /// Sentences for a person.
    Terminal,
    /// Nothing but what went wrong.
    Quiet,
    /// One JSON object per line, told apart by `event`.
    Json,
}

impl Report {
    /// JSON if asked for, otherwise by what standard error is.
    pub fn new(json: bool) -> Self {
        match json {
            true => Report::Json,
            false if io::stderr().is_terminal() => Report::Terminal,
            false => Report::Quiet,
        }
    }

    /// The guest executes, `after` the command began.
    pub fn running(&self, after: Duration) {
        self.json(|| json!({"event": "running", "after_us": micros(after)}));
    }

    /// A snapshot is on disk.
    pub fn snapshot(&self, report: &SnapshotReport, target: &SaveTarget) {
        self.json(|| {
            json!({
                "event": "snapshot",
                "identity": report.identity.to_string(),
                "parent": report.parent.map(|parent| parent.to_string()),
                "pause_us": micros(report.pause),
                "total_us": micros(report.total),
                "capture_us": micros(report.capture),
                "ram_bytes": report.ram_bytes,
                "dirty_bytes": report.dirty_bytes,
                "write_faults": report.write_faults,
                "blocks_stepped_down": report.granule_steps.down,
                "blocks_stepped_up": report.granule_steps.up,
                "memory_file_bytes": report.memory_file_bytes,
                "memory_disk_bytes": report.memory_disk_bytes,
                "state_file_bytes": report.state_file_bytes,
                "state": target.state.to_string_lossy(),
                "memory_file": target.memory.to_string_lossy(),
            })
        });
        self.say(|| {
            let held = match (report.parent, report.dirty_bytes) {
                (Some(_), Some(dirty)) => format!("{} changed since the last one", BinaryBytes(dirty)),
                _ => format!("{} of RAM", BinaryBytes(report.ram_bytes)),
            };
            format!(
                "snapshot taken: the guest stood still for {}; {held}, {} on disk after {} ({}, {})",
                millis(report.pause),
                BinaryBytes(report.memory_disk_bytes + report.state_file_bytes),
                millis(report.total),
                target.state.display(),
                target.memory.display(),
            )
        });
    }

    /// A link of a chain could not be written; the guest runs on.
    pub fn link_failed(&self, target: &SaveTarget, error: &squib_host::Error) {
        self.snapshot_failed(target, "the guest runs on and the next link holds its changes", error);
    }

    /// A snapshot could not be written; `consequence` is what comes of it. Said wherever standard error goes.
    pub fn snapshot_failed(&self, target: &SaveTarget, consequence: &str, error: &squib_host::Error) {
        let (state, error) = (target.state.display().to_string(), error.to_string());
        match self {
            Report::Json => self.json(|| json!({"event": "snapshot-failed", "state": state, "error": error})),
            _ => eprintln!("squib: {state} was not written, {consequence}: {error}"),
        }
    }

    /// What a run failed to do that ends with another exit code anyway. Said wherever standard error goes.
    pub fn also_failed(&self, error: &Error) {
        eprintln!("squib: error: {error}");
    }

    /// The host gives up on the guest. Said wherever standard error goes.
    pub fn crash(&self, crash: &CrashReport) {
        eprintln!("squib: the guest did something that this host cannot answer");
        eprint!("{crash}");
    }

    /// The run is over; `instructions` is what the stand-in counted.
    pub fn end(&self, end: End, instructions: Option<u64>) {
        self.json(|| json!({"event": "end", "reason": end.name(), "instructions": instructions}));
        match end {
            End::TimedOut(timeout) if !matches!(self, Report::Json) => {
                eprintln!("squib: timed out after {}", millis(timeout));
            }
            End::Reset if !matches!(self, Report::Json) => {
                eprintln!(
                    "squib: the guest asked for a reset, which ends the run (a kernel that panics may have done so)"
                );
            }
            End::Signal(signal) => self.say(|| {
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                format!("ended by {name}")
            }),
            End::EscapeKey => self.say(|| "ended by Ctrl-A x".into()),
            _ => {}
        }
    }

    /// The guest stands still: its page server is away. Said wherever standard error goes.
    pub fn server_away(&self, error: &squib_host::Error, timeout: Duration) {
        match self {
            Report::Json => self.json(|| json!({"event": "server-away", "reason": error.to_string()})),
            _ => line(&format!(
                "{error}; the guest stands still and goes on when the server is back, within {}",
                HumanDuration(timeout)
            )),
        }
    }

    /// The page server is back, and the guest goes on.
    pub fn server_back(&self, after: Duration) {
        match self {
            Report::Json => self.json(|| json!({"event": "server-back", "after_us": micros(after)})),
            _ => line(&format!("the page server is back after {}", millis(after))),
        }
    }

    /// Streaming met memory that is lost. The guest runs on. Said wherever standard error goes.
    pub fn memory_lost(&self, start: u64, len: u64, reason: &str) {
        match self {
            Report::Json => {
                self.json(|| json!({"event": "memory-lost", "start": start, "bytes": len, "reason": reason}))
            }
            _ => line(&format!(
                "guest memory {start:#x}..{:#x} is lost: {reason}; the guest runs on until it needs it (`squib verify` \
                 tells what else is damaged)",
                start + len
            )),
        }
    }

    /// The source of streamed memory gives nothing. The guest runs on. Said wherever standard error goes.
    pub fn stream_away(&self, reason: &str) {
        match self {
            Report::Json => self.json(|| json!({"event": "stream-away", "reason": reason})),
            _ => line(&format!("streaming waits: {reason}; the guest runs on until it needs what is still absent")),
        }
    }

    /// The source of streamed memory gives again.
    pub fn stream_back(&self) {
        match self {
            Report::Json => self.json(|| json!({"event": "stream-back"})),
            _ => line("streaming goes on"),
        }
    }

    /// A working set that is there cannot be used; the restore goes on without it. Said wherever standard error goes.
    pub fn working_set_ignored(&self, error: &squib_host::Error) {
        match self {
            Report::Json => self.json(|| json!({"event": "working-set-ignored", "reason": error.to_string()})),
            _ => line(&format!("{error}; it is ignored (record it again with --working-set record)")),
        }
    }

    /// A working set is on disk.
    pub fn working_set_recorded(&self, path: &Path, pages: u64) {
        self.json(|| json!({"event": "working-set", "path": path.to_string_lossy(), "pages": pages}));
        self.say(|| format!("working set of {pages} pages recorded in {}", path.display()));
    }

    /// What the pager did, where it was asked for.
    pub fn pager(&self, stats: &PagerStats) {
        match self {
            Report::Json => eprintln!("{}", pager::event(stats)),
            _ => eprint!("squib: pager\n{}", pager::table(stats)),
        }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if let Report::Terminal = self {
            line(&text());
        }
    }

    fn json(&self, value: impl FnOnce() -> Value) {
        if let Report::Json = self {
            eprintln!("{}", value());
        }
    }
}

/// A line of ours, above whatever progress is drawn.
fn line(text: &str) {
    progress::aside(|| eprintln!("squib: {text}"));
}

/// Whole microseconds, for JSON.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A duration in the unit a person would choose.
pub fn millis(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}
