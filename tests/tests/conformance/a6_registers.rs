//! A6: registers as the host reads and writes them.

use applevisor::prelude::*;

use crate::asm::*;
use crate::guest::*;

#[test]
fn a6_01_general_registers_read_back() {
    let guest = guest(&[hvc(1)]);
    for (at, register) in GENERAL.into_iter().enumerate() {
        let value = 0x0123_4567_89ab_cdef ^ (at as u64) << 56;
        guest.vcpu.set_reg(register, value).unwrap();
        assert_eq!(guest.x(register), value);
    }
    guest.vcpu.set_reg(Reg::FPCR, 1 << 22).unwrap();
    guest.vcpu.set_reg(Reg::FPSR, 1 << 27 | 0x1f).unwrap();
    guest.vcpu.set_reg(Reg::CPSR, 0xa000_03c4).unwrap();
    assert_eq!(guest.x(Reg::FPCR), 1 << 22);
    assert_eq!(guest.x(Reg::FPSR), 1 << 27 | 0x1f);
    assert_eq!(guest.x(Reg::CPSR), 0xa000_03c4);
    guest.run_to(1);
    assert_eq!(guest.x(Reg::X3), 0x0123_4567_89ab_cdef ^ 3 << 56);
}

#[test]
fn a6_01_vector_registers_read_back_whole() {
    // MOV V1.16B, V0.16B.
    let guest = guest(&[0x4ea0_1c01, hvc(1)]);
    let value = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
    for register in [SimdFpReg::Q0, SimdFpReg::Q17, SimdFpReg::Q31] {
        assert_eq!(set_q(&guest.vcpu, register, value ^ register as u128), 0);
    }
    guest.run_to(1);
    for register in [SimdFpReg::Q0, SimdFpReg::Q17, SimdFpReg::Q31] {
        assert_eq!(guest.vcpu.get_simd_fp_reg(register), Ok(value ^ register as u128));
    }
    assert_eq!(guest.vcpu.get_simd_fp_reg(SimdFpReg::Q1), Ok(value));
}

#[test]
fn a6_01_the_save_set_reads_back() {
    use SysReg as S;
    let guest = guest(&[hvc(1)]);
    let mut failures = Vec::new();
    for (register, value) in [
        (S::CPACR_EL1, 3 << 20),
        (S::TTBR0_EL1, 0x1234_5000),
        (S::TTBR1_EL1, 0x7_0000_0000_5000),
        (S::TCR_EL1, 0x0000_0010_b519_3519),
        (S::MAIR_EL1, 0x0000_0000_4404_0cff),
        (S::AMAIR_EL1, 0),
        (S::VBAR_EL1, 0xffff_8000_0801_0800),
        (S::CONTEXTIDR_EL1, 0x1234),
        (S::SPSR_EL1, 0x6000_0005),
        (S::ELR_EL1, 0xffff_8000_1234_5678),
        (S::SP_EL0, 0x1111_0000_2222_3330),
        (S::SP_EL1, 0xffff_8000_0abc_def0),
        (S::ESR_EL1, 0x5600_0000),
        (S::FAR_EL1, 0xdead_beef_0000),
        (S::AFSR0_EL1, 0),
        (S::AFSR1_EL1, 0),
        (S::PAR_EL1, 0x800),
        (S::TPIDR_EL1, 0x1),
        (S::TPIDR_EL0, 0x2),
        (S::TPIDRRO_EL0, 0x3),
        (S::CNTKCTL_EL1, 0x2),
        (S::CSSELR_EL1, 0x1),
        (S::APIAKEYLO_EL1, 11),
        (S::APIAKEYHI_EL1, 12),
        (S::APIBKEYLO_EL1, 13),
        (S::APIBKEYHI_EL1, 14),
        (S::APDAKEYLO_EL1, 15),
        (S::APDAKEYHI_EL1, 16),
        (S::APDBKEYLO_EL1, 17),
        (S::APDBKEYHI_EL1, 18),
        (S::APGAKEYLO_EL1, 19),
        (S::APGAKEYHI_EL1, 20),
        (S::CNTV_CVAL_EL0, 0x1234_5678_9abc),
        (S::CNTV_CTL_EL0, 2),
        (S::MPIDR_EL1, 0x8000_0102),
        (S::DBGBVR0_EL1, 0x4000),
        (S::DBGBCR0_EL1, 0x1e6),
        (S::DBGWVR1_EL1, 0x8000),
        (S::DBGWCR1_EL1, 0x1fe6),
        (S::MDSCR_EL1, 0),
    ] {
        let (set, got) = (guest.vcpu.set_sys_reg(register, value), guest.vcpu.get_sys_reg(register));
        // Whether a timer that is off has fired is not said.
        let said = if register == S::CNTV_CTL_EL0 { got.map(|value| value & 3) } else { got };
        if (set, said) != (Ok(()), Ok(value)) {
            failures.push(format!("{register:?}: {set:?} to set {value:#x}, got {got:x?}"));
        }
    }
    nothing_of(failures);
    let sctlr = guest.vcpu.get_sys_reg(S::SCTLR_EL1).unwrap();
    guest.vcpu.set_sys_reg(S::SCTLR_EL1, sctlr).unwrap();
    assert_eq!(guest.vcpu.get_sys_reg(S::SCTLR_EL1), Ok(sctlr));
}

