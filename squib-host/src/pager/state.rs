//! The states of pages: who may do what to a page, decided by one atomic word per granule.
//!
//! ```text
//!             claim                 filled                claim                opened
//!   ABSENT  -------->  FILLING  -------------->  FILLED  ------->  OPENING  ------------>  PRESENT
//!      ^                  |  |                      ^                 |
//!      +--- unavailable --+  +--- damaged: POISONED +----- failed ----+
//! ```
//!
//! FILLING and OPENING have one owner, the thread whose claim succeeded; everyone else waits and looks again. A demand fault goes
//! the whole way at once (FILLING straight to PRESENT); the prefetcher leaves its pages FILLED, where the next touch finds them.
//! The bytes of a FILLED page are complete, but nobody can reach them yet; those of a PRESENT page can be reached by the
//! host and by the guest. So no one ever sees a page half filled, and no one but the owner changes what is mapped.
//!
//! Waiting is by the kernel's wait on the word itself: no lock, no allocation.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::FromZeros;

use super::wait;
use crate::memory::GRANULE;

/// Nothing is known of the page's bytes here.
pub const ABSENT: u32 = 0;
/// Its owner brings the bytes.
pub const FILLING: u32 = 1;
/// The bytes are here, out of reach.
pub const FILLED: u32 = 2;
/// Its owner puts the page within reach.
pub const OPENING: u32 = 3;
/// An ordinary page.
pub const PRESENT: u32 = 4;
/// The bytes cannot be had.
pub const POISONED: u32 = 5;
/// Beside FILLING or OPENING: somebody sleeps.
const WAITERS: u32 = 8;

/// What a thread that needs a page has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The page is ours: bring its bytes, then put it within reach.
    Fill,
    /// The page is ours: put it within reach.
    Open,
    /// Somebody else has it.
    Busy,
    /// Nothing.
    Present,
    /// Give up.
    Poisoned,
}

/// The word of a page, apart from its data so that a model checker can run the protocol.
trait Word {
    fn load(&self) -> u32;
    fn exchange(&self, from: u32, to: u32) -> bool;
    fn swap(&self, to: u32) -> u32;
    fn wait(&self, value: u32);
    fn wake_all(&self);
}

impl Word for AtomicU32 {
    fn load(&self) -> u32 {
        AtomicU32::load(self, Ordering::Acquire)
    }

    fn exchange(&self, from: u32, to: u32) -> bool {
        self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn swap(&self, to: u32) -> u32 {
        AtomicU32::swap(self, to, Ordering::AcqRel)
    }

    fn wait(&self, value: u32) {
        wait::wait(self, value);
    }

    fn wake_all(&self) {
        wait::wake_all(self);
    }
}

fn claim(word: &impl Word) -> Claim {
    loop {
        match word.load() {
            ABSENT if word.exchange(ABSENT, FILLING) => return Claim::Fill,
            FILLED if word.exchange(FILLED, OPENING) => return Claim::Open,
            ABSENT | FILLED => {}
            PRESENT => return Claim::Present,
            POISONED => return Claim::Poisoned,
            _ => return Claim::Busy,
        }
    }
}

/// Sleeps while the page has an owner.
fn wait_for_owner(word: &impl Word) {
    loop {
        let value = word.load();
        let owned = value & !WAITERS;
        if owned != FILLING && owned != OPENING {
            return;
        }
        if value & WAITERS != 0 || word.exchange(value, value | WAITERS) {
            word.wait(owned | WAITERS);
        }
    }
}

/// The owner's last word.
fn release(word: &impl Word, state: u32) {
    if word.swap(state) & WAITERS != 0 {
        word.wake_all();
    }
}

/// The states of all pages of a RAM.
#[derive(Debug)]
pub struct PageStates {
    words: Vec<AtomicU32>,
    /// Pages that are not PRESENT.
    missing: AtomicU64,
}

impl PageStates {
    /// `size` bytes of RAM, all absent. An error is one of memory.
    pub fn absent(size: u64) -> io::Result<PageStates> {
        let pages = size.div_ceil(GRANULE);
        // Zeroed memory from the system, untouched: a RAM of any size is ready in the same time. (`ABSENT` is zero.)
        let words = AtomicU32::new_vec_zeroed(pages as usize).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(PageStates { words, missing: AtomicU64::new(pages) })
    }

