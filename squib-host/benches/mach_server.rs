//! The Mach server of the pager alone: a thread touches an absent page, the kernel (or the stand-in's) sends the exception, a
//! thread of the pager opens the page and replies, the instruction is executed again. Beside it, in the same run, the floor: one
//! `pread` of 16 KiB and the two `mprotect` calls that close and open a page, without any fault.
//!
//!     cargo bench -p squib-host --bench mach_server
//!
//! Times are per page. Closing the pages again between two rounds is not in them, except in the floor.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use squib_host::pager::{FaultHandler, MachPager, Verdict};

const PAGE: usize = 16 << 10;
const PAGES: usize = 512;
const STORM: usize = 8;

/// A file and three mappings' worth of it: what is touched, what is filled, and where the bytes come from.
struct Pages {
    view: *mut u8,
    fill: *mut u8,
    source: File,
    /// Whether a page is filled from the source before it is opened.
    filling: bool,
}

// SAFETY: the pointers are mappings that live as long as the process; they are accessed by volatile reads and system calls only.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(filling: bool) -> Arc<Pages> {
        let object = tempfile::tempfile().expect("a temporary file");
        object.set_len((PAGES * PAGE) as u64).expect("room for the pages");
        let mut source = tempfile::tempfile().expect("a temporary file");
        source.write_all(&vec![1; PAGES * PAGE]).expect("room for the source");
        let map = || {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping of our own file at an address of the kernel's choice.
            let at = unsafe {
                libc::mmap(std::ptr::null_mut(), PAGES * PAGE, protection, libc::MAP_SHARED, object.as_raw_fd(), 0)
            };
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>()
        };
        let pages = Pages { view: map(), fill: map(), source, filling };
        // Pages of the object exist before anything is measured.
        for page in 0..PAGES {
            pages.fill(page);
        }
        pages.protect(0, PAGES, libc::PROT_NONE);
        Arc::new(pages)
    }

    fn protect(&self, page: usize, pages: usize, protection: i32) {
        let at = self.view.wrapping_add(page * PAGE);
        // SAFETY: a part of our own mapping, which is accessed by volatile reads only.
        assert_eq!(unsafe { libc::mprotect(at.cast(), pages * PAGE, protection) }, 0);
    }

    fn fill(&self, page: usize) {
        let at = self.fill.wrapping_add(page * PAGE);
        // SAFETY: `at` is the start of a page of the fill view.
        let read = unsafe { libc::pread(self.source.as_raw_fd(), at.cast(), PAGE, (page * PAGE) as libc::off_t) };
        assert_eq!(read, PAGE as isize);
    }

    fn touch(&self, page: usize) {
        // SAFETY: inside the view. That it faults is what is measured.
        black_box(unsafe { self.view.wrapping_add(page * PAGE).read_volatile() });
    }
}

impl FaultHandler for Pages {
    fn handle(&self, address: u64) -> Verdict {
        let page = (address as usize).wrapping_sub(self.view as usize) / PAGE;
        if page >= PAGES {
            return Verdict::NotOurs;
        }
        if self.filling {
            self.fill(page);
        }
        self.protect(page, 1, libc::PROT_READ | libc::PROT_WRITE);
        Verdict::Resolved
    }
}

/// Runs `round` over as many pages as asked, at most all at once, and closes them in between.
fn rounds(pages: &Pages, count: u64, mut round: impl FnMut(usize) -> Duration) -> Duration {
    let mut left = count as usize;
    let mut time = Duration::ZERO;
    while left > 0 {
        let now = left.min(PAGES);
        time += round(now);
        pages.protect(0, PAGES, libc::PROT_NONE);
        left -= now;
    }
    time
}

fn one_thread(pages: &Arc<Pages>, count: u64) -> Duration {
    let pager = MachPager::new(pages.clone(), 1).expect("a pager");
    let _registered = pager.register_current_thread().expect("registered");
    rounds(pages, count, |now| {
        let begun = Instant::now();
        (0..now).for_each(|page| pages.touch(page));
        begun.elapsed()
    })
}

/// Each page is touched by one of the threads.
fn storm(pages: &Arc<Pages>, count: u64) -> Duration {
    let pager = MachPager::new(pages.clone(), 2).expect("a pager");
    let next = AtomicUsize::new(usize::MAX / 2);
    let (limit, barrier) = (AtomicUsize::new(0), Barrier::new(STORM + 1));
    std::thread::scope(|scope| {
        for _ in 0..STORM {
            scope.spawn(|| {
                let _registered = pager.register_current_thread().expect("registered");
                loop {
                    barrier.wait();
                    let limit = limit.load(Ordering::Relaxed);
                    if limit == 0 {
                        return;
                    }
                    while let page @ 0..PAGES = next.fetch_add(1, Ordering::Relaxed) {
                        if page >= limit {
                            break;
                        }
                        pages.touch(page);
                    }
                    barrier.wait();
                }
            });
        }
        let time = rounds(pages, count, |now| {
            next.store(0, Ordering::Relaxed);
            limit.store(now, Ordering::Relaxed);
            barrier.wait();
            let begun = Instant::now();
            barrier.wait();
            begun.elapsed()
        });
        limit.store(0, Ordering::Relaxed);
        barrier.wait();
        time
    })
}

fn floor(pages: &Pages, count: u64) -> Duration {
    rounds(pages, count, |now| {
        let begun = Instant::now();
        for page in 0..now {
            pages.fill(page);
            pages.protect(page, 1, libc::PROT_READ | libc::PROT_WRITE);
            pages.touch(page);
            pages.protect(page, 1, libc::PROT_NONE);
        }
        begun.elapsed()
    })
}

fn mach_server(c: &mut Criterion) {
    let (opened, filled) = (Pages::new(false), Pages::new(true));
    let mut group = c.benchmark_group("mach_server");
    group.bench_function("floor: pread of 16 KiB, two mprotect", |b| b.iter_custom(|count| floor(&filled, count)));
    group.bench_function("one thread, pages opened", |b| b.iter_custom(|count| one_thread(&opened, count)));
    group.bench_function("one thread, pages read and opened", |b| b.iter_custom(|count| one_thread(&filled, count)));
    group.bench_function("8 threads, pages read and opened", |b| b.iter_custom(|count| storm(&filled, count)));
    group.finish();
}

criterion_group!(benches, mach_server);
criterion_main!(benches);
