//! The pager: brings a page when somebody needs it, whoever that is.
//!
//! One order for every page: its bytes go in through the fill view; the host's guest view is opened (`mprotect`); the granule
//! is mapped at stage 2; only then is it published as present and its waiters go on. The guest view must be open before
//! `hv_vm_map`: a range that is `PROT_NONE` when it is mapped hangs the guest. And a range is opened by one `mprotect` and mapped
//! by one `hv_vm_map`, so that what is mapped is one VM region: opening a part of the view splits the host's map entry, and the
//! entries on both sides of it are other regions until the kernel merges them. What a stage-2 mapping shares is the memory
//! object, so later splits and merges of the host's entries do not matter to it.
//!
//! Whoever answers a fault touches guest RAM through the fill view only. What threads of the net may not do besides is in
//! [`quiet`](super::quiet).

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use applevisor::prelude::HypervisorError;

use super::monitor::Monitor;
use super::source::{Origin, PageSource, SourceError};
use super::state::{ABSENT, Claim, FILLED, POISONED, PageStates};
use super::stats::{Cause, Counters};
use super::touches::Touches;
use crate::error::{Error, Result};
use crate::hv::stage2::MappedRam;
use crate::memory::{GRANULE, GuestRam};

/// Pages of a block: 2 MiB.
const BLOCK: u64 = 128;

/// Told of an error that must stop the machine.
type Failed = Box<dyn Fn(Error) + Send + Sync>;

/// Brings pages.
pub struct Pager {
    mapped: Arc<MappedRam>,
    states: Arc<PageStates>,
    /// Gone once nothing is missing.
    source: RwLock<Option<Arc<dyn PageSource>>>,
    counters: Arc<Counters>,
    touches: Arc<Touches>,
    /// Pages that one fault may open, if they cost nothing.
    fault_around: u64,
    /// Faults that are being answered: the prefetcher stands back.
    demand: AtomicU32,
    /// Why the first page was lost.
    damage: Mutex<Option<String>>,
    /// The last page has come; somebody is to let the source go.
    complete: AtomicBool,
    failed: OnceLock<Failed>,
    /// Held by who opens a whole block.
    block: Mutex<()>,
    /// Held by the prefetcher while it changes anything.
    gate: Mutex<()>,
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("missing", &self.states.missing()).finish_non_exhaustive()
    }
}

/// Counts a fault as being answered, for as long as it lives.
pub(super) struct Demand<'a>(&'a AtomicU32);

impl<'a> Demand<'a> {
    pub(super) fn new(pager: &'a Pager) -> Self {
        pager.demand.fetch_add(1, Ordering::Relaxed);
        Demand(&pager.demand)
    }
}

impl Drop for Demand<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why pages could not be put within reach.
pub(super) enum OpenError {
    /// By `mprotect`.
    Protect(io::Error),
    Other(Error),
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Error {
        match error {
            OpenError::Protect(source) => Error::System { action: "open pages of guest RAM".into(), source },
            OpenError::Other(error) => error,
        }
    }
}

impl OpenError {
    /// Whether the system had no mapping left to split the guest view, or the hypervisor none for stage 2.
    fn is_scarcity(&self) -> bool {
        match self {
            OpenError::Protect(source) => source.raw_os_error() == Some(libc::ENOMEM),
            OpenError::Other(Error::Hypervisor { source, .. }) => *source == HypervisorError::NoResources,
            OpenError::Other(_) => false,
        }
    }
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// The page is there now, or somebody else is at it: try again.
    Now,
    /// The page was there before.
    Before,
}

impl Pager {
    /// A pager for RAM of which nothing is present or mapped. `fault_around` is in pages; 1 brings only what is needed.
    pub fn new(mapped: Arc<MappedRam>, source: Arc<dyn PageSource>, fault_around: u32) -> Result<Arc<Pager>> {
        let ram = mapped.ram();
        let states = ram.states().ok_or_else(|| Error::State("the RAM is not a lazy one".into()))?;
        let pager = Arc::new(Pager {
            states: Arc::clone(states),
            source: RwLock::new(Some(source)),
            counters: Arc::new(Counters::new()),
            touches: Arc::new(Touches::new(states.count())),
            fault_around: u64::from(fault_around.max(1)),
            demand: AtomicU32::new(0),
            damage: Mutex::new(None),
            complete: AtomicBool::new(false),
            failed: OnceLock::new(),
            block: Mutex::new(()),
            gate: Mutex::new(()),
            mapped: Arc::clone(&mapped),
        });
        mapped.ram().set_pager(Arc::downgrade(&pager));
        Ok(pager)
    }

