//! A4: every kind of access meets memory that is missing or protected, leaves to the host without having changed a register,
//! and does the same in the end as if the memory had been there from the start. A pager and dirty tracking live on this.

use applevisor::memory::PAGE_SIZE;
use applevisor::prelude::*;
use applevisor_sys::*;

use crate::a4_memory::{Host, RW, hv_map, hv_protect, hv_unmap};
use crate::asm::*;
use crate::code;
use crate::guest::*;
use crate::iss;

const GRANULE: u64 = PAGE_SIZE as u64;
/// Two granules that come and go; the accesses are around the border between them.
pub const SPACE: u64 = 0x8000_0000;
const BORDER: u64 = SPACE + GRANULE;
const READ_ONLY: u64 = HV_MEMORY_READ | HV_MEMORY_EXEC;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Load,
    Store,
    /// Reads, and then writes.
    Update,
    /// Cache maintenance: reported as a write, content with the right to read, or with none.
    Maintain,
    /// The same, and the right to write may be needed: DC IVAC cleans as well without it, or faults.
    Invalidate,
    /// The same to the point of unification, which processors that need none of it may leave out.
    Unify,
    /// Never faults.
    Hint,
}
use Kind::*;

/// Name, kind, X0 relative to [`BORDER`], instructions. What a program of one instruction faults on is that instruction.
type Case = (&'static str, Kind, i64, &'static [u32]);

const CASES: &[Case] = &[
    ("ldr x1, [x0]", Load, -4, &[0xf940_0001]),
    ("ldrsw x1, [x0]", Load, -2, &[0xb980_0001]),
    ("ldrb w1, [x0], #1", Load, -1, &[0x3840_1401]),
    ("ldtr x1, [x0]", Load, -4, &[0xf840_0801]),
    ("ldraa x1, [x0, #8]!", Load, -12, &[0xf820_1c01]),
    ("ldar x1, [x0]", Load, -8, &[0xc8df_fc01]),
    ("ldapr x1, [x0]", Load, 8, &[0xf8bf_c001]),
    ("ldp x1, x2, [x0]", Load, -8, &[0xa940_0801]),
    ("ldp x1, x0, [x0]", Load, -8, &[0xa940_0001]),
    ("ldp x1, x2, [x0], #16", Load, -8, &[0xa8c1_0801]),
    ("ldp x0, x1, [x0]", Load, -12, &[0xa940_0400]),
    ("ldpsw x1, x2, [x0]", Load, -4, &[0x6940_0801]),
    ("ldr q0, [x0], #16", Load, -8, &[0x3cc1_0400]),
    ("ldp q0, q1, [x0]", Load, -24, &[0xad40_0400]),
    ("ld1 {v0.16b-v3.16b}, [x0], #64", Load, -24, &[0x4cdf_2000]),
    ("ld4 {v0.16b-v3.16b}, [x0], #64", Load, -41, &[0x4cdf_0000]),
    ("ld3 {v0.h-v2.h}[3], [x0]", Load, -4, &[0x0d40_7800]),
    ("ld4r {v0.8b-v3.8b}, [x0]", Load, -2, &[0x0d60_e000]),
    ("str x1, [x0]", Store, -4, &[0xf900_0001]),
    ("strh w1, [x0, #-2]!", Store, 1, &[0x781f_ec01]),
    ("sttr x1, [x0]", Store, -4, &[0xf800_0801]),
    ("stlr x1, [x0]", Store, -8, &[0xc89f_fc01]),
    ("stp x1, x2, [x0, #-16]!", Store, 8, &[0xa9bf_0801]),
    ("stp q0, q1, [x0]", Store, -24, &[0xad00_0400]),
    ("str q0, [x0, #16]!", Store, -24, &[0x3c81_0c00]),
    ("st1 {v0.16b-v3.16b}, [x0], #64", Store, -24, &[0x4c9f_2000]),
    ("st4 {v0.4s-v3.4s}, [x0], #64", Store, -20, &[0x4c9f_0800]),
    ("st2 {v0.d, v1.d}[1], [x0]", Store, -8, &[0x4d20_8400]),
    ("dc zva, x0", Store, -8, &[0xd50b_7420]),
    ("ldxr, stxr", Update, -8, &[0xc85f_7c02, 0xc803_7c01, 0x35ff_ffc3]),
    ("ldaxp, stlxp", Update, -16, &[0xc87f_9002, 0xc823_9401, 0x35ff_ffc3]),
    ("ldadd x1, x2, [x0]", Update, -8, &[0xf821_0002]),
    ("ldsmaxb w1, w2, [x0]", Update, -1, &[0x3821_4002]),
    ("stadd w1, [x0]", Update, 4, &[0xb821_001f]),
    ("swpal w1, w2, [x0]", Update, -4, &[0xb8e1_8002]),
    ("cas x1, x2, [x0]", Update, -8, &[0xc8a1_7c02]),
    ("casp x2, x3, x4, x5, [x0]", Update, -16, &[0x4822_7c04]),
    ("dc civac, x0", Maintain, -4, &[0xd50b_7e20]),
    ("dc cvau, x0", Unify, 0, &[0xd50b_7b20]),
    ("dc ivac, x0", Invalidate, -4, &[0xd508_7620]),
    ("ic ivau, x0", Unify, 0, &[0xd50b_7520]),
    ("prfm pldl1keep, [x0]", Hint, 0, &[0xf980_0000]),
];

