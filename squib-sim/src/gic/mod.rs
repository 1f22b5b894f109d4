//! The in-kernel interrupt controller: a GICv3 with one security state, affinity routing, SPIs, an MSI frame, no LPIs.
//!
//! One lock around the state of everything. It is held for a few dozen instructions at a time, and never while a guest runs:
//! a vCPU learns of an interrupt through its [`VcpuShared`] lines, which are driven whenever what decides about them
//! changes. With one vCPU, and no host thread injecting, delivery is a function of the guest's own instructions.
//!
//! Behaviour follows the GIC Architecture Specification (IHI 0069); what is the framework's own choice (sizes, the MSI
//! frame, what the blob holds) follows its header.

mod bank;
mod blob;
mod cpu_interface;
mod registers;
mod state;

use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::shared::VcpuShared;
use crate::machine::MAX_VCPUS;
use cpu_interface::Group;
use state::State;

pub use registers::{DISTRIBUTOR_SIZE, MSI_SETSPI, MSI_SIZE, REDISTRIBUTOR_SIZE};
pub use state::{SPI_BASE, SPI_END};

/// Bytes of the redistributor region, whatever the number of vCPUs.
pub const REDISTRIBUTOR_REGION_SIZE: u64 = 256 * REDISTRIBUTOR_SIZE;
/// Alignment of every region.
pub const ALIGNMENT: u64 = 0x1_0000;

/// The MSI frame and the SPIs behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// IPA of the frame.
    pub base: u64,
    /// First INTID.
    pub first: u32,
    /// Number of INTIDs.
    pub count: u32,
}

impl Msi {
    /// Whether an INTID belongs to the frame.
    pub fn contains(&self, intid: u32) -> bool {
        (self.first..self.first + self.count).contains(&intid)
    }
}

/// Where the GIC is in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// IPA of the distributor.
    pub distributor: u64,
    /// IPA of the redistributor region.
    pub redistributors: u64,
    /// The MSI frame, if there is one.
    pub msi: Option<Msi>,
}

/// Encodings op0:op1:CRn:CRm:op2 of the CPU interface registers.
mod icc {
    pub const PMR: u16 = 0xc230;
    pub const IAR0: u16 = 0xc640;
    pub const EOIR0: u16 = 0xc641;
    pub const HPPIR0: u16 = 0xc642;
    pub const BPR0: u16 = 0xc643;
    pub const AP0R0: u16 = 0xc644;
    pub const AP1R0: u16 = 0xc648;
    pub const DIR: u16 = 0xc659;
    pub const RPR: u16 = 0xc65b;
    pub const SGI1R: u16 = 0xc65d;
    pub const ASGI1R: u16 = 0xc65e;
    pub const SGI0R: u16 = 0xc65f;
    pub const IAR1: u16 = 0xc660;
    pub const EOIR1: u16 = 0xc661;
    pub const HPPIR1: u16 = 0xc662;
    pub const BPR1: u16 = 0xc663;
    pub const CTLR: u16 = 0xc664;
    pub const SRE: u16 = 0xc665;
    pub const IGRPEN0: u16 = 0xc666;
    pub const IGRPEN1: u16 = 0xc667;
}

/// ICC_SRE_EL1: system registers, no bypass; all fixed.
const SRE: u64 = 0b111;

/// A memory-mapped place.
enum Frame {
    Distributor,
    Redistributor(usize),
    Msi,
}

/// The interrupt controller of a virtual machine.
pub struct Gic {
    layout: Layout,
    /// Guest accesses to the frames are left to the host (a switch).
    exits: bool,
    state: Mutex<State>,
}

impl Gic {
    /// A GIC in its reset state, without vCPUs. With `exits`, guest accesses to its frames become data aborts.
    pub fn new(layout: Layout, exits: bool) -> Gic {
        Gic { layout, exits, state: Mutex::new(State::new()) }
    }

    /// Where it is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A new vCPU, whose lines are `shared`'s.
    pub fn attach(&self, index: usize, mpidr: u64, shared: Arc<VcpuShared>) {
        self.state().attach(index, state::affinity_of(mpidr), shared);
    }

    /// A vCPU is gone.
    pub fn detach(&self, index: usize) {
        self.state().cpus[index] = None;
    }

