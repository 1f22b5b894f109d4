//! Faults of our own threads: one at a time and a storm of them, each beside the bare floor.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use squib_host::pager::{BareFloor, FileSource, LazyMemory, Toucher};
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

/// Pages per second, by one thread and by [`HostFaults::threads`].
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub alone: f64,
    pub storm: f64,
}

#[derive(Debug)]
pub struct HostFaults {
    pub pages: usize,
    pub one: Spread,
    pub floor: Spread,
    pub rate: Rate,
    /// The floor's: what the kernel's lock of the address space leaves of more threads.
    pub floor_rate: Rate,
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
    let floor = || BareFloor::new(file, chain.ram_size());
    let alone = floor()?;
    let (floor_alone, floor_times) = one_by_one(&pages, |offset| Ok(alone.bring(offset).map(drop)?))?;
    let together = floor()?;
    let floor_storm = storm(pages.len(), || Ok(|n: usize| Ok(together.bring(pages[n]).map(drop)?)))?;

    let lazy = || -> Result<_> { Ok(LazyMemory::new(Arc::new(FileSource::new(open()?)))?) };
    let memory = lazy()?;
    let toucher = memory.toucher()?;
    let (alone, times) = one_by_one(&pages, |offset| Ok(toucher.read(offset).map(drop)?))?;
    drop(toucher);
    drop(memory);

    let memory = lazy()?;
    let wrong = AtomicU64::new(0);
    let compare = |toucher: &Toucher<'_>, n: usize| -> Result<()> {
        wrong.fetch_add(u64::from(toucher.read(pages[n])? != expected[n]), Ordering::Relaxed);
        Ok(())
    };
    let storm = storm(pages.len(), || {
        let (toucher, compare) = (memory.toucher()?, &compare);
        Ok(move |n: usize| {
            if n % 2 == 1 && n > THREADS {
                // A page that another thread is at, too.
                compare(&toucher, n - 1)?;
            }
            compare(&toucher, n)
        })
    })?;
    Ok(HostFaults {
        pages: pages.len(),
        one: spread(times),
        floor: spread(floor_times),
        rate: Rate { alone, storm },
        floor_rate: Rate { alone: floor_alone, storm: floor_storm },
        threads: THREADS,
        wrong: wrong.into_inner(),
    })
}

/// Pages per second, and how long each took.
fn one_by_one(pages: &[u64], mut bring: impl FnMut(u64) -> Result<()>) -> Result<(f64, Vec<Duration>)> {
    let mut times = Vec::with_capacity(pages.len());
    let begun = Instant::now();
    for &offset in pages {
        let begun = Instant::now();
        bring(offset)?;
        times.push(begun.elapsed());
    }
    Ok((pages.len() as f64 / begun.elapsed().as_secs_f64(), times))
}

/// Threads that take one of `count` pages after the other, each by a worker that `start` makes on it; pages per second.
fn storm<W: FnMut(usize) -> Result<()>>(count: usize, start: impl Fn() -> Result<W> + Sync) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut bring = start()?;
        std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed))
            .take_while(|&n| n < count)
            .try_for_each(&mut bring)
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(take)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| match thread.join() {
            Ok(result) => result,
            Err(_) => Err(Error::Message("a thread of the storm panicked".into())),
        };
        threads.into_iter().try_for_each(join)
    })?;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
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
