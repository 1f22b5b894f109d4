//! The state behind the registers, and delivery: which interrupt each CPU interface sees, and when its line rises.

use std::sync::Arc;

use super::bank::Bank;
use super::cpu_interface::{CpuInterface, Group};
use crate::engine::shared::VcpuShared;
use crate::machine::MAX_VCPUS;

/// SPI banks: INTID 32..1024 (of which 1020 and up do not exist).
pub const SPI_BANKS: usize = 31;
/// First SPI.
pub const SPI_BASE: u32 = 32;
/// First INTID behind the SPIs.
pub const SPI_END: u32 = 1020;
/// What an acknowledge register reads if there is nothing.
pub const SPURIOUS: u32 = 1023;
/// GICD_IROUTER.Interrupt_Routing_Mode: any participating vCPU.
const ROUTE_ANY: u64 = 1 << 31;

/// A vCPU as the GIC knows it.
pub struct Cpu {
    /// Affinity, as four bytes Aff3.Aff2.Aff1.Aff0.
    pub affinity: u32,
    /// SGIs and PPIs.
    pub bank: Bank,
    /// GICR_WAKER.ProcessorSleep.
    pub asleep: bool,
    /// The CPU interface.
    pub interface: CpuInterface,
    shared: Arc<VcpuShared>,
    /// Lines as they were last driven: Group 0 (FIQ), Group 1 (IRQ).
    lines: [bool; 2],
}

/// An interrupt that a CPU interface could take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub intid: u32,
    pub priority: u8,
    pub group: Group,
}

/// Everything behind the GIC's lock.
pub struct State {
    /// GICD_CTLR.EnableGrpn, by group.
    pub group_enabled: [bool; 2],
    /// SPIs, from INTID 32.
    pub spis: Box<[Bank; SPI_BANKS]>,
    /// GICD_IROUTER, from INTID 32.
    pub routes: Box<[u64]>,
    /// The vCPUs by slot.
    pub cpus: Vec<Option<Cpu>>,
    /// One bit a bank of `spis` that has something ready.
    ready_banks: u32,
}

/// The interrupts of SPI bank `bank` that exist.
pub fn valid_spis(bank: usize) -> u32 {
    if bank + 1 == SPI_BANKS { (1 << (SPI_END % 32)) - 1 } else { !0 }
}

/// SGIs are edge-triggered.
fn private_bank() -> Bank {
    Bank { edge: 0xffff, ..Bank::default() }
}

/// The affinity in an MPIDR_EL1 or GICD_IROUTER value, as GICR_TYPER has it.
pub fn affinity_of(register: u64) -> u32 {
    (register & 0xff_ffff) as u32 | ((register >> 32 & 0xff) as u32) << 24
}

impl State {
    pub fn new() -> State {
        State {
            group_enabled: [false; 2],
            spis: Box::new(std::array::from_fn(|_| Bank::default())),
            routes: vec![0; (SPI_END - SPI_BASE) as usize].into_boxed_slice(),
            cpus: (0..MAX_VCPUS).map(|_| None).collect(),
            ready_banks: 0,
        }
    }

    /// Puts a vCPU into its slot, in its reset state.
    pub fn attach(&mut self, index: usize, affinity: u32, shared: Arc<VcpuShared>) {
        self.cpus[index] = Some(Cpu {
            affinity,
            bank: private_bank(),
            asleep: true,
            interface: CpuInterface::default(),
            shared,
            lines: [false; 2],
        });
    }

    /// Back to the reset state; the vCPUs stay.
    pub fn reset(&mut self) {
        let fresh = State::new();
        self.group_enabled = fresh.group_enabled;
        self.spis = fresh.spis;
        self.routes = fresh.routes;
        for cpu in self.cpus.iter_mut().flatten() {
            let line = cpu.bank.line;
            cpu.bank = Bank { line, ..private_bank() };
            cpu.asleep = true;
            cpu.interface = CpuInterface::default();
        }
        self.changed();
    }

    /// Everything may have changed: find the ready banks again and drive all lines.
    pub fn changed(&mut self) {
        (0..SPI_BANKS).for_each(|bank| self.note_bank(bank));
        self.signal_all();
    }

