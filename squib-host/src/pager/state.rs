//! The states of pages: who may do what to a page, decided by one atomic word per granule.
//!
//! | from | to | by whom |
//! |---|---|---|
//! | ABSENT | READING | whoever needs the page first, the prefetcher |
//! | READING | FILLING | the same, once it has the bytes in a buffer of its own |
//! | READING | ABSENT, POISONED | the same, if the source is away, or the bytes are damaged |
//! | ABSENT, READING | FILLING | a thread of the net; of an ABSENT page that is known to be zero anybody |
//! | FILLING | FILLED | the owner, if nobody waits for the page yet (the prefetcher) |
//! | FILLED | OPENING | whoever needs the page, the prefetcher at its end |
//! | FILLING, OPENING | PRESENT | the owner |
//! | FILLING, OPENING | FILLED | the owner, if the page cannot be put within reach |
//! | FILLING | ABSENT, READING | the owner, if the bytes cannot be had or put into their place |
//!
//! FILLING and OPENING have one owner, the thread whose claim succeeded; everyone else waits and looks again. A demand fault goes
//! the whole way at once (FILLING straight to PRESENT); the prefetcher leaves its pages FILLED, where the next touch finds them.
//! The bytes of a FILLED page are complete, but nobody can reach them yet; those of a PRESENT page can be reached by the
//! host and by the guest. So no one ever sees a page half filled, and no one but the owner changes what is mapped.
//!
//! READING has an owner, too, who reads the bytes into a buffer of its own and may allocate and take locks for it. For the threads of
//! the net that is no claim: the thread they work for may hold just what that owner waits for, the allocator say. So they take
//! such a page away, and read it quietly ([`quiet`](super::quiet)). The former owner notices, since only whoever finds
//! the page READING may go on with it, and looks again. Whoever owns a page that is FILLING or OPENING neither allocates nor takes a
//! lock until it has let the page go, and waits for no other page: so waiting for such a page has an end, whoever waits.
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
/// Somebody reads the bytes into a buffer.
pub const READING: u32 = 1;
/// Its owner puts the bytes into their place.
pub const FILLING: u32 = 2;
/// The bytes are here, out of reach.
pub const FILLED: u32 = 3;
/// Its owner puts the page within reach.
pub const OPENING: u32 = 4;
/// An ordinary page.
pub const PRESENT: u32 = 5;
/// The bytes cannot be had.
pub const POISONED: u32 = 6;
/// Beside READING, FILLING or OPENING: somebody sleeps.
const WAITERS: u32 = 8;

/// What a thread that needs a page has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The page is ours: bring its bytes, then put it within reach. After [`PageStates::claim`] it is READING, and goes on by
    /// [`PageStates::keep`] or [`PageStates::give_back`]; after [`PageStates::claim_at_once`] it is FILLING.
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
            ABSENT if word.exchange(ABSENT, READING) => return Claim::Fill,
            FILLED if word.exchange(FILLED, OPENING) => return Claim::Open,
            ABSENT | FILLED => {}
            PRESENT => return Claim::Present,
            POISONED => return Claim::Poisoned,
            _ => return Claim::Busy,
        }
    }
}

/// As [`claim`], for those who must not wait for somebody who reads.
fn claim_at_once(word: &impl Word) -> Claim {
    loop {
        match word.load() {
            ABSENT if word.exchange(ABSENT, FILLING) => return Claim::Fill,
            FILLED if word.exchange(FILLED, OPENING) => return Claim::Open,
            ABSENT | FILLED => {}
            PRESENT => return Claim::Present,
            POISONED => return Claim::Poisoned,
            value if value & !WAITERS != READING => return Claim::Busy,
            // Who sleeps sleeps on: until the new owner's last word.
            value if word.exchange(value, FILLING | value & WAITERS) => return Claim::Fill,
            _ => {}
        }
    }
}

/// From READING to FILLING. `false`: somebody else has taken the page.
fn keep(word: &impl Word) -> bool {
    loop {
        let value = word.load();
        if value & !WAITERS != READING {
            return false;
        }
        if word.exchange(value, FILLING | value & WAITERS) {
            return true;
        }
    }
}

/// From READING to `state`. `false`: somebody else has taken the page.
fn give_back(word: &impl Word, state: u32) -> bool {
    loop {
        let value = word.load();
        if value & !WAITERS != READING {
            return false;
        }
        if word.exchange(value, state) {
            if value & WAITERS != 0 {
                word.wake_all();
            }
            return true;
        }
    }
}

/// Sleeps while the page has an owner.
fn wait_for_owner(word: &impl Word) {
    loop {
        let value = word.load();
        let owned = value & !WAITERS;
        if !matches!(owned, READING | FILLING | OPENING) {
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

    /// Tries to take a page. Of one that is FILLING or OPENING the owner's last word is [`PageStates::release`] or
    /// [`PageStates::publish`].
    pub fn claim(&self, page: u64) -> Claim {
        claim(&self.words[page as usize])
    }

    /// As [`PageStates::claim`], for the threads of the net: one that is READING is taken away from who reads, and is FILLING at
    /// once.
    pub fn claim_at_once(&self, page: u64) -> Claim {
        claim_at_once(&self.words[page as usize])
    }

    /// Takes a page from ABSENT to READING or FILLING, or from FILLED to OPENING, or leaves it.
    pub fn claim_from(&self, page: u64, from: u32, to: u32) -> bool {
        Word::exchange(&self.words[page as usize], from, to)
    }

    /// The bytes of a page that was READING are here to be put into place: it is FILLING now. `false`: somebody else has taken it.
    pub fn keep(&self, page: u64) -> bool {
        keep(&self.words[page as usize])
    }

    /// Gives a page that was READING a new state. `false`: somebody else has taken it.
    pub fn give_back(&self, page: u64, state: u32) -> bool {
        give_back(&self.words[page as usize], state)
    }

    /// Sleeps while the page has an owner.
    pub fn wait(&self, page: u64) {
        wait_for_owner(&self.words[page as usize]);
    }

    /// Gives a page that is FILLING or OPENING a new state other than PRESENT.
    pub fn release(&self, page: u64, state: u32) {
        release(&self.words[page as usize], state);
    }

    /// Makes a page that is FILLING or OPENING PRESENT. `true` if it was the last one missing.
    pub fn publish(&self, page: u64) -> bool {
        release(&self.words[page as usize], PRESENT);
        self.missing.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

#[cfg(test)]
mod tests;
