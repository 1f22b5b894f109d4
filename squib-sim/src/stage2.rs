//! Stage 2: intermediate physical address to host memory, with permissions.
//!
//! A two-level table of atomics. The first level covers 32 MiB an entry and holds either a block (contiguous host memory,
//! one set of permissions) or a table of pages. Walks are lock-free and run on every TLB miss of every vCPU; changes are
//! serialised by one lock and cost one store a page, or one a block. A table once made stays until the virtual machine
//! ends, so a walk never meets freed memory.
//!
//! Changing the table does not reach the vCPUs' TLBs: [`Machine::stage2_changed`](crate::machine::Machine::stage2_changed)
//! does, and whoever changes a mapping that was valid calls it before relying on the change.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use thiserror::Error;

use crate::config::Config;
use crate::host_memory::Protections;

/// Stage-2 permissions of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perms(u8);

impl Perms {
    /// No access.
    pub const NONE: Perms = Perms(0);
    /// Loads.
    pub const READ: Perms = Perms(1);
    /// Stores.
    pub const WRITE: Perms = Perms(2);
    /// Instruction fetches.
    pub const EXEC: Perms = Perms(4);
    /// All of these.
    pub const ALL: Perms = Perms(7);

    /// The permissions an `hv_memory_flags_t` asks for; `None` if it has other bits.
    pub fn from_flags(flags: u64) -> Option<Perms> {
        (flags <= 7).then_some(Perms(flags as u8))
    }

    /// Whether all of `other` is granted.
    pub fn contains(self, other: Perms) -> bool {
        self.0 & other.0 == other.0
    }

    /// Loads are allowed.
    pub fn readable(self) -> bool {
        self.contains(Perms::READ)
    }

    /// Stores are allowed.
    pub fn writable(self) -> bool {
        self.contains(Perms::WRITE)
    }

    /// Instruction fetches are allowed.
    pub fn executable(self) -> bool {
        self.contains(Perms::EXEC)
    }
}

impl std::ops::BitAnd for Perms {
    type Output = Perms;

    fn bitand(self, other: Perms) -> Perms {
        Perms(self.0 & other.0)
    }
}

impl std::ops::BitOr for Perms {
    type Output = Perms;

    fn bitor(self, other: Perms) -> Perms {
        Perms(self.0 | other.0)
    }
}

/// What a 4 KiB page of IPA space is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Page {
    /// The page's bytes. Readable, and writable if `perms` say so, for as long as the mapping stands.
    pub host: *mut u8,
    /// What the guest may do.
    pub perms: Perms,
    /// The host range was `PROT_NONE` when it was mapped: an access never completes. The vCPU parks until it is asked to
    /// exit; `host` must not be touched.
    pub hangs: bool,
}

/// Why a change was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Stage2Error {
    /// Address, IPA or size is not a multiple of the granule, is empty, or is outside the IPA space.
    #[error("address, IPA and size must be multiples of the granule, inside the IPA space")]
    Misaligned,
    /// Some of the range is already mapped.
    #[error("the IPA range is already mapped, wholly or in part")]
    Overlap,
    /// Some of the range is not mapped.
    #[error("the IPA range is not mapped, wholly or in part")]
    NotMapped,
}

const BLOCK_SHIFT: u32 = 25;
const BLOCK_SIZE: u64 = 1 << BLOCK_SHIFT;
/// log2 of the area in which what is not mapped counts as missing memory when some is, or was.
const NEIGHBOURHOOD: u32 = 27;

/// Layout of an entry, of either level. Zero is "not mapped".
mod entry {
    pub const VALID: u64 = 1 << 0;
    /// First level only: the rest is the address of a [`super::Table`].
    pub const TABLE: u64 = 1 << 1;
    pub const HANGS: u64 = 1 << 2;
    pub const PERMS_SHIFT: u32 = 3;
    pub const PERMS: u64 = 7 << PERMS_SHIFT;
    /// Host address; granule-aligned, so at least twelve low bits are free.
    pub const HOST: u64 = !0xfff;
}

type Table = Box<[AtomicU64]>;

/// The part of the state that changes under the lock.
#[derive(Default)]
struct Extents {
    /// Mapped ranges, start to end, merged where they touch.
    mapped: BTreeMap<u64, u64>,
    /// Owns the page tables the first level points to.
    tables: Vec<Table>,
}

/// The stage-2 translation of one virtual machine.
pub struct Stage2 {
    ipa_size: u64,
    page_shift: u32,
    blocks: Box<[AtomicU64]>,
    extents: Mutex<Extents>,
    /// Whether anything was ever mapped, by [`NEIGHBOURHOOD`].
    memory_near: Box<[AtomicBool]>,
    /// Only with the switch that makes host protection felt: host ranges by IPA, and how the host had them protected when it
    /// was last asked.
    followed: Option<RwLock<Followed>>,
}