/// What is wrong with both granules at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Nothing,
    Mapping,
    Writing,
    Everything,
}

/// Registers an access could have changed.
#[derive(Debug, PartialEq)]
struct State {
    x: Vec<u64>,
    q: Vec<u128>,
    pstate: u64,
}

const X: [Reg; 8] = [Reg::X0, Reg::X1, Reg::X2, Reg::X3, Reg::X4, Reg::X5, Reg::X6, Reg::X7];
const Q: [SimdFpReg; 4] = [SimdFpReg::Q0, SimdFpReg::Q1, SimdFpReg::Q2, SimdFpReg::Q3];

fn state<G>(guest: &Guest<G>) -> State {
    State {
        x: X.iter().map(|&register| guest.x(register)).collect(),
        q: Q.iter().map(|&register| guest.vcpu.get_simd_fp_reg(register).unwrap()).collect(),
        pstate: guest.x(Reg::CPSR),
    }
}

/// Stage 1 on, one to one: RAM as it is, and the GiB of [`SPACE`], for EL0 as well. Both Normal memory. The GiB above has a
/// level-2 table at [`SPACE`].
pub fn translate<G>(guest: &mut Guest<G>) {
    const TABLE: u64 = RAM + 0x9_0000;
    const NORMAL: u64 = 0x701;
    for (entry, descriptor) in [(1, RAM | NORMAL), (2, SPACE | NORMAL | 1 << 6), (3, SPACE | 3)] {
        guest.ram.write_u64(TABLE + 8 * entry, descriptor).unwrap();
    }
    let sctlr = guest.vcpu.get_sys_reg(SysReg::SCTLR_EL1).unwrap();
    for (register, value) in [
        (SysReg::MAIR_EL1, 0xff),
        (SysReg::TTBR0_EL1, TABLE),
        // 39-bit addresses, no TTBR1, 40-bit output.
        (SysReg::TCR_EL1, 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32),
        // M; alignment is not checked, EL0's keys are off.
        (SysReg::SCTLR_EL1, sctlr & !(1 << 1 | 1 << 27) | 1),
    ] {
        guest.vcpu.set_sys_reg(register, value).unwrap();
    }
}

struct Bench<'a, G> {
    guest: &'a mut Guest<G>,
    host: Host,
    /// The granules that are mapped: what is not must not be unmapped.
    mapped: Vec<u64>,
    /// Faults tell as little as they may.
    vague: bool,
}

/// Ends a case that is not as it should be; the others are run all the same.
macro_rules! require {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!($($text)*));
        }
    };
}

