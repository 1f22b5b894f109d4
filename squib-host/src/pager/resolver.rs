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
//! [`quiet`](super::quiet), what becomes of a page that one thread reads and they need is in [`state`](super::state).

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::monitor::Monitor;
use super::slots::Slots;
use super::source::{Origin, PageSource, SourceError};
use super::state::{ABSENT, Claim, FILLED, FILLING, OPENING, POISONED, PageStates, READING};
use super::stats::{Cause, Counters};
use super::touches::Touches;
use crate::error::{Error, Result};
use crate::hv::stage2::{MapError, MappedRam};
use crate::memory::{GRANULE, GuestRam};

/// Told of an error that must stop the machine.
type Failed = Box<dyn Fn(Error) + Send + Sync>;

/// Brings pages.
pub struct Pager {
    mapped: Arc<MappedRam>,
    states: Arc<PageStates>,
    /// Gone once nothing is missing.
    source: Slots<Option<Arc<dyn PageSource>>>,
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

/// What the system or the hypervisor said when pages were to be put within reach. Passed on without an allocation.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    /// By `mprotect`: the number of the error.
    Protect(i32),
    Map(MapError),
}

impl Refusal {
    /// Whether the system had no mapping left to split the guest view, or the hypervisor none for stage 2.
    pub(super) fn is_scarcity(self) -> bool {
        match self {
            Refusal::Protect(code) => code == libc::ENOMEM,
            Refusal::Map(error) => error.is_scarcity(),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::Protect(code) => {
                let source = io::Error::from_raw_os_error(code);
                Error::System { action: "open pages of guest RAM".into(), source }
            }
            Refusal::Map(error) => error.into(),
        }
    }
}

/// Why a page could not be put within reach.
pub(super) enum OpenError<E> {
    Refused(Refusal),
    /// Another page that is to be opened with it cannot be had.
    Neighbour(E),
}

impl<E> From<Refusal> for OpenError<E> {
    fn from(refusal: Refusal) -> OpenError<E> {
        OpenError::Refused(refusal)
    }
}

