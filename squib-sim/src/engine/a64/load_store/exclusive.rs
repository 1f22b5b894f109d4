//! Exclusives: LDXR, STXR, LDXP, STXP and their acquire and release forms.
//!
//! The monitor remembers where and what was loaded; a store-exclusive is a host compare-and-exchange against that value. A
//! location that was changed and changed back is taken as unchanged, which the architecture's monitor would notice; no
//! use of exclusives that only compares and stores values can tell.

use super::super::handler::{bits, pick};
use super::host_atomic::{Atomic, compare_exchange_u128};
use super::{base, trapping_handlers};
use crate::engine::cpu::{Cpu, Exclusive, Trap};
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

pub(super) fn decode(insn: u32, pair: bool) -> Option<Decoded> {
    let (size, is_load) = (bits(insn, 31, 30), insn & 1 << 22 != 0);
    let run: Handler = match (is_load, pair, size) {
        (true, false, 0) => load::<u8>,
        (true, false, 1) => load::<u16>,
        (true, false, 2) => load::<u32>,
        (true, false, _) => load::<u64>,
        (false, false, 0) => store::<u8>,
        (false, false, 1) => store::<u16>,
        (false, false, 2) => store::<u32>,
        (false, false, _) => store::<u64>,
        (true, true, _) => pick!(load_pair, [size == 3; bool]),
        (false, true, _) => pick!(store_pair, [size == 3; bool]),
    };
    let rn = slot::sp(insn >> 5);
    let op = if is_load {
        Op { rd: slot::dst(insn), ra: slot::dst(insn >> 10), rn, ..Op::new(run, insn) }
    } else {
        // rd is the status, rm and ra what to store.
        Op { rd: slot::dst(insn >> 16), rm: slot::src(insn), ra: slot::src(insn >> 10), rn, ..Op::new(run, insn) }
    };
    Some(Decoded::plain(op))
}

impl Cpu {
    fn arm_exclusive(&mut self, addr: usize, size: u8, value: u128) {
        self.exclusive = Exclusive { armed: true, size, addr, value };
    }

    /// Clears the monitor. Was it armed for these bytes, and with which value?
    fn disarm_exclusive(&mut self, addr: usize, size: u8) -> Option<u128> {
        let Exclusive { armed, size: marked_size, addr: marked, value } = self.exclusive;
        self.exclusive.armed = false;
        (armed && marked == addr && marked_size == size).then_some(value)
    }
}

trapping_handlers! {
    fn load[T: Atomic][T](cpu, o) {
        let address = base(cpu, o)?;
        let ptr = cpu.atomic_ptr::<T>(address, false)?;
        let value = T::load_seq_cst(ptr);
        cpu.arm_exclusive(ptr as usize, T::SIZE as u8, u128::from(value));
        cpu.set_reg(o.rd, value);
    }
    fn store[T: Atomic][T](cpu, o) {
        let address = base(cpu, o)?;
        let mut status = 1;
        if cpu.exclusive.armed {
            let ptr = cpu.atomic_ptr::<T>(address, true)?;
            if let Some(expected) = cpu.disarm_exclusive(ptr as usize, T::SIZE as u8) {
                let old = T::compare_exchange(ptr, expected as u64, cpu.reg(o.rm));
                status = u64::from(old != expected as u64);
            }
        }
        cpu.set_reg(o.rd, status);
    }
    /// Of X registers only each half is loaded in one piece: the compare of the store-exclusive finds a torn value.
    fn load_pair[const X: bool][X](cpu, o) {
        let address = base(cpu, o)?;
        let (addr, size, first, second) = if X {
            let ptr = cpu.atomic_ptr::<u128>(address, false)?.cast::<u64>();
            (ptr as usize, 16, u64::load_seq_cst(ptr), u64::load_seq_cst(ptr.add(1)))
        } else {
            let ptr = cpu.atomic_ptr::<u64>(address, false)?;
            let both = u64::load_seq_cst(ptr);
            (ptr as usize, 8, both & 0xffff_ffff, both >> 32)
        };
        let value = u128::from(second) << (size * 4) | u128::from(first);
        cpu.arm_exclusive(addr, size, value);
        cpu.set_reg(o.rd, first);
        cpu.set_reg(o.ra, second);
    }
    fn store_pair[const X: bool][X](cpu, o) {
        let address = base(cpu, o)?;
        let (first, second) = (cpu.reg(o.rm), cpu.reg(o.ra));
        let mut status = 1;
        if cpu.exclusive.armed && X {
            let ptr = cpu.atomic_ptr::<u128>(address, true)?;
            if let Some(expected) = cpu.disarm_exclusive(ptr as usize, 16) {
                let new = u128::from(second) << 64 | u128::from(first);
                status = u64::from(compare_exchange_u128(ptr, expected, new) != expected);
            }
        } else if cpu.exclusive.armed {
            let ptr = cpu.atomic_ptr::<u64>(address, true)?;
            if let Some(expected) = cpu.disarm_exclusive(ptr as usize, 8) {
                let new = second << 32 | first & 0xffff_ffff;
                status = u64::from(u64::compare_exchange(ptr, expected as u64, new) != expected as u64);
            }
        }
        cpu.set_reg(o.rd, status);
    }
}
