//! What the pager did: faults by who met them, pages by where they came from, and how long a fault took.
//!
//! Counting takes no lock that a faulting thread can hold and allocates nothing: counters are atomics, and the histograms have
//! their full size from the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::source::Origin;

/// Who needed a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A guest's load or store.
    GuestData,
    /// A guest's instruction fetch.
    GuestFetch,
    /// A guest's translation table walk.
    GuestWalk,
    /// Code of ours, before it touched guest memory.
    Host,
    /// Code of ours that touched guest memory all the same, by an exception.
    Exception,
}

/// Number of [`Cause`]s.
const CAUSES: usize = 5;
/// Longest latency that is told apart: a minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// Fault latencies: nanoseconds, to two digits.
#[derive(Debug)]
struct Latencies(Mutex<Histogram<u64>>);

impl Latencies {
    fn new() -> Latencies {
        // Bounds and digits are constants that the histogram accepts.
        Latencies(Mutex::new(Histogram::new_with_bounds(1, LATENCY_MAX_NS, 2).expect("constant bounds")))
    }

    fn record(&self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(ns);
    }

    fn summary(&self) -> Latency {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
        Latency { count: histogram.len(), median: at(0.5), p99: at(0.99), max: Duration::from_nanos(histogram.max()) }
    }
}

/// The counters themselves.
#[derive(Debug)]
pub struct Counters {
    faults: [AtomicU64; CAUSES],
    guest: Latencies,
    host: Latencies,
    zero: AtomicU64,
    file: AtomicU64,
    server: AtomicU64,
    bytes: AtomicU64,
    demanded: AtomicU64,
    around: AtomicU64,
    prefetched: AtomicU64,
    hits: AtomicU64,
    untouched: AtomicU64,
    lost: AtomicU64,
}

impl Counters {
    /// Nothing has happened yet.
    pub fn new() -> Counters {
        let zero = || AtomicU64::new(0);
        Counters {
            faults: [zero(), zero(), zero(), zero(), zero()],
            guest: Latencies::new(),
            host: Latencies::new(),
            zero: zero(),
            file: zero(),
            server: zero(),
            bytes: zero(),
            demanded: zero(),
            around: zero(),
            prefetched: zero(),
            hits: zero(),
            untouched: zero(),
            lost: zero(),
        }
    }

    /// A fault was answered.
    pub fn fault(&self, cause: Cause, latency: Duration) {
        self.faults[cause as usize].fetch_add(1, Ordering::Relaxed);
        match cause {
            Cause::GuestData | Cause::GuestFetch | Cause::GuestWalk => self.guest.record(latency),
            Cause::Host | Cause::Exception => self.host.record(latency),
        }
    }

    /// Pages were filled.
    pub fn filled(&self, origin: Origin, pages: u64, bytes: u64) {
        let counter = match origin {
            Origin::Zero => &self.zero,
            Origin::File => &self.file,
            Origin::Server => &self.server,
        };
        counter.fetch_add(pages, Ordering::Relaxed);
        if origin != Origin::Zero {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// A page was opened because somebody needed it; `hit`: the prefetcher had filled it.
    pub fn demanded(&self, hit: bool) {
        self.demanded.fetch_add(1, Ordering::Relaxed);
        if hit {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Pages were opened because a neighbour was needed.
    pub fn around(&self, pages: u64) {
        self.around.fetch_add(pages, Ordering::Relaxed);
    }

    /// The prefetcher filled pages.
    pub fn prefetched(&self, pages: u64) {
        self.prefetched.fetch_add(pages, Ordering::Relaxed);
    }

    /// Pages were opened at the end of streaming without anybody having needed them.
    pub fn untouched(&self, pages: u64) {
        self.untouched.fetch_add(pages, Ordering::Relaxed);
    }

    /// A page cannot be had at all.
    pub fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// As they stand; `total` and `missing` are pages.
    pub fn stats(&self, total: u64, missing: u64) -> PagerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let fault = |cause: Cause| get(&self.faults[cause as usize]);
        PagerStats {
            pages_total: total,
            pages_missing: missing,
            faults_guest_data: fault(Cause::GuestData),
            faults_guest_fetch: fault(Cause::GuestFetch),
            faults_guest_walk: fault(Cause::GuestWalk),
            faults_host: fault(Cause::Host),
            faults_exception: fault(Cause::Exception),
            pages_zero: get(&self.zero),
            pages_file: get(&self.file),
            pages_server: get(&self.server),
            bytes_fetched: get(&self.bytes),
            pages_demanded: get(&self.demanded),
            pages_around: get(&self.around),
            pages_prefetched: get(&self.prefetched),
            prefetch_hits: get(&self.hits),
            prefetch_untouched: get(&self.untouched),
            pages_lost: get(&self.lost),
            guest_latency: self.guest.summary(),
            host_latency: self.host.summary(),
        }
    }
}

/// How long faults took, from the moment they were told to us until the page could be touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Faults measured.
    pub count: u64,
    /// Half of them took at most this.
    pub median: Duration,
    /// 99 in 100 took at most this.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// What a pager has done so far. Pages are of 16 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagerStats {
    /// Pages of RAM.
    pub pages_total: u64,
    /// Pages that are not within reach yet.
    pub pages_missing: u64,
    /// Faults of guest loads and stores.
    pub faults_guest_data: u64,
    /// Faults of guest instruction fetches.
    pub faults_guest_fetch: u64,
    /// Faults of guest translation table walks.
    pub faults_guest_walk: u64,
    /// Pages that devices and other code of ours asked for before touching them.
    pub faults_host: u64,
    /// Pages that were touched unasked and brought by the exception handler.
    pub faults_exception: u64,
    /// Pages known to be zero, which needed no I/O.
    pub pages_zero: u64,
    /// Pages read from files.
    pub pages_file: u64,
    /// Pages fetched from a page server.
    pub pages_server: u64,
    /// Bytes read and fetched.
    pub bytes_fetched: u64,
    /// Pages put within reach because somebody needed them.
    pub pages_demanded: u64,
    /// Pages put within reach because a neighbour was needed.
    pub pages_around: u64,
    /// Pages that the prefetcher brought.
    pub pages_prefetched: u64,
    /// Of these, pages that somebody needed before streaming was over.
    pub prefetch_hits: u64,
    /// Of these, pages that nobody had needed when streaming was over.
    pub prefetch_untouched: u64,
    /// Pages that cannot be had at all: their bytes are damaged.
    pub pages_lost: u64,
    /// Latency of guest faults.
    pub guest_latency: Latency,
    /// Latency of faults of our own threads.
    pub host_latency: Latency,
}

impl PagerStats {
    /// All faults.
    pub fn faults(&self) -> u64 {
        self.faults_guest_data
            + self.faults_guest_fetch
            + self.faults_guest_walk
            + self.faults_host
            + self.faults_exception
    }

    /// Pages whose bytes are here, within reach or not.
    pub fn pages_here(&self) -> u64 {
        self.pages_zero + self.pages_file + self.pages_server
    }

    /// Pages whose bytes were fetched from somewhere, over pages that somebody needed: 1 is a perfect pager.
    pub fn fetched_over_demanded(&self) -> f64 {
        (self.pages_file + self.pages_server) as f64 / self.pages_demanded.max(1) as f64
    }
}
