//! System registers and page sizes: the vocabulary a state file is written in.
//!
//! [`SysReg`] names every register a snapshot can hold and fixes its wire key. Keys 1 to 47 are those of version 5.0 as
//! first published; 48 and up complete the set a Linux guest needs (SP_EL0, the pointer-authentication keys, the debug
//! registers, ...). Keys are frozen: new registers are appended, none is ever renumbered.

/// Page sizes that matter on the host, in bytes.
///
/// ```
/// let geometry = squib_snapshot::PageGeometry::APPLE_SILICON;
/// assert_eq!(geometry.tracking_page_default / geometry.tracking_page_hot, 128);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct PageGeometry {
    /// Page of the host kernel.
    pub host_page: u64,
    /// Granule of stage-2 translation tables.
    pub hvf_stage2_granule: u64,
    /// Granule at which dirty tracking starts.
    pub tracking_page_default: u64,
    /// Granule it steps down to where writes are frequent.
    pub tracking_page_hot: u64,
}

impl PageGeometry {
    /// Apple silicon: 16 KiB pages, 2 MiB tracking blocks.
    pub const APPLE_SILICON: Self =
        Self { host_page: 16384, hvf_stage2_granule: 16384, tracking_page_default: 2 << 20, tracking_page_hot: 16384 };
}

macro_rules! sys_regs {
    ($($key:literal $variant:ident $name:literal $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal $hv:literal;)*) => {
        /// A system register that a snapshot can hold. See the module documentation for how keys are assigned.
        ///
        /// ```
        /// use squib_snapshot::SysReg;
        /// assert_eq!(SysReg::SctlrEl1.as_encoded(), 1);
        /// assert_eq!(SysReg::from_encoded(48), Some(SysReg::SpEl0));
        /// assert_eq!(SysReg::SpEl0.hv_encoding(), 0xc208);
        /// assert_eq!(SysReg::SpEl0.name(), "SP_EL0");
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum SysReg {
            $(#[doc = concat!($name, ", wire key ", stringify!($key), ".")] $variant,)*
        }

        impl SysReg {
            const ALL: &'static [SysReg] = &[$(SysReg::$variant,)*];

            /// The wire key: never 0, frozen, not the architectural encoding.
            #[must_use]
            pub fn as_encoded(self) -> u64 {
                match self { $(Self::$variant => $key,)* }
            }

            /// The register with this wire key.
            #[must_use]
            pub fn from_encoded(key: u64) -> Option<Self> {
                match key { $($key => Some(Self::$variant),)* _ => None }
            }

            /// Every register, in ascending key order.
            #[must_use]
            pub const fn all() -> &'static [SysReg] {
                Self::ALL
            }

            /// The architecture's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// `(op0, op1, CRn, CRm, op2)` of its MRS/MSR encoding.
            #[must_use]
            pub const fn ops(self) -> (u8, u8, u8, u8, u8) {
                match self { $(Self::$variant => ($op0, $op1, $crn, $crm, $op2),)* }
            }

            /// Whether Hypervisor.framework's `hv_sys_reg_t` has this register. The others are reached another way
            /// (FPCR and FPSR are general registers there) or are state of the VMM's own (the PMU).
            #[must_use]
            pub const fn in_hypervisor_framework(self) -> bool {
                match self { $(Self::$variant => $hv,)* }
            }
        }
    };
}

impl SysReg {
    /// The 16-bit form `op0<<14 | op1<<11 | CRn<<7 | CRm<<3 | op2`, which is also the value of `hv_sys_reg_t`.
    #[must_use]
    pub const fn hv_encoding(self) -> u16 {
        let (op0, op1, crn, crm, op2) = self.ops();
        (op0 as u16) << 14 | (op1 as u16) << 11 | (crn as u16) << 7 | (crm as u16) << 3 | op2 as u16
    }

    /// The register with this 16-bit form.
    #[must_use]
    pub fn from_hv_encoding(encoding: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.hv_encoding() == encoding)
    }
}

