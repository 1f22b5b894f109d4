//! The CPU interface of one vCPU: priorities, and the ICC_* registers' storage.
//!
//! Single security state (GICD_CTLR.DS = 1), 5 bits of priority, so one active-priority register a group. IHI 0069, sections
//! 4.8 (priorities) and 12.2 (registers).

use super::bank::PRIORITY_MASK;

/// Implemented priority bits.
const PRIORITY_BITS: u32 = 5;
/// ICC_BPR0_EL1 can go no lower.
const MIN_BPR0: u8 = 7 - PRIORITY_BITS as u8;
/// ICC_BPR1_EL1 can go no lower.
const MIN_BPR1: u8 = MIN_BPR0 + 1;
/// The running priority when nothing is active.
pub const IDLE: u8 = 0xff;

/// ICC_CTLR_EL1 bits.
mod ctlr {
    pub const CBPR: u64 = 1 << 0;
    pub const EOI_MODE: u64 = 1 << 1;
    pub const A3V: u64 = 1 << 15;
    pub const PRI_BITS_SHIFT: u32 = 8;
}

/// An interrupt group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Signalled as FIQ.
    Group0 = 0,
    /// Signalled as IRQ.
    Group1 = 1,
}

/// Registers of a CPU interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuInterface {
    pmr: u8,
    /// By group.
    bpr: [u8; 2],
    /// Active priorities, by group.
    active: [u32; 2],
    enabled: [bool; 2],
    common_bpr: bool,
    split_eoi: bool,
}

impl Default for CpuInterface {
    fn default() -> CpuInterface {
        CpuInterface {
            pmr: 0,
            bpr: [MIN_BPR0, MIN_BPR1],
            active: [0; 2],
            enabled: [false; 2],
            common_bpr: false,
            split_eoi: false,
        }
    }
}

impl CpuInterface {
    /// Whether ICC_IGRPENn_EL1 is set.
    #[inline]
    pub fn enabled(&self, group: Group) -> bool {
        self.enabled[group as usize]
    }

    /// Whether priority drop and deactivation are separate (ICC_CTLR_EL1.EOImode).
    pub fn split_eoi(&self) -> bool {
        self.split_eoi
    }

    /// `GetHighestActivePriority`: [`IDLE`] if nothing is active.
    #[inline]
    pub fn running_priority(&self) -> u8 {
        let active = self.active[0] | self.active[1];
        if active == 0 { IDLE } else { (active.trailing_zeros() as u8) << (8 - PRIORITY_BITS) }
    }

    /// The part of `priority` that decides about preemption.
    fn group_priority(&self, priority: u8, group: Group) -> u8 {
        let binary_point = match group {
            Group::Group1 if !self.common_bpr => self.bpr[1],
            _ => self.bpr[0] + 1,
        };
        priority & (0xff_u32 << binary_point) as u8
    }

    /// Whether a pending interrupt of this priority interrupts the vCPU now.
    #[inline]
    pub fn takes(&self, priority: u8, group: Group) -> bool {
        self.enabled(group) && priority < self.pmr && self.group_priority(priority, group) < self.running_priority()
    }

    /// An interrupt has been acknowledged.
    pub fn activate(&mut self, priority: u8, group: Group) {
        let level = self.group_priority(priority, group) >> (8 - PRIORITY_BITS);
        self.active[group as usize] |= 1 << level;
    }

    /// `PriorityDrop`: the most urgent active priority ends, if it is of this group. Otherwise the write is out of order,
    /// and changes nothing.
    pub fn drop_priority(&mut self, group: Group) -> bool {
        let (own, other) = (self.active[group as usize], self.active[1 - group as usize]);
        let matches = own != 0 && own.trailing_zeros() <= other.trailing_zeros();
        if matches {
            self.active[group as usize] &= own - 1;
        }
        matches
    }

    /// ICC_PMR_EL1.
    pub fn pmr(&self) -> u64 {
        u64::from(self.pmr)
    }

    /// ICC_PMR_EL1.
    pub fn set_pmr(&mut self, value: u64) {
        self.pmr = value as u8 & PRIORITY_MASK;
    }

