//! The two lock-free arguments of dirty tracking, apart from their data so that a model checker can run them: one word of
//! the log, and the switch from a coarse log to a fine one.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

/// A word of 64 dirty bits.
pub(super) trait Word {
    /// Sets bits and returns the old ones. Ordered after the caller's stores to the pages, and so always a
    /// read-modify-write: skipping it when the bits are set already would let a drain take them between the two.
    fn set(&self, bits: u64) -> u64;
    /// Clears bits.
    fn clear(&self, bits: u64);
    /// Takes all bits out. What the markers stored to the pages before is visible afterwards.
    fn take(&self) -> u64;
    /// The bits as they are.
    fn get(&self) -> u64;
    /// Whether there is anything to take, without ordering anything: a mark that comes right after belongs to the next drain.
    fn peek(&self) -> u64;
}

impl Word for AtomicU64 {
    fn set(&self, bits: u64) -> u64 {
        self.fetch_or(bits, Ordering::AcqRel)
    }

    fn clear(&self, bits: u64) {
        self.fetch_and(!bits, Ordering::AcqRel);
    }

    fn take(&self) -> u64 {
        if self.peek() == 0 { 0 } else { self.swap(0, Ordering::AcqRel) }
    }

    fn get(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn peek(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
}

pub(super) const COARSE: u8 = 0;
pub(super) const SWITCHING: u8 = 1;
pub(super) const FINE: u8 = 2;

/// Which log is active.
pub(super) trait State {
    fn get(&self) -> u8;
    fn set(&self, state: u8);
    /// A sequentially consistent fence.
    fn fence();
}

impl State for AtomicU8 {
    fn get(&self) -> u8 {
        self.load(Ordering::Acquire)
    }

    fn set(&self, state: u8) {
        self.store(state, Ordering::Release);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Marks in the active log, whatever switch goes on meanwhile. The coarse mark comes before the second look at the state.
pub(super) fn mark<S: State>(state: &S, coarse: impl FnOnce() -> bool, fine: impl FnOnce() -> bool) -> bool {
    if state.get() == FINE {
        return fine();
    }
    let was_clean = coarse();
    S::fence();
    if state.get() == COARSE { was_clean } else { fine() }
}

/// Switches to the fine log, which `fold` fills with the coarse bits. The new state is published before they are read, and
/// the fine log is active only once it has them.
pub(super) fn switch<S: State>(state: &S, fold: impl FnOnce()) {
    state.set(SWITCHING);
    S::fence();
    fold();
    state.set(FINE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic as model;
    use loom::thread;

    impl Word for model::AtomicU64 {
        fn set(&self, bits: u64) -> u64 {
            self.fetch_or(bits, Ordering::AcqRel)
        }
        fn clear(&self, bits: u64) {
            self.fetch_and(!bits, Ordering::AcqRel);
        }
        fn take(&self) -> u64 {
            if self.peek() == 0 { 0 } else { self.swap(0, Ordering::AcqRel) }
        }
        fn get(&self) -> u64 {
            self.load(Ordering::Acquire)
        }
        fn peek(&self) -> u64 {
            self.load(Ordering::Relaxed)
        }
    }

    impl State for model::AtomicU8 {
        fn get(&self) -> u8 {
            self.load(Ordering::Acquire)
        }
        fn set(&self, state: u8) {
            self.store(state, Ordering::Release);
        }
        fn fence() {
            model::fence(Ordering::SeqCst);
        }
    }

    /// Every interleaving of two markers of one word with a drain.
    #[test]
    #[cfg_attr(miri, ignore = "the model checker explores by itself")]
    fn a_drain_gets_each_mark_once_and_sees_what_was_stored_before_it() {
        loom::model(|| {
            let word = Arc::new(model::AtomicU64::new(0));
            let pages = Arc::new([model::AtomicU64::new(0), model::AtomicU64::new(0)]);
            let markers: Vec<_> = (0..2usize)
                .map(|page| {
                    let (word, pages) = (Arc::clone(&word), Arc::clone(&pages));
                    thread::spawn(move || {
                        pages[page].store(1, Ordering::Relaxed);
                        assert_eq!(Word::set(&*word, 1 << page) >> page & 1, 0);
                    })
                })
                .collect();
            let taken = Word::take(&*word);
            for page in 0..2 {
                if taken >> page & 1 == 1 {
                    assert_eq!(pages[page].load(Ordering::Relaxed), 1, "the store comes with its mark");
                }
            }
            markers.into_iter().for_each(|m| m.join().unwrap());
            let left = Word::take(&*word);
            assert_eq!((taken | left, taken & left), (3, 0));
        });
    }

    /// A page that is dirty already is written and marked again while a drain goes on: this drain has the new bytes or the next one has
    /// the page.
    #[test]
    #[cfg_attr(miri, ignore = "the model checker explores by itself")]
    fn marking_a_dirty_page_again_is_never_skipped() {
        loom::model(|| {
            let word = Arc::new(model::AtomicU64::new(1));
            let page = Arc::new(model::AtomicU64::new(0));
            let marker = {
                let (word, page) = (Arc::clone(&word), Arc::clone(&page));
                thread::spawn(move || {
                    page.store(2, Ordering::Relaxed);
                    Word::set(&*word, 1);
                })
            };
            let taken = Word::take(&*word);
            let seen = page.load(Ordering::Relaxed);
            marker.join().unwrap();
            assert_eq!(taken, 1);
            assert!(seen == 2 || Word::get(&*word) == 1, "the write would be lost");
        });
    }

    /// A marker, a switch and a drain: every interleaving in which threads are preempted up to three times.
    #[test]
    #[cfg_attr(miri, ignore = "the model checker explores by itself")]
    fn no_mark_is_lost_in_a_switch() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let state = Arc::new(model::AtomicU8::new(COARSE));
            let coarse = Arc::new(model::AtomicU64::new(0));
            let fine = Arc::new(model::AtomicU64::new(0));
            let marker = {
                let (state, coarse, fine) = (Arc::clone(&state), Arc::clone(&coarse), Arc::clone(&fine));
                thread::spawn(move || {
                    mark(&*state, || Word::set(&*coarse, 1) == 0, || Word::set(&*fine, 1) == 0);
                })
            };
            let switcher = {
                let (state, coarse, fine) = (Arc::clone(&state), Arc::clone(&coarse), Arc::clone(&fine));
                thread::spawn(move || {
                    switch(&*state, || {
                        let bits = Word::get(&*coarse);
                        if bits != 0 {
                            Word::set(&*fine, bits);
                        }
                    });
                })
            };
            let drained = Word::take(if State::get(&*state) == FINE { &*fine } else { &*coarse });
            marker.join().unwrap();
            switcher.join().unwrap();
            assert_eq!(State::get(&*state), FINE);
            assert_eq!(drained | Word::take(&*fine), 1, "the mark is in this drain or in the next");
        });
    }
}
