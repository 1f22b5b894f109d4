//! Options that several subcommands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use squib_host::{ClockMode, ConsoleConfig, ConsoleInput, DiskConfig, SaveTarget, Watch};

use crate::error::{Error, Result};
use crate::report::Console;

/// What drives the guest's counter.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Clock {
    /// The host's clock
    #[default]
    Host,
    /// The number of executed instructions: the same guest does the same to the bit (software stand-in, one vCPU)
    Deterministic,
}

impl From<Clock> for ClockMode {
    fn from(clock: Clock) -> Self {
        match clock {
            Clock::Host => ClockMode::Host,
            Clock::Deterministic => ClockMode::Deterministic,
        }
    }
}

impl Clock {
    /// The console of a guest under this clock. Typed input would make a deterministic run something else each time.
    pub fn console(self, watches: Vec<Watch>) -> ConsoleConfig {
        let input = match self {
            Clock::Host => ConsoleInput::Stdin,
            Clock::Deterministic => ConsoleInput::None,
        };
        ConsoleConfig { output: Box::new(Console::default()), input, watches }
    }
}

/// What to do after a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Then {
    /// End; the snapshot is where the guest goes on
    #[default]
    Exit,
    /// Let the guest go on here
    Continue,
}

/// The moment of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The guest has printed this text.
    Text(String),
    /// The guest has executed so many instructions, counted from the start of this process's run.
    Instructions(u64),
}

/// A snapshot to take on the way.
#[derive(Clone, Debug)]
pub struct SnapshotPlan {
    /// When.
    pub moment: Moment,
    /// Where to.
    pub target: SaveTarget,
    /// And afterwards.
    pub then: Then,
}

impl SnapshotPlan {
    /// The run is over, and the moment has not come.
    pub fn missed(&self) -> Error {
        Error::Message(match &self.moment {
            Moment::Text(text) => format!("no snapshot was taken: the run ended before the guest printed '{text}'"),
            Moment::Instructions(count) => {
                format!("no snapshot was taken: the run ended before the guest had executed {count} instructions")
            }
        })
    }
}

/// When to take a snapshot, and what then.
#[derive(Args, Debug)]
pub struct SnapshotArgs {
    /// Take a snapshot when the guest prints TEXT on its console. If it cannot be written, that is said, the guest runs on whatever
    /// --then says, and squib ends with 1 in place of 0
    #[arg(long, value_name = "TEXT", value_parser = text)]
    snapshot_on: Option<String>,
    /// Take a snapshot when the guest has executed exactly N instructions more (--clock deterministic)
    #[arg(long, value_name = "N", conflicts_with = "snapshot_on")]
    snapshot_after_instructions: Option<u64>,
    /// What to do after the snapshot
    #[arg(long, value_enum, default_value_t)]
    then: Then,
}

impl SnapshotArgs {
    /// The snapshot to take on the way into `files` (state, memory), whose options are called `names`.
    pub fn plan(
        self,
        files: (Option<PathBuf>, Option<PathBuf>),
        names: (&str, &str),
        clock: Clock,
    ) -> Result<Option<SnapshotPlan>> {
        let moment = match (self.snapshot_on, self.snapshot_after_instructions) {
            (Some(text), _) => Moment::Text(text),
            (None, Some(_)) if !matches!(clock, Clock::Deterministic) => {
                let text = "--snapshot-after-instructions needs --clock deterministic: only that clock counts them";
                return Err(Error::Usage(text.into()));
            }
            (None, Some(count)) => Moment::Instructions(count),
            (None, None) if files == (None, None) => return Ok(None),
            (None, None) => {
                let text = "says where a snapshot goes: say when with --snapshot-on or --snapshot-after-instructions";
                return Err(Error::Usage(format!("{} {text}", names.0)));
            }
        };
        match files {
            (Some(state), Some(memory)) => {
                Ok(Some(SnapshotPlan { moment, target: SaveTarget { state, memory }, then: self.then }))
            }
            _ => Err(Error::Usage(format!("a snapshot is two files: give both {} and {}", names.0, names.1))),
        }
    }
}

/// When a run ends by itself, and how it is reported.
#[derive(Args, Debug)]
pub struct EndArgs {
    /// End when the guest prints TEXT on its console
    #[arg(long, value_name = "TEXT", value_parser = text)]
    pub exit_on: Option<String>,
    /// End after SECS seconds, with exit code 124
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Report what happens as JSON lines on standard error
    #[arg(long)]
    pub json: bool,
}

/// A non-empty text to wait for.
pub fn text(value: &str) -> Result<String, String> {
    if value.is_empty() { Err("the text must not be empty".into()) } else { Ok(value.into()) }
}

/// A positive number of seconds, fractions allowed.
pub fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 => Duration::try_from_secs_f64(seconds).map_err(|_| "too long".into()),
        _ => Err("a positive number of seconds is expected, as 30 or 0.5".into()),
    }
}

/// A whole number of MiB.
pub fn mebibytes(value: &str) -> Result<u64, String> {
    match value.parse() {
        Ok(mib @ 1..) => Ok(mib),
        _ => Err("a whole number of MiB is expected, as 512, or 2048 for 2 GiB".into()),
    }
}

/// `FILE` or `FILE,ro`.
pub fn disk(value: &str) -> Result<DiskConfig, String> {
    let (path, read_only) = match value.strip_suffix(",ro") {
        Some(path) => (path, true),
        None => (value, false),
    };
    if path.is_empty() {
        return Err("a file name is expected, as disk.ext4 or disk.ext4,ro".into());
    }
    Ok(DiskConfig { path: PathBuf::from(path), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks() {
        assert_eq!(disk("a,b.img,ro"), Ok(DiskConfig { path: "a,b.img".into(), read_only: true }));
        assert_eq!(disk("a.img"), Ok(DiskConfig { path: "a.img".into(), read_only: false }));
        assert!(disk(",ro").is_err());
        assert!(disk("").is_err());
    }

    #[test]
    fn memory_is_in_mebibytes() {
        assert_eq!(mebibytes("2048"), Ok(2048));
        for wrong in ["0", "-1", "1.5", "1G", "0x10", "18446744073709551616", ""] {
            assert!(mebibytes(wrong).unwrap_err().contains("MiB"), "{wrong}");
        }
    }

    #[test]
    fn seconds_are_positive_and_finite() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "nan", "inf", "1e300", "x", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