/// Host ranges whose protection the guest feels.
#[derive(Default)]
struct Followed {
    /// IPA to end of range and host address.
    ranges: BTreeMap<u64, (u64, u64)>,
    protections: Protections,
    /// They have changed, and translations may be older.
    stale: bool,
    /// Looks that were begun.
    begun: AtomicU64,
    /// The number of the one that `protections` are as of.
    taken: AtomicU64,
}

impl Stage2 {
    /// An empty translation of `ipa_bits` bits of IPA.
    pub fn new(config: &Config, ipa_bits: u32) -> Stage2 {
        let ipa_size = 1u64 << ipa_bits;
        let blocks = (0..ipa_size.div_ceil(BLOCK_SIZE)).map(|_| AtomicU64::new(0)).collect();
        let page_shift = config.granule.size().trailing_zeros();
        let followed = config.follows_protection().then(RwLock::default);
        let memory_near = (0..ipa_size.div_ceil(1 << NEIGHBOURHOOD)).map(|_| AtomicBool::new(false)).collect();
        Stage2 { ipa_size, page_shift, blocks, extents: Mutex::default(), memory_near, followed }
    }

    /// The granule in bytes.
    pub fn granule(&self) -> u64 {
        1 << self.page_shift
    }

    /// Bytes of IPA space.
    pub fn ipa_size(&self) -> u64 {
        self.ipa_size
    }

    /// The 4 KiB page `ipa` lies in. Lock-free.
    #[inline]
    pub fn lookup(&self, ipa: u64) -> Option<Stage2Page> {
        let block = self.blocks.get((ipa >> BLOCK_SHIFT) as usize)?.load(Ordering::Acquire);
        let (found, offset) = if block & entry::TABLE == 0 {
            (block, ipa & (BLOCK_SIZE - 1))
        } else {
            (self.pages(block)[self.page_index(ipa)].load(Ordering::Acquire), ipa & (self.granule() - 1))
        };
        if found & entry::VALID == 0 {
            return None;
        }
        let mut perms = Perms(((found & entry::PERMS) >> entry::PERMS_SHIFT) as u8);
        if let Some(followed) = &self.followed {
            perms = perms & read(followed).at(ipa);
        }
        Some(Stage2Page {
            host: ((found & entry::HOST) + (offset & !0xfff)) as *mut u8,
            perms,
            hangs: found & entry::HANGS != 0,
        })
    }

    /// The host range that has just been mapped, for the switch that makes its protection felt.
    pub fn follow(&self, ipa: u64, size: u64, host: u64) {
        if let Some(followed) = &self.followed {
            write(followed).ranges.insert(ipa, (ipa + size, host));
            // Translations of what was mapped before are to go, but not now: callers hold the memory map.
            let changed = Followed::look(followed);
            write(followed).stale |= changed;
        }
    }

    /// Looks at how host memory is protected now. Whether that may have changed.
    pub fn observe_host_protection(&self) -> bool {
        let Some(followed) = &self.followed else { return false };
        Followed::look(followed) | (read(followed).stale && std::mem::take(&mut write(followed).stale))
    }

    fn page_index(&self, ipa: u64) -> usize {
        ((ipa & (BLOCK_SIZE - 1)) >> self.page_shift) as usize
    }

    fn pages(&self, block: u64) -> &[AtomicU64] {
        let length = (BLOCK_SIZE >> self.page_shift) as usize;
        // SAFETY: an entry with TABLE set holds the address of a table of this length that `Extents::tables` owns and keeps
        // until `self` is dropped.
        unsafe { std::slice::from_raw_parts((block & entry::HOST) as *const AtomicU64, length) }
    }

    /// Whether `ipa..ipa + size` is a non-empty range of whole granules inside the IPA space.
    pub fn check_range(&self, ipa: u64, size: u64) -> Result<(), Stage2Error> {
        let aligned = (ipa | size) & (self.granule() - 1) == 0;
        let inside = ipa.checked_add(size).is_some_and(|end| end <= self.ipa_size);
        if size != 0 && aligned && inside { Ok(()) } else { Err(Stage2Error::Misaligned) }
    }

