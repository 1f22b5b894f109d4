//! MRS and MSR: who may, what sticks, what leaves to the host.

use super::*;
use crate::config::ClockMode::Host;

#[test]
fn el1_reads_and_writes_what_exists() {
    let mut bench = Bench::new(Host);
    bench.code(
        RAM,
        &[
            0xd538_0400, // mrs x0, id_aa64pfr0_el1
            0xd538_07e1, // mrs x1, s3_0_c0_c7_7: unallocated ID space
            0xd518_1002, // msr sctlr_el1, x2
            0xd538_1003, // mrs x3, sctlr_el1
            0xd518_4106, // msr sp_el0, x6
            0xd500_40bf, // msr spsel, #0
            0x9100_03e4, // mov x4, sp
            0xd538_4245, // mrs x5, currentel
            0xd53b_4227, // mrs x7, daif
            0xd53b_e008, // mrs x8, cntfrq_el0
            0xd53b_00e9, // mrs x9, dczid_el0
            HVC,
        ],
    );
    let cpu = &mut bench.vcpu.cpu;
    // Everything but the MMU and alignment checks.
    (cpu.x[1], cpu.x[2], cpu.x[6]) = (1, !0b11, 0x1234_5678);
    bench.run_to_hvc();
    let cpu = &bench.vcpu.cpu;
    assert_eq!(cpu.x[0] & 0xff, 0x11, "EL0 and EL1 are AArch64 only");
    assert_eq!(cpu.x[1], 0);
    assert_eq!(cpu.x[3] & (1 << 24 | 1 << 25), 0, "EE and E0E are RES0");
    assert_eq!((cpu.x[4], cpu.x[5], cpu.x[7]), (0x1234_5678, 4, 0x3c0));
    assert_eq!((cpu.x[8], cpu.x[9]), (24_000_000, 4));
    assert_eq!(bench.get(0xc208), 0x1234_5678);
}

#[test]
fn what_does_not_exist_is_undefined_or_the_hosts_business() {
    // UNDEFINED at EL1: msr midr_el1, x0; mrs x0, sctlr_el2; tlbi rvae1is, x0 (not announced).
    for insn in [0xd518_0000, 0xd53c_1000, 0xd508_8220] {
        let mut bench = Bench::new(Host);
        bench.hvc_vectors();
        bench.code(RAM, &[insn]);
        bench.run_to_hvc();
        assert_eq!((bench.get(reg::ESR), bench.get(reg::ELR)), (1 << 25, RAM), "{insn:#x}");
    }
    // Leaves: mrs x0, cntpct_el0; mrs x0, icc_iar1_el1 without a GIC; mrs x0, s3_0_c15_c1_1.
    for (insn, iss) in [(0xd53b_e020, 0x32_f801), (0xd538_cc00, 0x30_3019), (0xd538_f120, 0x32_3c03)] {
        let mut bench = Bench::new(Host);
        bench.code(RAM, &[insn]);
        let (esr, ..) = bench.run_to_exception();
        assert_eq!(esr, 0x6200_0000 | iss, "{insn:#x}: {esr:#x}");
        assert_eq!(bench.vcpu.cpu.pc, RAM);
    }
}

#[test]
fn the_host_sees_the_registers_it_knows_and_no_others() {
    let mut bench = Bench::new(Host);
    for register in crate::engine::sysreg::table::TABLE {
        assert!(bench.vcpu.cpu.host_get_sys_reg(register.encoding).is_some(), "{}", register.name);
    }
    for unknown in [0xc082 + 1, 0xe080, 0xdf11, 0xffff] {
        assert_eq!(bench.vcpu.cpu.host_get_sys_reg(unknown), None);
        assert!(!bench.vcpu.cpu.host_set_sys_reg(unknown, 0));
    }
    bench.set(0xc108, 7);
    assert_eq!(bench.vcpu.cpu.sys.apia[0], 7);
}
