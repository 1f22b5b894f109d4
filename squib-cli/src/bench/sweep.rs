//! A machine that writes to its memory in rounds, as the benches of dirty tracking want it (`guest-images/bare/sweep.S`).

use std::io::{self, PipeWriter, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use squib_host::{
    ConsoleConfig, ConsoleInput, DirtyGranule, Machine, MachineConfig, SaveTarget, SnapshotKind, SnapshotReport,
};
use tempfile::TempDir;

use crate::error::{Error, IoContext, Result};

const IMAGE: &[u8] = include_bytes!("../../../guest-images/bare/sweep.img");
/// Where the image has its parameters.
const PARAMETERS: usize = 64;
/// Longer than any round.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the guest does in one round: stores of 8 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Bytes from one store to the next.
    pub stride: u64,
    /// Stores.
    pub stores: u64,
    /// Of random offsets, in place of the stride; 0 for none.
    pub mask: u64,
    /// How often all of it is done.
    pub repeat: u64,
}

impl Round {
    /// One store to each of `stores` places, `stride` bytes apart.
    pub fn touch(stride: u64, stores: u64) -> Round {
        Round { stride, stores, mask: 0, repeat: 1 }
    }
}

/// The console: tells of every dot, with the nanoseconds (hexadecimal) that were printed before it.
struct Dots {
    digits: String,
    rounds: Sender<Duration>,
}

impl Write for Dots {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            match byte {
                b'.' => {
                    let nanos = u64::from_str_radix(&std::mem::take(&mut self.digits), 16);
                    // Nobody waits any more when the bench is over.
                    let _ = self.rounds.send(Duration::from_nanos(nanos.map_err(io::Error::other)?));
                }
                digit => self.digits.push(char::from(digit)),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The machine, running. Between rounds its guest polls the console and writes nothing.
#[derive(Debug)]
pub struct Sweeper {
    machine: Machine,
    typed: PipeWriter,
    dots: Receiver<Duration>,
    directory: TempDir,
    links: u32,
}

impl Round {
    /// The guest's image, told to do this.
    pub fn image(&self) -> Vec<u8> {
        let mut image = IMAGE.to_vec();
        for (n, value) in [self.stride, self.stores, self.mask, self.repeat].into_iter().enumerate() {
            image[PARAMETERS + 8 * n..][..8].copy_from_slice(&value.to_le_bytes());
        }
        image
    }
}

impl Sweeper {
    /// Boots and waits for the first round's end.
    pub fn boot(memory_mib: u64, granule: Option<DirtyGranule>, round: Round) -> Result<Sweeper> {
        let directory = tempfile::tempdir().context(|| "make a temporary directory".into())?;
        let kernel = directory.path().join("sweep.img");
        std::fs::write(&kernel, round.image()).context(|| "write the guest's image".into())?;
        let (input, typed) = io::pipe().context(|| "make a pipe".into())?;
        let (sender, dots) = channel();
        let mut config = MachineConfig::new(kernel);
        config.memory_mib = memory_mib;
        config.track_dirty_pages = granule.is_some();
        config.dirty_granule = granule.unwrap_or_default();
        config.console = ConsoleConfig {
            output: Box::new(Dots { digits: String::new(), rounds: sender }),
            input: ConsoleInput::Reader(Box::new(input)),
            ..Default::default()
        };
        let mut machine = Machine::boot(config)?;
        machine.resume()?;
        let mut sweeper = Sweeper { machine, typed, dots, directory, links: 0 };
        sweeper.wait()?;
        Ok(sweeper)
    }

    fn wait(&mut self) -> Result<Duration> {
        self.dots.recv_timeout(PATIENCE).map_err(|_| Error::Message("the bench's guest does not answer".into()))
    }

    fn start(&mut self) -> Result<Instant> {
        self.typed.write_all(b"x").context(|| "type to the bench's guest".into())?;
        Ok(Instant::now())
    }

    /// One round. How long it took by the guest's own clock.
    pub fn round(&mut self) -> Result<Duration> {
        self.start()?;
        self.wait()
    }

    /// One round, and a diff every `period` of it (`None`: without). How long it took without the pauses, and the diffs.
    pub fn round_with_diffs(&mut self, period: Option<Duration>) -> Result<(Duration, Vec<SnapshotReport>)> {
        let (started, mut reports) = (self.start()?, Vec::new());
        loop {
            match self.dots.recv_timeout(period.unwrap_or(PATIENCE)) {
                Err(RecvTimeoutError::Timeout) if started.elapsed() < PATIENCE => {
                    reports.push(self.snapshot(SnapshotKind::Diff)?);
                }
                Err(_) => return Err(Error::Message("the bench's guest does not answer".into())),
                Ok(_) => {
                    let paused: Duration = reports.iter().map(|report| report.pause).sum();
                    return Ok((started.elapsed().saturating_sub(paused), reports));
                }
            }
        }
    }

    /// A snapshot with the guest running, on disk when this returns.
    pub fn snapshot(&mut self, kind: SnapshotKind) -> Result<SnapshotReport> {
        let file = |extension| self.directory.path().join(format!("{:04}.{extension}", self.links));
        let target = SaveTarget { state: file("state"), memory: file("mem") };
        let report = self.machine.checkpoint(kind, &target)?.wait()?;
        // Only what it cost is of interest.
        for path in [target.state, target.memory] {
            std::fs::remove_file(path).context(|| "remove a bench's snapshot".into())?;
        }
        self.links += 1;
        Ok(report)
    }

    /// All of RAM.
    pub fn ram(&self) -> Result<Vec<u8>> {
        let mut ram = vec![0; self.machine.ram_size() as usize];
        self.machine.read_ram(0, &mut ram)?;
        Ok(ram)
    }
}
