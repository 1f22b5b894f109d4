//! System registers whose accesses come out to the host. Everything not in the table is UNDEFINED.
//!
//! The performance monitor is not offered: its registers exist (a kernel probes them), count nothing and forget what is
//! written, so they are no state. The OS lock is not modelled either: it reads as unlocked.

/// How a trapped register is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Reads as this value, ignores writes.
    Constant(u64),
    /// The guest's counter, without an offset of its own.
    Counter,
    /// The framework keeps it; only the access was trapped.
    Forward,
    /// Not offered.
    Undefined,
}

const fn encoding(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

const OSLAR_EL1: u16 = encoding(2, 0, 1, 0, 4);
const OSLSR_EL1: u16 = encoding(2, 0, 1, 1, 4);
const OSDLR_EL1: u16 = encoding(2, 0, 1, 3, 4);
const DBGPRCR_EL1: u16 = encoding(2, 0, 1, 4, 4);
const MDRAR_EL1: u16 = encoding(2, 0, 1, 0, 0);
const PMINTENSET_EL1: u16 = encoding(3, 0, 9, 14, 1);
const PMINTENCLR_EL1: u16 = encoding(3, 0, 9, 14, 2);
const PMMIR_EL1: u16 = encoding(3, 0, 9, 14, 6);
const PMCR_EL0: u16 = encoding(3, 3, 9, 12, 0);
const PMCEID1_EL0: u16 = encoding(3, 3, 9, 12, 7);
const PMCCNTR_EL0: u16 = encoding(3, 3, 9, 13, 0);
const PMXEVCNTR_EL0: u16 = encoding(3, 3, 9, 13, 2);
const PMUSERENR_EL0: u16 = encoding(3, 3, 9, 14, 0);
const PMOVSSET_EL0: u16 = encoding(3, 3, 9, 14, 3);
const PMEVCNTR0_EL0: u16 = encoding(3, 3, 14, 8, 0);
const PMCCFILTR_EL0: u16 = encoding(3, 3, 14, 15, 7);
const LORSA_EL1: u16 = encoding(3, 0, 10, 4, 0);
const LORC_EL1: u16 = encoding(3, 0, 10, 4, 3);
const LORID_EL1: u16 = encoding(3, 0, 10, 4, 7);
const CNTPCT_EL0: u16 = encoding(3, 3, 14, 0, 1);
const CNTPCTSS_EL0: u16 = encoding(3, 3, 14, 0, 5);
const CNTP_TVAL_EL0: u16 = encoding(3, 3, 14, 2, 0);
const CNTP_CVAL_EL0: u16 = encoding(3, 3, 14, 2, 2);
const DBGBVR0_EL1: u16 = encoding(2, 0, 0, 0, 4);
const DBGWCR15_EL1: u16 = encoding(2, 0, 0, 15, 7);
const MDSCR_EL1: u16 = encoding(2, 0, 0, 2, 2);
const MDCCINT_EL1: u16 = encoding(2, 0, 0, 2, 0);

/// Looks a register up by its 16-bit encoding.
pub fn answer(register: u16) -> Answer {
    match register {
        MDSCR_EL1 | MDCCINT_EL1 => Answer::Forward,
        DBGBVR0_EL1..=DBGWCR15_EL1 if register & 0b100 != 0 => Answer::Forward,
        // OSLM = 0b10: the OS lock is implemented; OSLK = 0: unlocked.
        OSLSR_EL1 => Answer::Constant(0b1000),
        OSLAR_EL1 | OSDLR_EL1 | DBGPRCR_EL1 | MDRAR_EL1 => Answer::Constant(0),
        PMINTENSET_EL1 | PMINTENCLR_EL1 | PMMIR_EL1 => Answer::Constant(0),
        PMCR_EL0..=PMCEID1_EL0 | PMCCNTR_EL0..=PMXEVCNTR_EL0 | PMUSERENR_EL0..=PMOVSSET_EL0 => Answer::Constant(0),
        PMEVCNTR0_EL0..=PMCCFILTR_EL0 => Answer::Constant(0),
        LORSA_EL1..=LORC_EL1 | LORID_EL1 => Answer::Constant(0),
        CNTPCT_EL0 | CNTPCTSS_EL0 => Answer::Counter,
        CNTP_TVAL_EL0..=CNTP_CVAL_EL0 => Answer::Constant(0),
        _ => Answer::Undefined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_traps_are_answered_and_the_rest_is_undefined() {
        assert_eq!(answer(OSLSR_EL1), Answer::Constant(8));
        assert_eq!(answer(OSLAR_EL1), Answer::Constant(0));
        assert_eq!(answer(0xdce8), Answer::Constant(0), "PMCCNTR_EL0");
        assert_eq!(answer(0xdf7f), Answer::Constant(0), "PMCCFILTR_EL0");
        assert_eq!(answer(0xdf01), Answer::Counter, "CNTPCT_EL0");
        assert_eq!(answer(0x8004), Answer::Forward, "DBGBVR0_EL1");
        assert_eq!(answer(0x8012), Answer::Forward, "MDSCR_EL1");
        assert_eq!(answer(encoding(3, 0, 12, 12, 5)), Answer::Undefined, "ICC_SRE_EL1: the vGIC must not trap it");
        assert_eq!(answer(encoding(3, 0, 15, 0, 0)), Answer::Undefined, "implementation defined");
    }
}