    /// ICC_BPRn_EL1.
    pub fn bpr(&self, group: Group) -> u64 {
        u64::from(match group {
            Group::Group1 if self.common_bpr => (self.bpr[0] + 1).min(7),
            _ => self.bpr[group as usize],
        })
    }

    /// ICC_BPRn_EL1.
    pub fn set_bpr(&mut self, group: Group, value: u64) {
        match group {
            Group::Group0 => self.bpr[0] = (value as u8 & 7).max(MIN_BPR0),
            Group::Group1 if self.common_bpr => {}
            Group::Group1 => self.bpr[1] = (value as u8 & 7).max(MIN_BPR1),
        }
    }

    /// ICC_APnR0_EL1.
    pub fn active_priorities(&self, group: Group) -> u64 {
        u64::from(self.active[group as usize])
    }

    /// ICC_APnR0_EL1.
    pub fn set_active_priorities(&mut self, group: Group, value: u64) {
        self.active[group as usize] = value as u32;
    }

    /// ICC_CTLR_EL1.
    pub fn ctlr(&self) -> u64 {
        let fixed = ctlr::A3V | u64::from(PRIORITY_BITS - 1) << ctlr::PRI_BITS_SHIFT;
        fixed | if self.common_bpr { ctlr::CBPR } else { 0 } | if self.split_eoi { ctlr::EOI_MODE } else { 0 }
    }

    /// ICC_CTLR_EL1.
    pub fn set_ctlr(&mut self, value: u64) {
        self.common_bpr = value & ctlr::CBPR != 0;
        self.split_eoi = value & ctlr::EOI_MODE != 0;
    }

    /// ICC_IGRPENn_EL1.
    pub fn set_enabled(&mut self, group: Group, value: u64) {
        self.enabled[group as usize] = value & 1 != 0;
    }
}

#[cfg(test)]
mod tests {
    use super::Group::{Group0, Group1};
    use super::*;

    fn open() -> CpuInterface {
        let mut interface = CpuInterface::default();
        interface.set_pmr(0xff);
        interface.set_enabled(Group0, 1);
        interface.set_enabled(Group1, 1);
        interface
    }

    #[test]
    fn preemption_needs_a_lower_group_priority() {
        let mut interface = open();
        assert_eq!((interface.pmr(), interface.running_priority()), (0xf8, IDLE));
        interface.set_bpr(Group1, 6);
        interface.activate(0xa0, Group1);
        assert_eq!(interface.running_priority(), 0x80);
        assert!(!interface.takes(0x98, Group1), "same group priority");
        assert!(interface.takes(0x78, Group1));
        interface.activate(0x78, Group1);
        assert_eq!(interface.active_priorities(Group1), 1 << 16 | 1 << 8);
        assert!(!interface.drop_priority(Group0));
        assert!(interface.drop_priority(Group1));
        assert_eq!(interface.running_priority(), 0x80);
        assert!(interface.drop_priority(Group1));
        assert!(!interface.drop_priority(Group1));
    }

    #[test]
    fn registers_have_their_minima_and_fixed_bits() {
        let mut interface = open();
        interface.set_bpr(Group0, 0);
        interface.set_bpr(Group1, 0);
        assert_eq!((interface.bpr(Group0), interface.bpr(Group1)), (2, 3));
        interface.set_ctlr(!0);
        assert_eq!(interface.ctlr(), 0x8403);
        interface.set_bpr(Group0, 7);
        interface.set_bpr(Group1, 3);
        assert_eq!(interface.bpr(Group1), 7, "the common binary point, saturated");
        interface.set_ctlr(0);
        assert_eq!((interface.ctlr(), interface.bpr(Group1)), (0x8400, 3));
    }

    #[test]
    fn masks_compare_strictly() {
        let mut interface = open();
        interface.set_pmr(0xa0);
        assert!(!interface.takes(0xa0, Group1));
        assert!(interface.takes(0x98, Group1));
        interface.set_enabled(Group1, 0);
        assert!(!interface.takes(0x98, Group1));
    }
}