sys_regs! {
      1 SctlrEl1         "SCTLR_EL1" 3 0  1  0 0 true;
      2 Ttbr0El1         "TTBR0_EL1" 3 0  2  0 0 true;
      3 Ttbr1El1         "TTBR1_EL1" 3 0  2  0 1 true;
      4 MairEl1          "MAIR_EL1" 3 0 10  2 0 true;
      5 AmairEl1         "AMAIR_EL1" 3 0 10  3 0 true;
      6 TcrEl1           "TCR_EL1" 3 0  2  0 2 true;
      7 SpEl1            "SP_EL1" 3 4  4  1 0 true;
      8 ElrEl1           "ELR_EL1" 3 0  4  0 1 true;
      9 SpsrEl1          "SPSR_EL1" 3 0  4  0 0 true;
     10 VbarEl1          "VBAR_EL1" 3 0 12  0 0 true;
     11 IdAa64Mmfr0El1   "ID_AA64MMFR0_EL1" 3 0  0  7 0 true;
     12 IdAa64Mmfr1El1   "ID_AA64MMFR1_EL1" 3 0  0  7 1 true;
     13 IdAa64Pfr0El1    "ID_AA64PFR0_EL1" 3 0  0  4 0 true;
     14 IdAa64Pfr1El1    "ID_AA64PFR1_EL1" 3 0  0  4 1 true;
     15 IdAa64Dfr0El1    "ID_AA64DFR0_EL1" 3 0  0  5 0 true;
     16 IdAa64Isar0El1   "ID_AA64ISAR0_EL1" 3 0  0  6 0 true;
     17 IdAa64Isar1El1   "ID_AA64ISAR1_EL1" 3 0  0  6 1 true;
     18 MpidrEl1         "MPIDR_EL1" 3 0  0  0 5 true;
     19 CntvCtlEl0       "CNTV_CTL_EL0" 3 3 14  3 1 true;
     20 CntvCvalEl0      "CNTV_CVAL_EL0" 3 3 14  3 2 true;
     21 CntvOffEl2       "CNTVOFF_EL2" 3 4 14  0 3 true;
     22 CntFrqEl0        "CNTFRQ_EL0" 3 3 14  0 0 false;
     23 CntKctlEl1       "CNTKCTL_EL1" 3 0 14  1 0 true;
     24 CntpCtlEl0       "CNTP_CTL_EL0" 3 3 14  2 1 true;
     25 CntpCvalEl0      "CNTP_CVAL_EL0" 3 3 14  2 2 true;
     26 PmCcntrEl0       "PMCCNTR_EL0" 3 3  9 13 0 false;
     27 PmCcfiltrEl0     "PMCCFILTR_EL0" 3 3 14 15 7 false;
     28 PmUserEnrEl0     "PMUSERENR_EL0" 3 3  9 14 0 false;
     29 PmCrEl0          "PMCR_EL0" 3 3  9 12 0 false;
     30 PmCntEnSetEl0    "PMCNTENSET_EL0" 3 3  9 12 1 false;
     31 PmOvsSetEl0      "PMOVSSET_EL0" 3 3  9 14 3 false;
     32 PmSelrEl0        "PMSELR_EL0" 3 3  9 12 5 false;
     33 EsrEl1           "ESR_EL1" 3 0  5  2 0 true;
     34 FarEl1           "FAR_EL1" 3 0  6  0 0 true;
     35 Afsr0El1         "AFSR0_EL1" 3 0  5  1 0 true;
     36 Afsr1El1         "AFSR1_EL1" 3 0  5  1 1 true;
     37 ContextIdrEl1    "CONTEXTIDR_EL1" 3 0 13  0 1 true;
     38 TpidrEl0         "TPIDR_EL0" 3 3 13  0 2 true;
     39 TpidrroEl0       "TPIDRRO_EL0" 3 3 13  0 3 true;
     40 TpidrEl1         "TPIDR_EL1" 3 0 13  0 4 true;
     41 ParEl1           "PAR_EL1" 3 0  7  4 0 true;
     42 Fpcr             "FPCR" 3 3  4  4 0 false;
     43 Fpsr             "FPSR" 3 3  4  4 1 false;
     44 CpacrEl1         "CPACR_EL1" 3 0  1  0 2 true;
     45 MdscrEl1         "MDSCR_EL1" 2 0  0  2 2 true;
     46 OslarEl1         "OSLAR_EL1" 2 0  1  0 4 false;
     47 OsdlrEl1         "OSDLR_EL1" 2 0  1  3 4 false;
     48 SpEl0            "SP_EL0" 3 0  4  1 0 true;
     49 ApiaKeyLoEl1     "APIAKeyLo_EL1" 3 0  2  1 0 true;
     50 ApiaKeyHiEl1     "APIAKeyHi_EL1" 3 0  2  1 1 true;
     51 ApibKeyLoEl1     "APIBKeyLo_EL1" 3 0  2  1 2 true;
     52 ApibKeyHiEl1     "APIBKeyHi_EL1" 3 0  2  1 3 true;
     53 ApdaKeyLoEl1     "APDAKeyLo_EL1" 3 0  2  2 0 true;
     54 ApdaKeyHiEl1     "APDAKeyHi_EL1" 3 0  2  2 1 true;
     55 ApdbKeyLoEl1     "APDBKeyLo_EL1" 3 0  2  2 2 true;
     56 ApdbKeyHiEl1     "APDBKeyHi_EL1" 3 0  2  2 3 true;
     57 ApgaKeyLoEl1     "APGAKeyLo_EL1" 3 0  2  3 0 true;
     58 ApgaKeyHiEl1     "APGAKeyHi_EL1" 3 0  2  3 1 true;
     59 CsselrEl1        "CSSELR_EL1" 3 2  0  0 0 true;
     60 ActlrEl1         "ACTLR_EL1" 3 0  1  0 1 true;
     61 MdccintEl1       "MDCCINT_EL1" 2 0  0  2 0 true;
     62 ScxtnumEl1       "SCXTNUM_EL1" 3 0 13  0 7 true;
     63 ScxtnumEl0       "SCXTNUM_EL0" 3 3 13  0 7 true;
     64 Tpidr2El0        "TPIDR2_EL0" 3 3 13  0 5 true;
     65 SmcrEl1          "SMCR_EL1" 3 0  1  2 6 true;
     66 SmpriEl1         "SMPRI_EL1" 3 0  1  2 4 true;
     67 MidrEl1          "MIDR_EL1" 3 0  0  0 0 true;
     68 IdAa64Dfr1El1    "ID_AA64DFR1_EL1" 3 0  0  5 1 true;
     69 IdAa64Mmfr2El1   "ID_AA64MMFR2_EL1" 3 0  0  7 2 true;
     70 IdAa64Zfr0El1    "ID_AA64ZFR0_EL1" 3 0  0  4 4 true;
     71 IdAa64Smfr0El1   "ID_AA64SMFR0_EL1" 3 0  0  4 5 true;
     72 DbgBvr0El1       "DBGBVR0_EL1" 2 0  0  0 4 true;
     73 DbgBcr0El1       "DBGBCR0_EL1" 2 0  0  0 5 true;
     74 DbgWvr0El1       "DBGWVR0_EL1" 2 0  0  0 6 true;
     75 DbgWcr0El1       "DBGWCR0_EL1" 2 0  0  0 7 true;
     76 DbgBvr1El1       "DBGBVR1_EL1" 2 0  0  1 4 true;
     77 DbgBcr1El1       "DBGBCR1_EL1" 2 0  0  1 5 true;
     78 DbgWvr1El1       "DBGWVR1_EL1" 2 0  0  1 6 true;
     79 DbgWcr1El1       "DBGWCR1_EL1" 2 0  0  1 7 true;
     80 DbgBvr2El1       "DBGBVR2_EL1" 2 0  0  2 4 true;
     81 DbgBcr2El1       "DBGBCR2_EL1" 2 0  0  2 5 true;
     82 DbgWvr2El1       "DBGWVR2_EL1" 2 0  0  2 6 true;
     83 DbgWcr2El1       "DBGWCR2_EL1" 2 0  0  2 7 true;
     84 DbgBvr3El1       "DBGBVR3_EL1" 2 0  0  3 4 true;
     85 DbgBcr3El1       "DBGBCR3_EL1" 2 0  0  3 5 true;
     86 DbgWvr3El1       "DBGWVR3_EL1" 2 0  0  3 6 true;
     87 DbgWcr3El1       "DBGWCR3_EL1" 2 0  0  3 7 true;
     88 DbgBvr4El1       "DBGBVR4_EL1" 2 0  0  4 4 true;
     89 DbgBcr4El1       "DBGBCR4_EL1" 2 0  0  4 5 true;
     90 DbgWvr4El1       "DBGWVR4_EL1" 2 0  0  4 6 true;
     91 DbgWcr4El1       "DBGWCR4_EL1" 2 0  0  4 7 true;
     92 DbgBvr5El1       "DBGBVR5_EL1" 2 0  0  5 4 true;
     93 DbgBcr5El1       "DBGBCR5_EL1" 2 0  0  5 5 true;
     94 DbgWvr5El1       "DBGWVR5_EL1" 2 0  0  5 6 true;
     95 DbgWcr5El1       "DBGWCR5_EL1" 2 0  0  5 7 true;
     96 DbgBvr6El1       "DBGBVR6_EL1" 2 0  0  6 4 true;
     97 DbgBcr6El1       "DBGBCR6_EL1" 2 0  0  6 5 true;
     98 DbgWvr6El1       "DBGWVR6_EL1" 2 0  0  6 6 true;
     99 DbgWcr6El1       "DBGWCR6_EL1" 2 0  0  6 7 true;
    100 DbgBvr7El1       "DBGBVR7_EL1" 2 0  0  7 4 true;
    101 DbgBcr7El1       "DBGBCR7_EL1" 2 0  0  7 5 true;
    102 DbgWvr7El1       "DBGWVR7_EL1" 2 0  0  7 6 true;
    103 DbgWcr7El1       "DBGWCR7_EL1" 2 0  0  7 7 true;
    104 DbgBvr8El1       "DBGBVR8_EL1" 2 0  0  8 4 true;
    105 DbgBcr8El1       "DBGBCR8_EL1" 2 0  0  8 5 true;
    106 DbgWvr8El1       "DBGWVR8_EL1" 2 0  0  8 6 true;
    107 DbgWcr8El1       "DBGWCR8_EL1" 2 0  0  8 7 true;
    108 DbgBvr9El1       "DBGBVR9_EL1" 2 0  0  9 4 true;
    109 DbgBcr9El1       "DBGBCR9_EL1" 2 0  0  9 5 true;
    110 DbgWvr9El1       "DBGWVR9_EL1" 2 0  0  9 6 true;
    111 DbgWcr9El1       "DBGWCR9_EL1" 2 0  0  9 7 true;
    112 DbgBvr10El1      "DBGBVR10_EL1" 2 0  0 10 4 true;
    113 DbgBcr10El1      "DBGBCR10_EL1" 2 0  0 10 5 true;
    114 DbgWvr10El1      "DBGWVR10_EL1" 2 0  0 10 6 true;
    115 DbgWcr10El1      "DBGWCR10_EL1" 2 0  0 10 7 true;
    116 DbgBvr11El1      "DBGBVR11_EL1" 2 0  0 11 4 true;
    117 DbgBcr11El1      "DBGBCR11_EL1" 2 0  0 11 5 true;
    118 DbgWvr11El1      "DBGWVR11_EL1" 2 0  0 11 6 true;
    119 DbgWcr11El1      "DBGWCR11_EL1" 2 0  0 11 7 true;
    120 DbgBvr12El1      "DBGBVR12_EL1" 2 0  0 12 4 true;
    121 DbgBcr12El1      "DBGBCR12_EL1" 2 0  0 12 5 true;
    122 DbgWvr12El1      "DBGWVR12_EL1" 2 0  0 12 6 true;
    123 DbgWcr12El1      "DBGWCR12_EL1" 2 0  0 12 7 true;
    124 DbgBvr13El1      "DBGBVR13_EL1" 2 0  0 13 4 true;
    125 DbgBcr13El1      "DBGBCR13_EL1" 2 0  0 13 5 true;
    126 DbgWvr13El1      "DBGWVR13_EL1" 2 0  0 13 6 true;
    127 DbgWcr13El1      "DBGWCR13_EL1" 2 0  0 13 7 true;
    128 DbgBvr14El1      "DBGBVR14_EL1" 2 0  0 14 4 true;
    129 DbgBcr14El1      "DBGBCR14_EL1" 2 0  0 14 5 true;
    130 DbgWvr14El1      "DBGWVR14_EL1" 2 0  0 14 6 true;
    131 DbgWcr14El1      "DBGWCR14_EL1" 2 0  0 14 7 true;
    132 DbgBvr15El1      "DBGBVR15_EL1" 2 0  0 15 4 true;
    133 DbgBcr15El1      "DBGBCR15_EL1" 2 0  0 15 5 true;
    134 DbgWvr15El1      "DBGWVR15_EL1" 2 0  0 15 6 true;
    135 DbgWcr15El1      "DBGWCR15_EL1" 2 0  0 15 7 true;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_dense_ascending_and_invertible() {
        for (i, reg) in SysReg::all().iter().enumerate() {
            assert_eq!(reg.as_encoded(), i as u64 + 1);
            assert_eq!(SysReg::from_encoded(reg.as_encoded()), Some(*reg));
            assert_eq!(SysReg::from_hv_encoding(reg.hv_encoding()), Some(*reg), "{}", reg.name());
        }
        assert_eq!(SysReg::from_encoded(0), None);
        assert_eq!(SysReg::from_encoded(SysReg::all().len() as u64 + 1), None);
    }

    #[test]
    fn encodings_are_the_published_ones() {
        for (reg, encoding) in [
            (SysReg::SctlrEl1, 0xc080),
            (SysReg::SpEl1, 0xe208),
            (SysReg::MpidrEl1, 0xc005),
            (SysReg::CntvOffEl2, 0xe703),
            (SysReg::PmCcfiltrEl0, 0xdf7f),
            (SysReg::OsdlrEl1, 0x809c),
            (SysReg::ApgaKeyHiEl1, 0xc119),
            (SysReg::CsselrEl1, 0xd000),
            (SysReg::MdccintEl1, 0x8010),
            (SysReg::ScxtnumEl0, 0xde87),
            (SysReg::IdAa64Smfr0El1, 0xc025),
            (SysReg::DbgBvr0El1, 0x8004),
            (SysReg::DbgWcr15El1, 0x807f),
        ] {
            assert_eq!(reg.hv_encoding(), encoding, "{}", reg.name());
        }
    }
}