    /// SPI bank `bank` has changed: remember whether it has something ready.
    pub fn note_bank(&mut self, bank: usize) {
        let ready = self.spis[bank].ready() != 0;
        self.ready_banks = self.ready_banks & !(1 << bank) | u32::from(ready) << bank;
    }

    fn spi_route(&self, intid: u32) -> u64 {
        self.routes[(intid - SPI_BASE) as usize]
    }

    /// The slot of the vCPU with this affinity.
    pub fn by_affinity(&self, affinity: u32) -> Option<usize> {
        self.cpus.iter().position(|cpu| cpu.as_ref().is_some_and(|cpu| cpu.affinity == affinity))
    }

    /// The interrupts of `bank` that are in an enabled group.
    fn enabled_groups(&self, cpu: &Cpu, bank: &Bank) -> u32 {
        let on = |group: Group| self.group_enabled[group as usize] && cpu.interface.enabled(group);
        (if on(Group::Group0) { !bank.group } else { 0 }) | (if on(Group::Group1) { bank.group } else { 0 })
    }

    /// `HighestPriorityPendingInterrupt` of a vCPU: lowest priority value, then lowest INTID.
    pub fn highest_pending(&self, index: usize) -> Option<Candidate> {
        let cpu = self.cpus[index].as_ref()?;
        let mut best: Option<Candidate> = None;
        let mut consider = |bank: &Bank, base: u32, bits: u32| {
            let mut left = bits;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let priority = bank.priority[bit as usize];
                if best.is_none_or(|best| priority < best.priority) {
                    let group = if bank.group >> bit & 1 != 0 { Group::Group1 } else { Group::Group0 };
                    best = Some(Candidate { intid: base + bit, priority, group });
                }
            }
        };
        consider(&cpu.bank, 0, cpu.bank.ready() & self.enabled_groups(cpu, &cpu.bank));
        let mut banks = self.ready_banks;
        while banks != 0 {
            let index_of_bank = banks.trailing_zeros() as usize;
            banks &= banks - 1;
            let bank = &self.spis[index_of_bank];
            let base = SPI_BASE + 32 * index_of_bank as u32;
            let mut mine = 0;
            let mut left = bank.ready() & self.enabled_groups(cpu, bank);
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                if self.targets(index, cpu, base + bit, bank, bit) {
                    mine |= 1 << bit;
                }
            }
            consider(bank, base, mine);
        }
        best
    }

    /// Whether an SPI is for this vCPU.
    fn targets(&self, index: usize, cpu: &Cpu, intid: u32, bank: &Bank, bit: u32) -> bool {
        let route = self.spi_route(intid);
        if route & ROUTE_ANY == 0 {
            return affinity_of(route) == cpu.affinity;
        }
        // 1 of N: the first vCPU that would take it now.
        let group = if bank.group >> bit & 1 != 0 { Group::Group1 } else { Group::Group0 };
        let priority = bank.priority[bit as usize];
        let takes = |cpu: &Option<Cpu>| cpu.as_ref().is_some_and(|cpu| cpu.interface.takes(priority, group));
        self.cpus.iter().position(takes) == Some(index)
    }

    /// The interrupt that interrupts a vCPU now.
    pub fn signalled(&self, index: usize) -> Option<Candidate> {
        let cpu = self.cpus[index].as_ref()?;
        self.highest_pending(index).filter(|best| cpu.interface.takes(best.priority, best.group))
    }

    /// Drives the lines of a vCPU.
    pub fn signal(&mut self, index: usize) {
        let group = self.signalled(index).map(|best| best.group);
        let Some(cpu) = &mut self.cpus[index] else {
            return;
        };
        let lines = [group == Some(Group::Group0), group == Some(Group::Group1)];
        if lines[0] != cpu.lines[0] {
            cpu.shared.set_fiq(lines[0]);
        }
        if lines[1] != cpu.lines[1] {
            cpu.shared.set_irq(lines[1]);
        }
        cpu.lines = lines;
    }

    /// Drives the lines of all vCPUs.
    pub fn signal_all(&mut self) {
        (0..self.cpus.len()).for_each(|index| self.signal(index));
    }

    /// The SPI bank behind `intid` has changed in that interrupt only: drive whom it concerns. `index` is a vCPU that is
    /// concerned in any case.
    pub fn spi_changed(&mut self, intid: u32, index: Option<usize>) {
        self.note_bank((intid / 32 - 1) as usize);
        let route = self.spi_route(intid);
        if route & ROUTE_ANY != 0 {
            return self.signal_all();
        }
        let target = self.by_affinity(affinity_of(route));
        if let Some(target) = target {
            self.signal(target);
        }
        if let Some(index) = index.filter(|&index| Some(index) != target) {
            self.signal(index);
        }
    }

    /// A vCPU's interface has changed: drive it, and the others if an interrupt for anyone may now be theirs.
    pub fn interface_changed(&mut self, index: usize) {
        let any = (0..SPI_BANKS).filter(|bank| self.ready_banks >> bank & 1 != 0).any(|bank| {
            let ready = self.spis[bank].ready();
            (0..32).any(|bit| ready >> bit & 1 != 0 && self.routes[32 * bank + bit] & ROUTE_ANY != 0)
        });
        if any { self.signal_all() } else { self.signal(index) }
    }

    /// Sets the line of an SPI.
    pub fn set_spi(&mut self, intid: u32, level: bool) {
        self.spis[(intid / 32 - 1) as usize].set_line(intid % 32, level);
        self.spi_changed(intid, None);
    }

    /// Makes an SPI pending by a message.
    pub fn message(&mut self, intid: u32) {
        self.spis[(intid / 32 - 1) as usize].latched |= 1 << (intid % 32);
        self.spi_changed(intid, None);
    }

    /// ICC_IARn_EL1: acknowledges the signalled interrupt, if it is of this group.
    pub fn acknowledge(&mut self, index: usize, group: Group) -> u32 {
        let Some(best) = self.signalled(index).filter(|best| best.group == group) else {
            return SPURIOUS;
        };
        let Some(cpu) = &mut self.cpus[index] else {
            return SPURIOUS;
        };
        cpu.interface.activate(best.priority, group);
        if best.intid < SPI_BASE {
            cpu.bank.acknowledge(best.intid);
            self.interface_changed(index);
        } else {
            self.spis[(best.intid / 32 - 1) as usize].acknowledge(best.intid % 32);
            self.spi_changed(best.intid, Some(index));
        }
        best.intid
    }

    /// ICC_EOIRn_EL1: priority drop, and deactivation unless these are separate.
    pub fn end(&mut self, index: usize, group: Group, intid: u32) {
        let Some(cpu) = self.cpus[index].as_mut().filter(|_| intid < SPI_END) else {
            return;
        };
        let dropped = cpu.interface.drop_priority(group);
        if dropped && !cpu.interface.split_eoi() {
            self.deactivate(index, intid);
        } else {
            self.interface_changed(index);
        }
    }

    /// The interrupt is no longer active.
    pub fn deactivate(&mut self, index: usize, intid: u32) {
        if intid >= SPI_END {
            return;
        }
        if intid >= SPI_BASE {
            self.spis[(intid / 32 - 1) as usize].active &= !(1 << (intid % 32));
            self.spi_changed(intid, None);
        } else if let Some(cpu) = &mut self.cpus[index] {
            cpu.bank.active &= !(1 << intid);
        }
        self.interface_changed(index);
    }

    /// ICC_SGI1R_EL1 and ICC_SGI0R_EL1: sends an SGI of `group`. A vCPU where the SGI is of the other group does not get it.
    pub fn send_sgi(&mut self, from: usize, register: u64, group: Group) {
        let bit = 1u32 << (register >> 24 & 15);
        let all_but_self = register >> 40 & 1 != 0;
        let cluster = (register >> 16 & 0xff) as u32
            | ((register >> 32 & 0xff) as u32) << 8
            | ((register >> 48 & 0xff) as u32) << 16;
        let targets = register & 0xffff;
        for index in 0..self.cpus.len() {
            let Some(cpu) = &mut self.cpus[index] else {
                continue;
            };
            let wanted = if all_but_self {
                index != from
            } else {
                let aff0 = cpu.affinity & 0xff;
                cpu.affinity >> 8 == cluster && aff0 < 16 && targets >> aff0 & 1 != 0
            };
            let of_group = (cpu.bank.group & bit != 0) == (group == Group::Group1);
            if wanted && of_group {
                cpu.bank.latched |= bit;
                self.signal(index);
            }
        }
    }
}