impl<G> Bench<'_, G> {
    /// Runs a case to its end and mends what it lacks on the way; the answer is the registers and the memory at the end.
    fn run(&mut self, case: &Case, lack: Lack) -> std::result::Result<(State, Vec<u64>), String> {
        let (name, kind, offset, instructions) = *case;
        let what = format!("{name}, {lack:?} missing");
        let mut program = instructions.to_vec();
        program.push(hvc(1));
        // A place for each: code that has been executed is not written over.
        let place = RAM + 0x40 * CASES.iter().position(|other| other.0 == name).unwrap() as u64;
        self.guest.write_code(place, &program);
        self.clear();
        (0..2 * PAGE_SIZE).step_by(8).for_each(|at| self.host.write(at, 0x0101_0101_0101_0101 * (at as u64 / 8 % 251)));
        if lack != Lack::Mapping {
            assert_eq!(hv_map(self.host.at, SPACE, 2 * PAGE_SIZE, RW | HV_MEMORY_EXEC), 0);
            self.mapped = vec![SPACE, BORDER];
        }
        match lack {
            Lack::Nothing | Lack::Mapping => {}
            Lack::Writing => assert_eq!(hv_protect(SPACE, 2 * PAGE_SIZE, READ_ONLY), 0),
            Lack::Everything => assert_eq!(hv_protect(SPACE, 2 * PAGE_SIZE, HV_MEMORY_NONE), 0),
        }
        let base = BORDER.wrapping_add_signed(offset);
        let vcpu = &self.guest.vcpu;
        for (at, &register) in (0..).zip(&X) {
            vcpu.set_reg(register, if at == 0 { base } else { 0x8182_8384_8586_8700 + at }).unwrap();
        }
        for (at, &register) in (1..).zip(&Q) {
            assert_eq!(set_q(vcpu, register, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210 * at), 0);
        }
        vcpu.set_reg(Reg::PC, place).unwrap();
        let before = state(self.guest);
        let mut faults = 0;
        loop {
            let exit = self.guest.run();
            if exit.exception.syndrome == hvc_syndrome(1) {
                break;
            }
            faults += 1;
            require!(faults <= 4, "{what}: does not get on");
            self.check(&what, kind, lack, &exit)?;
            if instructions.len() == 1 {
                require!(self.guest.pc() == place, "{what}: PC");
                require!(state(self.guest) == before, "{what}: registers before the access has succeeded");
            }
            self.mend(exit.exception.physical_address, lack);
        }
        let harmless =
            lack == Lack::Nothing || kind == Hint || lack == Lack::Writing && matches!(kind, Load | Maintain);
        let open = kind == Unify
            || kind == Invalidate && lack == Lack::Writing
            || matches!(kind, Maintain | Invalidate) && lack == Lack::Everything;
        require!(open || (faults == 0) == harmless, "{what}: {faults} faults");
        if open && lack != Lack::Nothing {
            probe(&what, if faults == 0 { "no fault" } else { "faults" });
        }
        let memory = (0..2 * PAGE_SIZE).step_by(8).map(|at| self.host.read(at)).collect();
        Ok((state(self.guest), memory))
    }

    /// The same with and without what is lacking at first.
    fn compare(&mut self, case: &Case, lack: Lack) -> std::result::Result<(), String> {
        let expected = self.run(case, Lack::Nothing)?;
        let got = self.run(case, lack)?;
        require!(got.0 == expected.0, "{}: registers, {lack:?} missing: {:x?}, not {:x?}", case.0, got.0, expected.0);
        let differing = (0..).zip(got.1.iter().zip(&expected.1)).find(|(_, (got, expected))| got != expected);
        require!(
            differing.is_none(),
            "{}: memory, {lack:?} missing: (doubleword, got and expected) {differing:x?}",
            case.0
        );
        Ok(())
    }

    /// The exit is exact: class, status, direction, addresses.
    fn check(&self, what: &str, kind: Kind, lack: Lack, exit: &VcpuExit) -> std::result::Result<(), String> {
        let (syndrome, ipa) = (exit.exception.syndrome, exit.exception.physical_address);
        let is_abort = exit.reason == ExitReason::EXCEPTION && syndrome >> 26 == ec::DATA_ABORT;
        require!(is_abort, "{what}: {}", self.guest.dump());
        let status = if lack == Lack::Mapping { iss::TRANSLATION } else { iss::PERMISSION };
        require!(iss::status(syndrome) == status, "{what}: {syndrome:#x}");
        require!((SPACE..SPACE + 2 * GRANULE).contains(&ipa), "{what}: {ipa:#x}");
        require!(exit.exception.virtual_address == ipa, "{what}: both addresses of the byte");
        let write = match kind {
            Load | Hint => false,
            Store | Maintain | Invalidate | Unify => true,
            // Of a read-modify-write the read is reported if that fails already.
            Update => lack == Lack::Writing,
        };
        require!((syndrome & iss::WNR != 0) == write, "{what}: WnR");
        require!((syndrome & iss::CM != 0) == matches!(kind, Maintain | Invalidate | Unify), "{what}: CM");
        // S1PTW without a stage 1 walk is what a vague report looks like; it says nothing of the instruction then.
        let vague = syndrome & iss::S1PTW != 0;
        require!(vague || !self.vague, "{what}: S1PTW");
        require!(!vague || syndrome & iss::ISV == 0, "{what}: ISV");
        Ok(())
    }

    /// Takes away what the case before has left.
    fn clear(&mut self) {
        for granule in self.mapped.drain(..) {
            assert_eq!(hv_unmap(granule, PAGE_SIZE), 0);
        }
    }

    /// Gives the guest the granule it has asked for.
    fn mend(&mut self, ipa: u64, lack: Lack) {
        let granule = ipa & !(GRANULE - 1);
        let code = if lack == Lack::Mapping {
            self.mapped.push(granule);
            let at = self.host.at.wrapping_add((granule - SPACE) as usize);
            hv_map(at, granule, PAGE_SIZE, RW | HV_MEMORY_EXEC)
        } else {
            hv_protect(granule, PAGE_SIZE, RW | HV_MEMORY_EXEC)
        };
        assert_eq!(code, 0);
    }
}

