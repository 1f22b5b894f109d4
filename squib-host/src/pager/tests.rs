//! The pager on real mappings and a real (stand-in) stage 2, with a source that can be slow, away or damaged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use squib_snapshot::PageReader;
use vm_memory::{Bytes, GuestAddress};

use super::state::{ABSENT, Claim};
use super::testing::{BASE, LazyRam, TestSource};
use super::{Brought, Cause, Prefetcher, StreamEvent, StreamObserver};
use crate::error::Error;
use crate::hv::stage2::Permission;
use crate::memory::{GRANULE, GuestMemory};

const PAGES: u64 = 512;

fn page_of(memory: &GuestMemory, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; GRANULE as usize];
    memory.read_slice(&mut bytes, GuestAddress(BASE + page * GRANULE)).unwrap();
    bytes
}

fn expected(source: &TestSource, page: u64) -> &[u8] {
    &source.bytes()[(page * GRANULE) as usize..][..GRANULE as usize]
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Eight threads, half of them a guest's and half of them our own, on the same random pages.
fn storm(fault_around: u32, stream: bool) {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), fault_around);
    let prefetcher = stream.then(|| Prefetcher::start(Arc::clone(&lazy.pager), None, |_| Vec::new()).unwrap());
    let wrong = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (lazy, wrong) = (&lazy, &wrong);
            scope.spawn(move || {
                let memory = lazy.ram.guest_memory().unwrap();
                let mut random = thread + 1;
                for _ in 0..PAGES {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let page = (random >> 33) % PAGES;
                    if thread % 2 == 0 {
                        // A guest's thread goes round until its page is there.
                        while lazy.pager.guest_fault(page * GRANULE + 5, Cause::GuestData).unwrap() == Brought::Now {}
                    }
                    if page_of(&memory, page) != expected(&lazy.source, page) {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
    assert_eq!(lazy.source.reads().0, 1, "no page was read twice");
    if let Some(prefetcher) = prefetcher {
        wait("streaming comes to an end", || lazy.pager.is_done());
        drop(prefetcher);
    }
    let stats = lazy.pager.stats();
    let present = stats.pages_total - stats.pages_missing;
    let opened = stats.pages_demanded + stats.pages_around + stats.prefetch_untouched;
    assert_eq!(opened, present, "every page was opened once: {stats:?}");
    assert_eq!(stats.pages_zero + stats.pages_server, present, "{stats:?}");
    assert_eq!(stats.bytes_fetched, stats.pages_server * GRANULE);
    assert!(stats.faults() >= stats.pages_demanded && stats.guest_latency.count + stats.host_latency.count > 0);
    if fault_around == 1 && !stream {
        assert_eq!((stats.pages_around, stats.pages_prefetched), (0, 0));
        assert_eq!(stats.pages_demanded, present);
    }
}

#[test]
fn a_storm_of_threads_loses_nothing() {
    storm(1, false);
    storm(16, false);
    storm(8, true);
}

#[test]
fn a_neighbour_comes_along_only_if_it_costs_nothing() {
    let lazy = LazyRam::new(TestSource::pattern(16), 8);
    // Pages 3 and 7 of the window are zero; the others would have to be read.
    assert_eq!(lazy.pager.guest_fault(2 * GRANULE, Cause::GuestWalk).unwrap(), Brought::Now);
    let stats = lazy.pager.stats();
    assert_eq!((stats.pages_missing, stats.pages_around, stats.faults_guest_walk), (14, 1, 1));
    assert_eq!(lazy.pager.guest_fault(3 * GRANULE, Cause::GuestFetch).unwrap(), Brought::Before);
    assert_eq!(lazy.source.reads(), (1, 1));
    assert_eq!(lazy.pager.stats().faults(), 1, "a page that is there is no fault");
}

#[test]
fn only_what_is_touched_is_brought() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    let memory = lazy.ram.guest_memory().unwrap();
    let across = GuestAddress(BASE + 10 * GRANULE - 4);
    let at = (10 * GRANULE - 4) as usize;
    assert_eq!(memory.read_obj::<[u8; 8]>(across).unwrap(), lazy.source.bytes()[at..at + 8]);
    assert_eq!(lazy.pager.stats().faults_host, 2);
    assert_eq!(lazy.pager.stats().pages_missing, PAGES - 2);
    memory.write_obj(7u32, GuestAddress(BASE + 20 * GRANULE + 4)).unwrap();
    assert_eq!(lazy.pager.stats().pages_missing, PAGES - 3);
    let mut written = expected(&lazy.source, 20).to_vec();
    written[4..8].copy_from_slice(&7u32.to_le_bytes());
    assert_eq!(page_of(&memory, 20), written, "the rest of a page that is written is there too");
    assert_eq!(lazy.ram.dirty().unwrap().drain(), [20], "arriving is no writing");
    assert!((lazy.pager.stats().fetched_over_demanded() - 1.0).abs() < 1e-9);
    assert_eq!(lazy.pager.monitor().touched(), [9, 10, 20], "in the order of the first touches");
}

/// What a snapshot reads: all of RAM, and nothing arrives by it.
#[test]
fn a_snapshot_of_absent_ram_is_right_and_leaves_it_absent() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    let memory = lazy.ram.guest_memory().unwrap();
    let mut expected = lazy.source.bytes().to_vec();
    for page in [1u64, 2, 3, 100, 511] {
        let at = page * GRANULE + 1234;
        memory.write_obj(0xabcdu16, GuestAddress(BASE + at)).unwrap();
        expected[at as usize..][..2].copy_from_slice(&0xabcdu16.to_le_bytes());
    }
    let missing = lazy.pager.stats().pages_missing;
    let _quiet = lazy.pager.quiet();
    for part in [1 << 20, 64 << 10, 4096, 10_000] {
        let mut offset = 0;
        for expected in expected.chunks(part) {
            let mut read = vec![0; expected.len()];
            lazy.ram.read_at(offset, &mut read).unwrap();
            assert!(read == expected, "{part} bytes at {offset:#x}");
            let zero = expected.iter().all(|&byte| byte == 0);
            assert!(zero || !lazy.ram.is_known_zero(offset, expected.len() as u64), "{part} bytes at {offset:#x}");
            offset += expected.len() as u64;
        }
    }
    assert!(lazy.ram.is_known_zero(7 * GRANULE, GRANULE), "known by the source");
    assert!(!lazy.ram.is_known_zero(3 * GRANULE, GRANULE), "written since");
    assert!(lazy.ram.read_at(PAGES * GRANULE - 1, &mut [0; 2]).is_err());
    assert_eq!(lazy.pager.stats().pages_missing, missing);
}

/// A machine that ends with a snapshot under way: what is here can still be read, and what is absent is never zero.
#[test]
fn without_its_pager_absent_ram_is_an_error() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    let (ram, memory) = (&lazy.ram, lazy.ram.guest_memory().unwrap());
    assert_eq!(page_of(&memory, 5), expected(&lazy.source, 5));
    drop(lazy.pager);
    let mut page = vec![0; GRANULE as usize];
    ram.read_at(5 * GRANULE, &mut page).unwrap();
    assert_eq!(page, expected(&lazy.source, 5));
    for absent in [4, 3] {
        let error = ram.read_at(absent * GRANULE, &mut page).unwrap_err().to_string();
        assert!(error.contains("its pager is gone"), "{error}");
        assert!(!ram.is_known_zero(absent * GRANULE, GRANULE), "page {absent}");
    }
    assert!(memory.read_obj::<u8>(GuestAddress(BASE)).is_err());
    assert!(ram.read_at(PAGES * GRANULE, &mut page).is_err(), "beyond the end of RAM");
}

