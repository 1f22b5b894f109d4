//! Snapshots that the guest does not wait for, and what the next diff continues.
//!
//! In the pause: registers and devices are read, RAM is write-protected, and the dirty pages are taken out of the log and frozen: a page
//! that the guest changes afterwards is kept first ([`frozen`](crate::frozen)). So the pause of a diff does not depend on how much is
//! in it. A full snapshot is written to the new file in the pause, without a sync. Then the guest may go on, and a thread writes, syncs
//! and commits the pair. One snapshot is under way at a time: the next one waits for it before it stops the guest.
//!
//! Only a commit makes a snapshot the parent of the next diff, and only a commit keeps its pages out of it. After a failure the
//! parent is the same as before and the next diff holds the pages of both.

use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use squib_snapshot::{
    Contents, GranuleSteps, MachineRecord, MicrovmState, PairReport, PairRequest, PreparedPair, SnapshotError,
    SnapshotId, SnapshotKind, prepare_pair,
};

use crate::config::{SaveTarget, SnapshotReport};
use crate::error::{Error, Result};
use crate::frozen::FrozenPages;
use crate::machine::Machine;
use crate::save;
use crate::track::Taken;

/// The snapshots of one machine.
#[derive(Debug, Default)]
pub struct Checkpoints {
    /// The last snapshot that was committed, or restored from.
    parent: Arc<Mutex<Option<SnapshotId>>>,
    /// The one under way.
    worker: Option<JoinHandle<()>>,
}

impl Checkpoints {
    /// Waits until no snapshot is under way.
    pub fn settle(&mut self) {
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has said so, its pages are dirty again, and its caller sees that no result comes.
            let _ = worker.join();
        }
    }

    /// The snapshot that a diff taken now continues.
    pub fn parent(&self) -> Option<SnapshotId> {
        *self.parent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine stands where this snapshot was taken.
    pub fn continue_from(&mut self, parent: SnapshotId) {
        *self.parent.lock().unwrap_or_else(PoisonError::into_inner) = Some(parent);
    }

    /// Writes, syncs and commits what was begun. `pause` is how long the guest stood still, if it runs already.
    pub fn finish(&mut self, begun: Begun, pause: Option<Duration>) -> Result<PendingSnapshot> {
        let (stopped_at, parent) = (begun.stopped_at, Arc::clone(&self.parent));
        let (sender, result) = channel();
        let worker = move || {
            if let Err(lost) = sender.send(begun.commit(&parent))
                && let Err(error) = lost.0
            {
                tracing::error!(%error, "a snapshot failed, and nobody asked");
            }
        };
        let spawned = std::thread::Builder::new().name("snapshot".into()).spawn(worker);
        self.worker =
            Some(spawned.map_err(|source| Error::System { action: "start a snapshot's thread".into(), source })?);
        Ok(PendingSnapshot { result, stopped_at, pause })
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A snapshot whose guest may run on, on its way to the disk.
#[derive(Debug)]
#[must_use = "whether it got there, only `wait` tells"]
pub struct PendingSnapshot {
    result: Receiver<Result<SnapshotReport>>,
    stopped_at: Instant,
    pause: Option<Duration>,
}

impl PendingSnapshot {
    /// How long the guest stood still; `None` if it still does.
    pub fn pause(&self) -> Option<Duration> {
        self.pause
    }

    /// Waits until the snapshot is durable, or has failed.
    pub fn wait(self) -> Result<SnapshotReport> {
        let result = self.result.recv().unwrap_or_else(|_| Err(no_result()));
        self.complete(result)
    }

    /// As [`PendingSnapshot::wait`], but waits at most `timeout`: gives itself back if that is not enough.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<SnapshotReport>, PendingSnapshot> {
        match self.result.recv_timeout(timeout) {
            Ok(result) => Ok(self.complete(result)),
            Err(RecvTimeoutError::Disconnected) => Ok(Err(no_result())),
            Err(RecvTimeoutError::Timeout) => Err(self),
        }
    }

    fn complete(&self, result: Result<SnapshotReport>) -> Result<SnapshotReport> {
        let total = self.stopped_at.elapsed();
        result.map(|report| SnapshotReport { pause: self.pause.unwrap_or(total), total, ..report })
    }
}

fn no_result() -> Error {
    Error::State("the thread that writes a snapshot panicked".into())
}

/// A snapshot whose moment has passed: nothing more is read of the machine.
#[derive(Debug)]
pub struct Begun {
    stopped_at: Instant,
    capture: Duration,
    ram: (u64, u64),
    parent: Option<SnapshotId>,
    target: SaveTarget,
    taken: Option<Taken>,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Prepared(PreparedPair<'static>),
    Frozen { state: Box<MicrovmState>, record: Box<MachineRecord>, memory: FrozenPages },
}

/// Everything that must happen while the machine stands still.
pub fn begin(machine: &mut Machine, kind: SnapshotKind, target: &SaveTarget) -> Result<Begun> {
    let started = Instant::now();
    let stopped_at = machine.stopped_at.unwrap_or(started);
    let parent = match kind {
        SnapshotKind::Full => None,
        SnapshotKind::Diff => Some(machine.diff_parent()?),
    };
    machine.description.spare_own_files(target)?;
    let (state, record) = save::capture(machine)?;
    let capture = started.elapsed();
    // Until what is needed is put aside nothing arrives: what is absent is read from its source.
    let pager = machine.parts.shared.faults.pager().cloned();
    let _quiet = pager.as_ref().map(|pager| pager.quiet());
    let taken = machine.parts.shared.faults.checkpoint()?;
    let ram = machine.parts.mapped.ram();
    let (start, size) = (ram.base(), ram.size());
    let work = match (&taken, parent) {
        (Some(taken), Some(_)) => Work::Frozen {
            state: Box::new(state),
            record: Box::new(record),
            memory: FrozenPages::new(ram, taken.pages()),
        },
        _ => {
            let contents = contents(parent, taken.as_ref());
            let prepared = prepare_pair(&request(target, &state, &record, &**ram, (start, size), contents));
            Work::Prepared(prepared.map_err(unwrap_ours)?)
        }
    };
    Ok(Begun { stopped_at, capture, ram: (start, size), parent, target: target.clone(), taken, work })
}

/// An error of ours that came through the writer, as itself: absent memory that cannot be had, say.
fn unwrap_ours(error: SnapshotError) -> Error {
    match error {
        SnapshotError::MemoryIo(e) => e.downcast().unwrap_or_else(|e| SnapshotError::MemoryIo(e).into()),
        other => other.into(),
    }
}

fn contents(parent: Option<SnapshotId>, taken: Option<&Taken>) -> Contents<'_> {
    match (parent, taken) {
        (Some(parent), Some(taken)) => Contents::Diff { parent, pages: taken.pages() },
        _ => Contents::Full,
    }
}

fn request<'a>(
    target: &'a SaveTarget,
    state: &'a MicrovmState,
    machine: &'a MachineRecord,
    memory: &'a dyn squib_snapshot::PageReader,
    (ram_start, ram_size): (u64, u64),
    contents: Contents<'a>,
) -> PairRequest<'a> {
    PairRequest {
        state_path: &target.state,
        memory_path: &target.memory,
        state,
        machine,
        memory,
        ram_start,
        ram_size,
        contents,
        block_size: 0,
    }
}

