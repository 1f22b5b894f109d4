//! A few things that threads use one thread at a time, for threads that may neither allocate nor rely on what a mutex of the standard
//! library does (on macOS the first use of one allocates): an atomic word says who has what, and waiting is the kernel's.
//!
//! That alone makes nothing safe to wait for. Whoever has a thing must let it go without waiting for what a stopped thread may hold:
//! without allocating, printing or taking other locks. Both users keep to that: the pager's source is held for as long as it takes to
//! clone or take an `Arc`, and the lines to a page server belong to threads that do nothing else all the time.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::wait;

/// Things of one kind, any of which will do.
pub struct Slots<T> {
    slots: Box<[Slot<T>]>,
    /// Threads that are about to sleep, or do.
    sleepers: AtomicU32,
    /// Changes whenever a thing is let go.
    freed: AtomicU32,
}

struct Slot<T> {
    taken: AtomicBool,
    thing: UnsafeCell<T>,
}

// SAFETY: a thing is reached by `Taken` alone, of which there is at most one per slot (`taken` goes from false to true before it is made,
// and back when it is dropped, with acquire and release): one thread at a time, one after the other, which is all that `Send` asks.
unsafe impl<T: Send> Sync for Slots<T> {}

impl<T> Slots<T> {
    /// These, none of them taken.
    pub fn new(things: impl IntoIterator<Item = T>) -> Slots<T> {
        let slot = |thing| Slot { taken: AtomicBool::new(false), thing: UnsafeCell::new(thing) };
        Slots { slots: things.into_iter().map(slot).collect(), sleepers: AtomicU32::new(0), freed: AtomicU32::new(0) }
    }

    /// One that nobody has; sleeps while there is none.
    pub fn take(&self) -> Taken<'_, T> {
        if let Some(taken) = self.try_take() {
            return taken;
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let taken = loop {
            // In this order, against that of `drop`: whoever lets go after we looked changes the word after we read it, and then there
            // is no sleep; or finds us among the sleepers, and wakes us.
            let freed = self.freed.load(Ordering::SeqCst);
            if let Some(taken) = self.try_take() {
                break taken;
            }
            wait::wait(&self.freed, freed);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        taken
    }

    fn try_take(&self) -> Option<Taken<'_, T>> {
        let free =
            |slot: &&Slot<T>| slot.taken.compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        self.slots.iter().find(free).map(|slot| Taken { slots: self, slot })
    }
}

impl<T> fmt::Debug for Slots<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("count", &self.slots.len()).finish_non_exhaustive()
    }
}

/// A thing that is ours until this is dropped.
pub struct Taken<'a, T> {
    slots: &'a Slots<T>,
    slot: &'a Slot<T>,
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: nobody else reaches the thing while this `Taken` lives, see `Slots`.
        unsafe { &*self.slot.thing.get() }
    }
}

impl<T> DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { &mut *self.slot.thing.get() }
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        self.slot.taken.store(false, Ordering::SeqCst);
        self.slots.freed.fetch_add(1, Ordering::SeqCst);
        if self.slots.sleepers.load(Ordering::SeqCst) > 0 {
            wait::wake_all(&self.slots.freed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_used_by_one_thread_at_a_time_and_none_sleeps_for_ever() {
        const ROUNDS: u64 = 20_000;
        let slots = Slots::new([(0u64, 0u64), (0, 0)]);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let mut pair = slots.take();
                        pair.0 += 1;
                        assert_eq!(pair.0, pair.1 + 1);
                        pair.1 += 1;
                    }
                });
            }
        });
        let (one, other) = (slots.take(), slots.take());
        assert_eq!(one.0 + other.0, 6 * ROUNDS);
        assert!(slots.try_take().is_none());
        drop(one);
        assert!(slots.try_take().is_some());
    }
}