#[test]
fn a_damaged_page_is_an_error_every_time_and_asked_for_once() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    lazy.source.damaged.lock().unwrap().insert(9);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    lazy.pager.on_failure(move |error| tell.lock().unwrap().push(error.to_string()));
    let memory = lazy.ram.guest_memory().unwrap();
    for _ in 0..3 {
        let error = memory.read_obj::<u8>(GuestAddress(BASE + 9 * GRANULE)).unwrap_err().to_string();
        assert!(error.contains("0x40024000..0x40028000") && error.contains("page 9 is damaged"), "{error}");
        let error = lazy.pager.guest_fault(9 * GRANULE, Cause::GuestData).unwrap_err();
        assert!(matches!(error, Error::PageLost { start: 0x4002_4000, .. }), "{error}");
    }
    assert_eq!(told.lock().unwrap().len(), 3, "the machine is told what our own code met");
    assert_eq!(lazy.source.reads(), (1, 1));
    assert!(lazy.ram.read_at(9 * GRANULE, &mut [0; 16]).is_err(), "and no snapshot can be taken of it");
    assert_eq!(page_of(&memory, 8), expected(&lazy.source, 8));
}

#[test]
fn a_source_that_comes_back_is_asked_again() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    lazy.source.away.store(true, Ordering::Relaxed);
    let error = lazy.pager.guest_fault(5 * GRANULE, Cause::GuestData).unwrap_err();
    assert!(matches!(error, Error::PageUnavailable { .. }), "{error}");
    let memory = lazy.ram.guest_memory().unwrap();
    assert!(memory.read_obj::<u8>(GuestAddress(BASE + 5 * GRANULE)).is_err());
    lazy.source.away.store(false, Ordering::Relaxed);
    assert_eq!(page_of(&memory, 5), expected(&lazy.source, 5));
}

