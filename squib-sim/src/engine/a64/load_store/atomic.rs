//! The atomics of FEAT_LSE: compare and swap, swap, and arithmetic on memory; and FEAT_LRCPC's LDAPR, which shares their
//! encoding group.

use super::super::handler::{bit, bits, pick};
use super::host_atomic::{Atomic, compare_exchange_u128, rmw};
use super::{base, ordered, trapping_handlers};
use crate::engine::cpu::{Cpu, Trap};
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Decodes the group of LDADD, SWP and LDAPR. The store-only aliases are loads to ZR.
pub(super) fn decode(insn: u32) -> Option<Decoded> {
    if bit(insn, 26) {
        return None;
    }
    let op = bits(insn, 15, 12);
    if op == 12 && bits(insn, 23, 22) == 2 && bits(insn, 20, 16) == 31 {
        return Some(ordered::load(insn));
    }
    macro_rules! of {
        ($t:ty) => {
            match op {
                rmw::ADD => fetch::<$t, { rmw::ADD }>,
                rmw::CLR => fetch::<$t, { rmw::CLR }>,
                rmw::EOR => fetch::<$t, { rmw::EOR }>,
                rmw::SET => fetch::<$t, { rmw::SET }>,
                rmw::SMAX => fetch::<$t, { rmw::SMAX }>,
                rmw::SMIN => fetch::<$t, { rmw::SMIN }>,
                rmw::UMAX => fetch::<$t, { rmw::UMAX }>,
                rmw::UMIN => fetch::<$t, { rmw::UMIN }>,
                rmw::SWP => fetch::<$t, { rmw::SWP }>,
                _ => return None,
            }
        };
    }
    let run: Handler = match bits(insn, 31, 30) {
        0 => of!(u8),
        1 => of!(u16),
        2 => of!(u32),
        _ => of!(u64),
    };
    let op = Op { rd: slot::dst(insn), rn: slot::sp(insn >> 5), rm: slot::src(insn >> 16), ..Op::new(run, insn) };
    Some(Decoded::plain(op))
}

/// CAS and CASP.
pub(super) fn decode_compare_and_swap(insn: u32, pair: bool) -> Option<Decoded> {
    let (rs, rt) = (insn >> 16, insn);
    if bits(insn, 14, 10) != 31 || (pair && (rs | rt) & 1 != 0) {
        return None;
    }
    let run: Handler = match (pair, bits(insn, 31, 30)) {
        (true, x) => pick!(cas_pair, [x == 1; bool]),
        (false, 0) => cas::<u8>,
        (false, 1) => cas::<u16>,
        (false, 2) => cas::<u32>,
        (false, _) => cas::<u64>,
    };
    let op =
        Op { rd: slot::dst(rs), rn: slot::sp(insn >> 5), rm: slot::src(rs), ra: slot::src(rt), ..Op::new(run, insn) };
    Some(Decoded::plain(op))
}

trapping_handlers! {
    fn fetch[T: Atomic, const OP: u32][T, OP](cpu, o) {
        let address = base(cpu, o)?;
        let ptr = cpu.update_ptr::<T>(address)?;
        let old = T::fetch::<OP>(ptr, cpu.reg(o.rm));
        cpu.set_reg(o.rd, old);
    }
    fn cas[T: Atomic][T](cpu, o) {
        let address = base(cpu, o)?;
        let ptr = cpu.update_ptr::<T>(address)?;
        let old = T::compare_exchange(ptr, cpu.reg(o.rm), cpu.reg(o.ra));
        cpu.set_reg(o.rd, old);
    }
    /// The registers of a pair are an even one and the next, of which 31 is ZR.
    fn cas_pair[const X: bool][X](cpu, o) {
        let address = base(cpu, o)?;
        let (rs, rt) = (o.insn >> 16, o.insn);
        let expected = (cpu.reg(slot::src(rs)), cpu.reg(slot::src(rs + 1)));
        let new = (cpu.reg(slot::src(rt)), cpu.reg(slot::src(rt + 1)));
        let old = if X {
            let ptr = cpu.update_ptr::<u128>(address)?;
            let old = compare_exchange_u128(
                ptr,
                u128::from(expected.1) << 64 | u128::from(expected.0),
                u128::from(new.1) << 64 | u128::from(new.0),
            );
            (old as u64, (old >> 64) as u64)
        } else {
            let ptr = cpu.update_ptr::<u64>(address)?;
            let old = u64::compare_exchange(
                ptr,
                expected.1 << 32 | expected.0 & 0xffff_ffff,
                new.1 << 32 | new.0 & 0xffff_ffff,
            );
            (old & 0xffff_ffff, old >> 32)
        };
        cpu.set_reg(slot::dst(rs), old.0);
        cpu.set_reg(slot::dst(rs + 1), old.1);
    }
}