    /// MPIDR_EL1 of a vCPU has been written.
    pub fn set_affinity(&self, index: usize, mpidr: u64) {
        let mut state = self.state();
        if let Some(cpu) = &mut state.cpus[index] {
            cpu.affinity = state::affinity_of(mpidr);
            state.changed();
        }
    }

    /// IPA of the redistributor of the vCPU in slot `index`.
    pub fn redistributor_base(&self, index: usize) -> u64 {
        self.layout.redistributors + index as u64 * REDISTRIBUTOR_SIZE
    }

    /// Reads the CPU interface register ICC_* `encoding` (op0:op1:CRn:CRm:op2) of a vCPU. `None`: there is no such register to
    /// read.
    pub fn icc_read(&self, vcpu: usize, encoding: u16) -> Option<u64> {
        let mut state = self.state();
        match encoding {
            icc::IAR0 => return Some(state.acknowledge(vcpu, Group::Group0).into()),
            icc::IAR1 => return Some(state.acknowledge(vcpu, Group::Group1).into()),
            icc::HPPIR0 | icc::HPPIR1 => {
                let group = if encoding == icc::HPPIR0 { Group::Group0 } else { Group::Group1 };
                let best = state.highest_pending(vcpu).filter(|best| best.group == group);
                return Some(best.map_or(state::SPURIOUS, |best| best.intid).into());
            }
            _ => {}
        }
        let interface = &state.cpus[vcpu].as_ref()?.interface;
        Some(match encoding {
            icc::PMR => interface.pmr(),
            icc::BPR0 => interface.bpr(Group::Group0),
            icc::BPR1 => interface.bpr(Group::Group1),
            icc::AP0R0 => interface.active_priorities(Group::Group0),
            icc::AP1R0 => interface.active_priorities(Group::Group1),
            icc::RPR => interface.running_priority().into(),
            icc::CTLR => interface.ctlr(),
            icc::SRE => SRE,
            icc::IGRPEN0 => interface.enabled(Group::Group0).into(),
            icc::IGRPEN1 => interface.enabled(Group::Group1).into(),
            _ => return None,
        })
    }

    /// Writes a CPU interface register. `false`: there is no such register to write.
    pub fn icc_write(&self, vcpu: usize, encoding: u16, value: u64) -> bool {
        let mut state = self.state();
        let intid = value as u32 & 0xff_ffff;
        match encoding {
            icc::EOIR0 => state.end(vcpu, Group::Group0, intid),
            icc::EOIR1 => state.end(vcpu, Group::Group1, intid),
            icc::DIR => {
                if state.cpus[vcpu].as_ref().is_some_and(|cpu| cpu.interface.split_eoi()) {
                    state.deactivate(vcpu, intid);
                }
            }
            icc::SGI1R => state.send_sgi(vcpu, value, Group::Group1),
            icc::SGI0R | icc::ASGI1R => state.send_sgi(vcpu, value, Group::Group0),
            _ => {
                let Some(cpu) = &mut state.cpus[vcpu] else {
                    return false;
                };
                let interface = &mut cpu.interface;
                match encoding {
                    icc::PMR => interface.set_pmr(value),
                    icc::BPR0 => interface.set_bpr(Group::Group0, value),
                    icc::BPR1 => interface.set_bpr(Group::Group1, value),
                    icc::AP0R0 => interface.set_active_priorities(Group::Group0, value),
                    icc::AP1R0 => interface.set_active_priorities(Group::Group1, value),
                    icc::CTLR => interface.set_ctlr(value),
                    icc::SRE => {}
                    icc::IGRPEN0 => interface.set_enabled(Group::Group0, value),
                    icc::IGRPEN1 => interface.set_enabled(Group::Group1, value),
                    _ => return false,
                }
                state.interface_changed(vcpu);
            }
        }
        true
    }

    fn locate(&self, ipa: u64) -> Option<(Frame, u64)> {
        let inside = |base: u64, size: u64| ipa.checked_sub(base).filter(|&offset| offset < size);
        if let Some(offset) = inside(self.layout.distributor, DISTRIBUTOR_SIZE) {
            return Some((Frame::Distributor, offset));
        }
        if let Some(offset) = inside(self.layout.redistributors, REDISTRIBUTOR_REGION_SIZE) {
            let index = (offset / REDISTRIBUTOR_SIZE) as usize;
            return Some((Frame::Redistributor(index), offset % REDISTRIBUTOR_SIZE));
        }
        let msi = self.layout.msi?;
        inside(msi.base, MSI_SIZE).map(|offset| (Frame::Msi, offset))
    }