    /// Number of pages.
    pub fn count(&self) -> u64 {
        self.words.len() as u64
    }

    /// Pages that are not present yet.
    pub fn missing(&self) -> u64 {
        self.missing.load(Ordering::Acquire)
    }

    /// The state of a page, without its waiters.
    pub fn get(&self, page: u64) -> u32 {
        Word::load(&self.words[page as usize]) & !WAITERS
    }

    /// The pages that `len` bytes from `offset` touch.
    pub fn pages(offset: u64, len: u64) -> Range<u64> {
        if len == 0 {
            return 0..0;
        }
        offset / GRANULE..(offset + len).div_ceil(GRANULE)
    }

    /// Whether a range of bytes can be touched as it is.
    pub fn all_present(&self, offset: u64, len: u64) -> bool {
        self.missing() == 0 || PageStates::pages(offset, len).all(|page| self.get(page) == PRESENT)
    }

    /// The end, at most `limit`, of the stretch from `page` on in which pages are present, or not, like `page` itself.
    pub fn stretch(&self, page: u64, limit: u64) -> (bool, u64) {
        let present = self.get(page) == PRESENT;
        let end = (page + 1..limit).find(|&next| (self.get(next) == PRESENT) != present);
        (present, end.unwrap_or(limit))
    }

    /// Tries to take a page. [`Claim::Fill`] and [`Claim::Open`] are to be answered by
    /// [`PageStates::release`] or [`PageStates::publish`].
    pub fn claim(&self, page: u64) -> Claim {
        claim(&self.words[page as usize])
    }

    /// Takes a page whose state is `from` (ABSENT or FILLED), or leaves it.
    pub fn claim_from(&self, page: u64, from: u32) -> bool {
        Word::exchange(&self.words[page as usize], from, from + 1)
    }

    /// Sleeps while the page has an owner.
    pub fn wait(&self, page: u64) {
        wait_for_owner(&self.words[page as usize]);
    }

    /// Gives a page that was taken a new state other than PRESENT.
    pub fn release(&self, page: u64, state: u32) {
        release(&self.words[page as usize], state);
    }