    /// Maps `size` bytes at `host` to `ipa`, none of which is mapped.
    pub fn map(&self, host: *mut u8, ipa: u64, size: u64, perms: Perms, hangs: bool) -> Result<(), Stage2Error> {
        self.check_range(ipa, size)?;
        if host as u64 & (self.granule() - 1) != 0 {
            return Err(Stage2Error::Misaligned);
        }
        let mut extents = self.extents.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if extents.overlaps(ipa, ipa + size) {
            return Err(Stage2Error::Overlap);
        }
        extents.insert(ipa, ipa + size);
        let (first, last) = (ipa >> NEIGHBOURHOOD, (ipa + size - 1) >> NEIGHBOURHOOD);
        self.memory_near[first as usize..=last as usize].iter().for_each(|near| near.store(true, Ordering::Relaxed));
        let bits = entry::VALID | u64::from(perms.0) << entry::PERMS_SHIFT | if hangs { entry::HANGS } else { 0 };
        self.update(&mut extents, ipa, size, |_, offset| (host as u64 + offset) | bits);
        Ok(())
    }

    /// Whether memory is, or was, mapped not far from `ipa`.
    pub fn near_memory(&self, ipa: u64) -> bool {
        self.memory_near.get((ipa >> NEIGHBOURHOOD) as usize).is_some_and(|near| near.load(Ordering::Relaxed))
    }

    /// Whether any of a range is mapped.
    pub fn is_mapped(&self, ipa: u64, size: u64) -> bool {
        let extents = self.extents.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        extents.overlaps(ipa, ipa + size)
    }

    /// Removes whatever is mapped in a range.
    pub fn clear(&self, ipa: u64, size: u64) {
        if let Some(followed) = &self.followed {
            write(followed).forget(ipa, ipa + size);
        }
        let mut extents = self.extents.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        extents.remove(ipa, ipa + size);
        self.update(&mut extents, ipa, size, |_, _| 0);
    }

    /// Removes the mapping of a range, all of which must be mapped.
    pub fn unmap(&self, ipa: u64, size: u64) -> Result<(), Stage2Error> {
        self.check_range(ipa, size)?;
        let extents = self.extents.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !extents.covers(ipa, ipa + size) {
            return Err(Stage2Error::NotMapped);
        }
        drop(extents);
        self.clear(ipa, size);
        Ok(())
    }

    /// Changes the permissions of a range, all of which must be mapped. `true` if any page lost a permission.
    pub fn protect(&self, ipa: u64, size: u64, perms: Perms) -> Result<bool, Stage2Error> {
        self.check_range(ipa, size)?;
        let mut extents = self.extents.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !extents.covers(ipa, ipa + size) {
            return Err(Stage2Error::NotMapped);
        }
        let bits = u64::from(perms.0) << entry::PERMS_SHIFT;
        let mut lost = false;
        self.update(&mut extents, ipa, size, |old, _| {
            lost |= old & entry::PERMS & !bits != 0;
            old & !entry::PERMS | bits
        });
        Ok(lost)
    }

    /// The mapped range that ends last at or before `ipa` ends there, and the next one starts there: the hole around an
    /// unmapped `ipa`.
    pub fn hole_around(&self, ipa: u64) -> (u64, u64) {
        let extents = self.extents.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let start = extents.mapped.range(..=ipa).next_back().map_or(0, |(_, &end)| end.min(ipa));
        let end = extents.mapped.range(ipa..).next().map_or(self.ipa_size, |(&start, _)| start);
        (start, end)
    }

    /// Rewrites the entries of a range: `change(old entry, offset of the page or block in the range)`.
    fn update(&self, extents: &mut Extents, ipa: u64, size: u64, mut change: impl FnMut(u64, u64) -> u64) {
        let end = ipa + size;
        let mut at = ipa;
        while at < end {
            let slot = &self.blocks[(at >> BLOCK_SHIFT) as usize];
            let block = slot.load(Ordering::Relaxed);
            let block_end = (at & !(BLOCK_SIZE - 1)) + BLOCK_SIZE;
            let whole = at & (BLOCK_SIZE - 1) == 0 && block_end <= end;
            if block & entry::TABLE == 0 && whole {
                slot.store(change(block, at - ipa), Ordering::Release);
            } else {
                let block = if block & entry::TABLE == 0 { self.split(extents, slot, block) } else { block };
                let pages = self.pages(block);
                let part_end = block_end.min(end);
                for page in (at..part_end).step_by(self.granule() as usize) {
                    let slot = &pages[self.page_index(page)];
                    slot.store(change(slot.load(Ordering::Relaxed), page - ipa), Ordering::Release);
                }
            }
            at = block_end;
        }
    }

