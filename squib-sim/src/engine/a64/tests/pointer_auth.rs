//! Pointer authentication: what a guest can rely on whatever the cipher is.

use super::{cpu, run};
use crate::engine::cpu::Cpu;
use crate::engine::op::{Next, slot};

const LOWER: u64 = 0x0000_0012_3456_7890;
const UPPER: u64 = 0xffff_8000_1234_5678;

/// 39-bit lower half with tags, 48-bit upper half without; all keys enabled and different.
fn enabled() -> Box<Cpu> {
    let mut cpu = cpu();
    cpu.sys.sctlr |= 1 << 31 | 1 << 30 | 1 << 27 | 1 << 13;
    cpu.sys.tcr = 25 | 16 << 16 | 1 << 37;
    cpu.sys.apia = [1, 2];
    cpu.sys.apib = [3, 4];
    cpu.sys.apda = [5, 6];
    cpu.sys.apdb = [7, 8];
    cpu.sys.apga = [9, 10];
    cpu
}

/// `x0` after one instruction on it, with `x2` as modifier.
fn on(cpu: &mut Cpu, word: u32, x0: u64, x2: u64) -> u64 {
    (cpu.x[0], cpu.x[2]) = (x0, x2);
    run(cpu, &[word]);
    cpu.x[0]
}

const PACIA: u32 = 0xdac1_0040;
const AUTIA: u32 = 0xdac1_1040;
const AUTIB: u32 = 0xdac1_1440;
const AUTDA: u32 = 0xdac1_1840;
const XPACI: u32 = 0xdac1_43e0;

#[test]
fn a_signed_pointer_authenticates_with_its_key_and_modifier_only() {
    let mut cpu = enabled();
    for ptr in [LOWER, UPPER, LOWER | 0xa5 << 56] {
        let signed = on(&mut cpu, PACIA, ptr, 77);
        assert_ne!(signed, ptr);
        assert_eq!(on(&mut cpu, AUTIA, signed, 77), ptr);
        // A wrong modifier or B key: the error code, 01 or 10, below the tag or below bit 63.
        let (place, upper) = if ptr >> 55 & 1 != 0 { (61, true) } else { (53, false) };
        let expect = |code: u64| if upper { ptr & !(3 << place) | code << place } else { ptr | code << place };
        assert_eq!(on(&mut cpu, AUTIA, signed, 78), expect(1));
        assert_eq!(on(&mut cpu, AUTIB, signed, 77), expect(2));
        assert_eq!(on(&mut cpu, AUTDA, signed, 77), expect(1));
        cpu.sys.apia[1] ^= 1 << 63;
        assert_eq!(on(&mut cpu, AUTIA, signed, 77), expect(1));
        cpu.sys.apia[1] ^= 1 << 63;
        assert_eq!(on(&mut cpu, XPACI, signed, 0), ptr);
    }
}

#[test]
fn the_code_stays_in_its_bits() {
    let mut cpu = enabled();
    let (mut lower, mut upper) = (0, 0);
    for modifier in 0..64 {
        lower |= on(&mut cpu, PACIA, LOWER | 0xa5 << 56, modifier) ^ (LOWER | 0xa5 << 56);
        upper |= on(&mut cpu, PACIA, UPPER, modifier) ^ UPPER;
    }
    assert_eq!(lower, (1 << 55) - (1 << 39));
    assert_eq!(upper, (0xff << 56) | ((1 << 55) - (1 << 48)));
}

#[test]
fn a_pointer_that_is_not_canonical_gets_a_code_that_fails() {
    let mut cpu = enabled();
    let signed = on(&mut cpu, PACIA, LOWER | 1 << 45, 0);
    assert_eq!(on(&mut cpu, AUTIA, signed, 0), LOWER | 1 << 53);
}

#[test]
fn disabled_keys_leave_pointers_alone() {
    let mut cpu = enabled();
    cpu.sys.sctlr &= !(1 << 31);
    assert_eq!(on(&mut cpu, PACIA, LOWER, 1), LOWER);
    assert_eq!(on(&mut cpu, AUTIA, LOWER, 1), LOWER);
    // pacdza x0
    assert_ne!(on(&mut cpu, 0xdac1_2be0, LOWER, 0), LOWER);
}

#[test]
fn hints_sign_and_authenticate_the_link_register() {
    let mut cpu = enabled();
    cpu.x[30] = UPPER;
    cpu.x[usize::from(slot::SP)] = 0x1230;
    // paciasp
    run(&mut cpu, &[0xd503_233f]);
    assert_ne!(cpu.x[30], UPPER);
    // retaa after paciasp goes home, and so does autiasp.
    let mut other = enabled();
    (other.x[30], other.x[usize::from(slot::SP)]) = (cpu.x[30], 0x1230);
    assert_eq!((run(&mut other, &[0xd65f_0bff]), other.pc), (Next::Lookup, UPPER));
    run(&mut cpu, &[0xd503_23bf]);
    assert_eq!(cpu.x[30], UPPER);
}

#[test]
fn authenticating_branches_link_and_load() {
    let mut cpu = enabled();
    let signed = on(&mut cpu, PACIA, UPPER & !3, 5);
    // braa x0, x2
    (cpu.x[0], cpu.x[2]) = (signed, 5);
    assert_eq!((run(&mut cpu, &[0xd71f_0802]), cpu.pc), (Next::Lookup, UPPER & !3));
    // blraaz x0, which was signed with another modifier
    assert_eq!(run(&mut cpu, &[0xd63f_081f]), Next::Lookup);
    assert_eq!((cpu.pc, cpu.x[30]), (UPPER & !3 & !(3 << 61) | 1 << 61, super::CODE + 4));
}

#[test]
fn generic_code_is_in_the_upper_half() {
    let mut cpu = enabled();
    cpu.x[1] = 1;
    // pacga x0, x1, x2
    let first = on(&mut cpu, 0x9ac2_3020, 0, 2);
    assert_eq!(first & 0xffff_ffff, 0);
    assert_ne!(first, on(&mut cpu, 0x9ac2_3020, 0, 3));
    cpu.sys.apga[0] ^= 1;
    assert_ne!(first, on(&mut cpu, 0x9ac2_3020, 0, 2));
}
