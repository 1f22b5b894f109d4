//! Thirty-two interrupts: the state machine of each, and the registers they share.
//!
//! SPIs live in the distributor's banks 1..=31, SGIs and PPIs in bank 0 of each redistributor. GICv3 and v4 Architecture
//! Specification (IHI 0069), sections 4.1 (states) and 12.9 to 12.11 (registers).

/// Implemented bits of a priority: 32 levels.
pub const PRIORITY_MASK: u8 = 0xf8;

/// State of 32 interrupts, one bit of each word an interrupt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bank {
    /// Group 1 rather than Group 0.
    pub group: u32,
    /// Enabled.
    pub enabled: u32,
    /// Pending by an edge, a message or a register write.
    pub latched: u32,
    /// Level of the line.
    pub line: u32,
    /// Active.
    pub active: u32,
    /// Edge-triggered rather than level-sensitive.
    pub edge: u32,
    /// Priorities; lower is more urgent.
    pub priority: [u8; 32],
}

/// A register that has one copy a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// IGROUPR.
    Group,
    /// ISENABLER.
    SetEnable,
    /// ICENABLER.
    ClearEnable,
    /// ISPENDR.
    SetPending,
    /// ICPENDR.
    ClearPending,
    /// ISACTIVER.
    SetActive,
    /// ICACTIVER.
    ClearActive,
    /// IPRIORITYR, word 0..8 of the bank.
    Priority(usize),
    /// ICFGR, word 0..2 of the bank.
    Config(usize),
}

/// The register at an offset into the distributor, or into the second frame of a redistributor: its class and its bank.
pub fn classify(offset: u32) -> Option<(Class, usize)> {
    let word = |base: u32| ((offset - base) / 4) as usize;
    Some(match offset {
        0x080..0x100 => (Class::Group, word(0x080)),
        0x100..0x180 => (Class::SetEnable, word(0x100)),
        0x180..0x200 => (Class::ClearEnable, word(0x180)),
        0x200..0x280 => (Class::SetPending, word(0x200)),
        0x280..0x300 => (Class::ClearPending, word(0x280)),
        0x300..0x380 => (Class::SetActive, word(0x300)),
        0x380..0x400 => (Class::ClearActive, word(0x380)),
        0x400..0x800 => (Class::Priority(word(0x400) % 8), word(0x400) / 8),
        0xc00..0xd00 => (Class::Config(word(0xc00) % 2), word(0xc00) / 2),
        _ => return None,
    })
}

/// Spreads sixteen bits to the upper bit of each of sixteen pairs: the layout of ICFGR.
fn spread(bits: u32) -> u32 {
    (0..16).fold(0, |all, bit| all | (bits >> bit & 1) << (2 * bit + 1))
}

/// The opposite of [`spread`].
fn gather(word: u32) -> u32 {
    (0..16).fold(0, |all, bit| all | (word >> (2 * bit + 1) & 1) << bit)
}

impl Bank {
    /// Which interrupts are pending, for whatever reason.
    #[inline]
    pub fn pending(&self) -> u32 {
        self.latched | self.line & !self.edge
    }

    /// Which interrupts may be presented to a CPU interface, groups aside.
    #[inline]
    pub fn ready(&self) -> u32 {
        self.pending() & self.enabled & !self.active
    }

    /// Drives the line of an interrupt. For an edge-triggered one each high level is an edge, and low means nothing.
    pub fn set_line(&mut self, bit: u32, level: bool) {
        let mask = 1 << bit;
        if level {
            self.line |= mask;
            self.latched |= mask & self.edge;
        } else {
            self.line &= !mask;
        }
    }

    /// Pending becomes active; a level-sensitive one whose line is high stays pending too.
    pub fn acknowledge(&mut self, bit: u32) {
        self.active |= 1 << bit;
        self.latched &= !(1 << bit);
    }

    /// Reads a register.
    pub fn read(&self, class: Class) -> u32 {
        match class {
            Class::Group => self.group,
            Class::SetEnable | Class::ClearEnable => self.enabled,
            Class::SetPending | Class::ClearPending => self.pending(),
            Class::SetActive | Class::ClearActive => self.active,
            Class::Priority(word) => {
                let at = 4 * word;
                u32::from_le_bytes([
                    self.priority[at],
                    self.priority[at + 1],
                    self.priority[at + 2],
                    self.priority[at + 3],
                ])
            }
            Class::Config(word) => spread(self.edge >> (16 * word)),
        }
    }

    /// Writes the bytes of a register that `lanes` has ones for; `valid` are the interrupts that exist.
    pub fn write(&mut self, class: Class, value: u32, lanes: u32, valid: u32) {
        let bits = value & lanes & valid;
        match class {
            Class::Group => self.group = self.group & !lanes | bits,
            Class::SetEnable => self.enabled |= bits,
            Class::ClearEnable => self.enabled &= !bits,
            Class::SetPending => self.latched |= bits,
            Class::ClearPending => self.latched &= !bits,
            Class::SetActive => self.active |= bits,
            Class::ClearActive => self.active &= !bits,
            Class::Priority(word) => {
                for byte in 0..4 {
                    let exists = valid >> (4 * word + byte) & 1 != 0;
                    if exists && lanes >> (8 * byte) & 0xff != 0 {
                        self.priority[4 * word + byte] = (value >> (8 * byte)) as u8 & PRIORITY_MASK;
                    }
                }
            }
            Class::Config(word) => {
                let (shift, lanes) = (16 * word, gather(lanes));
                let mask = lanes << shift & valid;
                self.edge = self.edge & !mask | gather(value) << shift & mask;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_stays_pending_while_the_line_is_high() {
        let mut bank = Bank { enabled: 1, ..Bank::default() };
        bank.set_line(0, true);
        assert_eq!(bank.ready(), 1);
        bank.acknowledge(0);
        assert_eq!((bank.pending(), bank.active, bank.ready()), (1, 1, 0));
        bank.write(Class::ClearActive, 1, !0, !0);
        assert_eq!(bank.ready(), 1);
        bank.write(Class::ClearPending, 1, !0, !0);
        assert_eq!(bank.pending(), 1, "ICPENDR does not lower a line");
        bank.set_line(0, false);
        assert_eq!(bank.pending(), 0);
    }

    #[test]
    fn an_edge_is_remembered_once() {
        let mut bank = Bank { enabled: 1, edge: 1, ..Bank::default() };
        bank.set_line(0, true);
        bank.set_line(0, false);
        assert_eq!(bank.pending(), 1);
        bank.acknowledge(0);
        assert_eq!(bank.pending(), 0);
        bank.set_line(0, true);
        assert_eq!((bank.pending(), bank.ready()), (1, 0), "pending again while active");
    }

    #[test]
    fn registers_read_back_by_lane() {
        let mut bank = Bank::default();
        bank.write(Class::Priority(2), 0xffa5_80ff, 0x00ff_ff00, !0);
        assert_eq!(bank.read(Class::Priority(2)), 0x00a0_8000);
        bank.write(Class::Config(1), 0xaaaa_0002, !0, !0);
        assert_eq!(bank.edge, 0xff01_0000);
        assert_eq!(bank.read(Class::Config(1)), 0xaaaa_0002);
        assert_eq!(bank.read(Class::Config(0)), 0);
        bank.write(Class::Group, !0, !0, 0x0fff_ffff);
        assert_eq!(bank.group, 0x0fff_ffff);
        assert_eq!(classify(0x47c), Some((Class::Priority(7), 3)));
        assert_eq!(classify(0xc0c), Some((Class::Config(1), 1)));
        assert_eq!(classify(0x800), None);
    }
}
