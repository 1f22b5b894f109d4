//! The system registers as one table: encoding, storage, reset value, writable bits, and who may access each.
//!
//! Encodings are those of `hv_sys_reg_t`: op0:op1:CRn:CRm:op2, which is bits 19:5 of MRS/MSR with bit 15 set. What is not
//! listed does not exist in the engine: the guest's access leaves to the host, as a hypervisor's trap would
//! (ID registers excepted, which read as zero).

use std::mem::offset_of;

use super::SysRegs;

/// Access rights and effects, combined.
pub mod rights {
    /// EL0 reads.
    pub const E0R: u16 = 1;
    /// EL0 writes.
    pub const E0W: u16 = 2;
    /// EL1 reads.
    pub const E1R: u16 = 4;
    /// EL1 writes.
    pub const E1W: u16 = 8;
    /// The host reads and writes it through `hv_vcpu_{get,set}_sys_reg`.
    pub const HOST: u16 = 16;
    /// A write changes what the engine has derived: it ends the block, and `Cpu::refresh` follows.
    pub const CONTEXT: u16 = 32;
    /// A debug register: `hv_vcpu_set_trap_debug_reg_accesses` makes accesses leave to the host.
    pub const DEBUG: u16 = 64;
    /// EL1 reads and writes, and so does the host.
    pub const RW: u16 = E1R | E1W | HOST;
    /// EL1 reads; the host sets what it reads.
    pub const ID: u16 = E1R | HOST;
    /// EL1's control registers.
    pub const CTX: u16 = RW | CONTEXT;
    /// Everyone reads and writes.
    pub const USER: u16 = RW | E0R | E0W;
    /// Self-hosted debug.
    pub const DBG: u16 = CTX | DEBUG;
}
use rights::*;

/// A register whose value is stored in [`SysRegs`].
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// Architectural name.
    pub name: &'static str,
    /// See the module's description.
    pub encoding: u16,
    /// Byte offset in [`SysRegs`], of a `u64`.
    pub offset: u16,
    /// [`rights`].
    pub rights: u16,
    /// Value at reset, and the bits that are RES1 (those set here and clear in `writable`).
    pub reset: u64,
    /// Bits that keep what is written.
    pub writable: u64,
}

macro_rules! table {
    ($($name:ident $encoding:literal $($field:ident).+ $([$index:literal])?,
        $rights:expr, $reset:expr, $writable:expr;)*) => {
        /// All stored registers, by encoding.
        pub static TABLE: &[Register] = &[$(Register {
            name: stringify!($name),
            encoding: $encoding,
            offset: (offset_of!(SysRegs, $($field).+) $(+ 8 * $index)?) as u16,
            rights: $rights,
            reset: $reset,
            writable: $writable,
        }),*];
    };
}

const ALL: u64 = u64::MAX;
const NONE: u64 = 0;
const W: u64 = 0xffff_ffff;
/// SCTLR_EL1 bits that exist.
const SCTLR: u64 = 0x1000_cc8d_f21f & !(1 << 17);
/// SCTLR_EL1 at reset: the RES1 bits, and SPAN.
const SCTLR_RESET: u64 = 0x30d0_0980;
/// TCR_EL1 bits that exist.
const TCR: u64 = 0x0018_07f7_ffff_ffbf;
const DBGBCR: u64 = 0x00ff_e1e7;
const DBGWCR: u64 = 0x1f1f_ffff;
/// Debug virtual addresses.
const DBGVA: u64 = !3;

