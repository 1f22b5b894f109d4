//! Pages of RAM as they were at a moment, while the guest goes on writing: copy on write.
//!
//! At a checkpoint all of RAM is write-protected anyway, so nothing has to be copied while the guest stands still. A snapshot's writer
//! then reads the pages one after the other, and whoever is about to change one that has not been read yet puts its bytes aside first:
//!
//! * a vCPU's thread, before it opens what its guest wants to write to ([`WriteTracker::open`](crate::track::WriteTracker::open));
//! * our own code, before it is handed guest memory, whatever it wants there (the accessor, [`RamRegion`](crate::memory::RamRegion)).
//!   Devices rest at a checkpoint, so no slice from before is in use after it.
//!
//! Each page goes from pending to either **read** by the writer or **kept** aside, then read. Whoever moves it owns it in between,
//! others wait for the few microseconds of one copy; nobody waits for the disk while he owns a page. So a page is never opened
//! before its bytes are safe, and what the writer reads is never half old.
//!
//! What is kept is bounded: a guest that writes faster than the disk waits for it from [`KEEP_LIMIT`] on ([`Freezer::is_full`]);
//! it can be stopped meanwhile. When the writer is done, or has failed, the pages are let go and writing costs what it did before.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use squib_snapshot::{PageReader, PageSet};

use crate::memory::{GRANULE, GuestRam};

/// Pages kept aside from which on vCPUs wait for the writer: 64 MiB.
const KEEP_LIMIT: usize = (64 << 20) / GRANULE as usize;

/// States of a page of the set.
const PENDING: u8 = 0;
const OWNED: u8 = 1;
const KEPT: u8 = 2;
const READ: u8 = 3;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a RAM has its frozen pages, if it has some.
#[derive(Debug, Default)]
pub struct Freezer {
    /// Changes to `true` only while no vCPU runs and no device works.
    active: AtomicBool,
    frozen: Mutex<Option<Arc<Frozen>>>,
}

impl Freezer {
    fn frozen(&self) -> Option<Arc<Frozen>> {
        if self.active.load(Ordering::Acquire) { lock(&self.frozen).clone() } else { None }
    }

    /// Before any byte of a range changes: keeps what is still needed of it.
    pub fn keep(&self, ram: &GuestRam, offset: u64, len: u64) -> io::Result<()> {
        match self.frozen() {
            Some(frozen) if len > 0 => {
                let last = offset.saturating_add(len - 1) / GRANULE;
                (offset / GRANULE..=last).try_for_each(|page| frozen.keep(ram, page))
            }
            _ => Ok(()),
        }
    }

    /// Whether so much is kept that a guest should wait before it writes on.
    pub fn is_full(&self) -> bool {
        self.frozen().is_some_and(|frozen| lock(&frozen.kept).len() >= KEEP_LIMIT)
    }
}

/// The pages, by their numbers in RAM.
#[derive(Debug)]
struct Frozen {
    /// First page, and the number of pages before it in the set: ascending, not touching.
    runs: Vec<(u64, u64, usize)>,
    /// By position in the set.
    states: Box<[AtomicU8]>,
    kept: Mutex<HashMap<u64, Box<[u8]>>>,
}

impl Frozen {
    fn new(pages: &PageSet) -> Frozen {
        let (mut runs, mut before) = (Vec::new(), 0);
        for (first, count) in pages.runs() {
            runs.push((first, count, before));
            before += count as usize;
        }
        let states = (0..before).map(|_| AtomicU8::new(PENDING)).collect();
        Frozen { runs, states, kept: Mutex::default() }
    }

    fn state(&self, page: u64) -> Option<&AtomicU8> {
        let (first, count, before) =
            self.runs[self.runs.partition_point(|(first, ..)| *first <= page).checked_sub(1)?];
        (page - first < count).then(|| &self.states[before + (page - first) as usize])
    }

    /// Makes this thread the owner of a pending page; otherwise says what the page has become.
    fn own(state: &AtomicU8) -> Result<(), u8> {
        loop {
            match state.compare_exchange(PENDING, OWNED, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(OWNED) => std::thread::yield_now(),
                Err(other) => return Err(other),
            }
        }
    }

