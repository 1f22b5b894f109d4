//! Faults of our own threads: one at a time, beside the bare floor; and a storm of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use squib_host::pager::{FileSource, LazyMemory, bare_floor};
use squib_snapshot::Chain;

use crate::error::{Error, Result, SnapshotContext};

const PAGE: u64 = 16 << 10;
/// Pages touched.
const PAGES: usize = 4000;
/// Threads of the storm.
const THREADS: usize = 8;

/// Median and 99 % in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median_us: f64,
    pub p99_us: f64,
}

#[derive(Debug)]
pub struct HostFaults {
    pub pages: usize,
    pub one: Spread,
    pub floor: Spread,
    /// Pages per second with one thread and with [`HostFaults::threads`].
    pub alone: f64,
    pub storm: f64,
    pub threads: usize,
    /// Words read in the storm that were not what the file holds. 0, or something is wrong.
    pub wrong: u64,
}

fn spread(mut times: Vec<Duration>) -> Spread {
    times.sort_unstable();
    let us = |place: usize| times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e6);
    Spread { median_us: us(times.len() / 2), p99_us: us(times.len() * 99 / 100) }
}

/// Measures on the memory of a snapshot.
pub fn measure(state: &Path, memory: &Path) -> Result<HostFaults> {
    let open = || Chain::open((state, memory), &[] as &[(&str, &str)]).about(state);
    let chain = open()?;
    let pages = pages(&chain);
    let mut expected = Vec::with_capacity(pages.len());
    for &offset in &pages {
        let mut word = [0; 8];
        chain.read_checked(offset, &mut word).about(memory)?;
        expected.push(u64::from_le_bytes(word));
    }
    let file = chain.links()[0].memory_file();
    let floor = spread(bare_floor(file, chain.ram_size(), &pages)?);

    let lazy = LazyMemory::new(Arc::new(FileSource::new(open()?)))?;
    let mut times = Vec::with_capacity(pages.len());
    let toucher = lazy.toucher()?;
    let begun = Instant::now();
    for &offset in &pages {
        let begun = Instant::now();
        toucher.read(offset)?;
        times.push(begun.elapsed());
    }
    let alone = pages.len() as f64 / begun.elapsed().as_secs_f64();
    drop(toucher);
    drop(lazy);

    let lazy = LazyMemory::new(Arc::new(FileSource::new(open()?)))?;
    let (next, wrong) = (AtomicUsize::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    let storm = || -> Result<()> {
        let toucher = lazy.toucher()?;
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some((&offset, &word)) = pages.get(n).zip(expected.get(n)) else { return Ok(()) };
            // Half of the time a page that another thread is at, too.
            let (offset, word) =
                if n % 2 == 1 && n > THREADS { (pages[n - 1], expected[n - 1]) } else { (offset, word) };
            if toucher.read(offset)? != word {
                wrong.fetch_add(1, Ordering::Relaxed);
            }
            if toucher.read(pages[n])? != expected[n] {
                wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(storm)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| match thread.join() {
            Ok(result) => result,
            Err(_) => Err(Error::Message("a thread of the storm panicked".into())),
        };
        threads.into_iter().try_for_each(join)
    })?;
    let storm = pages.len() as f64 / begun.elapsed().as_secs_f64();
    let wrong = wrong.into_inner();
    Ok(HostFaults { pages: pages.len(), one: spread(times), floor, alone, storm, threads: THREADS, wrong })
}

/// Pages with something in them, in an order that looks like chance.
fn pages(chain: &Chain) -> Vec<u64> {
    let all = (0..chain.ram_size() / PAGE).map(|page| page * PAGE);
    let mut pages: Vec<u64> = all.filter(|&offset| !chain.is_known_zero(offset, PAGE)).collect();
    let mut random = 1u64;
    for n in (1..pages.len()).rev() {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        pages.swap(n, (random >> 33) as usize % (n + 1));
    }
    pages.truncate(PAGES);
    pages
}
