//! A lazy RAM with a source that tests can break, and the virtual machine it is mapped into.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::source::{Origin, PageSource, SourceError, Unexplained};
use super::{PageStates, Pager};
use crate::hv::stage2::MappedRam;
use crate::hv::vm::BareVm;
use crate::memory::{GRANULE, GuestRam};

/// IPA of the RAM.
pub const BASE: u64 = 0x4000_0000;

/// Bytes in memory, of which zero pages are known to be zero.
#[derive(Debug)]
pub struct TestSource {
    bytes: Vec<u8>,
    /// How often each page was read.
    reads: Vec<AtomicU64>,
    /// Pages in the order in which they were read.
    order: Mutex<Vec<u64>>,
    /// What was to be expected, by [`PageSource::expect`], and how many pages had been read by then.
    pub expected: Mutex<Vec<(u64, usize)>>,
    /// The server is away.
    pub away: AtomicBool,
    /// Nothing is read until this is over, but quietly.
    pub stalled: AtomicBool,
    /// Pages that are damaged.
    pub damaged: Mutex<HashSet<u64>>,
}

impl TestSource {
    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Arc<TestSource> {
        let reads = (0..bytes.len().div_ceil(GRANULE as usize)).map(|_| AtomicU64::new(0)).collect();
        Arc::new(TestSource {
            bytes,
            reads,
            order: Mutex::default(),
            expected: Mutex::default(),
            away: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            damaged: Mutex::default(),
        })
    }

    /// `pages` pages, each of its own content; every fourth is zero.
    pub fn pattern(pages: u64) -> Arc<TestSource> {
        let word = |page: u64, n: u64| if page % 4 == 3 { 0 } else { page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n };
        let words = (0..pages).flat_map(|page| (0..GRANULE / 8).map(move |n| word(page, n)));
        TestSource::new(words.flat_map(u64::to_le_bytes).collect())
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The pages that were read, in order.
    pub fn order(&self) -> Vec<u64> {
        self.order.lock().unwrap().clone()
    }

    /// How often the most-read page was read, and how many pages were read at all.
    pub fn reads(&self) -> (u64, u64) {
        let reads = || self.reads.iter().map(|reads| reads.load(Ordering::Relaxed));
        (reads().max().unwrap_or(0), reads().filter(|&reads| reads > 0).count() as u64)
    }
}

impl PageSource for TestSource {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError> {
        let result = self.give(offset, buf);
        while self.stalled.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        result
    }

    /// Not as quiet as it should be: nobody in these tests holds a lock of this source, or the allocator, when it faults.
    fn read_quietly(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, Unexplained> {
        self.give(offset, buf).map_err(|_| Unexplained)
    }

    fn expect(&self, offset: u64, _len: u64) {
        let read = self.order.lock().unwrap().len();
        self.expected.lock().unwrap().push((offset, read));
    }

    fn known_zero(&self, offset: u64, len: u64) -> u64 {
        let part = &self.bytes[offset as usize..][..len as usize];
        if part.iter().all(|&byte| byte == 0) { len } else { 0 }
    }
}

impl TestSource {
    fn give(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(SourceError::Unavailable("the test's source is away".into()));
        }
        for page in PageStates::pages(offset, buf.len() as u64) {
            self.reads[page as usize].fetch_add(1, Ordering::Relaxed);
            self.order.lock().unwrap().push(page);
            if self.damaged.lock().unwrap().contains(&page) {
                return Err(SourceError::Damaged(format!("the test's page {page} is damaged")));
            }
        }
        // Slowly: others come meanwhile.
        std::thread::yield_now();
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(Origin::Server)
    }
}

/// One virtual machine lives at a time: the tests of this crate that make one take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

/// A lazy RAM, all of it absent. One lives at a time, as virtual machines do.
pub struct LazyRam {
    // Dropped in this order: the memory map goes before the machine.
    /// Its pager.
    pub pager: Arc<Pager>,
    /// The RAM.
    pub ram: Arc<GuestRam>,
    /// Where its pages come from.
    pub source: Arc<TestSource>,
    _vm: BareVm,
    _turn: MutexGuard<'static, ()>,
}

impl LazyRam {
    /// RAM with these bytes.
    pub fn new(source: Arc<TestSource>, fault_around: u32) -> LazyRam {
        let turn = turn();
        let vm = BareVm::create().unwrap();
        let ram = GuestRam::absent(BASE, source.size(), true).unwrap();
        let mapped = Arc::new(MappedRam::absent(Arc::clone(&ram)));
        let pager = Pager::new(mapped, Arc::clone(&source) as Arc<dyn PageSource>, fault_around).unwrap();
        LazyRam { pager, ram, source, _vm: vm, _turn: turn }
    }
}
