//! The engine against tiny bare-metal guests, written as instruction words with their mnemonics beside them.

mod asids;
mod debugging;
mod exceptions;
mod registers;
mod replay;
mod smp;
mod translation;

use std::sync::Arc;

use super::cpu::Cpu;
use super::run::{Exit, Vcpu};
use super::shared::VcpuShared;
use crate::config::{ClockMode, Config};
use crate::gic::{Gic, Layout};
use crate::machine::Machine;
use crate::stage2::Perms;

/// Where guest RAM begins; code starts here.
pub const RAM: u64 = 0x4000_0000;
/// Bytes of RAM.
pub const SIZE: u64 = 16 << 20;
/// Exception vectors.
pub const VECTORS: u64 = RAM + 0x1_0000;
/// Translation tables.
pub const TABLES: u64 = RAM + 0x10_0000;
/// A data page.
pub const DATA: u64 = RAM + 0x20_0000;

/// System registers the tests set, as `hv_sys_reg_t` numbers.
pub mod reg {
    pub const SCTLR: u16 = 0xc080;
    pub const TTBR0: u16 = 0xc100;
    pub const TTBR1: u16 = 0xc101;
    pub const TCR: u16 = 0xc102;
    pub const SPSR: u16 = 0xc200;
    pub const ELR: u16 = 0xc201;
    pub const ESR: u16 = 0xc290;
    pub const FAR: u16 = 0xc300;
    pub const MAIR: u16 = 0xc510;
    pub const VBAR: u16 = 0xc600;
    pub const CNTV_CTL: u16 = 0xdf19;
    pub const CNTV_CVAL: u16 = 0xdf1a;
    pub const MDSCR: u16 = 0x8012;
}

/// `hvc #0`, with which test programs end.
pub const HVC: u32 = 0xd400_0002;
/// ESR_EL2 of it.
pub const HVC_ESR: u64 = 0x5a00_0000;
/// `b .`
pub const SELF: u32 = 0x1400_0000;

/// A machine with RAM and one vCPU.
pub struct Bench {
    pub machine: Arc<Machine>,
    pub vcpu: Vcpu,
    ram: *mut u8,
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; the vCPUs of the test have ended.
        unsafe { libc::munmap(self.ram.cast(), SIZE as usize) };
    }
}