#[test]
fn streaming_ends_with_an_ordinary_ram() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    let memory = lazy.ram.guest_memory().unwrap();
    page_of(&memory, 77);
    lazy.source.away.store(true, Ordering::Relaxed);
    lazy.source.damaged.lock().unwrap().insert(300);
    let first = 400 * GRANULE..410 * GRANULE;
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let observer = StreamObserver::new(move |event| tell.lock().unwrap().push(event));
    let prefetcher = Prefetcher::start(Arc::clone(&lazy.pager), Some(observer), move |look| {
        assert_eq!(look(PAGES * GRANULE - 7), None);
        vec![first]
    });
    let prefetcher = prefetcher.unwrap();
    wait("it tells that the source is away", || !told.lock().unwrap().is_empty());
    assert_eq!(lazy.source.reads(), (1, 1), "it waits for a source that is away");
    lazy.source.away.store(false, Ordering::Relaxed);
    wait("all but the damaged page arrives", || lazy.pager.stats().pages_missing == 1);
    drop(prefetcher);
    for page in (0..PAGES).filter(|&page| page != 300) {
        assert_eq!(page_of(&memory, page), expected(&lazy.source, page), "page {page}");
    }
    let stats = lazy.pager.stats();
    assert_eq!((stats.pages_prefetched, stats.pages_lost), (PAGES - 2, 1), "{stats:?}");
    let [
        StreamEvent::Away { wrong: false, reason },
        StreamEvent::Back,
        StreamEvent::Lost { start, len, reason: damage },
    ] = &told.lock().unwrap()[..]
    else {
        panic!("{told:?}")
    };
    assert!(reason.contains("is away") && damage.contains("page 300 is damaged"), "{told:?}");
    assert_eq!((*start, *len), (BASE + 300 * GRANULE, GRANULE));
    assert!(memory.read_obj::<u8>(GuestAddress(BASE + 300 * GRANULE)).is_err());
    drop(memory);
    drop(lazy);

    let lazy = LazyRam::new(TestSource::pattern(64), 1);
    let prefetcher = Prefetcher::start(Arc::clone(&lazy.pager), None, |_| Vec::new()).unwrap();
    wait("all arrives", || lazy.pager.is_done());
    drop(prefetcher);
    assert_eq!(Arc::strong_count(&lazy.source), 1, "the source is let go");
    let mut bytes = vec![0; 64 * GRANULE as usize];
    lazy.ram.read_at(0, &mut bytes).unwrap();
    assert!(bytes == lazy.source.bytes());
}

