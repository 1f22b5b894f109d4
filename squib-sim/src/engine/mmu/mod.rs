//! The software TLB: what address translation has found out, in the form the fast paths can use.
//!
//! A data TLB entry is reached by the page number of the first byte of an access and compared with the page of its last
//! byte, so one comparison rejects a miss and an access across pages alike. There is one table per exception level and PAN
//! state, and for EL0 a few banks by (TTBR0, ASID), so that neither exceptions nor context switches empty anything. The
//! fetch TLB leads from a virtual page to its [`CodePage`]. Nothing here is architectural: every table may be emptied at any
//! time.

pub mod maintenance;
pub mod spaces;
pub mod walk;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use self::spaces::Spaces;
use super::block::CodePage;
use super::cpu::{Cpu, Privilege};
use super::pstate::sctlr;
use super::shared::pending;

/// Entries of a data TLB.
const ENTRIES: usize = 1024;
/// Entries of a fetch TLB.
const FETCH_ENTRIES: usize = 512;
/// EL0 address spaces remembered at once.
const BANKS: usize = 4;
/// Fetch TLBs of one vCPU.
const FETCH_TABLES: u64 = BANKS as u64 + 1;
/// Code is noted by this many bytes: no page is larger.
const CODE_SHIFT: u32 = 14;
/// The address bits of a TLBI operand. Tagged addresses may have been entered.
const SIGNIFICANT: u64 = 0x0000_ffff_ffff_ffff;
/// A tag no access compares equal to.
const NO_TAG: u64 = u64::MAX;
/// The page part of an address.
pub const PAGE_MASK: u64 = !0xfff;

/// Attribute bits, in the low bits of [`Entry::info`].
pub mod attr {
    /// Device memory: unaligned accesses fault.
    pub const DEVICE: u64 = 1;
}

/// Set in a tag to send every access down the slow path, which then finds the entry valid.
pub const SLOW: u64 = 1;

/// One data TLB entry.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Entry {
    /// Page address if loads may go the fast path, page address | [`SLOW`] if the slow one.
    pub read: u64,
    /// The same for stores.
    pub write: u64,
    /// Host address − guest virtual address.
    pub addend: u64,
    /// IPA of the page | [`attr`].
    pub info: u64,
}

impl Entry {
    const NONE: Entry = Entry { read: NO_TAG, write: NO_TAG, addend: 0, info: 0 };

    /// The tag for a store or a load.
    #[inline(always)]
    pub fn tag(&self, write: bool) -> u64 {
        if write { self.write } else { self.read }
    }
}

/// A data TLB.
pub struct Tlb {
    entries: [Entry; ENTRIES],
    used: bool,
    local: bool,
}

impl Tlb {
    fn new() -> Box<Tlb> {
        Box::new(Tlb { entries: [Entry::NONE; ENTRIES], used: false, local: false })
    }

    /// The entry an access at `va` would use.
    #[inline(always)]
    pub fn entry(&self, va: u64) -> &Entry {
        &self.entries[(va >> 12) as usize % ENTRIES]
    }

    fn flush(&mut self) {
        if self.used {
            self.entries = [Entry::NONE; ENTRIES];
            (self.used, self.local) = (false, false);
        }
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut Entry) -> bool) {
        if self.used {
            for entry in &mut self.entries {
                if (entry.read & entry.write) != NO_TAG && !keep(entry) {
                    *entry = Entry::NONE;
                }
            }
        }
    }
}

/// One fetch TLB entry.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct FetchEntry {
    /// Page address.
    pub tag: u64,
    /// The code on it.
    pub page: *mut CodePage,
}

impl FetchEntry {
    const NONE: FetchEntry = FetchEntry { tag: NO_TAG, page: std::ptr::null_mut() };
}

/// A fetch TLB.
pub struct FetchTlb {
    /// Changes whenever a translation is withdrawn; no two tables ever have the same. What was found under one generation
    /// (a link from block to block, say) holds as long as the generation does, entered or not.
    pub generation: u64,
    entries: [FetchEntry; FETCH_ENTRIES],
    local: bool,
}