    /// Sets who is told when a page that our own code needs cannot be had. Once.
    pub fn on_failure(&self, failed: impl Fn(Error) + Send + Sync + 'static) {
        // Set once, by the machine's builder.
        let _ = self.failed.set(Box::new(failed));
    }

    /// A view that outlives the pager.
    pub fn monitor(&self) -> Monitor {
        Monitor::new(Arc::clone(&self.counters), Arc::clone(&self.states), Arc::clone(&self.touches))
    }

    /// What was done so far.
    #[cfg(test)]
    pub fn stats(&self) -> super::PagerStats {
        self.monitor().stats()
    }

    /// Whether nothing is missing any more.
    pub fn is_done(&self) -> bool {
        self.states.missing() == 0
    }

    /// The counters, for the prefetcher.
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The states, for the prefetcher.
    pub(super) fn states(&self) -> &PageStates {
        &self.states
    }

    /// Whether a fault is being answered.
    pub(super) fn in_demand(&self) -> bool {
        self.demand.load(Ordering::Relaxed) > 0
    }

    /// The source, until nothing is missing.
    pub(super) fn source(&self) -> Option<Arc<dyn PageSource>> {
        self.source.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// RAM, for the prefetcher.
    pub(super) fn ram(&self) -> &GuestRam {
        self.mapped.ram()
    }

    /// Keeps the prefetcher from changing anything for as long as the guard lives. The guest stands still, so nothing else
    /// changes either.
    pub fn quiet(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- faults ---

    /// A guest's fault at `offset` of RAM. [`Brought::Before`] if the page was present, so that something else explains it (or
    /// it was present by the time we looked: another vCPU met it first).
    pub fn guest_fault(&self, offset: u64, cause: Cause) -> Result<Brought> {
        self.bring(offset / GRANULE, cause, false)
    }

    fn tell(&self, error: Error) {
        if let Some(failed) = self.failed.get() {
            failed(error);
        }
    }

    /// Makes a range present that code of ours is going to touch. An error is also told to the machine, which stops.
    pub fn make_present(&self, offset: u64, len: u64) -> io::Result<()> {
        for page in PageStates::pages(offset, len) {
            if let Err(error) = self.bring(page, Cause::Host, true) {
                let text = error.to_string();
                self.tell(error);
                return Err(io::Error::other(text));
            }
        }
        Ok(())
    }

    /// Brings one page. With `insist` it is present on success; without, another thread may still be at it.
    fn bring(&self, page: u64, cause: Cause, insist: bool) -> Result<Brought> {
        let begun = Instant::now();
        let mut waited = false;
        loop {
            match self.states.claim(page) {
                claim @ (Claim::Fill | Claim::Open) => {
                    let _demand = Demand::new(self);
                    self.install(page, claim)?;
                    self.counters.fault(cause, begun.elapsed());
                    return Ok(Brought::Now);
                }
                Claim::Busy => {
                    let _demand = Demand::new(self);
                    self.states.wait(page);
                    waited = true;
                    if !insist {
                        self.counters.fault(cause, begun.elapsed());
                        return Ok(Brought::Now);
                    }
                }
                Claim::Present if waited => {
                    self.counters.fault(cause, begun.elapsed());
                    return Ok(Brought::Now);
                }
                Claim::Present => return Ok(Brought::Before),
                Claim::Poisoned => return Err(self.lost(page)),
            }
        }
    }

    fn lost(&self, page: u64) -> Error {
        let reason = self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let reason = reason.unwrap_or_else(|| "its bytes could not be had".into());
        Error::PageLost { start: self.ram().base() + page * GRANULE, len: GRANULE, reason }
    }

    /// Takes a page that is ours the rest of the way.
    fn install(&self, page: u64, claim: Claim) -> Result<()> {
        if claim == Claim::Fill
            && let Err(error) = self.fill(page)
        {
            return Err(self.give_up(page, error));
        }
        let result = self.reach(page, claim);
        self.settle();
        Ok(result?)
    }

    /// Puts a page that is ours and filled within reach, and its neighbours where they cost nothing.
    pub(super) fn reach(&self, page: u64, claim: Claim) -> Result<(), OpenError> {
        let window = page - page % self.fault_around;
        let window = window..(window + self.fault_around).min(self.states.count());
        let start = (window.start..page).rev().take_while(|&before| self.take_cheap(before)).last().unwrap_or(page);
        let end = (page + 1..window.end).take_while(|&after| self.take_cheap(after)).last().unwrap_or(page) + 1;
        let around = match self.open_pages(start..end) {
            Err(error) if error.is_scarcity() => self.open_scarce(page)?.saturating_sub(1),
            result => result.map(|()| end - start - 1)?,
        };
        self.counters.demanded(claim == Claim::Open);
        self.touches.note(page);
        self.counters.around(around);
        Ok(())
    }

    /// Puts the block of `page` within reach where mappings are scarce. Even a whole block may need one more than there are: then
    /// the nearest block that gives some back is opened first.
    fn open_scarce(&self, page: u64) -> Result<u64, OpenError> {
        let scarce = match self.open_block(page) {
            Err(error) if error.is_scarcity() => error,
            result => return result,
        };
        let (here, blocks) = (page / BLOCK, self.states.count().div_ceil(BLOCK));
        let split = |&block: &u64| {
            let (first, end) = (block * BLOCK, ((block + 1) * BLOCK).min(self.states.count()));
            self.states.stretch(first, end).1 < end
        };
        for block in (0..here).rev().chain(here + 1..blocks).filter(split) {
            if let Ok(opened) = self.open_block(block * BLOCK) {
                self.counters.around(opened);
                return self.open_block(page);
            }
        }
        Err(scarce)
    }

    /// Puts a whole block within reach, bringing what is absent of it, and tells how many pages that were. Linux
    /// has a limit on mappings, and every lone page that is opened costs two; a block that is open throughout costs none.
    fn open_block(&self, page: u64) -> Result<u64, OpenError> {
        // One at a time: it waits for pages while it owns others, which nobody else does.
        let _one = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let start = page - page % BLOCK;
        let pages = start..(start + BLOCK).min(self.states.count());
        let mut owned = [false; BLOCK as usize];
        let mut result = Ok(());
        for page in pages.clone() {
            match self.own(page) {
                Ok(ours) => owned[(page - start) as usize] = ours,
                Err(error) => {
                    result = Err(OpenError::Other(error));
                    break;
                }
            }
        }
        let (offset, end) = (start * GRANULE, (pages.end * GRANULE).min(self.ram().size()));
        let opened = result.and_then(|()| self.ram().open(offset, end - offset).map_err(OpenError::Protect));
        self.finish_block(start, &owned, opened)
    }

    /// Gives the pages of a block that are ours their new state, whether or not the block could be opened.
    fn finish_block(&self, start: u64, owned: &[bool], mut result: Result<(), OpenError>) -> Result<u64, OpenError> {
        let (mut at, mut count) = (start, 0);
        for run in owned.chunk_by(|a, b| a == b) {
            let pages = at..at + run.len() as u64;
            at = pages.end;
            match &result {
                _ if !run[0] => {}
                Ok(()) => {
                    count += run.len() as u64;
                    result = self.publish(pages).map_err(OpenError::Other);
                }
                Err(_) => pages.for_each(|page| self.states.release(page, FILLED)),
            }
        }
        result.map(|()| count)
    }

    /// Makes a page ours and filled. `false` if it is present.
    fn own(&self, page: u64) -> Result<bool> {
        loop {
            match self.states.claim(page) {
                Claim::Fill => return self.fill(page).map(|()| true).map_err(|error| self.give_up(page, error)),
                Claim::Open => return Ok(true),
                Claim::Busy => self.states.wait(page),
                Claim::Present => return Ok(false),
                Claim::Poisoned => return Err(self.lost(page)),
            }
        }
    }

    /// Takes a page whose bytes are here, or are known to be zero, if nobody else has it.
    fn take_cheap(&self, page: u64) -> bool {
        if self.states.claim_from(page, FILLED) {
            return true;
        }
        let zero = || self.source().is_some_and(|source| source.known_zero(page * GRANULE, GRANULE) == GRANULE);
        if self.states.get(page) == ABSENT && zero() && self.states.claim_from(page, ABSENT) {
            self.counters.filled(Origin::Zero, 1, 0);
            return true;
        }
        false
    }

    /// Brings the bytes of a page that is ours. RAM that nobody has filled is zero already.
    fn fill(&self, page: u64) -> Result<(), SourceError> {
        self.fill_by(page, |source, offset, buf| source.read(offset, buf))
    }

    /// As [`Pager::fill`], with another way to read the source.
    pub(super) fn fill_by<E: From<SourceError>>(
        &self,
        page: u64,
        read: impl FnOnce(&dyn PageSource, u64, &mut [u8]) -> Result<Origin, E>,
    ) -> Result<(), E> {
        let offset = page * GRANULE;
        let source = self.source().ok_or_else(|| SourceError::Damaged("the source is closed".into()))?;
        if source.known_zero(offset, GRANULE) == GRANULE {
            self.counters.filled(Origin::Zero, 1, 0);
            return Ok(());
        }
        // On this thread's stack: a thread of the net does not allocate.
        let mut bytes = [0; GRANULE as usize];
        let bytes = &mut bytes[..GRANULE.min(self.ram().size() - offset) as usize];
        let origin = read(&*source, offset, bytes)?;
        if origin != Origin::Zero {
            let failed = |e: io::Error| SourceError::Damaged(format!("guest RAM cannot be filled: {e}"));
            self.ram().write_fill(offset, bytes).map_err(failed)?;
        }
        self.counters.filled(origin, 1, bytes.len() as u64);
        Ok(())
    }

    /// A page that is ours cannot be had: for now, or for good.
    pub(super) fn give_up(&self, page: u64, error: SourceError) -> Error {
        let start = self.ram().base() + page * GRANULE;
        match error {
            SourceError::Unavailable(reason) | SourceError::Wrong(reason) => {
                self.states.release(page, ABSENT);
                Error::PageUnavailable { start, len: GRANULE, reason }
            }
            SourceError::Damaged(reason) => {
                let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
                damage.get_or_insert_with(|| reason.clone());
                drop(damage);
                self.states.release(page, POISONED);
                self.counters.lost();
                Error::PageLost { start, len: GRANULE, reason }
            }
        }
    }

    /// Puts pages that are ours, and filled, within reach of host and guest. On an error they are filled and out of reach.
    pub(super) fn open(&self, pages: Range<u64>) -> Result<()> {
        let result = self.open_pages(pages);
        self.settle();
        Ok(result?)
    }

    fn open_pages(&self, pages: Range<u64>) -> Result<(), OpenError> {
        let offset = pages.start * GRANULE;
        let len = (pages.end * GRANULE).min(self.ram().size()) - offset;
        if let Err(source) = self.ram().open(offset, len) {
            pages.for_each(|page| self.states.release(page, FILLED));
            return Err(OpenError::Protect(source));
        }
        self.publish(pages).map_err(OpenError::Other)
    }

    /// Maps pages that are ours and open at stage 2, and makes them present.
    fn publish(&self, pages: Range<u64>) -> Result<()> {
        let offset = pages.start * GRANULE;
        let len = (pages.end * GRANULE).min(self.ram().size()) - offset;
        let result = self.mapped.map(offset, len, self.mapped.arrival());
        for page in pages {
            match result {
                Ok(()) if self.states.publish(page) => self.complete.store(true, Ordering::Release),
                Ok(()) => {}
                Err(_) => self.states.release(page, FILLED),
            }
        }
        result
    }

    /// If the last page has just come, the source, its files and connections are let go. For every thread that brings pages
    /// but those of the net, which leave it to their herald.
    pub(super) fn settle(&self) {
        if !self.complete.swap(false, Ordering::AcqRel) {
            return;
        }
        let source = self.source.write().unwrap_or_else(PoisonError::into_inner).take();
        tracing::debug!(pages = self.states.count(), "all of guest RAM is present");
        drop(source);
    }
}
