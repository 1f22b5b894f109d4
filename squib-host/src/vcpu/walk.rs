//! A stage-1 translation table walk (Arm ARM D8) in software, for crash reports: which instruction is at a virtual address?
//!
//! Read-only and forgiving: no permission, access-flag or output-size check, `None` wherever the tables do not lead anywhere.

use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestMemory;

/// The registers a walk starts from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Regime {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
}

impl Regime {
    /// The IPA that `va` translates to.
    pub fn translate(&self, memory: &GuestMemory, va: u64) -> Option<u64> {
        self.walk(va, |descriptor| memory.read_obj(GuestAddress(descriptor)).ok())
    }

    /// The IPA that `va` translates to; `read` gives the eight bytes of RAM at an IPA.
    pub fn walk(&self, va: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        if self.sctlr & 1 == 0 {
            return Some(va);
        }
        let upper = va >> 55 & 1 == 1;
        let (ttbr, size_field, granule) = if upper {
            let shift = match self.tcr >> 30 & 3 {
                1 => 14,
                2 => 12,
                _ => 16,
            };
            (self.ttbr1, self.tcr >> 16 & 0x3f, shift)
        } else {
            let shift = match self.tcr >> 14 & 3 {
                0 => 12,
                2 => 14,
                _ => 16,
            };
            (self.ttbr0, self.tcr & 0x3f, shift)
        };
        let va_bits = 64 - size_field as u32;
        let stride = granule - 3;
        if va_bits <= granule || va_bits > 52 {
            return None;
        }
        let levels = (va_bits - granule).div_ceil(stride);
        let mut table = ttbr & 0xffff_ffff_fffe;
        for level in (0..levels).rev() {
            let shift = granule + level * stride;
            let width = if level == levels - 1 { va_bits - shift } else { stride };
            let index = va >> shift & ((1 << width) - 1);
            let descriptor = read(table + index * 8)?;
            let output = descriptor & 0xffff_ffff_f000;
            match (descriptor & 3, level) {
                (3, 0) => return Some(output & !((1 << granule) - 1) | va & ((1 << granule) - 1)),
                (3, _) => table = output & !((1 << granule) - 1),
                (1, 1..) => return Some(output & !((1 << shift) - 1) | va & ((1 << shift) - 1)),
                _ => return None,
            }
        }
        None
    }

    /// The instruction word at `pc`.
    pub fn instruction(&self, memory: &GuestMemory, pc: u64) -> Option<u32> {
        memory.read_obj(GuestAddress(self.translate(memory, pc)?)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;

    const BASE: u64 = 0x4000_0000;

    #[test]
    fn four_kib_tables_with_a_page_and_a_block() {
        let memory = GuestRam::new(BASE, 1 << 20, false).unwrap().guest_memory().unwrap();
        let put =
            |table: u64, index: u64, value: u64| memory.write_obj(value, GuestAddress(table + index * 8)).unwrap();
        let (l0, l1, l2, l3) = (BASE, BASE + 0x1000, BASE + 0x2000, BASE + 0x3000);
        let va = 0xffff_8000_1234_5678u64;
        put(l0, va >> 39 & 511, l1 | 3);
        put(l1, va >> 30 & 511, l2 | 3);
        put(l2, va >> 21 & 511, l3 | 3);
        put(l3, va >> 12 & 511, (BASE + 0x5000) | 3);
        put(l2, (va >> 21 & 511) + 1, BASE | 1);
        let regime = Regime { sctlr: 1, tcr: 16 << 16 | 2 << 30 | 16, ttbr0: 0, ttbr1: l0 | 1 << 48 };
        assert_eq!(regime.translate(&memory, va), Some(BASE + 0x5678));
        let block = va + 0x20_0000;
        assert_eq!(regime.translate(&memory, block), Some(BASE + (block & 0x1f_ffff)));
        assert_eq!(regime.translate(&memory, va + (1 << 30)), None);
        memory.write_obj(0xd503_201fu32, GuestAddress(BASE + 0x5678)).unwrap();
        assert_eq!(regime.instruction(&memory, va), Some(0xd503_201f));
        assert_eq!(Regime::default().translate(&memory, 0x1234), Some(0x1234));
    }

    #[test]
    fn sixteen_kib_tables() {
        let memory = GuestRam::new(BASE, 1 << 20, false).unwrap().guest_memory().unwrap();
        let put =
            |table: u64, index: u64, value: u64| memory.write_obj(value, GuestAddress(table + index * 8)).unwrap();
        // 47-bit addresses: three levels of 11 bits on 16 KiB pages, starting at level 1.
        let (l1, l2, l3) = (BASE, BASE + 0x4000, BASE + 0x8000);
        let va = 0x1_2345_6789u64;
        put(l1, va >> 36 & 0x7ff, l2 | 3);
        put(l2, va >> 25 & 0x7ff, l3 | 3);
        put(l3, va >> 14 & 0x7ff, (BASE + 0xc000) | 3);
        let regime = Regime { sctlr: 1, tcr: 17 | 2 << 14, ttbr0: l1, ttbr1: 0 };
        assert_eq!(regime.translate(&memory, va), Some(BASE + 0xc000 + (va & 0x3fff)));
    }
}