/// Every case with everything that can be lacking, on a guest whose faults are `vague` or not.
pub fn every_access_is_restarted<G>(guest: &mut Guest<G>, vague: bool) {
    translate(guest);
    let host = Host::anonymous(2 * PAGE_SIZE, libc::MAP_SHARED);
    let mut bench = Bench { guest, host, mapped: Vec::new(), vague };
    let mut failures = Vec::new();
    for case in CASES {
        for lack in [Lack::Mapping, Lack::Writing, Lack::Everything] {
            failures.extend(bench.compare(case, lack).err());
        }
    }
    bench.clear();
    nothing_of(failures);
}

#[test]
fn a4_05_a4_06_every_kind_of_access_can_be_restarted() {
    every_access_is_restarted(&mut guest(&[]), false);
}

#[test]
fn a4_05_a_fetch_across_the_border_stops_at_it() {
    let guest = guest(&[]);
    let host = Host::anonymous(2 * PAGE_SIZE, libc::MAP_SHARED);
    for (at, word) in [(-12, add(1, 1, 1)), (-8, add(1, 1, 2)), (-4, add(1, 1, 4)), (0, add(1, 1, 8)), (4, hvc(7))] {
        let at = PAGE_SIZE.wrapping_add_signed(at);
        let (word, shift) = (u64::from(word), at % 8 * 8);
        host.write(at & !7, host.read(at & !7) & !(0xffff_ffff << shift) | word << shift);
    }
    forget_instructions(host.at, 2 * PAGE_SIZE);
    let map = |granule: u64| {
        let at = host.at.wrapping_add((granule - SPACE) as usize);
        assert_eq!(hv_map(at, granule, PAGE_SIZE, READ_ONLY), 0);
    };
    for forbid in [false, true] {
        guest.vcpu.set_reg(Reg::PC, BORDER - 12).unwrap();
        guest.vcpu.set_reg(Reg::X1, 0).unwrap();
        for (pc, sum) in [(BORDER - 12, 0), (BORDER, 7)] {
            let granule = pc & !(GRANULE - 1);
            if forbid {
                assert_eq!(hv_protect(granule, PAGE_SIZE, HV_MEMORY_READ), 0);
            }
            let exception = guest.run_to_class(ec::INSTRUCTION_ABORT);
            let status = if forbid { iss::PERMISSION } else { iss::TRANSLATION };
            assert_eq!((guest.pc(), exception.physical_address, iss::status(exception.syndrome)), (pc, pc, status));
            assert_eq!(guest.x(Reg::X1), sum, "each instruction once");
            if forbid {
                assert_eq!(hv_protect(granule, PAGE_SIZE, READ_ONLY), 0);
            } else {
                map(granule);
            }
        }
        guest.run_to(7);
        assert_eq!(guest.x(Reg::X1), 15);
    }
    assert_eq!(hv_unmap(SPACE, 2 * PAGE_SIZE), 0);
}