impl FetchTlb {
    /// The `index`th of at most [`FETCH_TABLES`] tables.
    fn new(index: u64) -> Box<FetchTlb> {
        Box::new(FetchTlb { generation: index + 1, entries: [FetchEntry::NONE; FETCH_ENTRIES], local: false })
    }

    fn renew(&mut self) {
        self.generation += FETCH_TABLES;
    }

    /// The entry a fetch at `va` would use.
    #[inline(always)]
    pub fn entry(&self, va: u64) -> &FetchEntry {
        &self.entries[(va >> 12) as usize % FETCH_ENTRIES]
    }

    fn flush(&mut self) {
        self.renew();
        self.entries = [FetchEntry::NONE; FETCH_ENTRIES];
        self.local = false;
    }
}

/// An EL0 address space: TTBR0's table base and the ASID.
type Space = (u64, u64);

struct Bank {
    data: Box<Tlb>,
    fetch: Box<FetchTlb>,
    space: Option<Space>,
    last_use: u64,
}

/// Registers every translation depends on.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Controls {
    sctlr: u64,
    tcr: u64,
    mair: u64,
    ttbr0: u64,
    ttbr1: u64,
}

/// All the TLBs of one vCPU.
pub struct Mmu {
    banks: [Bank; BANKS],
    el1: [Box<Tlb>; 2],
    fetch_el1: Box<FetchTlb>,
    empty: Box<Tlb>,
    /// Which block mappings (larger than a page) have been used, and on which 16 KiB of addresses code has been fetched: a
    /// Bloom filter over addresses.
    seen: Box<[u64; 1024]>,
    controls: Controls,
    space: Space,
    /// What other vCPUs know of this.
    spaces: Arc<Spaces>,
    clock: u64,
    /// Every access takes the slow path: SCTLR_EL1.A, watchpoints.
    pub(crate) force_slow: bool,
}

impl Mmu {
    /// Empty TLBs; `spaces` tells the other vCPUs of them.
    pub fn new(spaces: Arc<Spaces>) -> Box<Mmu> {
        let bank = |index| Bank { data: Tlb::new(), fetch: FetchTlb::new(index), space: None, last_use: 0 };
        Box::new(Mmu {
            banks: [bank(0), bank(1), bank(2), bank(3)],
            el1: [Tlb::new(), Tlb::new()],
            fetch_el1: FetchTlb::new(BANKS as u64),
            empty: Tlb::new(),
            seen: Box::new([0; 1024]),
            controls: Controls::default(),
            space: (0, 0),
            spaces,
            clock: 0,
            force_slow: false,
        })
    }

    /// Where the pointers of a new vCPU point, until [`Cpu::refresh`].
    pub(crate) fn reset_tables(&mut self) -> (*const Tlb, *const FetchTlb) {
        (&raw const *self.empty, &raw const *self.fetch_el1)
    }

    /// The bank of the current EL0 address space, if there is one already.
    fn find_bank(&self) -> Option<usize> {
        self.banks.iter().position(|bank| bank.space == Some(self.space))
    }

    /// The bank of the current EL0 address space; takes over the one unused for longest if there is none.
    fn bank(&mut self) -> &mut Bank {
        let index = self.find_bank().unwrap_or_else(|| {
            let oldest = (0..BANKS).min_by_key(|&i| self.banks[i].last_use).unwrap_or(0);
            let bank = &mut self.banks[oldest];
            bank.data.flush();
            bank.fetch.flush();
            bank.space = Some(self.space);
            self.spaces.set_bank(oldest, Some(self.space.1));
            oldest
        });
        self.clock += 1;
        self.banks[index].last_use = self.clock;
        &mut self.banks[index]
    }

