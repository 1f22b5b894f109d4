//! Lets a machine run to its end: takes the snapshot that was asked for on the way, and turns outcomes into exit codes.

use std::time::{Duration, Instant};

use squib_host::pager::{Monitor, StreamObserver, WorkingSetFile};
use squib_host::{Machine, RunOutcome, StopReason, Watch, WatchId};

use crate::backend::{Back, Server};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::options::{EndArgs, Moment, SnapshotPlan, Then};
use crate::progress::StreamBar;
use crate::report::{End, Report};
use crate::streaming::Streaming;
use crate::tracking::{ChainPlan, GrowingChain};

const SNAPSHOT: WatchId = WatchId(0);
const EXIT: WatchId = WatchId(1);

/// What became of a snapshot.
#[derive(Debug)]
enum Taken {
    Yes,
    /// It failed; the guest can go on.
    No,
    /// The run ended while it waited for its memory.
    Ended(RunOutcome),
}

/// What a run is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The snapshot that is still to be taken.
    snapshot: Option<SnapshotPlan>,
    /// Why it could not be, if so.
    snapshot_failed: Option<String>,
    exit_on: Option<String>,
    timeout: Option<Duration>,
    report: Report,
    pager_stats: bool,
    /// Memory streams in behind the guest, and somebody may want to see how far it is.
    streams: bool,
    server: Option<Server>,
    streaming: Streaming,
    working_set: Option<WorkingSetFile>,
    chain: Option<ChainPlan>,
}