    /// Runs `copy` as the owner of a page, which becomes `after` if that works.
    fn give_back<T>(state: &AtomicU8, after: u8, copy: io::Result<T>) -> io::Result<T> {
        state.store(if copy.is_ok() { after } else { PENDING }, Ordering::Release);
        copy
    }

    fn keep(&self, ram: &GuestRam, page: u64) -> io::Result<()> {
        let Some(state) = self.state(page).filter(|state| Frozen::own(state).is_ok()) else { return Ok(()) };
        let mut bytes = vec![0; len(ram, page)].into_boxed_slice();
        let copied = ram.read_fill(page * GRANULE, &mut bytes);
        if copied.is_ok() {
            lock(&self.kept).insert(page, bytes);
        }
        Frozen::give_back(state, KEPT, copied)
    }

    /// For the writer: the bytes of a page, once.
    fn read(&self, ram: &GuestRam, page: u64, buf: &mut [u8]) -> io::Result<()> {
        let missing = || io::Error::other(format!("page {page:#x} of RAM is not kept for the snapshot"));
        let state = self.state(page).ok_or_else(missing)?;
        match Frozen::own(state) {
            Ok(()) => Frozen::give_back(state, READ, ram.read_fill(page * GRANULE, buf)),
            Err(_) => {
                buf.copy_from_slice(&lock(&self.kept).remove(&page).ok_or_else(missing)?);
                Ok(())
            }
        }
    }
}

/// Bytes of a page: the last one of RAM may be shorter.
fn len(ram: &GuestRam, page: u64) -> usize {
    GRANULE.min(ram.size().saturating_sub(page * GRANULE)) as usize
}

/// Reads the pages as they were when it was made. Whole pages, each once. Dropped, it lets them go.
pub struct FrozenPages {
    ram: Arc<GuestRam>,
    frozen: Arc<Frozen>,
}

impl FrozenPages {
    /// Freezes `pages` (of [`GRANULE`] bytes, all of them present). While no vCPU runs and no device works, and none of the pages
    /// can be written to by the guest without a fault; one set at a time.
    pub fn new(ram: &Arc<GuestRam>, pages: &PageSet) -> FrozenPages {
        let frozen = Arc::new(Frozen::new(pages));
        let freezer = ram.freezer();
        *lock(&freezer.frozen) = Some(Arc::clone(&frozen));
        freezer.active.store(true, Ordering::Release);
        FrozenPages { ram: Arc::clone(ram), frozen }
    }
}

impl fmt::Debug for FrozenPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrozenPages({} pages)", self.frozen.states.len())
    }
}

impl Drop for FrozenPages {
    fn drop(&mut self) {
        let freezer = self.ram.freezer();
        freezer.active.store(false, Ordering::Release);
        *lock(&freezer.frozen) = None;
    }
}

