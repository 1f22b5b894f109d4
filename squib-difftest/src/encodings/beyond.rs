//! The exceptions to "UNDEFINED in one, UNDEFINED in the other": encodings of features that only the reference has, and
//! words that cannot be run for comparison.

use super::find;

/// (mask, value, feature). `qemu-aarch64 -cpu max` of QEMU 7.2 implements these; the engine does not advertise them.
const FEATURES: &[(u32, u32, &str)] = &[
    // Data processing.
    (0xffc0_c000, 0x9180_0000, "FEAT_MTE: ADDG"),
    (0xffc0_c000, 0xd180_0000, "FEAT_MTE: SUBG"),
    (0xdfe0_fc00, 0x9ac0_0000, "FEAT_MTE: SUBP, SUBPS"),
    (0xffe0_f800, 0x9ac0_1000, "FEAT_MTE: IRG, GMI"),
    // System instructions.
    (0xffff_f0ff, 0xd500_403f, "FEAT_FlagM2: XAFLAG"),
    (0xffff_f0ff, 0xd500_405f, "FEAT_FlagM2: AXFLAG"),
    (0xffff_f0ff, 0xd503_405f, "FEAT_DIT: MSR (immediate)"),
    (0xffff_f0ff, 0xd503_409f, "FEAT_MTE: MSR TCO (immediate)"),
    (0xffff_f0ff, 0xd503_30ff, "FEAT_SB"),
    (0xffdf_ffe0, 0xd51b_42a0, "FEAT_DIT"),
    (0xffdf_ffe0, 0xd51b_42e0, "FEAT_MTE: TCO"),
    (0xffff_ffc0, 0xd53b_2400, "FEAT_RNG"),
    (0xffdf_ffe0, 0xd51b_d0e0, "FEAT_CSV2_2: SCXTNUM_EL0"),
    (0xffff_ff00, 0xd50b_7300, "FEAT_SPECRES: prediction restriction by context"),
    (0xffff_fee0, 0xd50b_7c20, "FEAT_DPB, FEAT_DPB2: DC CVAP, DC CVADP"),
    (0xffff_f0e0, 0xd50b_7060, "FEAT_MTE: DC GVA, DC CGVAC and the like"),
    (0xffff_ffe0, 0xd50b_7480, "FEAT_MTE: DC GZVA"),
    (0xffff_f0e0, 0xd50b_70a0, "FEAT_MTE: DC CGDVAC and the like"),
    // Loads and stores.
    (0xff20_0400, 0xd920_0400, "FEAT_MTE: STG, LDG and the like"),
    (0xff20_0c00, 0xd920_0000, "FEAT_MTE: LDG, STZGM, STGM, LDGM"),
    (0xff20_0000, 0xd920_0000, "FEAT_MTE"),
    (0xfe40_0000, 0x6800_0000, "FEAT_MTE: STGP"),
    (0x3f20_0c00, 0x1900_0000, "FEAT_LRCPC2"),
    (0x3fbf_fc00, 0x089f_7c00, "FEAT_LOR: STLLR, LDLAR"),
    // AdvSIMD.
    (0xffe0_8000, 0xce00_0000, "FEAT_SHA3, FEAT_SM3: four registers"),
    (0xffe0_8000, 0xce20_0000, "FEAT_SHA3: BCAX"),
    (0xffe0_8000, 0xce40_0000, "FEAT_SM3: SM3SS1"),
    (0xffe0_c000, 0xce40_8000, "FEAT_SM3: SM3TT"),
    (0xffe0_0000, 0xce80_0000, "FEAT_SHA3: XAR"),
    (0xffe0_b000, 0xce60_8000, "FEAT_SHA512, FEAT_SHA3, FEAT_SM3, FEAT_SM4: three registers"),
    (0xffff_f000, 0xcec0_8000, "FEAT_SHA512, FEAT_SM4: two registers"),
    (0x9f20_fc00, 0x0e20_ec00, "FEAT_FHM: FMLAL, FMLSL"),
    (0x9f20_fc00, 0x0e20_cc00, "FEAT_FHM: FMLAL2, FMLSL2"),
    (0xbfc0_b400, 0x0f80_0000, "FEAT_FHM: FMLAL, FMLSL by element"),
    (0xbfc0_b400, 0x2f80_8000, "FEAT_FHM: FMLAL2, FMLSL2 by element"),
    (0xbfe0_fc00, 0x0e80_9c00, "FEAT_I8MM: USDOT"),
    (0xbf00_f400, 0x0f00_f000, "FEAT_I8MM, FEAT_BF16: by element"),
    (0xdfe0_f400, 0x4e80_a400, "FEAT_I8MM: SMMLA, UMMLA, USMMLA"),
    (0xbfe0_fc00, 0x2e40_fc00, "FEAT_BF16: BFDOT"),
    (0xbfe0_fc00, 0x2ec0_fc00, "FEAT_BF16: BFMLAL"),
    (0xffe0_fc00, 0x6e40_ec00, "FEAT_BF16: BFMMLA"),
    (0xbfff_fc00, 0x0ea1_6800, "FEAT_BF16: BFCVTN"),
    (0xffff_fc00, 0x1e63_4000, "FEAT_BF16: BFCVT"),
    (0xffbe_7c00, 0x1e28_4000, "FEAT_FRINTTS"),
    (0x9fbf_ec00, 0x0e21_e800, "FEAT_FRINTTS: vectors"),
    // QEMU 7.2 does not look at bit 22 (sz, 0 in C4.1 "AdvSIMD scalar pairwise" and "AdvSIMD across lanes" for half precision,
    // U = 0), nor at op (0 for the one half-precision FMOV among the modified immediates).
    (0x8f7e_cc00, 0x0e70_c800, "pairwise and across lanes, half precision, sz = 1"),
    (0xbff8_fc00, 0x2f00_fc00, "modified immediate, cmode 1111, op 1, o2 1"),
    // QEMU 7.2 ends itself with an assertion (disas_simd_two_reg_misc_fp16) on unallocated encodings of this group.
    (0x8f7e_0c00, 0x0e78_0800, "two-register miscellaneous, half precision"),
];

