//! Emptying TLBs: what TLBI, stage-2 changes and decoded code demand.

use super::{CODE_SHIFT, Entry, FetchEntry, FetchTlb, Mmu, NO_TAG, PAGE_MASK, SIGNIFICANT, SLOW, Tlb};
use crate::engine::block::CodePage;

impl Mmu {
    /// Forgets everything.
    pub(crate) fn flush_all(&mut self) {
        self.tables().for_each(Tlb::flush);
        self.fetch_tables().for_each(FetchTlb::flush);
        self.seen.fill(0);
    }

    /// Forgets what EL1 holds of the lower address range and of non-global mappings: TTBR0 or the ASID has changed.
    pub(crate) fn flush_local_el1(&mut self) {
        self.el1.iter_mut().filter(|table| table.local).for_each(|table| table.flush());
        if self.fetch_el1.local {
            self.fetch_el1.flush();
        }
    }

    /// Forgets an address space (and EL1's local entries, whose ASID is not recorded).
    pub(crate) fn flush_asid(&mut self, asid: u16) {
        for (index, bank) in self.banks.iter_mut().enumerate() {
            if bank.space.is_some_and(|(_, of)| of == u64::from(asid)) {
                bank.data.flush();
                bank.fetch.flush();
                if bank.space != Some(self.space) {
                    bank.space = None;
                    self.spaces.set_bank(index, None);
                }
            }
        }
        self.flush_local_el1();
    }

    /// Forgets the mapping of the page (or block) at `va`, whatever its ASID.
    pub(crate) fn flush_va(&mut self, va: u64) {
        const PAGE: u64 = !0x3fff & SIGNIFICANT;
        let mut mask = PAGE;
        for shift in [21, 25, 30].into_iter().filter(|&shift| self.noted(va, shift)) {
            mask &= !0 << shift;
        }
        let wanted = va & mask;
        let code = mask != PAGE || self.noted(va, CODE_SHIFT);
        if code {
            // Translations that are no longer entered may still be relied on by links.
            let upper = va >> 55 & 1 == 1;
            if upper || self.fetch_el1.local {
                self.fetch_el1.renew();
            }
            self.banks.iter_mut().for_each(|bank| bank.fetch.renew());
        }
        if mask == PAGE {
            // The four 4 KiB entries of the largest page size.
            for page in 0..4 {
                let va = (va & !0x3fff) + (page << 12);
                for table in self.tables() {
                    let entry = &mut table.entries[(va >> 12) as usize % super::ENTRIES];
                    if (entry.read & entry.write) != NO_TAG && (Self::page_of(entry)) & mask == wanted {
                        *entry = Entry::NONE;
                    }
                }
                for table in self.fetch_tables().filter(|_| code) {
                    let entry = &mut table.entries[(va >> 12) as usize % super::FETCH_ENTRIES];
                    if entry.tag & mask == wanted {
                        *entry = FetchEntry::NONE;
                    }
                }
            }
            return;
        }
        self.tables().for_each(|table| table.retain(|entry| Self::page_of(entry) & mask != wanted));
        for table in self.fetch_tables() {
            for entry in table.entries.iter_mut().filter(|entry| entry.tag & mask == wanted) {
                *entry = FetchEntry::NONE;
            }
        }
    }

    fn page_of(entry: &Entry) -> u64 {
        if entry.read != NO_TAG { entry.read & PAGE_MASK } else { entry.write & PAGE_MASK }
    }

    /// Stage 2 changed for this range of IPAs.
    pub(crate) fn flush_stage2(&mut self, ipa: u64, len: u64) {
        let inside = |page: u64| page.wrapping_sub(ipa) < len;
        self.tables().for_each(|table| table.retain(|entry| !inside(entry.info & PAGE_MASK)));
        self.fetch_tables().for_each(FetchTlb::flush);
    }

    /// Code has been decoded on the page at `ipa`: stores there must take the slow path from now on.
    pub(crate) fn watch_code(&mut self, ipa: u64) {
        self.tables().for_each(|table| {
            table.retain(|entry| {
                if entry.info & PAGE_MASK == ipa && entry.write != NO_TAG {
                    entry.write |= SLOW;
                }
                true
            });
        });
    }

    /// A code page is going away.
    pub(crate) fn forget_code(&mut self, page: *const CodePage) {
        for table in self.fetch_tables() {
            table.renew();
            for entry in table.entries.iter_mut().filter(|entry| std::ptr::eq(entry.page, page)) {
                *entry = FetchEntry::NONE;
            }
        }
    }
}