    fn filter_bit(va: u64, shift: u32) -> (usize, u64) {
        let hash = ((va >> shift) + u64::from(shift)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        (hash as usize / 64, 1 << (hash % 64))
    }

    /// Notes that the 2^`shift` bytes around `va` are mapped by one descriptor, or ([`CODE_SHIFT`]) hold code.
    fn note(&mut self, va: u64, shift: u32) {
        let (word, bit) = Self::filter_bit(va & SIGNIFICANT, shift);
        self.seen[word] |= bit;
    }

    /// Whether [`Mmu::note`] may have been told this.
    fn noted(&self, va: u64, shift: u32) -> bool {
        let (word, bit) = Self::filter_bit(va & SIGNIFICANT, shift);
        self.seen[word] & bit != 0
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut Tlb> {
        self.banks.iter_mut().map(|bank| &mut *bank.data).chain(self.el1.iter_mut().map(|table| &mut **table))
    }

    fn fetch_tables(&mut self) -> impl Iterator<Item = &mut FetchTlb> {
        self.banks.iter_mut().map(|bank| &mut *bank.fetch).chain(std::iter::once(&mut *self.fetch_el1))
    }
}

impl Cpu {
    /// Selects the TLBs for the current exception level, PAN and address space, and empties those that a register change
    /// has made stale.
    pub(crate) fn refresh_mmu(&mut self) {
        let sys = &self.sys;
        let now = Controls { sctlr: sys.sctlr, tcr: sys.tcr, mair: sys.mair, ttbr0: sys.ttbr0, ttbr1: sys.ttbr1 };
        if now != self.mmu.controls {
            self.controls_changed(now);
        }
        let mmu = &mut *self.mmu;
        if self.el == 0 {
            let bank = mmu.bank();
            self.tlb = &raw const *bank.data;
            self.tlb_unprivileged = self.tlb;
            self.fetch = &raw const *bank.fetch;
        } else {
            self.tlb = &raw const *mmu.el1[usize::from(self.pan)];
            self.fetch = &raw const *mmu.fetch_el1;
            self.tlb_unprivileged = match mmu.find_bank() {
                Some(index) => &raw const *mmu.banks[index].data,
                None => &raw const *mmu.empty,
            };
        }
    }

    #[cold]
    fn controls_changed(&mut self, now: Controls) {
        const BASE: u64 = 0x0000_ffff_ffff_fffe;
        let before = self.mmu.controls;
        let asid_mask = if now.tcr & 1 << 36 != 0 { 0xffff } else { 0xff };
        let asid = if now.tcr & 1 << 22 != 0 { now.ttbr1 } else { now.ttbr0 } >> 48 & asid_mask;
        let same_rules = (now.sctlr ^ before.sctlr) & (sctlr::M | sctlr::A | sctlr::WXN) == 0
            && (now.tcr, now.mair) == (before.tcr, before.mair)
            && (now.ttbr1 ^ before.ttbr1) & BASE == 0;
        self.mmu.controls = now;
        self.mmu.space = (now.ttbr0 & BASE, asid);
        if same_rules {
            self.mmu.flush_local_el1();
        } else {
            self.update_force_slow();
            self.mmu.flush_all();
        }
        self.mmu.spaces.enter(asid);
        if self.shared.pending.load(SeqCst) & pending::REQUEST != 0 {
            self.serve_requests();
        }
    }

    /// Recomputes whether all accesses take the slow path.
    pub(crate) fn update_force_slow(&mut self) {
        let slow = self.sys.sctlr & sctlr::A != 0 || self.watchpoints_enabled();
        if slow != self.mmu.force_slow {
            self.mmu.force_slow = slow;
            self.mmu.flush_all();
        }
    }
}

impl Cpu {
    /// Enters what a walk has found into the data TLB.
    pub(crate) fn enter(&mut self, va: u64, entry: Entry, local: bool, privilege: Privilege) {
        let user = self.el == 0 || privilege == Privilege::Unprivileged;
        let pan = usize::from(self.pan);
        let table = if user { &mut *self.mmu.bank().data } else { &mut *self.mmu.el1[pan] };
        table.entries[(va >> 12) as usize % ENTRIES] = entry;
        table.used = true;
        table.local |= local;
        let table = &raw const *table;
        if user {
            self.tlb_unprivileged = table;
        }
    }

    /// Enters a code page into the fetch TLB.
    pub(crate) fn enter_fetch(&mut self, va: u64, page: *mut CodePage, local: bool) {
        let table = if self.el == 0 { &mut *self.mmu.bank().fetch } else { &mut *self.mmu.fetch_el1 };
        table.entries[(va >> 12) as usize % FETCH_ENTRIES] = FetchEntry { tag: va & PAGE_MASK, page };
        table.local |= local;
        self.mmu.note(va, CODE_SHIFT);
    }
}