/// Words that no row matches and whose effect is not for comparison: exceptions and system calls into the reference's own host, waits, encodings
/// with should-be-one or should-be-zero fields that are not, and the system instruction space, whose registers the two
/// present differently to EL0 (Linux emulates ID registers for its programs, and qemu's user mode does the same).
const NOT_COMPARED: &[(u32, u32, &str)] = &[
    (0xff00_0000, 0xd400_0000, "exception generation"),
    (0xffff_ffdf, 0xd503_205f, "WFE, WFI"),
    (0xfff8_0000, 0xd510_0000, "debug registers"),
    (0xfff8_0000, 0xd530_0000, "debug registers"),
    (0xffff_f000, 0xd538_0000, "ID registers, which Linux and qemu's user mode emulate for programs"),
    (0xffff_ff00, 0xd53b_0000, "CTR_EL0, DCZID_EL0, which are the implementation's own"),
    (0xffff_f0ff, 0xd503_403f, "MSR SSBS (immediate)"),
    (0xffdf_ffe0, 0xd51b_42c0, "SSBS"),
    (0xffff_ffe0, 0xd53b_d060, "TPIDRRO_EL0"),
    (0xffff_fc00, 0xd53b_e000, "counters and timers"),
    (0xffff_f0e0, 0xd50b_7020, "cache maintenance by address"),
    (0xffdf_f000, 0xd51b_9000, "performance monitors"),
    (0xffdf_f800, 0xd51b_e800, "performance monitors"),
    (0x3f20_0000, 0x0800_0000, "exclusives, load-acquire, store-release with should-be-one fields that are not"),
    (0xbfe0_0000, 0x8860_0000, "LDXP with a should-be-one Rs"),
    (0xffe0_0000, 0x9b40_0000, "SMULH with a should-be-one Ra"),
    (0xffe0_0000, 0x9bc0_0000, "UMULH with a should-be-one Ra"),
    (0xff20_fc07, 0x1e20_2000, "FCMP with zero and a should-be-zero Rm"),
    (0xfe00_f800, 0xd600_0800, "branches with pointer authentication"),
    (0xffff_0000, 0xdac1_0000, "pointer authentication"),
    (0xffe0_fc00, 0x9ac0_3000, "PACGA"),
    (0xff20_0400, 0xf820_0400, "LDRAA, LDRAB"),
    // Arm ARM C6.2.127: LDAPR's Rs is should-be-one.
    (0x3fe0_fc00, 0x38a0_c000, "LDAPR with a should-be-one Rs"),
    (0xfe00_0000, 0x0000_0000, "reserved, UDF, SME"),
];

/// Allocated encodings that QEMU 7.2 executes wrongly; what the architecture wants is the matter of the engine's own tests.
const REFERENCE_ERRATA: &[(u32, u32, &str)] = &[
    // handle_simd_shift_fpint_conv writes the sign-extended 32-bit result instead of 16 bits.
    (0xfff0_fc00, 0x5f10_fc00, "FCVTZS (scalar, fixed-point), half precision"),
    // XPACLRI: here the reference has no pointer authentication, ours has it with the keys disabled, which does not matter to it.
    (0xffff_ffff, 0xd503_20ff, "XPACLRI"),
];

/// The reference can be trusted with this allocated word.
pub fn comparable(insn: u32) -> bool {
    !REFERENCE_ERRATA.iter().any(|(mask, value, _)| insn & mask == *value)
}

/// The word must not be run for comparison.
pub fn excluded(insn: u32) -> bool {
    !beyond(insn) && find(insn).is_none() && NOT_COMPARED.iter().any(|(mask, value, _)| insn & mask == *value)
}

/// The reference cannot tell whether the word is UNDEFINED; the table of encodings alone says so.
pub fn beyond(insn: u32) -> bool {
    FEATURES.iter().any(|(mask, value, _)| insn & mask == *value)
}
