//! The memory-mapped registers: distributor, redistributors, MSI frame. IHI 0069, sections 12.8 to 12.11.
//!
//! Everything is done in 32-bit words with a mask of the bytes that are accessed. Offsets that hold nothing read as zero and
//! ignore writes.

use super::Layout;
use super::bank::classify;
use super::state::{SPI_BANKS, SPI_BASE, SPI_END, State, valid_spis};

/// Bytes of the distributor's frame.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// Bytes of one redistributor: two frames.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Bytes of the MSI frame.
pub const MSI_SIZE: u64 = 0x1_0000;
/// Offset in the MSI frame whose write sends a message.
pub const MSI_SETSPI: u32 = 0x40;

const GICD_CTLR: u32 = 0x0000;
const GICD_TYPER: u32 = 0x0004;
const IIDR: u32 = 0x0008;
const GICD_IROUTER: u32 = 0x6000;
const GICR_IIDR: u32 = 0x0004;
const GICR_TYPER: u32 = 0x0008;
const GICR_WAKER: u32 = 0x0014;
const GICR_SGI_BASE: u32 = 0x1_0000;
const MSI_TYPER: u32 = 0x0008;
const MSI_IIDR: u32 = 0x0fcc;
const PIDR2: u32 = 0xffe8;

/// GICv3 (GICD_PIDR2.ArchRev).
const ARCH_REV: u32 = 0x30;
/// Nobody's implementer code, and a product that no workaround list knows.
const IIDR_VALUE: u32 = 0x5300_0000;
/// CIDR0..3: the fixed component identification.
const CIDR: [u32; 4] = [0x0d, 0xf0, 0x05, 0xb1];

/// GICD_CTLR: EnableGrp0, EnableGrp1; ARE and DS are one for good.
mod ctlr {
    pub const GROUPS: u32 = 0b11;
    pub const ARE: u32 = 1 << 4;
    pub const DS: u32 = 1 << 6;
}

/// GICR_WAKER.
mod waker {
    pub const PROCESSOR_SLEEP: u32 = 1 << 1;
    pub const CHILDREN_ASLEEP: u32 = 1 << 2;
}

/// What the identification registers at the end of a frame read.
fn identification(offset: u32) -> u32 {
    match offset {
        PIDR2 => ARCH_REV,
        0xfff0..=0xffff => CIDR[(offset as usize - 0xfff0) / 4],
        _ => 0,
    }
}

/// Half of a 64-bit register: the word at `offset`.
fn half(value: u64, offset: u32) -> u32 {
    (value >> (8 * (offset & 4))) as u32
}

/// The SPI whose GICD_IROUTER is at `offset`.
fn routed_spi(offset: u32) -> Option<usize> {
    let intid = offset.checked_sub(GICD_IROUTER)? / 8;
    (SPI_BASE..SPI_END).contains(&intid).then(|| (intid - SPI_BASE) as usize)
}

impl State {
    /// A word of the distributor.
    pub fn read_distributor(&self, offset: u32) -> u32 {
        match offset {
            GICD_CTLR => {
                ctlr::ARE | ctlr::DS | u32::from(self.group_enabled[0]) | u32::from(self.group_enabled[1]) << 1
            }
            // A3V, 10 INTID bits, no LPIs, no security extension, and lines for all SPIs.
            GICD_TYPER => 1 << 24 | 9 << 19 | SPI_BANKS as u32,
            IIDR => IIDR_VALUE,
            _ => {
                if let Some(spi) = routed_spi(offset) {
                    return half(self.routes[spi], offset);
                }
                match classify(offset) {
                    // Bank 0 is in the redistributors.
                    Some((class, bank @ 1..)) => self.spis[bank - 1].read(class),
                    _ => identification(offset),
                }
            }
        }
    }