impl Bench {
    /// RAM mapped read, write, execute; the vCPU at its beginning, EL1h, interrupts masked, MMU off.
    pub fn new(clock: ClockMode) -> Bench {
        let machine = Arc::new(Machine::new(Config { clock, ..Config::default() }, 40));
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let ram = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
            libc::mmap(std::ptr::null_mut(), SIZE as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert_ne!(ram, libc::MAP_FAILED);
        // The mapping is aligned to 4 KiB only, the granule is 16 KiB.
        let ram = ram.cast::<u8>();
        let skew = ram.align_offset(0x4000);
        let rwx = Perms::READ | Perms::WRITE | Perms::EXEC;
        machine.stage2.map(ram.wrapping_add(skew), RAM, SIZE - 0x4000, rwx, false).unwrap();
        let mut bench = Bench { vcpu: Self::vcpu(&machine, 0), machine, ram };
        // Those of a slot are the process's, and tests that set limits run at the same time.
        bench.vcpu.cpu.counters = crate::control::Counters::new();
        bench.vcpu.cpu.pc = RAM;
        bench.set(reg::VBAR, VECTORS);
        bench
    }

    /// Another vCPU of the machine.
    pub fn vcpu(machine: &Arc<Machine>, index: usize) -> Vcpu {
        let shared = VcpuShared::new(index);
        machine.add_vcpu(shared.clone());
        Vcpu::new(machine.clone(), shared)
    }

    fn host(&self, ipa: u64) -> *mut u8 {
        let page = self.machine.stage2.lookup(ipa).unwrap();
        page.host.wrapping_add((ipa & 0xfff) as usize)
    }

    /// Writes instruction words.
    pub fn code(&mut self, ipa: u64, words: &[u32]) {
        for (at, &word) in (ipa..).step_by(4).zip(words) {
            // SAFETY: aligned words of mapped RAM; the vCPU is not running.
            unsafe { self.host(at).cast::<u32>().write(word) };
        }
    }

    /// Writes a doubleword of RAM.
    pub fn poke(&mut self, ipa: u64, value: u64) {
        // SAFETY: an aligned doubleword of mapped RAM; the vCPU is not running.
        unsafe { self.host(ipa).cast::<u64>().write(value) };
    }

    /// Reads a doubleword of RAM.
    pub fn peek(&self, ipa: u64) -> u64 {
        // SAFETY: as in `poke`.
        unsafe { self.host(ipa).cast::<u64>().read() }
    }

    /// Sets a system register.
    pub fn set(&mut self, register: u16, value: u64) {
        assert!(self.vcpu.cpu.host_set_sys_reg(register, value));
    }

    /// Reads a system register.
    pub fn get(&self, register: u16) -> u64 {
        self.vcpu.cpu.host_get_sys_reg(register).unwrap()
    }

    /// Runs, and demands that the guest ends with `hvc #0`.
    pub fn run_to_hvc(&mut self) {
        let exit = self.vcpu.run();
        let at = (self.vcpu.cpu.pc, self.get(reg::ESR), self.get(reg::FAR), self.get(reg::ELR));
        assert_eq!(exit, Exit::Exception { esr: HVC_ESR, far: 0, ipa: 0 }, "pc, ESR, FAR, ELR: {at:x?}");
    }

    /// Runs, and demands an exception exit.
    pub fn run_to_exception(&mut self) -> (u64, u64, u64) {
        match self.vcpu.run() {
            Exit::Exception { esr, far, ipa } => (esr, far, ipa),
            other => panic!("{other:?} at {:#x}", self.vcpu.cpu.pc),
        }
    }

    /// Gives the machine a GIC in which SGI 0 and the virtual timer are enabled for these vCPUs.
    pub fn gic(&self, cpus: &[&Cpu]) {
        let gic = Gic::new(Layout { distributor: 0x1000_0000, redistributors: 0x1010_0000, msi: None }, false);
        assert!(self.machine.gic.set(gic).is_ok());
        let gic = self.machine.gic.get().unwrap();
        for (affinity, cpu) in (0..).zip(cpus) {
            let index = cpu.shared.index;
            gic.attach(index, affinity, cpu.shared.clone());
            gic.icc_write(index, 0xc230, 0xff); // PMR
            gic.icc_write(index, 0xc667, 1); // IGRPEN1
            let sgis = gic.redistributor_base(index) + 0x1_0000;
            gic.mmio_write(index, sgis + 0x80, 4, u64::from(u32::MAX)); // IGROUPR0
            gic.mmio_write(index, sgis + 0x100, 4, 1 << 27 | 1); // ISENABLER0
        }
        gic.mmio_write(0, 0x1000_0000, 4, 0x12); // GICD_CTLR: ARE, group 1
    }

    /// Every vector becomes `hvc #0`.
    pub fn hvc_vectors(&mut self) {
        (0..16).for_each(|i| self.code(VECTORS + i * 0x80, &[HVC]));
    }

    /// Maps with 4 KiB granule, 39-bit addresses in both halves: the first GiB as nothing, RAM's GiB by a level-2 table of
    /// 2 MiB blocks one to one, the block at `DATA` by pages one to one. The upper half is the same. Turns the MMU on.
    pub fn identity_map(&mut self) {
        self.map_with(0);
    }

    /// The same with more TCR_EL1 bits.
    pub fn map_with(&mut self, tcr: u64) {
        let (level1, level2, level3) = (TABLES, TABLES + 0x1000, TABLES + 0x2000);
        self.poke(level1 + 8, level2 | 3);
        for block in 0..8 {
            // Normal memory, inner shareable, AF, EL1 read-write.
            self.poke(level2 + 8 * block, (RAM + (block << 21)) | 0x701);
        }
        self.poke(level2 + 8, level3 | 3);
        for page in 0..512 {
            self.poke(level3 + 8 * page, (DATA + (page << 12)) | 0x703);
        }
        self.set(reg::MAIR, 0x00ff);
        self.set(reg::TCR, 25 | 25 << 16 | 2 << 30 | 2 << 32 | 1 << 36 | tcr);
        self.set(reg::TTBR0, level1);
        self.set(reg::TTBR1, level1);
        let sctlr = self.get(reg::SCTLR);
        self.set(reg::SCTLR, sctlr | 1);
    }

    /// The level-3 descriptor of `DATA + page * 4 KiB`.
    pub fn page_descriptor(page: u64) -> u64 {
        TABLES + 0x2000 + 8 * page
    }
}
