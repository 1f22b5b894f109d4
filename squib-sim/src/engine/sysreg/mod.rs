//! System registers: where their values live.
//!
//! What an access to one means (who may, which bits are writable, what it triggers) is in [`table`].

pub mod table;

/// The registers that hold state. Names are the architecture's without the `_EL1` suffix.
#[allow(missing_docs, reason = "names of the Arm ARM")]
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct SysRegs {
    pub sctlr: u64,
    pub actlr: u64,
    pub cpacr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub tcr: u64,
    pub mair: u64,
    pub amair: u64,
    pub vbar: u64,
    pub contextidr: u64,
    pub spsr: u64,
    pub elr: u64,
    pub esr: u64,
    pub far: u64,
    pub afsr0: u64,
    pub afsr1: u64,
    pub par: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub tpidr_el1: u64,
    pub cntkctl: u64,
    pub csselr: u64,
    pub mdscr: u64,
    pub mdccint: u64,
    pub midr: u64,
    pub mpidr: u64,
    /// Pointer authentication keys, low and high half.
    pub apia: [u64; 2],
    pub apib: [u64; 2],
    pub apda: [u64; 2],
    pub apdb: [u64; 2],
    pub apga: [u64; 2],
    /// DBGBVR/DBGBCR pairs.
    pub breakpoints: [[u64; 2]; 6],
    /// DBGWVR/DBGWCR pairs.
    pub watchpoints: [[u64; 2]; 4],
    pub id_aa64pfr0: u64,
    pub id_aa64pfr1: u64,
    pub id_aa64dfr0: u64,
    pub id_aa64dfr1: u64,
    pub id_aa64isar0: u64,
    pub id_aa64isar1: u64,
    pub id_aa64mmfr0: u64,
    pub id_aa64mmfr1: u64,
    pub id_aa64mmfr2: u64,
}

impl SysRegs {
    /// Values at reset.
    pub fn reset() -> SysRegs {
        let mut regs = SysRegs::default();
        table::reset(&mut regs);
        regs
    }
}