#[test]
fn a4_06_code_that_may_not_be_written_runs() {
    // It runs, is written to by the guest, and runs again in its new form.
    let (dc_cvau, ic_ivau, br) = (0xd50b_7b20, 0xd50b_7520, 0xd61f_0000);
    let guest = guest(&code![ISB, br, hvc(1), str_w(1, 0), dc_cvau, DSB, ic_ivau, DSB, ISB, br]);
    let host = Host::anonymous(PAGE_SIZE, libc::MAP_SHARED);
    host.write_code(&[hvc(7)]);
    assert_eq!(hv_map(host.at, SPACE, PAGE_SIZE, RW | HV_MEMORY_EXEC), 0);
    guest.vcpu.set_reg(Reg::X0, SPACE).unwrap();
    guest.vcpu.set_reg(Reg::X1, hvc(8).into()).unwrap();
    guest.run_to(7);
    assert_eq!(hv_protect(SPACE, PAGE_SIZE, READ_ONLY), 0);
    guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
    guest.run_to(7);
    guest.vcpu.set_reg(Reg::PC, RAM + 12).unwrap();
    let exception = guest.run_to_class(ec::DATA_ABORT);
    assert_eq!((exception.physical_address, iss::status(exception.syndrome)), (SPACE, iss::PERMISSION));
    assert_eq!(hv_protect(SPACE, PAGE_SIZE, RW | HV_MEMORY_EXEC), 0);
    guest.run_to(8);
}

#[test]
fn a1_08_a_walk_that_meets_missing_memory_can_be_restarted() {
    // Through the table at SPACE: its first entry leads back to SPACE.
    const THROUGH: u64 = SPACE + 0x4000_0000;
    let mut guest = guest(&[str(1, 0), ldr(2, 0), hvc(1)]);
    translate(&mut guest);
    let host = Host::anonymous(2 * PAGE_SIZE, libc::MAP_SHARED);
    host.write(0, SPACE | 0x701);
    guest.vcpu.set_reg(Reg::X1, 42).unwrap();
    // A page each: what has been translated once may be remembered without its table.
    for (forbid, offset) in [(false, GRANULE + 0x128), (true, GRANULE + 0x1128)] {
        guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
        guest.vcpu.set_reg(Reg::X0, THROUGH + offset).unwrap();
        if forbid {
            assert_eq!(hv_protect(SPACE, PAGE_SIZE, HV_MEMORY_NONE), 0);
        }
        let walk = guest.run_to_class(ec::DATA_ABORT);
        let status = if forbid { iss::PERMISSION } else { iss::TRANSLATION };
        assert_eq!(iss::status(walk.syndrome), status);
        let bits = iss::S1PTW | iss::WNR | iss::ISV;
        assert_eq!(walk.syndrome & bits, iss::S1PTW, "the walk reads, whatever the access does");
        assert_eq!(walk.physical_address & !0xfff, SPACE, "the descriptor's page");
        assert_eq!(walk.virtual_address, THROUGH + offset);
        if forbid {
            assert_eq!(hv_protect(SPACE, PAGE_SIZE, READ_ONLY), 0);
        } else {
            assert_eq!(hv_map(host.at, SPACE, PAGE_SIZE, READ_ONLY), 0);
            let access = guest.run_to_class(ec::DATA_ABORT);
            assert_eq!(access.syndrome & iss::WNR, iss::WNR);
            assert_eq!(access.physical_address & !0xfff, (SPACE + offset) & !0xfff);
            assert_eq!(hv_map(host.at.wrapping_add(PAGE_SIZE), SPACE + GRANULE, PAGE_SIZE, RW), 0);
        }
        guest.run_to(1);
        assert_eq!((guest.x(Reg::X2), host.read(offset as usize)), (42, 42));
    }
    assert_eq!(hv_unmap(SPACE, 2 * PAGE_SIZE), 0);
}

