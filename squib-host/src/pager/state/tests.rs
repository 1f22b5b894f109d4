//! The protocol of a page's word, run by a model checker.

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
                if keep(&page.word) {
                    fill(page);
                    release(&page.word, PRESENT);
                }
            }
            Claim::Fill => {
                if give_back(&page.word, ABSENT) {
                    return false;
                }
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

/// What a thread of the net does.
fn fault_at_once(page: &Page, available: bool) -> bool {
    loop {
        match claim_at_once(&page.word) {
            Claim::Fill if available => {
                fill(page);
                release(&page.word, PRESENT);
            }
            Claim::Fill => {
                release(&page.word, ABSENT);
                return false;
            }
            Claim::Open => release(&page.word, PRESENT),
            Claim::Busy => wait_for_owner(&page.word),
            Claim::Present => return page.bytes.load(Ordering::Relaxed) == CONTENT,
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
                if page.word.exchange(ABSENT, READING) && keep(&page.word) {
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
                    assert!(give_back(&page.word, POISONED));
                }
            })
        };
        if claim(&page.word) == Claim::Fill {
            assert!(give_back(&page.word, POISONED));
        }
        wait_for_owner(&page.word);
        owner.join().unwrap();
        assert_eq!(claim(&page.word), Claim::Poisoned);
        assert_eq!(page.fills.load(Ordering::Relaxed), 0);
    });
}

/// The reader waits for ever: nobody is held up by it but those who can be, and the page is filled once.
#[test]
fn the_net_does_not_wait_for_a_reader() {
    explore(|| {
        let page = page(ABSENT);
        assert_eq!(claim(&page.word), Claim::Fill);
        let waiting = {
            let page = Arc::clone(&page);
            thread::spawn(move || assert!(fault(&page, || true)))
        };
        assert!(fault_at_once(&page, true));
        waiting.join().unwrap();
        assert!(!keep(&page.word) && !give_back(&page.word, ABSENT), "the reader comes too late");
        assert_eq!(page.fills.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn readers_and_the_net_agree_on_who_fills() {
    for available in [true, false] {
        explore(move || {
            let page = page(ABSENT);
            let net = {
                let page = Arc::clone(&page);
                thread::spawn(move || fault_at_once(&page, available))
            };
            assert!(fault(&page, || true));
            assert!(net.join().unwrap() || !available);
            assert_eq!(page.fills.load(Ordering::Relaxed), 1);
        });
    }
}

/// As above, and one more thread that sleeps through the change of owners.
#[test]
fn who_waits_for_a_reader_is_woken_by_the_net() {
    explore(|| {
        let page = page(ABSENT);
        assert_eq!(claim(&page.word), Claim::Fill);
        let waiting = {
            let page = Arc::clone(&page);
            thread::spawn(move || wait_for_owner(&page.word))
        };
        let net = {
            let page = Arc::clone(&page);
            thread::spawn(move || assert!(fault_at_once(&page, true)))
        };
        if keep(&page.word) {
            fill(&page);
            release(&page.word, PRESENT);
        }
        waiting.join().unwrap();
        net.join().unwrap();
        assert_eq!(page.fills.load(Ordering::Relaxed), 1);
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
        assert!(states.keep(page) && !states.publish(page));
    }
    assert_eq!(states.missing(), 8);
    assert!(states.all_present(3 * GRANULE, 2 * GRANULE));
    assert!(!states.all_present(3 * GRANULE, 2 * GRANULE + 1));
    assert_eq!(states.stretch(0, 10), (false, 3));
    assert_eq!(states.stretch(3, 10), (true, 5));
    assert_eq!(states.stretch(5, 7), (false, 7));
    assert!(!states.claim_from(5, FILLED, OPENING) && states.claim_from(5, ABSENT, FILLING));
    assert_eq!(states.claim(5), Claim::Busy);
    states.release(5, FILLED);
    assert_eq!(states.claim(5), Claim::Open);
}