impl PageReader for FrozenPages {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !offset.is_multiple_of(GRANULE) {
            return Err(io::Error::other(format!("{offset:#x} is not the start of a page")));
        }
        let mut rest = buf;
        for page in offset / GRANULE.. {
            if rest.is_empty() {
                break;
            }
            let part = rest.split_off_mut(..len(&self.ram, page)).filter(|part| !part.is_empty());
            let part = part.ok_or_else(|| io::Error::other(format!("a part of page {page:#x} was asked for")))?;
            self.frozen.read(&self.ram, page, part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    use vm_memory::{Bytes, GuestAddress};

    const BASE: u64 = 0x4000_0000;
    const PAGE: usize = GRANULE as usize;

    /// RAM whose pages are filled with their numbers, counted from 1.
    fn numbered(pages: u64) -> Arc<GuestRam> {
        let ram = GuestRam::new(BASE, pages * GRANULE, true).unwrap();
        (0..pages).for_each(|page| ram.write_fill(page * GRANULE, &[page as u8 + 1; PAGE]).unwrap());
        ram
    }

    fn read(frozen: &FrozenPages, page: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE];
        frozen.read_at(page * GRANULE, &mut bytes).map(|()| bytes)
    }

    #[test]
    fn what_is_frozen_is_read_once_and_nothing_else_is() {
        let ram = numbered(8);
        let frozen = FrozenPages::new(&ram, &PageSet::from_pages(GRANULE, 8, [1, 2, 7]));
        let mut two = vec![0; 2 * PAGE];
        frozen.read_at(GRANULE, &mut two).unwrap();
        assert!(two[..PAGE].iter().all(|byte| *byte == 2) && two[PAGE..].iter().all(|byte| *byte == 3));
        assert_eq!(read(&frozen, 7).unwrap(), [8; PAGE]);
        assert!(read(&frozen, 7).is_err(), "a second time");
        assert!(read(&frozen, 0).is_err() && read(&frozen, 8).is_err());
        assert!(frozen.read_at(GRANULE + 1, &mut two).is_err() && frozen.read_at(GRANULE, &mut two[..5]).is_err());
    }

    /// Writes of our own code, through the accessor: of one page, across two, and to pages that are not in the set or already read.
    #[test]
    fn host_writes_keep_what_they_change() {
        let ram = numbered(8);
        let memory = ram.guest_memory().unwrap();
        let frozen = FrozenPages::new(&ram, &PageSet::from_pages(GRANULE, 8, 2..6));
        assert_eq!(read(&frozen, 5).unwrap(), [6; PAGE]);
        memory.write_slice(&[0xee; 2 * PAGE], GuestAddress(BASE + 2 * GRANULE + 100)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(BASE)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(BASE + 5 * GRANULE)).unwrap();
        assert_eq!(lock(&frozen.frozen.kept).len(), 3);
        for page in 2..5 {
            assert_eq!(read(&frozen, page).unwrap(), [page as u8 + 1; PAGE], "page {page}");
        }
        assert!(lock(&frozen.frozen.kept).is_empty(), "what is read is let go");
        drop(frozen);
        memory.write_obj(0u8, GuestAddress(BASE + 3 * GRANULE)).unwrap();
        assert!(ram.freezer().frozen().is_none());
    }

    #[test]
    fn a_guest_waits_when_too_much_is_kept() {
        let pages = KEEP_LIMIT as u64 + 1;
        let ram = GuestRam::new(BASE, pages * GRANULE, true).unwrap();
        let frozen = FrozenPages::new(&ram, &PageSet::full(GRANULE, pages));
        ram.freezer().keep(&ram, 0, KEEP_LIMIT as u64 * GRANULE - 1).unwrap();
        assert!(ram.freezer().is_full());
        read(&frozen, 9).unwrap();
        assert!(!ram.freezer().is_full());
        drop(frozen);
        assert!(!ram.freezer().is_full());
    }

    /// Four threads change every page again and again, as the rules say, while a fifth reads: it reads what was there first.
    #[test]
    fn no_reader_sees_a_later_byte() {
        const PAGES: u64 = 64;
        let ram = numbered(PAGES);
        for round in 0..20 {
            (0..PAGES).for_each(|page| ram.write_fill(page * GRANULE, &[page as u8 + 1; PAGE]).unwrap());
            let frozen = FrozenPages::new(&ram, &PageSet::full(GRANULE, PAGES));
            let changed = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for thread in 0..4u64 {
                    let (ram, changed) = (&ram, &changed);
                    scope.spawn(move || {
                        for n in 0..PAGES {
                            let page = (n * 29 + thread * 16 + round) % PAGES;
                            ram.freezer().keep(ram, page * GRANULE, GRANULE).unwrap();
                            ram.write_fill(page * GRANULE, &[0xee; PAGE]).unwrap();
                            changed.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                while changed.load(Ordering::Relaxed) < 8 {
                    std::thread::yield_now();
                }
                for page in 0..PAGES {
                    assert_eq!(read(&frozen, page).unwrap(), [page as u8 + 1; PAGE], "page {page}");
                }
            });
        }
    }
}