    /// A guest's read of `size` bytes at a guest-physical address. `None`: not an address of the GIC, or one the host handles.
    pub fn mmio_read(&self, vcpu: usize, ipa: u64, size: u8) -> Option<u64> {
        let _ = vcpu;
        if self.exits {
            return None;
        }
        let (frame, offset) = self.locate(ipa)?;
        let state = self.state();
        Some(registers::read_sized(offset, size, |word| match frame {
            Frame::Distributor => state.read_distributor(word),
            Frame::Redistributor(index) => state.read_redistributor(index, word),
            Frame::Msi => registers::read_msi(&self.layout, word),
        }))
    }

    /// A guest's write of `size` bytes at a guest-physical address. `false`: not an address of the GIC, or one the host
    /// handles.
    pub fn mmio_write(&self, vcpu: usize, ipa: u64, size: u8, value: u64) -> bool {
        let _ = vcpu;
        if self.exits {
            return false;
        }
        let Some((frame, offset)) = self.locate(ipa) else {
            return false;
        };
        let mut state = self.state();
        registers::write_sized(offset, size, value, |word, value, lanes| match frame {
            Frame::Distributor => state.write_distributor(word, value, lanes),
            Frame::Redistributor(index) => state.write_redistributor(index, word, value, lanes),
            Frame::Msi => self.write_msi(&mut state, word, value),
        });
        true
    }

    fn write_msi(&self, state: &mut State, offset: u32, value: u32) {
        if offset == MSI_SETSPI && self.layout.msi.is_some_and(|msi| msi.contains(value)) {
            state.message(value);
        }
    }

    /// Sets the line of a private peripheral interrupt of a vCPU.
    pub fn set_ppi(&self, vcpu: usize, intid: u32, level: bool) {
        let mut state = self.state();
        if let Some(cpu) = &mut state.cpus[vcpu] {
            cpu.bank.set_line(intid & 31, level);
            state.signal(vcpu);
        }
    }

    /// Sets the line of an SPI, `SPI_BASE..SPI_END`.
    pub fn set_spi(&self, intid: u32, level: bool) {
        self.state().set_spi(intid, level);
    }

    /// Makes an SPI pending by a message.
    pub fn send_msi(&self, intid: u32) {
        self.state().message(intid);
    }

    /// A distributor register, 64 bits for GICD_IROUTER.
    pub fn distributor_reg(&self, offset: u32, size: u8) -> u64 {
        let state = self.state();
        registers::read_sized(offset.into(), size, |word| state.read_distributor(word))
    }

    /// Writes a distributor register.
    pub fn set_distributor_reg(&self, offset: u32, size: u8, value: u64) {
        let mut state = self.state();
        registers::write_sized(offset.into(), size, value, |word, value, lanes| {
            state.write_distributor(word, value, lanes);
        });
    }

    /// A redistributor register of the vCPU in slot `index`, 64 bits for GICR_TYPER.
    pub fn redistributor_reg(&self, index: usize, offset: u32, size: u8) -> u64 {
        let state = self.state();
        registers::read_sized(offset.into(), size, |word| state.read_redistributor(index, word))
    }

    /// Writes a redistributor register.
    pub fn set_redistributor_reg(&self, index: usize, offset: u32, size: u8, value: u64) {
        let mut state = self.state();
        registers::write_sized(offset.into(), size, value, |word, value, lanes| {
            state.write_redistributor(index, word, value, lanes);
        });
    }

    /// A register of the MSI frame.
    pub fn msi_reg(&self, offset: u32) -> u64 {
        registers::read_msi(&self.layout, offset).into()
    }

    /// Writes a register of the MSI frame.
    pub fn set_msi_reg(&self, offset: u32, value: u64) {
        self.write_msi(&mut self.state(), offset, value as u32);
    }

    /// The state blob.
    pub fn save(&self) -> Vec<u8> {
        blob::save(&self.state())
    }

    /// Takes a state blob over; `false`, and nothing changed, if it does not fit.
    pub fn load(&self, data: &[u8]) -> bool {
        blob::load(&mut self.state(), data).is_some()
    }

    /// Back to the reset state, CPU interfaces included.
    pub fn reset(&self) {
        self.state().reset();
    }
}

const _: () = assert!(MAX_VCPUS as u64 * REDISTRIBUTOR_SIZE <= REDISTRIBUTOR_REGION_SIZE);
