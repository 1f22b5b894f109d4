//! Faults of real threads on really absent pages, through the kernel (or the stand-in's) and back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::memory::object::{Mapping, MemoryObject};

mod access;
mod by_hand;
mod children;
mod lifetime;

/// Bytes of a page.
pub const PAGE: usize = 0x4000;

/// Pages that are absent until a handler fills them: two views of one object, as guest RAM is.
pub struct Arena {
    view: Mapping,
    fill: Mapping,
    /// Which pages are present. Only the pager's threads lock it.
    present: Mutex<Vec<bool>>,
    pub asked: AtomicUsize,
}

impl Arena {
    pub fn new(pages: usize) -> Arc<Arena> {
        let object = MemoryObject::new(pages * PAGE).expect("a memory object");
        let (view, fill) = (object.map().expect("a view"), object.map().expect("a view"));
        let arena = Arena { view, fill, present: Mutex::new(vec![false; pages]), asked: AtomicUsize::new(0) };
        protect(arena.at(0), pages * PAGE, libc::PROT_NONE);
        Arc::new(arena)
    }

    /// Where a byte of the absent view is.
    pub fn at(&self, offset: usize) -> *mut u8 {
        self.view.addr().wrapping_add(offset)
    }

    /// What a page is filled with.
    pub fn byte(page: usize) -> u8 {
        (page % 251) as u8 + 1
    }

    pub fn read(&self, offset: usize) -> u8 {
        // SAFETY: inside the mapping, to which no reference exists.
        unsafe { self.at(offset).read_volatile() }
    }

    pub fn present(&self) -> usize {
        self.present.lock().expect("no thread panics with it").iter().filter(|present| **present).count()
    }
}

/// Fills through the other view, and only then opens the page.
impl FaultHandler for Arena {
    fn handle(&self, address: u64) -> Verdict {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let Some(offset) = address.checked_sub(self.at(0) as u64) else { return Verdict::NotOurs };
        let (page, mut present) = (offset as usize / PAGE, self.present.lock().expect("no thread panics with it"));
        match present.get_mut(page) {
            None => return Verdict::NotOurs,
            Some(true) => return Verdict::Resolved,
            Some(present) => *present = true,
        }
        // SAFETY: inside the fill view, and nobody else writes this page before it is opened.
        unsafe { self.fill.addr().wrapping_add(page * PAGE).write_bytes(Arena::byte(page), PAGE) };
        protect(self.at(page * PAGE), PAGE, libc::PROT_READ | libc::PROT_WRITE);
        Verdict::Resolved
    }
}

pub fn protect(at: *mut u8, len: usize, protection: i32) {
    // SAFETY: a part of a mapping of the test's own, which is accessed through raw pointers only.
    assert_eq!(unsafe { libc::mprotect(at.cast(), len, protection) }, 0);
}

/// A handler made of a closure.
pub struct Decide<F>(pub F);

impl<F: Fn(u64) -> Verdict + Send + Sync> FaultHandler for Decide<F> {
    fn handle(&self, address: u64) -> Verdict {
        self.0(address)
    }
}