impl Begun {
    /// The rest. If it fails, the pages taken become dirty again.
    fn commit(self, parent: &Mutex<Option<SnapshotId>>) -> Result<SnapshotReport> {
        let contents = contents(self.parent, self.taken.as_ref());
        let prepared = match self.work {
            Work::Prepared(pair) => pair,
            Work::Frozen { state, record, memory } => {
                let prepared = prepare_pair(&request(&self.target, &state, &record, &memory, self.ram, contents));
                // All is read: the guest need not keep anything any more.
                drop(memory);
                prepared?
            }
        };
        let saved = prepared.commit()?;
        let written = self.taken.as_ref().map(|taken| (taken.bytes(), taken.faults(), taken.steps()));
        *parent.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved.identity);
        if let Some(taken) = self.taken {
            taken.commit();
        }
        Ok(report(&self.target, &saved, self.parent, self.capture, self.ram.1, written))
    }
}

/// Of a snapshot that is committed: nothing in here can fail, whatever becomes of its files.
fn report(
    target: &SaveTarget,
    saved: &PairReport,
    parent: Option<SnapshotId>,
    capture: Duration,
    ram_bytes: u64,
    written: Option<(u64, u64, GranuleSteps)>,
) -> SnapshotReport {
    let memory = std::fs::metadata(&target.memory).ok();
    SnapshotReport {
        identity: saved.identity,
        parent,
        pause: Duration::ZERO,
        total: Duration::ZERO,
        capture,
        ram_bytes,
        dirty_bytes: written.map(|(bytes, ..)| bytes),
        write_faults: written.map_or(0, |(_, faults, _)| faults),
        granule_steps: written.map_or(GranuleSteps::default(), |(.., steps)| steps),
        memory_file_bytes: memory.as_ref().map_or(ram_bytes, |memory| memory.len()),
        memory_disk_bytes: memory.map_or(saved.memory_bytes, |memory| memory.blocks() * 512),
        state_file_bytes: saved.state_bytes,
    }
}