impl Plan {
    /// `snapshot` is taken on the way, if there is one.
    pub fn new(snapshot: Option<SnapshotPlan>, end: EndArgs) -> Self {
        let report = Report::new(end.json);
        Plan {
            snapshot,
            snapshot_failed: None,
            exit_on: end.exit_on,
            timeout: end.timeout,
            streaming: Streaming::new(report.clone()),
            report,
            pager_stats: false,
            streams: false,
            server: None,
            working_set: None,
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

    /// Shows a person how much of memory has streamed in, if that is what it does.
    pub fn with_streaming(self, streams: bool) -> Self {
        Plan { streams: streams && !matches!(self.report, Report::Json), ..self }
    }

    /// Waits for this page server when it is away.
    pub fn with_server(self, server: Option<Server>) -> Self {
        Plan { server, ..self }
    }

    /// Writes the working set to this file at the end.
    pub fn recording(self, working_set: Option<WorkingSetFile>) -> Self {
        Plan { working_set, ..self }
    }

    /// Is to be told what streaming meets.
    pub fn observer(&self) -> StreamObserver {
        self.streaming.observer()
    }

    /// Says what happens.
    pub fn report(&self) -> &Report {
        &self.report
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
    pub fn drive(mut self, mut machine: Machine, started: Instant, interrupts: Interrupts) -> Result<Exit> {
        if let Some(plan) = &self.snapshot {
            machine.check_target(&plan.target)?;
            if let Moment::Instructions(count) = plan.moment {
                machine.stop_after_instructions(count)?;
            }
        }
        interrupts.stops(machine.stopper());
        let mut chain = self.chain.as_ref().map(|plan| GrowingChain::start(plan, &machine)).transpose()?;
        machine.resume()?;
        self.report.running(started.elapsed());
        let monitor = machine.pager();
        let result = self.watch(&mut machine, &mut chain, started, &interrupts);
        let chain = chain.map_or(Ok(()), |chain| chain.end(&self.report));
        if let Ok((end, _)) = &result {
            self.report.end(*end, machine.instructions().ok());
        }
        drop(machine);
        if let (true, Some(monitor)) = (self.pager_stats, &monitor) {
            self.report.pager(&monitor.stats());
        }
        let failed = match &self.snapshot_failed {
            Some(reason) => {
                Err(Error::Message(format!("the run ended without its snapshot, which could not be written: {reason}")))
            }
            None => chain,
        };
        let failed = match (&result, &monitor) {
            (Ok(_), Some(monitor)) => {
                failed.and_then(|()| self.record(monitor)).and_then(|()| self.streaming.verdict())
            }
            _ => failed,
        };
        match (result, failed) {
            (Ok((_, Exit::Done)), Ok(())) => self.snapshot.map_or(Ok(Exit::Done), |plan| Err(plan.missed())),
            (Ok((_, Exit::Done)), Err(failed)) => Err(failed),
            (result, failed) => {
                if let Err(failed) = failed {
                    self.report.also_failed(&failed);
                }
                result.map(|(_, exit)| exit)
            }
        }
    }

    /// Runs until the run is over, and no longer.
    fn watch(
        &mut self,
        machine: &mut Machine,
        chain: &mut Option<GrowingChain>,
        started: Instant,
        interrupts: &Interrupts,
    ) -> Result<(End, Exit)> {
        let deadline = self.timeout.map(|timeout| (timeout, started + timeout));
        let _bar = machine.pager().filter(|_| self.streams).and_then(StreamBar::start);
        loop {
            let wake = deadline.map(|(_, at)| at).into_iter().chain(chain.as_ref().map(GrowingChain::wake)).min();
            let left = wake.map(|at| at.saturating_duration_since(Instant::now()));
            let outcome = match (machine.wait(left), &mut self.server) {
                (Ok(Some(outcome)), _) => outcome,
                (Ok(None), _) => {
                    if let Some(chain) = chain
                        && deadline.is_none_or(|(_, at)| Instant::now() < at)
                    {
                        chain.work(machine, &self.report);
                        continue;
                    }
                    machine.pause()?;
                    RunOutcome::TimedOut
                }
                (Err(error), None) => return Err(error.into()),
                (Err(error), Some(server)) => {
                    match server.wait(error, machine, deadline.map(|(_, at)| at), &self.report, interrupts)? {
                        Back::Yes => {
                            machine.resume()?;
                            continue;
                        }
                        Back::Ended(outcome) => outcome,
                        Back::TimedOut => RunOutcome::TimedOut,
                    }
                }
            };
            let due =
                matches!(outcome, RunOutcome::Stopped(StopReason::Watch(SNAPSHOT) | StopReason::InstructionLimit));
            let outcome = match self.snapshot.take_if(|_| due) {
                None => outcome,
                Some(plan) => match self.snapshot(machine, &plan, deadline.map(|(_, at)| at), interrupts)? {
                    Taken::Yes if plan.then == Then::Exit => outcome,
                    Taken::Yes | Taken::No => {
                        machine.resume()?;
                        continue;
                    }
                    Taken::Ended(instead) => instead,
                },
            };
            return Ok(match outcome {
                RunOutcome::Stopped(StopReason::Watch(SNAPSHOT) | StopReason::InstructionLimit) => {
                    (End::Snapshot, Exit::Done)
                }
                RunOutcome::Stopped(StopReason::Watch(_)) => (End::ExitText, Exit::Done),
                RunOutcome::Stopped(StopReason::EscapeKey) => (End::EscapeKey, Exit::Done),
                RunOutcome::Stopped(StopReason::Requested) => match interrupts.signal() {
                    Some(signal) => (End::Signal(signal), Exit::Signal(signal)),
                    None => (End::Stopped, Exit::Done),
                },
                RunOutcome::PowerOff => (End::PowerOff, Exit::Done),
                RunOutcome::Reset => (End::Reset, Exit::Done),
                RunOutcome::GuestCrash(crash) => {
                    self.report.crash(&crash);
                    (End::GuestCrash, Exit::GuestCrash)
                }
                RunOutcome::TimedOut => (End::TimedOut(self.timeout.unwrap_or_default()), Exit::TimedOut),
            });
        }
    }

    /// Takes the snapshot. One that fails does not end the guest; a page server that is away meanwhile is waited for, since absent
    /// memory comes from there.
    fn snapshot(
        &mut self,
        machine: &mut Machine,
        plan: &SnapshotPlan,
        deadline: Option<Instant>,
        interrupts: &Interrupts,
    ) -> Result<Taken> {
        let mut server = self.server.clone();
        loop {
            match (machine.snapshot(&plan.target), &mut server) {
                (Ok(report), _) => {
                    self.report.snapshot(&report, &plan.target);
                    return Ok(Taken::Yes);
                }
                (Err(error @ squib_host::Error::PageUnavailable { .. }), Some(server)) => {
                    let reason = error.to_string();
                    let instead = match server.wait(error, machine, deadline, &self.report, interrupts)? {
                        Back::Yes => continue,
                        Back::Ended(outcome) => outcome,
                        Back::TimedOut => RunOutcome::TimedOut,
                    };
                    self.snapshot_failed = Some(reason);
                    return Ok(Taken::Ended(instead));
                }
                (Err(error), _) => {
                    self.report.snapshot_failed(&plan.target, "the guest runs on", &error);
                    self.snapshot_failed = Some(error.to_string());
                    return Ok(Taken::No);
                }
            }
        }
    }

    /// Writes the working set, if it is to be recorded.
    fn record(&self, monitor: &Monitor) -> Result<()> {
        if let Some(file) = &self.working_set {
            self.report.working_set_recorded(file.path(), file.record(monitor)?);
        }
        Ok(())
    }
}
