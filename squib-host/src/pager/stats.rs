//! What the pager did: faults by who met them, pages by where they came from, and how long a fault took.
//!
//! Counting takes no lock and allocates nothing, since threads of the net do it: counters are atomics, and so are the buckets of
//! latencies, all of which are there from the start. A histogram is made of them when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};
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

/// Bits of a latency that are kept: two digits, as the histogram made of them has.
const BITS: u32 = 8;
/// Buckets up to the one of [`LATENCY_MAX_NS`].
const BUCKETS: usize = bucket(LATENCY_MAX_NS) + 1;

/// The bucket of a latency: below 256 ns each has its own, above that each power of two is divided into 128.
const fn bucket(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(BITS);
    (shift as usize) * (1 << (BITS - 1)) + (ns >> shift) as usize
}

/// The least latency of a bucket.
fn least(bucket: usize) -> u64 {
    let shift = (bucket >> (BITS - 1)).saturating_sub(1);
    ((bucket - (shift << (BITS - 1))) as u64) << shift
}

/// Fault latencies: nanoseconds, to two digits.
#[derive(Debug)]
struct Latencies(Box<[AtomicU64]>);

impl Latencies {
    fn new() -> Latencies {
        Latencies((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }

    fn record(&self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).clamp(1, LATENCY_MAX_NS);
        self.0[bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    fn summary(&self) -> Latency {
        // Bounds and digits are constants that the histogram accepts.
        let mut histogram = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_NS, 2).expect("constant bounds");
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
        // Within the bounds: `record` saw to it.
        counts.filter(|&(_, count)| count > 0).for_each(|(at, count)| histogram.saturating_record_n(least(at), count));
        let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
        let max = Duration::from_nanos(histogram.max());
        Latency { count: histogram.len(), median: at(0.5), p99: at(0.99), max, spread: Spread::of(&histogram) }
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
    /// How they are spread.
    pub spread: Spread,
}

/// Faults by how long they took: at most 1 us, more than that and at most 2 us, at most 4 us, and so on up to a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread([u64; SPREAD]);

/// Buckets of a [`Spread`]: 2^26 us is more than the longest latency.
const SPREAD: usize = 27;

impl Spread {
    fn of(histogram: &Histogram<u64>) -> Spread {
        let mut spread = Spread::default();
        for value in histogram.iter_recorded() {
            let us = value.value_iterated_to().div_ceil(1000).max(1);
            spread.0[us.next_power_of_two().ilog2() as usize] += value.count_since_last_iteration();
        }
        spread
    }

    /// The upper bound and the number of faults of each bucket that has any, the shortest first.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let bounds = (0..SPREAD).map(|bucket| Duration::from_micros(1 << bucket));
        bounds.zip(self.0).filter(|&(_, count)| count > 0)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_what_a_histogram_of_two_digits_makes_of_them() {
        let (latencies, mut histogram) =
            (Latencies::new(), Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_NS, 2).unwrap());
        let powers = (0..36).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1, (1 << bit) * 3 / 2]);
        for ns in powers.chain([0, LATENCY_MAX_NS, u64::MAX]).chain((0..200_000).step_by(7)) {
            latencies.record(Duration::from_nanos(ns));
            histogram.saturating_record(ns.clamp(1, LATENCY_MAX_NS));
            let bucket = bucket(ns.min(LATENCY_MAX_NS));
            assert!(least(bucket) <= ns && super::bucket(least(bucket)) == bucket, "{ns}");
        }
        let summary = latencies.summary();
        assert_eq!(summary.count, histogram.len());
        for (found, quantile) in [(summary.median, 0.5), (summary.p99, 0.99), (summary.max, 1.0)] {
            assert_eq!(found.as_nanos() as u64, histogram.value_at_quantile(quantile), "{quantile}");
        }
        assert_eq!(summary.spread.buckets().map(|(_, count)| count).sum::<u64>(), summary.count);
    }

    #[test]
    fn the_spread_has_a_bucket_for_each_power_of_two_of_microseconds() {
        let latencies = Latencies::new();
        // Two digits are kept: each of these is well inside its bucket.
        for us in [0, 1, 2, 3, 3, 900, 60_000_000, 90_000_000] {
            latencies.record(Duration::from_micros(us) * 9 / 10);
        }
        let found: Vec<_> = latencies.summary().spread.buckets().map(|(to, count)| (to.as_micros(), count)).collect();
        assert_eq!(found, [(1, 2), (2, 1), (4, 2), (1024, 1), (1 << 26, 2)]);
    }
}
