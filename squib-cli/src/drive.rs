//! Lets a machine run to its end: takes the snapshot that was asked for on the way, and turns outcomes into exit codes.

use std::time::{Duration, Instant};

use squib_host::{Machine, RunOutcome, SaveTarget, StopReason, Watch, WatchId};

use crate::backend::{Back, Server};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::options::{EndArgs, Then};
use crate::pager::StreamBar;
use crate::report::{End, Report};
use crate::tracking::{ChainPlan, GrowingChain};

const SNAPSHOT: WatchId = WatchId(0);
const EXIT: WatchId = WatchId(1);

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

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    snapshot: Option<SnapshotPlan>,
    exit_on: Option<String>,
    timeout: Option<Duration>,
    report: Report,
    pager_stats: bool,
    server: Option<Server>,
    chain: Option<ChainPlan>,
}

impl Plan {
    /// `snapshot` is taken on the way, if there is one.
    pub fn new(snapshot: Option<SnapshotPlan>, end: EndArgs) -> Self {
        Plan {
            snapshot,
            exit_on: end.exit_on,
            timeout: end.timeout,
            report: Report::new(end.json),
            pager_stats: false,
            server: None,
            chain: None,
        }
    }

    /// Adds links to a chain on the way.
    pub fn with_chain(self, chain: Option<ChainPlan>) -> Self {
        Plan { chain, ..self }
    }

    /// Says at the end what the pager did, if the machine has one.
    pub fn with_pager_stats(self, pager_stats: bool) -> Self {
        Plan { pager_stats, ..self }
    }

    /// Waits for this page server when it is away.
    pub fn with_server(self, server: Option<Server>) -> Self {
        Plan { server, ..self }
    }

    /// The texts to wait for.
    pub fn watches(&self) -> Vec<Watch> {
        let mut watches = Vec::new();
        if let Some(SnapshotPlan { moment: Moment::Text(text), .. }) = &self.snapshot {
            watches.push(Watch { id: SNAPSHOT, text: text.clone() });
        }
        if let Some(text) = &self.exit_on {
            watches.push(Watch { id: EXIT, text: text.clone() });
        }
        watches
    }

    /// Runs the machine to the end. `started` is when the command began: reports count from there.
    pub fn drive(mut self, mut machine: Machine, started: Instant) -> Result<Exit> {
        if let Some(SnapshotPlan { moment: Moment::Instructions(count), .. }) = &self.snapshot {
            machine.stop_after_instructions(*count)?;
        }
        let chain = self.chain.as_ref().map(|plan| GrowingChain::start(plan, &machine)).transpose()?;
        machine.resume()?;
        self.report.running(started.elapsed());
        let monitor = machine.pager();
        let result = self.watch(machine, chain, started);
        if let (true, Some(monitor)) = (self.pager_stats, monitor) {
            self.report.pager(&monitor.stats());
        }
        result
    }

    fn watch(&mut self, mut machine: Machine, mut chain: Option<GrowingChain>, started: Instant) -> Result<Exit> {
        let deadline = self.timeout.map(|timeout| (timeout, started + timeout));
        let bar = machine.pager().and_then(StreamBar::start);
        loop {
            let wake = deadline.map(|(_, at)| at).into_iter().chain(chain.as_ref().map(GrowingChain::wake)).min();
            let left = wake.map(|at| at.saturating_duration_since(Instant::now()));
            let outcome = match (machine.wait(left), &mut self.server) {
                (Ok(Some(outcome)), _) => outcome,
                (Ok(None), _) => {
                    if let Some(chain) = &mut chain
                        && deadline.is_none_or(|(_, at)| Instant::now() < at)
                    {
                        chain.work(&mut machine, &self.report);
                        continue;
                    }
                    machine.pause()?;
                    RunOutcome::TimedOut
                }
                (Err(error), None) => return Err(error.into()),
                (Err(error), Some(server)) => {
                    match server.wait(error, &mut machine, deadline.map(|(_, at)| at), &self.report)? {
                        Back::Yes => continue,
                        Back::Ended(outcome) => outcome,
                        Back::TimedOut => RunOutcome::TimedOut,
                    }
                }
            };
            let (end, exit) = match outcome {
                RunOutcome::Stopped(StopReason::Watch(SNAPSHOT) | StopReason::InstructionLimit) => {
                    if let Some(plan) = self.snapshot.take() {
                        self.snapshot(&mut machine, &plan)?;
                        if plan.then == Then::Continue {
                            machine.resume()?;
                            continue;
                        }
                    }
                    (End::Snapshot, Exit::Done)
                }
                RunOutcome::Stopped(StopReason::Watch(_)) => (End::ExitText, Exit::Done),
                RunOutcome::Stopped(StopReason::EscapeKey) => (End::EscapeKey, Exit::Done),
                RunOutcome::Stopped(StopReason::Requested) => (End::Stopped, Exit::Done),
                RunOutcome::PowerOff => (End::PowerOff, Exit::Done),
                RunOutcome::Reset => (End::Reset, Exit::Done),
                RunOutcome::GuestCrash(crash) => {
                    self.report.crash(&crash);
                    (End::GuestCrash, Exit::GuestCrash)
                }
                RunOutcome::TimedOut => (End::TimedOut(self.timeout.unwrap_or_default()), Exit::TimedOut),
            };
            drop(bar);
            if let Some(chain) = &mut chain {
                chain.finish(&self.report);
            }
            self.report.end(end, machine.instructions().ok());
            return match (self.snapshot.take(), exit) {
                (Some(missed), Exit::Done) => Err(missed.missed()),
                _ => Ok(exit),
            };
        }
    }

    fn snapshot(&mut self, machine: &mut Machine, plan: &SnapshotPlan) -> Result<()> {
        let report = machine.snapshot(&plan.target)?;
        self.report.snapshot(&report, &plan.target);
        Ok(())
    }
}

impl SnapshotPlan {
    fn missed(&self) -> Error {
        Error::Message(match &self.moment {
            Moment::Text(text) => format!("no snapshot was taken: the run ended before the guest printed '{text}'"),
            Moment::Instructions(count) => {
                format!("no snapshot was taken: the run ended before the guest had executed {count} instructions")
            }
        })
    }
}
