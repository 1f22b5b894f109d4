//! A page server as the source of a restored machine's memory, and what to do while it is away.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use squib_host::pager::{PagerStats, RemoteConfig, RemoteSource};
use squib_host::{Machine, RestoreBackend, RunOutcome, StopReason};
use squib_snapshot::{ChainStates, StateFile};

use crate::error::{Error, Result, SnapshotContext};
use crate::interrupt::Interrupts;
use crate::report::Report;

/// How long a page is asked for before the guest is stopped: a server that is only restarted is not noticed.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the console's escape key is looked for while the server is away.
const SLICE: Duration = Duration::from_millis(250);

/// The server, and for how long it may be away.
#[derive(Clone, Debug)]
pub struct Server {
    /// Gone once all of memory has arrived.
    source: Weak<RemoteSource>,
    timeout: Duration,
    /// Since when nothing has come, and what had come by then.
    away: Option<(Instant, u64)>,
}

/// What the guest's standing still ended with.
#[derive(Debug)]
pub enum Back {
    /// The guest can go on.
    Yes,
    /// Something else ended the run meanwhile.
    Ended(RunOutcome),
    /// The time given to the whole run is up.
    TimedOut,
}

/// Connects to the server at `path` for the snapshot with these states, base first.
pub fn connect(path: PathBuf, state: &Path, diffs: &[PathBuf], timeout: Duration) -> Result<(RestoreBackend, Server)> {
    let open = |path: &Path| StateFile::open(path).about(path);
    let links = [Ok(open(state)?)].into_iter().chain(diffs.iter().map(|diff| open(diff)));
    let states = ChainStates::from_states(links.collect::<Result<_>>()?).about(state)?;
    let config = RemoteConfig::new(path);
    let answer_timeout = config.answer_timeout.min(timeout);
    let config =
        RemoteConfig { patience: PATIENCE.min(timeout), exception_patience: timeout, answer_timeout, ..config };
    let source = Arc::new(RemoteSource::connect(config, states).map_err(|e| Error::Message(e.to_string()))?);
    let server = Server { source: Arc::downgrade(&source), timeout, away: None };
    Ok((RestoreBackend::Source(source), server))
}

/// Pages that have arrived.
fn arrived(stats: &PagerStats) -> u64 {
    stats.pages_server + stats.pages_zero
}

impl Server {
    /// The machine stands still because of `error`. Waits until the server is back; the machine still stands then.
    ///
    /// # Errors
    /// `error` itself if it is not about the server, or if the server is away for too long.
    pub fn wait(
        &mut self,
        error: squib_host::Error,
        machine: &mut Machine,
        deadline: Option<Instant>,
        report: &Report,
        interrupts: &Interrupts,
    ) -> Result<Back> {
        if !matches!(error, squib_host::Error::PageUnavailable { .. }) {
            return Err(error.into());
        }
        let now = Instant::now();
        let here = machine.pager().map_or(0, |monitor| arrived(&monitor.stats()));
        // A server that is there and gives nothing is one that is away.
        let (since, mut news) = match self.away {
            Some((since, before)) if before == here => (since, false),
            _ => (now, true),
        };
        if news {
            report.server_away(&error, self.timeout);
        }
        self.away = Some((since, here));
        loop {
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(Back::TimedOut);
            }
            if now >= since + self.timeout {
                return Err(Error::Message(format!(
                    "{error}; the server was away for more than {} s (--backend-timeout)",
                    self.timeout.as_secs_f64()
                )));
            }
            let source = self.source.upgrade();
            if source.is_none_or(|source| source.wait_for_server(SLICE).is_ok()) {
                if news {
                    report.server_back(since.elapsed());
                }
                return Ok(Back::Yes);
            }
            news = true;
            match machine.wait(Some(Duration::ZERO)) {
                // It stands still, and nobody has said anything: that is told as a request, too.
                Ok(None | Some(RunOutcome::Stopped(StopReason::Requested))) if interrupts.signal().is_none() => {}
                Ok(None) => return Ok(Back::Ended(RunOutcome::Stopped(StopReason::Requested))),
                Ok(Some(outcome)) => return Ok(Back::Ended(outcome)),
                // Another vCPU missed a page, too.
                Err(squib_host::Error::PageUnavailable { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
    }
}