table! {
    DBGBVR0_EL1 0x8004 breakpoints[0], DBG, 0, DBGVA;
    DBGBCR0_EL1 0x8005 breakpoints[1], DBG, 0, DBGBCR;
    DBGWVR0_EL1 0x8006 watchpoints[0], DBG, 0, DBGVA;
    DBGWCR0_EL1 0x8007 watchpoints[1], DBG, 0, DBGWCR;
    DBGBVR1_EL1 0x800c breakpoints[2], DBG, 0, DBGVA;
    DBGBCR1_EL1 0x800d breakpoints[3], DBG, 0, DBGBCR;
    DBGWVR1_EL1 0x800e watchpoints[2], DBG, 0, DBGVA;
    DBGWCR1_EL1 0x800f watchpoints[3], DBG, 0, DBGWCR;
    MDCCINT_EL1 0x8010 mdccint, RW, 0, 0x6000_0000;
    MDSCR_EL1 0x8012 mdscr, DBG, 0, 0x0000_f001 | 1 << 6;
    DBGBVR2_EL1 0x8014 breakpoints[4], DBG, 0, DBGVA;
    DBGBCR2_EL1 0x8015 breakpoints[5], DBG, 0, DBGBCR;
    DBGWVR2_EL1 0x8016 watchpoints[4], DBG, 0, DBGVA;
    DBGWCR2_EL1 0x8017 watchpoints[5], DBG, 0, DBGWCR;
    DBGBVR3_EL1 0x801c breakpoints[6], DBG, 0, DBGVA;
    DBGBCR3_EL1 0x801d breakpoints[7], DBG, 0, DBGBCR;
    DBGWVR3_EL1 0x801e watchpoints[6], DBG, 0, DBGVA;
    DBGWCR3_EL1 0x801f watchpoints[7], DBG, 0, DBGWCR;
    DBGBVR4_EL1 0x8024 breakpoints[8], DBG, 0, DBGVA;
    DBGBCR4_EL1 0x8025 breakpoints[9], DBG, 0, DBGBCR;
    DBGBVR5_EL1 0x802c breakpoints[10], DBG, 0, DBGVA;
    DBGBCR5_EL1 0x802d breakpoints[11], DBG, 0, DBGBCR;
    // An Apple implementer code, as guests of the framework see it.
    MIDR_EL1 0xc000 midr, ID, 0x610f_0000, ALL;
    MPIDR_EL1 0xc005 mpidr, ID, 1 << 31, ALL;
    // EL0 and EL1 AArch64 only; FP and AdvSIMD with FP16; GIC system registers; CSV2, CSV3.
    ID_AA64PFR0_EL1 0xc020 id_aa64pfr0, ID, 0x1100_0000_0111_0011, ALL;
    // SSBS with MSR/MRS. BTI executes as a hint.
    ID_AA64PFR1_EL1 0xc021 id_aa64pfr1, ID, 0x20, ALL;
    // Armv8 debug, 6 breakpoints, 4 watchpoints, 2 context-aware; no PMU, no trace.
    ID_AA64DFR0_EL1 0xc028 id_aa64dfr0, ID, 0x1030_5006, ALL;
    ID_AA64DFR1_EL1 0xc029 id_aa64dfr1, ID, 0, ALL;
    // AES+PMULL, SHA1, SHA256, CRC32, LSE, RDM, DotProd, FlagM.
    ID_AA64ISAR0_EL1 0xc030 id_aa64isar0, ID, 0x0010_1000_1021_1120, ALL;
    // PAuth by an implementation-defined algorithm (API, GPI), JSCVT, FCMA, RCPC.
    ID_AA64ISAR1_EL1 0xc031 id_aa64isar1, ID, 0x1011_1100, ALL;
    // 4 KiB and 16 KiB granules, 16-bit ASIDs; PARange is set from the IPA size.
    ID_AA64MMFR0_EL1 0xc038 id_aa64mmfr0, ID, 0x0f10_0020, ALL;
    // Hardware access flag and dirty state, hierarchical permission disables, PAN with AT S1E1RP.
    ID_AA64MMFR1_EL1 0xc039 id_aa64mmfr1, ID, 0x0020_1002, ALL;
    ID_AA64MMFR2_EL1 0xc03a id_aa64mmfr2, ID, 0, ALL;
    SCTLR_EL1 0xc080 sctlr, CTX, SCTLR_RESET, SCTLR;
    ACTLR_EL1 0xc081 actlr, RW, 0, 2;
    CPACR_EL1 0xc082 cpacr, CTX, 0, 3 << 20;
    TTBR0_EL1 0xc100 ttbr0, CTX, 0, ALL;
    TTBR1_EL1 0xc101 ttbr1, CTX, 0, ALL;
    TCR_EL1 0xc102 tcr, CTX, 0, TCR;
    APIAKEYLO_EL1 0xc108 apia[0], RW, 0, ALL;
    APIAKEYHI_EL1 0xc109 apia[1], RW, 0, ALL;
    APIBKEYLO_EL1 0xc10a apib[0], RW, 0, ALL;
    APIBKEYHI_EL1 0xc10b apib[1], RW, 0, ALL;
    APDAKEYLO_EL1 0xc110 apda[0], RW, 0, ALL;
    APDAKEYHI_EL1 0xc111 apda[1], RW, 0, ALL;
    APDBKEYLO_EL1 0xc112 apdb[0], RW, 0, ALL;
    APDBKEYHI_EL1 0xc113 apdb[1], RW, 0, ALL;
    APGAKEYLO_EL1 0xc118 apga[0], RW, 0, ALL;
    APGAKEYHI_EL1 0xc119 apga[1], RW, 0, ALL;
    SPSR_EL1 0xc200 spsr, RW, 0, 0xf070_13df;
    ELR_EL1 0xc201 elr, RW, 0, ALL;
    AFSR0_EL1 0xc288 afsr0, RW, 0, W;
    AFSR1_EL1 0xc289 afsr1, RW, 0, W;
    ESR_EL1 0xc290 esr, RW, 0, W;
    FAR_EL1 0xc300 far, RW, 0, ALL;
    PAR_EL1 0xc3a0 par, RW, 0, ALL;
    MAIR_EL1 0xc510 mair, CTX, 0, ALL;
    AMAIR_EL1 0xc518 amair, RW, 0, ALL;
    VBAR_EL1 0xc600 vbar, RW, 0, !0x7ff;
    CONTEXTIDR_EL1 0xc681 contextidr, RW, 0, W;
    TPIDR_EL1 0xc684 tpidr_el1, RW, 0, ALL;
    CNTKCTL_EL1 0xc708 cntkctl, RW, 0, 0x3ff;
    CSSELR_EL1 0xd000 csselr, RW, 0, 0xf;
    TPIDR_EL0 0xde82 tpidr_el0, USER, 0, ALL;
    TPIDRRO_EL0 0xde83 tpidrro_el0, RW | E0R, 0, ALL;
}

