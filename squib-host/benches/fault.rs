//! One fault on absent RAM from beginning to end, beside the floor in the same run: one `pread` of 16 KiB and two changes of
//! protection.
//!
//!     cargo bench -p squib-host --bench fault
//!
//! Pages come from a memory file, each compared with its checksum. The host's side twice: as devices touch memory (the accessor
//! brings the page), and by an exception through the Mach server, which is the net below it. The guest's side: a load that
//! exits, the page brought, the load executed again. Then storms: the same by eight threads, floor and pager; times are per page.
//! `squib bench restore` has median and 99 % of the same on a real guest's memory.

use std::fs::File;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use squib_host::pager::{BareFloor, FileSource, LazyMemory};
use squib_snapshot::{
    Chain, Contents, DEFAULT_BLOCK_SIZE, GicState, MachineRecord, MicrovmState, PairRequest, VcpuState, save_pair,
};

const PAGE: u64 = 16 << 10;
const PAGES: u64 = 4096;
const STORM: usize = 8;

/// A snapshot without a zero page, and its pages in an order that looks like chance.
struct Snapshot {
    _directory: tempfile::TempDir,
    files: (PathBuf, PathBuf),
    order: Vec<u64>,
}

impl Snapshot {
    fn new() -> Snapshot {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = (directory.path().join("vm.state"), directory.path().join("vm.mem"));
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            random >> 33
        };
        let ram: Vec<u8> = (0..PAGES * PAGE / 4).flat_map(|_| (next() as u32).to_ne_bytes()).collect();
        let state = MicrovmState {
            vcpu_states: vec![VcpuState::new(0)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        };
        let request = PairRequest {
            state_path: &files.0,
            memory_path: &files.1,
            state: &state,
            machine: &MachineRecord::default(),
            memory: &ram,
            ram_start: 0x4000_0000,
            ram_size: PAGES * PAGE,
            contents: Contents::Full,
            block_size: DEFAULT_BLOCK_SIZE,
        };
        save_pair(&request).expect("a snapshot");
        let mut order: Vec<u64> = (0..PAGES).map(|page| page * PAGE).collect();
        for n in (1..order.len()).rev() {
            order.swap(n, next() as usize % (n + 1));
        }
        Snapshot { _directory: directory, files, order }
    }

    /// RAM that is absent, of which every block was checked once: the first page of a block costs the whole block.
    fn lazy(&self) -> LazyMemory {
        let chain = Chain::open((&self.files.0, &self.files.1), &[] as &[(&str, &str)]).expect("the snapshot");
        let mut word = [0; 8];
        for offset in (0..PAGES * PAGE).step_by(DEFAULT_BLOCK_SIZE as usize) {
            chain.read_checked(offset, &mut word).expect("a word of the snapshot");
        }
        LazyMemory::new(Arc::new(FileSource::new(chain))).expect("lazy memory")
    }

    fn floor(&self) -> BareFloor {
        BareFloor::new(&File::open(&self.files.1).expect("the memory file"), PAGES * PAGE).expect("the floor")
    }

    /// Brings `count` pages by `round`, which is given as many as there are at most and tells how long they took.
    fn rounds(&self, count: u64, mut round: impl FnMut(&[u64]) -> Duration) -> Duration {
        let mut left = count as usize;
        let mut time = Duration::ZERO;
        while left > 0 {
            let now = left.min(self.order.len());
            time += round(&self.order[..now]);
            left -= now;
        }
        time
    }
}

fn done<T>(value: T) {
    black_box(value);
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Eight threads take one page after the other, each from a worker that `start` makes on that thread.
fn storm<W: FnMut(u64)>(pages: &[u64], start: impl Fn() -> W + Sync) -> Duration {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut work = start();
        while let Some(&offset) = pages.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(offset);
        }
    };
    timed(|| std::thread::scope(|scope| (0..STORM).for_each(|_| drop(scope.spawn(take)))))
}

fn fault(c: &mut Criterion) {
    let snapshot = Snapshot::new();
    let mut group = c.benchmark_group("fault");
    let bench =
        |group: &mut criterion::BenchmarkGroup<'_, _>, name: &str, round: &mut dyn FnMut(&[u64]) -> Duration| {
            group.bench_function(name, |b| b.iter_custom(|count| snapshot.rounds(count, &mut *round)));
        };
    bench(&mut group, "floor: pread of 16 KiB, two protects", &mut |pages| {
        let floor = snapshot.floor();
        timed(|| pages.iter().for_each(|&page| done(floor.bring(page).expect("the floor"))))
    });
    bench(&mut group, "host side, by the accessor", &mut |pages| {
        let lazy = snapshot.lazy();
        let toucher = lazy.toucher().expect("registered");
        timed(|| pages.iter().for_each(|&page| done(toucher.read(page).expect("a page"))))
    });
    bench(&mut group, "host side, by an exception through the Mach server", &mut |pages| {
        let lazy = snapshot.lazy();
        let toucher = lazy.toucher().expect("registered");
        timed(|| pages.iter().for_each(|&page| done(toucher.touch(page).expect("a page"))))
    });
    bench(&mut group, "guest side", &mut |pages| {
        let lazy = snapshot.lazy();
        lazy.guest_faults(pages).expect("pages").into_iter().sum()
    });
    bench(&mut group, "8 threads, floor", &mut |pages| {
        let floor = snapshot.floor();
        storm(pages, || |page| done(floor.bring(page).expect("the floor")))
    });
    bench(&mut group, "8 threads, by the accessor", &mut |pages| {
        let lazy = snapshot.lazy();
        storm(pages, || {
            let toucher = lazy.toucher().expect("registered");
            move |page| done(toucher.read(page).expect("a page"))
        })
    });
    bench(&mut group, "8 threads, by exceptions", &mut |pages| {
        let lazy = snapshot.lazy();
        storm(pages, || {
            let toucher = lazy.toucher().expect("registered");
            move |page| done(toucher.touch(page).expect("a page"))
        })
    });
    group.finish();
}

criterion_group!(benches, fault);
criterion_main!(benches);