/// The prefetcher passes a page that a fault is at, whose source then turns out to be away: it comes back for it.
#[test]
fn a_page_that_a_fault_could_not_have_is_streamed_all_the_same() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    assert_eq!(lazy.pager.states().claim(100), Claim::Fill);
    let prefetcher = Prefetcher::start(Arc::clone(&lazy.pager), None, |_| Vec::new()).unwrap();
    wait("the others arrive", || lazy.pager.stats().pages_here() == PAGES - 1);
    // What somebody needs meanwhile was worth bringing early; what nobody needs was not.
    let memory = lazy.ram.guest_memory().unwrap();
    for page in [5, 7, 5] {
        assert_eq!(page_of(&memory, page), expected(&lazy.source, page));
    }
    lazy.pager.states().release(100, ABSENT);
    wait("all arrives", || lazy.pager.is_done());
    drop(prefetcher);
    assert_eq!(page_of(&memory, 100), expected(&lazy.source, 100));
    let stats = lazy.pager.stats();
    assert_eq!((stats.pages_prefetched, stats.pages_demanded, stats.faults_host), (PAGES, 2, 2), "{stats:?}");
    assert_eq!((stats.prefetch_hits, stats.prefetch_untouched), (2, PAGES - 2), "{stats:?}");
}

/// Four threads bring pages when the system has no mapping left to split the guest view once more. Whole blocks are opened then; that
/// of page 200 cannot be, since the page is damaged.
fn with_scarce_mappings(bring: impl Fn(&LazyRam, &GuestMemory, u64, u64) + Sync) -> LazyRam {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    page_of(&lazy.ram.guest_memory().unwrap(), 1);
    lazy.ram.make_mappings_scarce();
    lazy.source.damaged.lock().unwrap().insert(200);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (lazy, bring) = (&lazy, &bring);
            scope.spawn(move || {
                let memory = lazy.ram.guest_memory().unwrap();
                for page in [77, 0, 300 + thread, 127, 511 - thread] {
                    bring(lazy, &memory, thread, page);
                }
            });
        }
    });
    assert_eq!(lazy.pager.stats().pages_missing, 128, "all but the block that is damaged, which nobody needed");
    lazy
}

fn is_right(lazy: &LazyRam, memory: &GuestMemory, page: u64) {
    assert_eq!(page_of(memory, page), expected(&lazy.source, page));
}

#[test]
fn scarce_mappings_cost_blocks_and_nothing_else() {
    let lazy = with_scarce_mappings(|lazy, memory, _, page| is_right(lazy, memory, page));
    let memory = lazy.ram.guest_memory().unwrap();
    assert!(memory.read_obj::<u8>(GuestAddress(BASE + 200 * GRANULE)).is_err());
    assert!(memory.read_obj::<u8>(GuestAddress(BASE + 199 * GRANULE)).is_err(), "its block cannot be opened");
    assert_eq!(lazy.source.reads().0, 1);
}

/// The same for the prefetcher's last sweep: the pager leaves there, too.
#[test]
fn scarce_mappings_do_not_keep_the_pager() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    let memory = lazy.ram.guest_memory().unwrap();
    for page in [60, 190, 320, 450] {
        page_of(&memory, page);
    }
    lazy.ram.make_mappings_scarce();
    let prefetcher = Prefetcher::start(Arc::clone(&lazy.pager), None, |_| Vec::new()).unwrap();
    wait("all arrives", || lazy.pager.is_done());
    drop(prefetcher);
    let stats = lazy.pager.stats();
    assert_eq!((stats.prefetch_untouched, stats.pages_demanded), (PAGES - 4, 4), "{stats:?}");
    assert_eq!(page_of(&memory, 191), expected(&lazy.source, 191));
}

/// The same for the net, beside others.
#[test]
fn scarce_mappings_are_no_obstacle_to_the_net() {
    let lazy = with_scarce_mappings(|lazy, memory, thread, page| match thread % 2 {
        0 => assert_eq!(lazy.pager.exception(page * GRANULE), super::quiet::Caught::Resolved),
        _ => is_right(lazy, memory, page),
    });
    for _ in 0..2 {
        assert_eq!(lazy.pager.exception(199 * GRANULE), super::quiet::Caught::Failed, "its block cannot be opened");
    }
    is_right(&lazy, &lazy.ram.guest_memory().unwrap(), 383);
}

