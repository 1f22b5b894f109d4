//! Exception syndromes: classes, fault status codes, and the ISS of a data abort worked out from the instruction word
//! (Arm ARM D17.2.37 "ESR_EL2").

/// Exception classes.
#[allow(missing_docs, reason = "names of the Arm ARM")]
pub mod ec {
    pub const UNKNOWN: u32 = 0x00;
    pub const WFX: u32 = 0x01;
    pub const FP_ACCESS: u32 = 0x07;
    pub const ILLEGAL_STATE: u32 = 0x0e;
    pub const SVC: u32 = 0x15;
    pub const HVC: u32 = 0x16;
    pub const SMC: u32 = 0x17;
    pub const SYSTEM_REGISTER: u32 = 0x18;
    pub const INSTRUCTION_ABORT_LOWER: u32 = 0x20;
    pub const PC_ALIGNMENT: u32 = 0x22;
    pub const DATA_ABORT_LOWER: u32 = 0x24;
    pub const SP_ALIGNMENT: u32 = 0x26;
    pub const BREAKPOINT_LOWER: u32 = 0x30;
    pub const SOFTWARE_STEP_LOWER: u32 = 0x32;
    pub const WATCHPOINT_LOWER: u32 = 0x34;
    pub const BRK: u32 = 0x3c;
}

/// Fault status codes; those with a level take it in bits 1..0.
#[allow(missing_docs, reason = "names of the Arm ARM")]
pub mod fsc {
    pub const ADDRESS_SIZE: u32 = 0x00;
    pub const TRANSLATION: u32 = 0x04;
    pub const ACCESS_FLAG: u32 = 0x08;
    pub const PERMISSION: u32 = 0x0c;
    pub const ALIGNMENT: u32 = 0x21;
    pub const DEBUG: u32 = 0x22;
    pub const UNSUPPORTED_ATOMIC: u32 = 0x35;
}

/// ISS bits of aborts.
#[allow(missing_docs, reason = "names of the Arm ARM")]
pub mod iss {
    pub const WNR: u32 = 1 << 6;
    pub const S1PTW: u32 = 1 << 7;
    pub const CM: u32 = 1 << 8;
    pub const AR: u32 = 1 << 14;
    pub const SF: u32 = 1 << 15;
    pub const SSE: u32 = 1 << 21;
    pub const ISV: u32 = 1 << 24;
}

/// The syndrome register's value; every A64 instruction has IL = 1.
pub fn esr(ec: u32, iss: u32) -> u64 {
    u64::from(ec) << 26 | 1 << 25 | u64::from(iss)
}

/// The class for an exception taken from the level it is taken to.
pub fn same_level(ec: u32) -> u32 {
    use self::ec::*;
    match ec {
        INSTRUCTION_ABORT_LOWER | DATA_ABORT_LOWER | BREAKPOINT_LOWER | SOFTWARE_STEP_LOWER | WATCHPOINT_LOWER => {
            ec + 1
        }
        _ => ec,
    }
}

/// Adds ISV and the access description to the ISS of a stage-2 data abort, where the architecture gives them.
/// A `vague` one says instead that it comes from a table walk, which excuses ISV = 0.
pub fn complete_data_abort(iss: u32, insn: u32, vague: bool) -> u32 {
    if vague {
        return iss | self::iss::S1PTW;
    }
    if iss & (self::iss::S1PTW | self::iss::CM) != 0 {
        return iss;
    }
    iss | access_description(insn).unwrap_or(0)
}

/// ISV, SAS, SSE, SRT, SF, AR of a load or store of one general-purpose register without write-back; `None` for all others.
fn access_description(insn: u32) -> Option<u32> {
    let size = insn >> 30;
    let opc = insn >> 22 & 3;
    let describe = |size: u32, sign: bool, sf: bool, ordered: bool| {
        let bit = |set: bool, mask: u32| if set { mask } else { 0 };
        Some(iss::ISV | size << 22 | bit(sign, iss::SSE) | (insn & 31) << 16 | bit(sf, iss::SF) | bit(ordered, iss::AR))
    };
    // LDAR, STLR.
    if insn & 0x3fa0_0000 == 0x0880_0000 {
        return describe(size, false, size == 3, true);
    }
    // LDAPR.
    if insn & 0x3fff_fc00 == 0x38bf_c000 {
        return describe(size, false, size == 3, true);
    }
    // LDR, LDRSW (literal).
    if insn & 0x3f00_0000 == 0x1800_0000 {
        return match size {
            0 => describe(2, false, false, false),
            1 => describe(3, false, true, false),
            2 => describe(2, true, true, false),
            _ => None,
        };
    }
    let unsigned_offset = insn & 0x3f00_0000 == 0x3900_0000;
    let unscaled = insn & 0x3f20_0c00 == 0x3800_0000;
    let unprivileged = insn & 0x3f20_0c00 == 0x3800_0800;
    let register_offset = insn & 0x3f20_0c00 == 0x3820_0800;
    let ordered_unscaled = insn & 0x3f20_0c00 == 0x1900_0000;
    if !(unsigned_offset || unscaled || unprivileged || register_offset || ordered_unscaled) {
        return None;
    }
    match (size, opc) {
        (3, 0 | 1) => describe(3, false, true, ordered_unscaled),
        (_, 0 | 1) => describe(size, false, false, ordered_unscaled),
        (0..=2, 2) => describe(size, true, true, ordered_unscaled),
        (0..=1, 3) => describe(size, true, false, ordered_unscaled),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(insn: u32) -> Option<(u32, bool, u32, bool, bool)> {
        access_description(insn)
            .map(|i| (i >> 22 & 3, i & iss::SSE != 0, i >> 16 & 31, i & iss::SF != 0, i & iss::AR != 0))
    }

    #[test]
    fn single_register_accesses_are_described() {
        assert_eq!(fields(0xb900_0041), Some((2, false, 1, false, false))); // str w1, [x2]
        assert_eq!(fields(0xf940_0041), Some((3, false, 1, true, false))); // ldr x1, [x2]
        assert_eq!(fields(0x3980_0043), Some((0, true, 3, true, false))); // ldrsb x3, [x2]
        assert_eq!(fields(0x79c0_0043), Some((1, true, 3, false, false))); // ldrsh w3, [x2]
        assert_eq!(fields(0xb980_005f), Some((2, true, 31, true, false))); // ldrsw xzr, [x2]
        assert_eq!(fields(0x3863_6841), Some((0, false, 1, false, false))); // ldrb w1, [x2, x3]
        assert_eq!(fields(0x88df_fc41), Some((2, false, 1, false, true))); // ldar w1, [x2]
        assert_eq!(fields(0xc89f_fc41), Some((3, false, 1, true, true))); // stlr x1, [x2]
        assert_eq!(fields(0xb85f_c041), Some((2, false, 1, false, false))); // ldur w1, [x2, #-4]
        assert_eq!(fields(0x5800_0001), Some((3, false, 1, true, false))); // ldr x1, .
    }

    #[test]
    fn other_accesses_are_not() {
        for insn in [
            0xa940_0841, // ldp x1, x2, [x2]
            0xf840_8441, // ldr x1, [x2], #8
            0xf840_8c41, // ldr x1, [x2, #8]!
            0xfd40_0041, // ldr d1, [x2]
            0xc85f_7c41, // ldxr x1, [x2]
            0xc85f_fc41, // ldaxr x1, [x2]
            0xf8e0_0041, // ldaddal x0, x1, [x2]
            0xd50b_7e20, // dc civac, x0
        ] {
            assert_eq!(fields(insn), None, "{insn:#x}");
        }
    }
}