/// The register with this encoding.
pub fn find(encoding: u16) -> Option<&'static Register> {
    TABLE.binary_search_by_key(&encoding, |register| register.encoding).ok().map(|index| &TABLE[index])
}

/// Puts every register to its reset value.
pub fn reset(regs: &mut SysRegs) {
    TABLE.iter().for_each(|register| regs.set(register, register.reset));
}

impl Register {
    /// What the register holds after `value` has been written: RES0 bits clear, RES1 bits set.
    pub fn mask(&self, value: u64) -> u64 {
        let res1 = if self.writable == NONE { 0 } else { self.reset & !self.writable };
        value & self.writable | res1
    }
}

impl SysRegs {
    /// The value at a byte offset that a [`Register`] gives.
    #[inline(always)]
    pub fn get(&self, register: &Register) -> u64 {
        self.at(register.offset)
    }

    /// Sets a register's value, unmasked.
    pub fn set(&mut self, register: &Register, value: u64) {
        // SAFETY: offsets in the table are those of `u64` fields of this `repr(C)` structure.
        unsafe { (&raw mut *self).cast::<u8>().add(usize::from(register.offset)).cast::<u64>().write(value) }
    }

    /// The value at a byte offset from the table.
    #[inline(always)]
    pub(crate) fn at(&self, offset: u16) -> u64 {
        // The compiler drops this check where the offset is known to be good.
        assert!(usize::from(offset) <= size_of::<SysRegs>() - 8);
        // SAFETY: inside the structure, all of which is `u64`s; offsets are multiples of eight.
        unsafe { (&raw const *self).cast::<u8>().add(usize::from(offset)).cast::<u64>().read() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_its_storage_distinct() {
        assert!(TABLE.windows(2).all(|pair| pair[0].encoding < pair[1].encoding));
        let mut offsets: Vec<u16> = TABLE.iter().map(|register| register.offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), TABLE.len());
        assert_eq!(offsets.len() * 8, size_of::<SysRegs>());
        assert!(offsets.iter().all(|offset| offset % 8 == 0));
    }

    #[test]
    fn writes_keep_res1_bits_and_drop_res0_bits() {
        let sctlr = find(0xc080).unwrap();
        assert_eq!(sctlr.mask(0), 0x3050_0980);
        assert_eq!(sctlr.mask(u64::MAX) & (1 << 25 | 1 << 24), 0, "big-endian does not exist");
        assert_eq!(find(0xc201).unwrap().mask(u64::MAX), u64::MAX);
        assert!(find(0xc0ff).is_none());
    }
}