/// What the accessor was not asked for is caught, on threads that have guest memory, and counted.
#[test]
fn a_touch_that_nobody_announced_brings_its_page() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    let net = Arc::new(super::Net::spread(&lazy.pager).unwrap());
    lazy.ram.set_net(Arc::downgrade(&net));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let lazy = &lazy;
            scope.spawn(move || {
                let _memory = lazy.ram.guest_memory().unwrap();
                for page in 0..PAGES {
                    let page = (page + thread * 7) % PAGES;
                    let at = (page * GRANULE + 8 * thread) as usize;
                    // SAFETY: eight aligned bytes of the guest view, which lives as long as `lazy`; absent pages are brought by
                    // the exception handler before the access goes on.
                    let word = unsafe { lazy.ram.guest_view().add(at).cast::<u64>().read_volatile() };
                    assert_eq!(word.to_le_bytes(), lazy.source.bytes()[at..at + 8]);
                }
            });
        }
    });
    let stats = lazy.pager.stats();
    assert!(stats.pages_missing == 0 && stats.faults_exception >= PAGES, "{stats:?}");
    assert_eq!((stats.faults_host, lazy.source.reads().0), (0, 1));
}

/// The prefetcher reads pages, and takes its time; what is touched meanwhile, by a thread that must not wait for that, arrives and stays.
#[test]
fn the_net_takes_pages_away_from_the_prefetcher() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    let net = Arc::new(super::Net::spread(&lazy.pager).unwrap());
    lazy.ram.set_net(Arc::downgrade(&net));
    lazy.source.stalled.store(true, Ordering::Relaxed);
    let prefetcher = Prefetcher::start(Arc::clone(&lazy.pager), None, |_| Vec::new()).unwrap();
    wait("the prefetcher reads", || lazy.source.reads().1 > 0);
    let memory = lazy.ram.guest_memory().unwrap();
    let touched = [2, 0, 5, 3, 400];
    for page in touched {
        let at = (page * GRANULE) as usize;
        // SAFETY: an aligned byte of the guest view, which lives as long as `lazy`; an absent page is brought by the exception handler
        // before the access goes on.
        let byte = unsafe { lazy.ram.guest_view().add(at).read_volatile() };
        assert_eq!(byte, lazy.source.bytes()[at]);
        memory.write_obj(7u8, GuestAddress(BASE + page * GRANULE)).unwrap();
    }
    lazy.source.stalled.store(false, Ordering::Relaxed);
    wait("streaming comes to an end", || lazy.pager.is_done());
    drop(prefetcher);
    for page in 0..PAGES {
        let mut expected = expected(&lazy.source, page).to_vec();
        if touched.contains(&page) {
            expected[0] = 7;
        }
        assert!(page_of(&memory, page) == expected, "page {page}");
    }
    let stats = lazy.pager.stats();
    let touched = touched.len() as u64;
    assert_eq!((stats.faults_exception, stats.pages_prefetched), (touched, PAGES - touched), "{stats:?}");
    assert_eq!(stats.pages_zero + stats.pages_server, PAGES, "each page arrived once: {stats:?}");
}

/// A page that cannot be put within reach says so to whoever asks for it in the ordinary way; the bytes stay.
#[test]
fn a_mapping_that_is_refused_is_explained() {
    let lazy = LazyRam::new(TestSource::pattern(PAGES), 1);
    let other = crate::memory::GuestRam::new(BASE + 5 * GRANULE, GRANULE, false).unwrap();
    let other = crate::hv::stage2::MappedRam::whole(other).unwrap();
    // The stand-in has a switch that lets one mapping replace another.
    let refuses = other.map(0, GRANULE, Permission::ReadExec).is_err();
    for _ in 0..if refuses { 2 } else { 0 } {
        assert_eq!(lazy.pager.exception(5 * GRANULE), super::quiet::Caught::Failed);
        let error = lazy.pager.guest_fault(5 * GRANULE, Cause::GuestData).unwrap_err();
        let said = "refused to map 0x4000 bytes of guest RAM at 0x40014000";
        assert!(matches!(error, Error::Hypervisor { .. }) && error.to_string().contains(said), "{error}");
    }
    drop(other);
    assert_eq!(lazy.pager.guest_fault(5 * GRANULE, Cause::GuestData).unwrap(), Brought::Now);
    assert_eq!(lazy.source.reads(), (1, 1));
}