#[test]
fn a6_01_every_debug_register_exists() {
    use SysReg as S;
    let guest = guest(&[hvc(1)]);
    for register in [S::DBGBVR15_EL1, S::DBGBCR15_EL1, S::DBGWVR15_EL1, S::DBGWCR15_EL1, S::MDCCINT_EL1] {
        let value = guest.vcpu.get_sys_reg(register);
        assert!(value.is_ok(), "{register:?}");
        assert_eq!(guest.vcpu.set_sys_reg(register, value.unwrap()), Ok(()), "{register:?}");
    }
}

#[test]
fn a6_02_stack_pointers_are_where_the_guest_finds_them() {
    // MOV X0, SP; MRS X1, SP_EL0; MSR SPSel, #0; MOV X2, SP.
    let guest = guest(&[0x9100_03e0, mrs(1, 0xc208), 0xd500_40bf, 0x9100_03e2, hvc(1)]);
    guest.vcpu.set_sys_reg(SysReg::SP_EL0, 0x1000).unwrap();
    guest.vcpu.set_sys_reg(SysReg::SP_EL1, 0x2000).unwrap();
    guest.run_to(1);
    assert_eq!((guest.x(Reg::X0), guest.x(Reg::X1), guest.x(Reg::X2)), (0x2000, 0x1000, 0x1000));
    assert_eq!(guest.vcpu.get_sys_reg(SysReg::SP_EL1), Ok(0x2000));
    assert_eq!(guest.x(Reg::CPSR) & 0xf, 4, "EL1t");
}

#[test]
fn a6_03_id_registers_are_what_the_host_says() {
    let guest = guest(&[mrs(0, 0xc030), mrs(1, 0xc005), hvc(1)]);
    let isar0 = guest.vcpu.get_sys_reg(SysReg::ID_AA64ISAR0_EL1).unwrap();
    guest.vcpu.set_sys_reg(SysReg::ID_AA64ISAR0_EL1, isar0 & !0xf0).unwrap();
    guest.vcpu.set_sys_reg(SysReg::MPIDR_EL1, 0x8000_0003).unwrap();
    guest.run_to(1);
    assert_eq!(guest.x(Reg::X0), isar0 & !0xf0);
    assert_eq!(guest.x(Reg::X1), 0x8000_0003);
}

