//! Streaming: a thread of low priority that brings in what nobody has asked for yet, until nothing is absent.
//!
//! First what the guest is going to touch next (the caller's list), then the rest in order. Pages are left filled but out of reach,
//! so that the first touch of each tells that it was worth bringing; when everything is here, all that is left is
//! put within reach in large runs, and the pager is done. Faults go first: while one is being answered the prefetcher waits.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::observe::{StreamEvent, StreamObserver};
use super::resolver::Pager;
use super::source::{Origin, SourceError};
use super::state::{ABSENT, FILLED, OPENING, PageStates, READING};
use crate::error::{Error, Result};
use crate::memory::GRANULE;

/// Pages brought at a time; a fault on one of them waits for all.
const CHUNK: u64 = 16;
/// Bytes that the source is told of at a time, before they are asked for.
const BLOCK: u64 = 2 << 20;
/// Pages put within reach at a time, at the end.
const SWEEP: u64 = 4096;
/// How long the prefetcher stands back when a fault is being answered.
const STAND_BACK: Duration = Duration::from_micros(200);
/// How long it waits for a source that is away; doubled each time.
const AWAY_FIRST: Duration = Duration::from_millis(50);
const AWAY_MAX: Duration = Duration::from_secs(2);

/// The prefetcher; ended and joined when dropped.
#[derive(Debug)]
pub struct Prefetcher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetcher {
    /// Starts bringing in what `plan` names (ranges of bytes of RAM), then everything else. `plan` runs on the prefetcher's thread
    /// and can look into RAM as it makes up its mind: it is given a function that brings and reads the eight bytes at
    /// an offset. `observer` is told what streaming meets.
    pub fn start(
        pager: Arc<Pager>,
        observer: Option<StreamObserver>,
        plan: impl FnOnce(&mut dyn FnMut(u64) -> Option<u64>) -> Vec<Range<u64>> + Send + 'static,
    ) -> Result<Prefetcher> {
        let stop = Arc::new(AtomicBool::new(false));
        let run = Run { pager, observer, stop: Arc::clone(&stop), buf: Vec::new() };
        let spawned = std::thread::Builder::new().name("prefetch".into()).spawn(move || run.main(plan));
        let thread = spawned.map_err(|source| Error::System { action: "start the prefetcher".into(), source })?;
        Ok(Prefetcher { stop, thread: Some(thread) })
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

struct Run {
    pager: Arc<Pager>,
    observer: Option<StreamObserver>,
    stop: Arc<AtomicBool>,
    buf: Vec<u8>,
}

impl Run {
    fn main(mut self, plan: impl FnOnce(&mut dyn FnMut(u64) -> Option<u64>) -> Vec<Range<u64>>) {
        crate::priority::lower();
        let size = self.pager.ram().size();
        let first = plan(&mut |offset| self.look(offset));
        let clip = |range: &Range<u64>| range.start.min(size)..range.end.min(size);
        let whole = 0..size;
        self.expect(first.iter().map(clip));
        for range in first.iter().map(clip).chain([whole]) {
            self.bring(PageStates::pages(range.start, range.end.saturating_sub(range.start)));
        }
        while let Some(page) = self.left_behind() {
            self.bring(page..self.pager.states().count());
        }
        self.sweep();
    }

    /// The first page that is absent. One that a fault was at when we passed is, if its source was away then.
    fn left_behind(&self) -> Option<u64> {
        let states = self.pager.states();
        (0..states.count()).take_while(|_| !self.stopped()).find(|&page| {
            states.wait(page);
            states.get(page) == ABSENT
        })
    }

    /// Tells the source what comes first: files are checked by blocks of 2 MiB, and the system can fetch several at a time.
    fn expect(&self, first: impl Iterator<Item = Range<u64>>) {
        let Some(source) = self.pager.source() else { return };
        let mut told = HashSet::new();
        for block in first.flat_map(|range| range.start / BLOCK..range.end.div_ceil(BLOCK)) {
            if self.stopped() {
                return;
            }
            let (offset, len) = (block * BLOCK, BLOCK.min(source.size() - block * BLOCK));
            if told.insert(block) && source.known_zero(offset, len) < len {
                source.expect(offset, len);
            }
        }
    }

    /// Eight bytes of RAM, brought for the purpose.
    fn look(&mut self, offset: u64) -> Option<u64> {
        let mut word = [0; 8];
        offset.checked_add(8).filter(|&end| end <= self.pager.ram().size())?;
        self.bring(PageStates::pages(offset, 8));
        self.pager.read(offset, &mut word).ok()?;
        Some(u64::from_le_bytes(word))
    }

    fn tell(&self, event: StreamEvent) {
        tracing::warn!(?event, "streaming");
        if let Some(observer) = &self.observer {
            observer.tell(event);
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.pager.is_done()
    }

    fn bring(&mut self, pages: Range<u64>) {
        let mut at = pages.start;
        let mut away = AWAY_FIRST;
        while at < pages.end && !self.stopped() {
            if self.pager.in_demand() {
                std::thread::park_timeout(STAND_BACK);
                continue;
            }
            let end = (at + 1).next_multiple_of(CHUNK).min(pages.end);
            match self.bring_chunk(at..end) {
                Ok(()) => {
                    if away > AWAY_FIRST {
                        self.tell(StreamEvent::Back);
                    }
                    (at, away) = (end, AWAY_FIRST);
                }
                Err(error) => {
                    if away == AWAY_FIRST {
                        let wrong = matches!(error, SourceError::Wrong(_));
                        self.tell(StreamEvent::Away { wrong, reason: error.to_string() });
                    }
                    std::thread::park_timeout(away);
                    away = (away * 2).min(AWAY_MAX);
                }
            }
        }
    }

    /// Brings what is absent of a chunk. An error says that the source is away.
    fn bring_chunk(&mut self, pages: Range<u64>) -> Result<(), SourceError> {
        let pager = Arc::clone(&self.pager);
        let _gate = pager.quiet();
        let mut at = pages.start;
        while at < pages.end {
            // A stretch of absent pages that is ours now. (The net may take them away again.)
            let start = at;
            while at < pages.end && pager.states().claim_from(at, ABSENT, READING) {
                at += 1;
            }
            if at > start {
                self.fill(start..at)?;
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    /// Brings the bytes of pages that are READING. One that is damaged is poisoned; the guest may never need it.
    fn fill(&mut self, pages: Range<u64>) -> Result<(), SourceError> {
        let error = match self.fill_bytes(&pages) {
            Ok(count) => {
                self.pager.counters().prefetched(count);
                return Ok(());
            }
            Err(error) => error,
        };
        match error {
            SourceError::Damaged(_) if pages.end - pages.start > 1 => {
                // Which one is it?
                let mut result = Ok(());
                for page in pages {
                    match result {
                        Ok(()) => result = self.fill(page..page + 1),
                        Err(_) => _ = self.pager.states().give_back(page, ABSENT),
                    }
                }
                result
            }
            SourceError::Damaged(_) => {
                if let Some(Error::PageLost { start, len, reason }) = self.pager.give_up(pages.start, error) {
                    self.tell(StreamEvent::Lost { start, len, reason });
                }
                Ok(())
            }
            SourceError::Unavailable(_) | SourceError::Wrong(_) => {
                for page in pages {
                    // One that was taken away is somebody else's to give back.
                    self.pager.states().give_back(page, ABSENT);
                }
                Err(error)
            }
        }
    }

    /// How many of the pages came to be filled: all but those that were taken away.
    fn fill_bytes(&mut self, pages: &Range<u64>) -> Result<u64, SourceError> {
        let size = self.pager.ram().size();
        let offset = pages.start * GRANULE;
        let len = (pages.end * GRANULE).min(size) - offset;
        let source = self.pager.source().ok_or_else(|| SourceError::Unavailable("the source is closed".into()))?;
        self.buf.resize(len as usize, 0);
        let origin = match source.known_zero(offset, len) == len {
            true => Origin::Zero,
            false => source.read(offset, &mut self.buf)?,
        };
        let mut count = 0;
        for (page, bytes) in pages.clone().zip(self.buf.chunks(GRANULE as usize)) {
            if self.pager.put(page, origin, bytes)? {
                self.pager.states().release(page, FILLED);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Puts everything that is filled within reach.
    fn sweep(&self) {
        let states = self.pager.states();
        let mut at = 0;
        while at < states.count() && !self.stopped() {
            let gate = self.pager.quiet();
            let start = at;
            while at < states.count() && at - start < SWEEP && states.claim_from(at, FILLED, OPENING) {
                at += 1;
            }
            if at == start {
                at += 1;
                continue;
            }
            match self.pager.open(start..at) {
                Ok(opened) => self.pager.counters().untouched(opened),
                // They are met again, one by one, by whoever needs them.
                Err(error) => tracing::warn!(%error, "streamed memory could not be mapped"),
            }
            drop(gate);
        }
    }
}
