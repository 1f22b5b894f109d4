//! Load-acquire and store-release. (Their LORegion forms are FEAT_LOR, which ID_AA64MMFR1_EL1.LO does not announce.)
//!
//! They are allowed on Device memory, so they go the ordinary way with fences around, not through host atomics.

use std::sync::atomic::{Ordering, fence};

use super::super::handler::bit;
use super::super::handler::bits;
use super::access::*;
use super::{base, trapping_handlers};
use crate::engine::cpu::{Cpu, Privilege, Trap};
use crate::engine::memory::Scalar;
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// LDAR, STLR.
pub(super) fn decode(insn: u32) -> Option<Decoded> {
    if !bit(insn, 15) {
        return None;
    }
    let rn = slot::sp(insn >> 5);
    if bit(insn, 22) {
        return Some(load(insn));
    }
    let run: Handler = match bits(insn, 31, 30) {
        0 => store_release::<Byte>,
        1 => store_release::<Half>,
        2 => store_release::<Word>,
        _ => store_release::<Double>,
    };
    Some(Decoded::plain(Op { rn, rd: slot::src(insn), ..Op::new(run, insn) }))
}

/// LDAR, and LDAPR: its weaker order is given too much, which nobody can observe as wrong.
pub(super) fn load(insn: u32) -> Decoded {
    let run: Handler = match bits(insn, 31, 30) {
        0 => load_acquire::<Byte>,
        1 => load_acquire::<Half>,
        2 => load_acquire::<Word>,
        _ => load_acquire::<Double>,
    };
    Decoded::plain(Op { rn: slot::sp(insn >> 5), rd: slot::dst(insn), ..Op::new(run, insn) })
}

/// Faults unless `va` is naturally aligned, whatever SCTLR_EL1.A says.
#[inline(always)]
fn check_aligned<T: Scalar>(cpu: &mut Cpu, va: u64, write: bool) -> Result<(), Trap> {
    if va & (T::SIZE - 1) != 0 {
        cpu.atomic_ptr::<T>(va, write)?;
    }
    Ok(())
}

trapping_handlers! {
    fn load_acquire[T: Transfer][T](cpu, o) {
        let address = base(cpu, o)?;
        check_aligned::<T::Memory>(cpu, address, false)?;
        let value = cpu.load::<T::Memory>(address, Privilege::Current)?;
        fence(Ordering::Acquire);
        T::write(cpu, o.rd, value);
    }
    fn store_release[T: Transfer][T](cpu, o) {
        let address = base(cpu, o)?;
        check_aligned::<T::Memory>(cpu, address, true)?;
        fence(Ordering::Release);
        cpu.store::<T::Memory>(address, T::read(cpu, o.rd), Privilege::Current)?;
        // A load-acquire behind must not pass it (release and acquire are RCsc in the guest).
        fence(Ordering::SeqCst);
    }
}