/// What one call does to a range of which a part is not mapped is not known: nobody may ask for that.
#[test]
fn a4_04_a_range_with_a_hole() {
    let ended = alone("a4_restart::a4_04_a_range_with_a_hole", || {
        let guest = guest(&[str(1, 0), hvc(1)]);
        let host = Host::anonymous(4 * PAGE_SIZE, libc::MAP_SHARED);
        let mapped = [0, 1, 3].map(|granule| SPACE + granule * GRANULE);
        let map = |ipa: u64| hv_map(host.at.wrapping_add((ipa - SPACE) as usize), ipa, PAGE_SIZE, RW);
        // Whether the guest can still store there, granule by granule.
        let writable = || {
            mapped.map(|ipa| {
                guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
                guest.vcpu.set_reg(Reg::X0, ipa).unwrap();
                guest.run().exception.syndrome >> 26 == ec::HVC
            })
        };
        let found = |code| {
            let state = match writable() {
                [true, true, true] => "nothing changes",
                [false, false, false] => "all that is mapped changes",
                _ => "a part of what is mapped changes",
            };
            format!("{}, and {state}", name(code))
        };
        mapped.iter().for_each(|&ipa| assert_eq!(map(ipa), 0));
        probe("hv_vm_protect of a range with a hole", found(hv_protect(SPACE, 4 * PAGE_SIZE, READ_ONLY)));
        mapped.iter().for_each(|&ipa| assert_eq!(hv_protect(ipa, PAGE_SIZE, RW), 0));
        assert_eq!(writable(), [true; 3]);
        probe("hv_vm_unmap of a range with a hole", found(hv_unmap(SPACE, 4 * PAGE_SIZE)));
        for (ipa, writable) in mapped.into_iter().zip(writable()) {
            assert!(!writable || hv_unmap(ipa, PAGE_SIZE) == 0);
        }
        assert_eq!(writable(), [false; 3]);
    });
    if ended == Alone::Killed {
        probe("hv_vm_unmap of a range with a hole", "ends the process");
    }
    assert_ne!(ended, Alone::Endless);
}

/// RAM that arrives granule by granule is protected, and given up, in stretches.
#[test]
fn a4_04_a4_06_one_call_protects_and_unmaps_what_several_have_mapped() {
    let guest = guest(&[str(1, 0), hvc(1)]);
    let hosts = [0, 1, 2, 3].map(|_| Host::anonymous(PAGE_SIZE, libc::MAP_SHARED));
    for (ipa, host) in (SPACE..).step_by(PAGE_SIZE).zip(&hosts) {
        assert_eq!(hv_map(host.at, ipa, PAGE_SIZE, RW), 0);
    }
    let store = |granule: u64| {
        guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
        guest.vcpu.set_reg(Reg::X0, SPACE + granule * GRANULE).unwrap();
    };
    assert_eq!(hv_protect(SPACE, 4 * PAGE_SIZE, READ_ONLY), 0);
    for granule in 0..4 {
        store(granule);
        assert_eq!(iss::status(guest.run_to_class(ec::DATA_ABORT).syndrome), iss::PERMISSION);
    }
    assert_eq!(hv_protect(SPACE + GRANULE, 2 * PAGE_SIZE, RW), 0);
    for granule in 0..4 {
        store(granule);
        if (1..3).contains(&granule) {
            guest.run_straight_to(1);
        } else {
            assert_eq!(iss::status(guest.run_to_class(ec::DATA_ABORT).syndrome), iss::PERMISSION);
        }
    }
    assert_eq!(hv_unmap(SPACE, 4 * PAGE_SIZE), 0);
    for granule in 0..4 {
        store(granule);
        assert_eq!(iss::status(guest.run_to_class(ec::DATA_ABORT).syndrome), iss::TRANSLATION);
    }
}