    /// Makes a page that was taken PRESENT. `true` if it was the last one missing.
    pub fn publish(&self, page: u64) -> bool {
        release(&self.words[page as usize], PRESENT);
        self.missing.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::atomic as model;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// A word whose wait is the kernel's: looking and falling asleep are one step for whoever wakes.
    struct ModelWord {
        value: model::AtomicU32,
        lock: Mutex<()>,
        changed: Condvar,
    }

    impl ModelWord {
        fn new(value: u32) -> ModelWord {
            ModelWord { value: model::AtomicU32::new(value), lock: Mutex::new(()), changed: Condvar::new() }
        }
    }

    impl Word for ModelWord {
        fn load(&self) -> u32 {
            self.value.load(Ordering::Acquire)
        }

        fn exchange(&self, from: u32, to: u32) -> bool {
            self.value.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
        }

        fn swap(&self, to: u32) -> u32 {
            self.value.swap(to, Ordering::AcqRel)
        }

        fn wait(&self, value: u32) {
            let guard = self.lock.lock().unwrap();
            if self.load() == value {
                drop(self.changed.wait(guard).unwrap());
            }
        }

        fn wake_all(&self) {
            let _guard = self.lock.lock().unwrap();
            self.changed.notify_all();
        }
    }

    struct Page {
        word: ModelWord,
        bytes: model::AtomicU32,
        fills: model::AtomicU32,
    }

    const CONTENT: u32 = 0x5eed;

    fn page(state: u32) -> Arc<Page> {
        let (bytes, fills) = (model::AtomicU32::new(0), model::AtomicU32::new(0));
        Arc::new(Page { word: ModelWord::new(state), bytes, fills })
    }

    fn fill(page: &Page) {
        page.fills.fetch_add(1, Ordering::Relaxed);
        page.bytes.store(CONTENT, Ordering::Relaxed);
    }

    /// What a faulting thread does; `available` is asked by whoever fills.
    fn fault(page: &Page, mut available: impl FnMut() -> bool) -> bool {
        loop {
            match claim(&page.word) {
                Claim::Fill if available() => {
                    fill(page);
                    release(&page.word, PRESENT);
                }
                Claim::Fill => {
                    release(&page.word, ABSENT);
                    return false;
                }
                Claim::Open => release(&page.word, PRESENT),
                Claim::Busy => wait_for_owner(&page.word),
                Claim::Present => {
                    assert_eq!(page.bytes.load(Ordering::Relaxed), CONTENT, "a page that is present is complete");
                    return true;
                }
                Claim::Poisoned => return false,
            }
        }
    }

    fn explore(body: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(body);
    }

    #[test]
    fn three_threads_on_one_page_fill_it_once_and_none_sleeps_for_ever() {
        explore(|| {
            let page = page(ABSENT);
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let page = Arc::clone(&page);
                    thread::spawn(move || assert!(fault(&page, || true)))
                })
                .collect();
            assert!(fault(&page, || true));
            others.into_iter().for_each(|other| other.join().unwrap());
            assert_eq!(page.fills.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn the_prefetcher_and_a_fault_agree_on_who_fills() {
        explore(|| {
            let page = page(ABSENT);
            let prefetcher = {
                let page = Arc::clone(&page);
                thread::spawn(move || {
                    if page.word.exchange(ABSENT, FILLING) {
                        fill(&page);
                        release(&page.word, FILLED);
                    }
                    // The last sweep: what nobody touched is put within reach.
                    if page.word.exchange(FILLED, OPENING) {
                        release(&page.word, PRESENT);
                    }
                })
            };
            assert!(fault(&page, || true));
            prefetcher.join().unwrap();
            assert_eq!(page.fills.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn a_source_that_was_away_is_asked_again_by_the_next_one() {
        explore(|| {
            let page = page(ABSENT);
            let away = {
                let page = Arc::clone(&page);
                thread::spawn(move || fault(&page, || false))
            };
            assert!(fault(&page, || true), "this one's source answers");
            away.join().unwrap();
            assert_eq!(page.fills.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn a_poisoned_page_wakes_its_waiters_and_stays_poisoned() {
        explore(|| {
            let page = page(ABSENT);
            let owner = {
                let page = Arc::clone(&page);
                thread::spawn(move || {
                    if claim(&page.word) == Claim::Fill {
                        release(&page.word, POISONED);
                    }
                })
            };
            if claim(&page.word) == Claim::Fill {
                release(&page.word, POISONED);
            }
            wait_for_owner(&page.word);
            owner.join().unwrap();
            assert_eq!(claim(&page.word), Claim::Poisoned);
            assert_eq!(page.fills.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn ranges_touch_the_pages_they_lie_in() {
        let states = PageStates::absent(10 * GRANULE).unwrap();
        assert_eq!(PageStates::pages(GRANULE - 1, 2), 0..2);
        assert_eq!(PageStates::pages(5 * GRANULE, GRANULE), 5..6);
        assert!(PageStates::pages(7, 0).is_empty());
        for page in 3..5 {
            assert_eq!(states.claim(page), Claim::Fill);
            assert!(!states.publish(page));
        }
        assert_eq!(states.missing(), 8);
        assert!(states.all_present(3 * GRANULE, 2 * GRANULE));
        assert!(!states.all_present(3 * GRANULE, 2 * GRANULE + 1));
        assert_eq!(states.stretch(0, 10), (false, 3));
        assert_eq!(states.stretch(3, 10), (true, 5));
        assert_eq!(states.stretch(5, 7), (false, 7));
        assert!(!states.claim_from(5, FILLED) && states.claim_from(5, ABSENT));
        assert_eq!(states.claim(5), Claim::Busy);
        states.release(5, FILLED);
        assert_eq!(states.claim(5), Claim::Open);
    }
}