    /// Writes the bytes of a distributor word that `lanes` has ones for.
    pub fn write_distributor(&mut self, offset: u32, value: u32, lanes: u32) {
        if offset == GICD_CTLR {
            if lanes & ctlr::GROUPS != 0 {
                self.group_enabled = [value & 1 != 0, value & 2 != 0];
                self.signal_all();
            }
        } else if let Some(spi) = routed_spi(offset) {
            let shift = 8 * (offset & 4);
            let lanes = u64::from(lanes) << shift;
            // Aff3, Interrupt_Routing_Mode, Aff2, Aff1, Aff0.
            let route = self.routes[spi] & !lanes | u64::from(value) << shift & lanes & 0xff_80ff_ffff;
            self.routes[spi] = route;
            if self.spis[spi / 32].pending() >> (spi % 32) & 1 != 0 {
                self.signal_all();
            }
        } else if let Some((class, bank @ 1..)) = classify(offset) {
            let spis = &mut self.spis[bank - 1];
            let before = spis.ready();
            spis.write(class, value, lanes, valid_spis(bank - 1));
            if before | spis.ready() != 0 {
                self.note_bank(bank - 1);
                self.signal_all();
            }
        }
    }

    /// GICR_TYPER: affinity, processor number, and whether this is the last one.
    fn redistributor_typer(&self, index: usize) -> u64 {
        let affinity = self.cpus[index].as_ref().map_or(0, |cpu| cpu.affinity);
        let last = self.cpus[index + 1..].iter().all(Option::is_none);
        u64::from(affinity) << 32 | (index as u64) << 8 | u64::from(last) << 4
    }

    /// A word of the redistributor in slot `index`; zero if no vCPU is there.
    pub fn read_redistributor(&self, index: usize, offset: u32) -> u32 {
        let Some(Some(cpu)) = self.cpus.get(index) else {
            return 0;
        };
        match offset {
            GICR_IIDR => IIDR_VALUE,
            GICR_WAKER if cpu.asleep => waker::PROCESSOR_SLEEP | waker::CHILDREN_ASLEEP,
            0x08..0x10 => half(self.redistributor_typer(index), offset - GICR_TYPER),
            0..GICR_SGI_BASE => identification(offset),
            _ => match classify(offset - GICR_SGI_BASE) {
                Some((class, 0)) => cpu.bank.read(class),
                _ => 0,
            },
        }
    }

    /// Writes the bytes of a redistributor word that `lanes` has ones for.
    ///
    /// GICR_WAKER keeps its value and answers at once; there is no power to manage, so interrupts are presented either way.
    pub fn write_redistributor(&mut self, index: usize, offset: u32, value: u32, lanes: u32) {
        let Some(Some(cpu)) = self.cpus.get_mut(index) else {
            return;
        };
        if offset == GICR_WAKER {
            if lanes & waker::PROCESSOR_SLEEP != 0 {
                cpu.asleep = value & waker::PROCESSOR_SLEEP != 0;
            }
        } else if let Some((class, 0)) = offset.checked_sub(GICR_SGI_BASE).and_then(classify) {
            // SGIs are edge-triggered for good.
            let edge = cpu.bank.edge & 0xffff;
            cpu.bank.write(class, value, lanes, !0);
            cpu.bank.edge = cpu.bank.edge & !0xffff | edge;
            self.signal(index);
        }
    }
}

/// A word of the MSI frame.
pub fn read_msi(layout: &Layout, offset: u32) -> u32 {
    match (offset, layout.msi) {
        (MSI_TYPER, Some(msi)) => msi.first << 16 | msi.count,
        (MSI_IIDR, _) => IIDR_VALUE,
        _ => 0,
    }
}

/// Reads of 1, 2, 4 or 8 bytes out of words.
pub fn read_sized(offset: u64, size: u8, word: impl Fn(u32) -> u32) -> u64 {
    let aligned = offset as u32 & !3;
    let low = u64::from(word(aligned));
    let value = if size == 8 { low | u64::from(word(aligned + 4)) << 32 } else { low >> (8 * (offset & 3)) };
    value & (!0 >> (64 - 8 * u32::from(size.clamp(1, 8))))
}

/// Writes of 1, 2, 4 or 8 bytes into words: calls `word(offset, value, lanes)`.
pub fn write_sized(offset: u64, size: u8, value: u64, mut word: impl FnMut(u32, u32, u32)) {
    let aligned = offset as u32 & !3;
    let shift = 8 * (offset & 3);
    let lanes = (!0u64 >> (64 - 8 * u32::from(size.clamp(1, 8)))) << shift;
    let value = value << shift;
    word(aligned, value as u32, lanes as u32);
    if size == 8 {
        word(aligned + 4, (value >> 32) as u32, (lanes >> 32) as u32);
    }
}
