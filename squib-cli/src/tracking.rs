//! Dirty tracking on the command line: its options, and the chain that grows while a guest runs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use squib_host::{ChainWriter, DirtyGranule, Machine, SaveTarget, SnapshotReport};

use crate::error::{Error, Result};
use crate::options::seconds;
use crate::report::Report;

/// How often a link that is on its way to the disk is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How much of RAM the first write to it marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Granule {
    /// 2 MiB, stepping down to 16 KiB where few pages are written again and again
    #[default]
    Adaptive,
    /// 2 MiB: the fewest interruptions of the guest, the largest diffs
    Block,
    /// 16 KiB: one interruption for every page, the smallest diffs
    Page,
}

/// What is tracked, and whether a chain is written.
#[derive(Args, Debug)]
pub struct TrackArgs {
    /// Keep a log of written pages, so that snapshots can be diffs
    #[arg(long)]
    track_dirty_pages: bool,
    /// How much the first write to a clean part of RAM marks as written
    #[arg(long, value_enum, default_value_t, value_name = "GRANULE", requires = "track_dirty_pages")]
    dirty_granule: Granule,
    /// Add a link to the chain every SECS seconds: first a full snapshot, then what has changed since the last link. The
    /// guest stands still only while registers are read and, for the first link, RAM is written. A link that cannot be written is said, the guest
    /// runs on, and the next link holds its changes; if none comes, squib ends with 1 in place of 0
    #[arg(
        long,
        value_name = "SECS",
        value_parser = seconds,
        requires = "track_dirty_pages",
        conflicts_with_all = ["snapshot_on", "snapshot_after_instructions"]
    )]
    snapshot_every: Option<Duration>,
}

impl TrackArgs {
    /// Whether dirty pages are tracked, and how finely.
    pub fn tracking(&self) -> (bool, DirtyGranule) {
        let granule = match self.dirty_granule {
            Granule::Adaptive => DirtyGranule::Adaptive,
            Granule::Block => DirtyGranule::Block,
            Granule::Page => DirtyGranule::Page,
        };
        (self.track_dirty_pages, granule)
    }

    /// The chain to be written to `dir`.
    pub fn plan(&self, dir: Option<PathBuf>) -> Result<Option<ChainPlan>> {
        match (self.snapshot_every, dir) {
            (None, _) => Ok(None),
            (Some(every), Some(dir)) => Ok(Some(ChainPlan { dir, every })),
            (Some(_), None) => {
                Err(Error::Usage("--snapshot-every adds links to a chain: say where it is with --chain DIR".into()))
            }
        }
    }
}

/// A chain to be written.
#[derive(Clone, Debug)]
pub struct ChainPlan {
    dir: PathBuf,
    every: Duration,
}

/// A chain that is being written.
#[derive(Debug)]
pub struct GrowingChain {
    plan: ChainPlan,
    writer: ChainWriter,
    due: Instant,
    /// Why the last attempt at a link failed, if it did.
    failed: Option<String>,
}

impl GrowingChain {
    /// Begins with the next link of the chain, one period from now.
    pub fn start(plan: &ChainPlan, machine: &Machine) -> Result<GrowingChain> {
        let writer = ChainWriter::open(&plan.dir, machine)?;
        Ok(GrowingChain { plan: plan.clone(), writer, due: later(plan.every), failed: None })
    }

    /// When [`GrowingChain::work`] is to be called next.
    pub fn wake(&self) -> Instant {
        if self.writer.is_pending() { self.due.min(later(LOOK_AGAIN)) } else { self.due }
    }

    /// Takes the next link if it is time, and reports the one that is done. A link that fails is reported, and its pages are
    /// in the next one.
    pub fn work(&mut self, machine: &mut Machine, report: &Report) {
        if Instant::now() < self.due {
            let files = self.writer.next_link();
            let link = self.writer.poll(Duration::ZERO);
            return self.tell(link, &files, report);
        }
        self.finish(report);
        self.due = later(self.plan.every);
        let files = self.writer.next_link();
        if let Err(error) = self.writer.checkpoint(machine) {
            self.tell(Some(Err(error)), &files, report);
        }
    }

    fn finish(&mut self, report: &Report) {
        let files = self.writer.next_link();
        let link = self.writer.finish();
        self.tell(link, &files, report);
    }

    /// Reports how the link that was to be `files` went, if that is known.
    fn tell(
        &mut self,
        link: Option<squib_host::Result<(SaveTarget, SnapshotReport)>>,
        files: &SaveTarget,
        report: &Report,
    ) {
        match link {
            None => {}
            Some(Ok((files, snapshot))) => {
                self.failed = None;
                report.snapshot(&snapshot, &files);
            }
            Some(Err(error)) => {
                self.failed = Some(error.to_string());
                report.link_failed(files, &error);
            }
        }
    }

    /// Waits for the link that is under way. An error if the last attempt at one failed: what is missing then, and what is safe.
    pub fn end(mut self, report: &Report) -> Result<()> {
        self.finish(report);
        let Some(reason) = self.failed else { return Ok(()) };
        let (dir, next) = (self.plan.dir.display(), self.writer.links());
        Err(Error::Message(match next.checked_sub(1) {
            None => {
                format!("{dir} holds nothing of this run: the full snapshot {next:04} could not be written: {reason}")
            }
            Some(last) => format!(
                "{dir} ends with link {last:04}, which is complete (squib restore --chain {dir}); what the guest did after it is \
                 lost, since link {next:04} could not be written: {reason}"
            ),
        }))
    }
}

/// A moment from now. A period beyond the end of time is one of an hour, again and again.
fn later(period: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(period).unwrap_or(now + Duration::from_secs(3600))
}