    /// Replaces a block entry by a table with the same meaning, and returns the new entry.
    fn split(&self, extents: &mut Extents, slot: &AtomicU64, block: u64) -> u64 {
        let page = |index: u64| if block == 0 { 0 } else { block + (index << self.page_shift) };
        let count = BLOCK_SIZE >> self.page_shift;
        // The table's address shares its word with flag bits: over-allocate so that it can be aligned like a host page.
        let padding = 0x1000 / size_of::<AtomicU64>() as u64;
        let table: Table = (0..count + padding).map(|_| AtomicU64::new(0)).collect();
        let skip = table.as_ptr().align_offset(0x1000);
        for index in 0..count {
            table[skip + index as usize].store(page(index), Ordering::Relaxed);
        }
        let new = table[skip..].as_ptr() as u64 | entry::VALID | entry::TABLE;
        extents.tables.push(table);
        slot.store(new, Ordering::Release);
        new
    }
}

fn read(followed: &RwLock<Followed>) -> RwLockReadGuard<'_, Followed> {
    followed.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn write(followed: &RwLock<Followed>) -> RwLockWriteGuard<'_, Followed> {
    followed.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Followed {
    /// Looks at the host's memory; whether what the guest feels of it may have changed. That takes a while, in which no lock is held:
    /// who waits for it would hardly get a turn among vCPUs that run again and again.
    fn look(followed: &RwLock<Followed>) -> bool {
        let (number, part) = read(followed).begin();
        Followed::take(followed, number, Protections::read(part))
    }

    /// A look's number, and what is to be looked at.
    fn begin(&self) -> (u64, Range<u64>) {
        (self.begun.fetch_add(1, Ordering::SeqCst) + 1, self.host_memory())
    }

    /// Takes what a look saw, unless one that was begun later has been taken: that saw all that this one did, or what came after.
    fn take(followed: &RwLock<Followed>, number: u64, now: Protections) -> bool {
        {
            let followed = read(followed);
            if now.is_as(&followed.protections) {
                followed.taken.fetch_max(number, Ordering::SeqCst);
                return false;
            }
        }
        let mut followed = write(followed);
        if followed.taken.fetch_max(number, Ordering::SeqCst) < number {
            followed.protections = now;
        }
        true
    }

    /// From the lowest address to the highest.
    fn host_memory(&self) -> Range<u64> {
        let start = self.ranges.values().map(|&(_, host)| host).min().unwrap_or(0);
        let end = self.ranges.iter().map(|(ipa, &(end, host))| host + (end - ipa)).max().unwrap_or(0);
        start..end
    }

    /// Stops following a range; what sticks out of it on either side goes on.
    fn forget(&mut self, start: u64, end: u64) {
        while let Some((&from, &(to, host))) = self.ranges.range(..end).next_back().filter(|(_, (to, _))| *to > start) {
            self.ranges.remove(&from);
            if from < start {
                self.ranges.insert(from, (start, host));
            }
            if to > end {
                self.ranges.insert(end, (to, host + (end - from)));
            }
        }
    }

    /// What the host's protection leaves of a page. Executing needs reading.
    fn at(&self, ipa: u64) -> Perms {
        let all = Perms::READ | Perms::WRITE | Perms::EXEC;
        let range = self.ranges.range(..=ipa).next_back().filter(|(_, (end, _))| ipa < *end);
        let Some((&start, &(_, host))) = range else {
            return all;
        };
        match self.protections.at(host + (ipa - start)) {
            // Gone altogether: the guest keeps the object.
            None => all,
            Some(perms) if !perms.readable() => Perms::NONE,
            Some(perms) if perms.writable() => all,
            Some(_) => Perms::READ | Perms::EXEC,
        }
    }
}

impl Extents {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.mapped.range(..end).next_back().is_some_and(|(_, &mapped_end)| mapped_end > start)
    }

    fn covers(&self, start: u64, end: u64) -> bool {
        self.mapped.range(..=start).next_back().is_some_and(|(_, &mapped_end)| mapped_end >= end)
    }

    fn insert(&mut self, mut start: u64, mut end: u64) {
        if let Some((&before, &before_end)) = self.mapped.range(..start).next_back()
            && before_end == start
        {
            start = before;
        }
        if let Some(after_end) = self.mapped.remove(&end) {
            end = after_end;
        }
        self.mapped.insert(start, end);
    }

    fn remove(&mut self, start: u64, end: u64) {
        while let Some((&mapped, &mapped_end)) = self.mapped.range(..end).next_back() {
            if mapped_end <= start {
                break;
            }
            self.mapped.remove(&mapped);
            if mapped < start {
                self.mapped.insert(mapped, start);
            }
            if mapped_end > end {
                self.mapped.insert(end, mapped_end);
            }
        }
    }
}

#[cfg(test)]
mod tests;