impl From<OpenError<Error>> for Error {
    fn from(error: OpenError<Error>) -> Error {
        match error {
            OpenError::Refused(refusal) => refusal.into(),
            OpenError::Neighbour(error) => error,
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
            source: Slots::new([Some(source)]),
            counters: Arc::new(Counters::new()),
            touches: Arc::new(Touches::new(states.count())),
            fault_around: u64::from(fault_around.max(1)),
            demand: AtomicU32::new(0),
            damage: Mutex::new(None),
            complete: AtomicBool::new(false),
            failed: OnceLock::new(),
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

    /// The counters.
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The states.
    pub(super) fn states(&self) -> &PageStates {
        &self.states
    }

    /// Whether a fault is being answered.
    pub(super) fn in_demand(&self) -> bool {
        self.demand.load(Ordering::Relaxed) > 0
    }

    /// The source, until nothing is missing. As long as the caller owns a page that is FILLING or OPENING its reference is not the last
    /// one.
    pub(super) fn source(&self) -> Option<Arc<dyn PageSource>> {
        self.source.take().clone()
    }

    /// RAM.
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
                    if self.install(page, claim)? {
                        self.counters.fault(cause, begun.elapsed());
                        return Ok(Brought::Now);
                    }
                    waited = true;
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

    /// What is to be said of a poisoned page.
    pub(super) fn lost(&self, page: u64) -> Error {
        let reason = self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let reason = reason.unwrap_or_else(|| "its bytes could not be had".into());
        Error::PageLost { start: self.ram().base() + page * GRANULE, len: GRANULE, reason }
    }

    /// Takes a page that is ours the rest of the way. `false`: it was taken away from us meanwhile.
    fn install(&self, page: u64, claim: Claim) -> Result<bool> {
        if claim == Claim::Fill && !self.fill(page)? {
            return Ok(false);
        }
        let result = self.reach(page, claim, |neighbour| self.bring_bytes(neighbour));
        self.settle();
        result?;
        Ok(true)
    }

    /// Puts a page that is ours and filled within reach, and its neighbours where they cost nothing. Where mappings are scarce they may
    /// cost something: `bring` has the bytes of one brought, as in [`Pager::open_scarce`].
    pub(super) fn reach<E>(
        &self,
        page: u64,
        claim: Claim,
        bring: impl Fn(u64) -> Result<(), E>,
    ) -> Result<(), OpenError<E>> {
        let window = page - page % self.fault_around;
        let window = window..(window + self.fault_around).min(self.states.count());
        let start = (window.start..page).rev().take_while(|&before| self.take_cheap(before)).last().unwrap_or(page);
        let end = (page + 1..window.end).take_while(|&after| self.take_cheap(after)).last().unwrap_or(page) + 1;
        let around = match self.open_pages(start..end) {
            Err(refusal) if refusal.is_scarcity() => self.open_scarce(page, bring)?.saturating_sub(1),
            result => result.map(|()| end - start - 1)?,
        };
        self.counters.demanded(claim == Claim::Open);
        self.touches.note(page);
        self.counters.around(around);
        Ok(())
    }

    /// Takes a page whose bytes are here, or are known to be zero, if nobody else has it.
    fn take_cheap(&self, page: u64) -> bool {
        if self.states.claim_from(page, FILLED, OPENING) {
            return true;
        }
        let zero = || self.source().is_some_and(|source| source.known_zero(page * GRANULE, GRANULE) == GRANULE);
        if self.states.get(page) == ABSENT && zero() && self.states.claim_from(page, ABSENT, FILLING) {
            self.counters.filled(Origin::Zero, 1, 0);
            return true;
        }
        false
    }

    /// Brings the bytes of a page that is READING, and leaves it FILLING. `false`: it was taken away from us meanwhile.
    pub(super) fn fill(&self, page: u64) -> Result<bool> {
        let mut bytes = [0; GRANULE as usize];
        let bytes = &mut bytes[..self.length(page) as usize];
        let read = |bytes: &mut [u8]| {
            let source = self.source().ok_or_else(|| SourceError::Damaged("the source is closed".into()))?;
            match source.known_zero(page * GRANULE, GRANULE) {
                GRANULE => Ok(Origin::Zero),
                _ => source.read(page * GRANULE, bytes),
            }
        };
        match read(bytes).and_then(|origin| self.put(page, origin, bytes)) {
            Ok(ours) => Ok(ours),
            Err(error) => self.give_up(page, error).map_or(Ok(false), Err),
        }
    }

    /// Bytes of a page: the last one may be shorter.
    pub(super) fn length(&self, page: u64) -> u64 {
        GRANULE.min(self.ram().size() - page * GRANULE)
    }

    /// Puts the bytes of a page that is READING into their place, and leaves it FILLING. `false`: it was taken away from us meanwhile, and
    /// nothing was done. After an error it is READING as before. RAM that nobody has filled is zero already.
    pub(super) fn put(&self, page: u64, origin: Origin, bytes: &[u8]) -> Result<bool, SourceError> {
        if !self.states.keep(page) {
            return Ok(false);
        }
        if origin != Origin::Zero
            && let Err(error) = self.ram().write_fill(page * GRANULE, bytes)
        {
            // Let go before the text is made.
            self.states.release(page, READING);
            return Err(SourceError::Damaged(format!("guest RAM cannot be filled: {error}")));
        }
        self.counters.filled(origin, 1, bytes.len() as u64);
        Ok(true)
    }

    /// A page that is READING cannot be had: for now, or for good. `None`: it was taken away from us meanwhile.
    pub(super) fn give_up(&self, page: u64, error: SourceError) -> Option<Error> {
        let (start, len) = (self.ram().base() + page * GRANULE, GRANULE);
        match error {
            SourceError::Unavailable(reason) | SourceError::Wrong(reason) => {
                self.states.give_back(page, ABSENT).then_some(Error::PageUnavailable { start, len, reason })
            }
            SourceError::Damaged(reason) => {
                // Before the page is poisoned: who finds it so finds the reason.
                let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
                damage.get_or_insert_with(|| reason.clone());
                drop(damage);
                self.states.give_back(page, POISONED).then(|| {
                    self.counters.lost();
                    Error::PageLost { start, len, reason }
                })
            }
        }
    }

    /// Puts pages that are ours, and filled, within reach of host and guest; where mappings are scarce, with their blocks. How many that
    /// were. Those that could not be opened are filled and out of reach.
    pub(super) fn open(&self, pages: Range<u64>) -> Result<u64> {
        let result = match self.open_pages(pages.clone()) {
            Err(refusal) if refusal.is_scarcity() => self.open_blocks(pages),
            result => result.map(|()| pages.end - pages.start).map_err(Error::from),
        };
        self.settle();
        result
    }

    fn open_pages(&self, pages: Range<u64>) -> Result<(), Refusal> {
        let (offset, len) = self.bytes(&pages);
        if let Err(error) = self.ram().open(offset, len) {
            pages.for_each(|page| self.states.release(page, FILLED));
            return Err(Refusal::Protect(error.raw_os_error().unwrap_or(0)));
        }
        self.publish(pages)
    }

    /// Offset and length of pages.
    pub(super) fn bytes(&self, pages: &Range<u64>) -> (u64, u64) {
        let offset = pages.start * GRANULE;
        (offset, (pages.end * GRANULE).min(self.ram().size()) - offset)
    }

    /// Maps pages that are ours and open at stage 2, and makes them present.
    pub(super) fn publish(&self, pages: Range<u64>) -> Result<(), Refusal> {
        let (offset, len) = self.bytes(&pages);
        let result = self.mapped.map(offset, len, self.mapped.arrival());
        for page in pages {
            match result {
                Ok(()) if self.states.publish(page) => self.complete.store(true, Ordering::Release),
                Ok(()) => {}
                Err(_) => self.states.release(page, FILLED),
            }
        }
        result.map_err(Refusal::Map)
    }

    /// If the last page has just come, the source, its files and connections are let go. For every thread that brings pages
    /// but those of the net, which leave it to their herald.
    pub(super) fn settle(&self) {
        if !self.complete.swap(false, Ordering::AcqRel) {
            return;
        }
        let source = self.source.take().take();
        tracing::debug!(pages = self.states.count(), "all of guest RAM is present");
        drop(source);
    }
}