#[test]
fn a6_03_a_configuration_knows_the_feature_registers() {
    let config = VcpuConfig::new();
    let feature = |register| config.get_feature_reg(register).unwrap();
    let guest = guest(&[mrs(0, 0xd801), mrs(1, 0xc801), mrs(2, 0xd807), hvc(1)]);
    guest.run_to(1);
    assert_eq!(feature(FeatureReg::ID_AA64PFR0_EL1), guest.vcpu.get_sys_reg(SysReg::ID_AA64PFR0_EL1).unwrap());
    assert_eq!(feature(FeatureReg::ID_AA64ISAR0_EL1), guest.vcpu.get_sys_reg(SysReg::ID_AA64ISAR0_EL1).unwrap());
    assert_eq!(feature(FeatureReg::CTR_EL0), guest.x(Reg::X0));
    assert_eq!(feature(FeatureReg::CLIDR_EL1), guest.x(Reg::X1));
    assert_eq!(feature(FeatureReg::DCZID_EL0) & 0xf, guest.x(Reg::X2) & 0xf);
    assert_ne!(config.get_ccsidr_el1_sys_reg_values(CacheType::DATA), Ok(0));
}

#[test]
fn a6_04_el2_registers_need_el2() {
    use SysReg as S;
    let guest = guest(&[hvc(1)]);
    for register in
        [S::HCR_EL2, S::CNTVOFF_EL2, S::VBAR_EL2, S::SP_EL2, S::CNTP_CTL_EL0, S::CNTP_CVAL_EL0, S::CNTHCTL_EL2]
    {
        assert!(guest.vcpu.get_sys_reg(register).is_err(), "{register:?}");
        assert!(guest.vcpu.set_sys_reg(register, 0).is_err(), "{register:?}");
    }
}

#[test]
fn a6_04_actlr_has_one_bit() {
    let guest = guest(&[hvc(1)]);
    guest.vcpu.set_sys_reg(SysReg::ACTLR_EL1, 2).unwrap();
    assert_eq!(guest.vcpu.get_sys_reg(SysReg::ACTLR_EL1), Ok(2));
    guest.vcpu.set_sys_reg(SysReg::ACTLR_EL1, !2).unwrap();
    assert_eq!(guest.vcpu.get_sys_reg(SysReg::ACTLR_EL1), Ok(0));
}

#[test]
fn a6_01_pointer_authentication_keys_are_the_guests_own() {
    // PACIA X0, X1 with two keys gives two signatures; AUTIA undoes its own.
    let guest = guest(&[0xdac1_0020, hvc(1), 0xdac1_1020, hvc(2)]);
    let pointer = 0xffff_8000_1234_5670;
    let sctlr = guest.vcpu.get_sys_reg(SysReg::SCTLR_EL1).unwrap();
    guest.vcpu.set_sys_reg(SysReg::SCTLR_EL1, sctlr | 1 << 31).unwrap();
    // 48-bit addresses.
    guest.vcpu.set_sys_reg(SysReg::TCR_EL1, 16 | 16 << 16).unwrap();
    let sign = |key: u64| {
        guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
        guest.vcpu.set_sys_reg(SysReg::APIAKEYLO_EL1, key).unwrap();
        guest.vcpu.set_sys_reg(SysReg::APIAKEYHI_EL1, !key).unwrap();
        guest.vcpu.set_reg(Reg::X0, pointer).unwrap();
        guest.vcpu.set_reg(Reg::X1, 0x77).unwrap();
        guest.run_to(1);
        guest.x(Reg::X0)
    };
    let signatures = [1, 2, 3, 4].map(sign);
    assert!(signatures.iter().any(|&signed| signed != signatures[0]), "{signatures:x?}");
    guest.run_to(2);
    assert_eq!(guest.x(Reg::X0), pointer);
}

#[test]
fn a6_05_whether_there_is_sme() {
    // squib's minimum, macOS 15.0, has no calls for SME state: a guest that sees SME could not be frozen.
    let guest = guest(&[hvc(1)]);
    let pfr1 = guest.vcpu.get_sys_reg(SysReg::ID_AA64PFR1_EL1).unwrap();
    probe("ID_AA64PFR1_EL1.SME", pfr1 >> 24 & 0xf);
    assert_eq!(guest.vcpu.set_sys_reg(SysReg::ID_AA64PFR1_EL1, pfr1 & !(0xf << 24)), Ok(()));
    assert_eq!(guest.vcpu.get_sys_reg(SysReg::ID_AA64PFR1_EL1), Ok(pfr1 & !(0xf << 24)));
}
