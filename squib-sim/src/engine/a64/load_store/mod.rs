//! Loads and stores (C4.1.93), all but those of AdvSIMD structures.
//!
//! Guarantee: an access that faults leaves every register as it was; the base register is written back only after the
//! access has succeeded, and a pair is loaded completely before either register is written.

mod access;
mod atomic;
mod exclusive;
mod host_atomic;
mod ordered;
mod pair;
mod single;

use super::handler::{bit, bits, handlers};
use crate::engine::cpu::{Cpu, Trap};
use crate::engine::op::{Decoded, Next, Op, slot};

/// Decodes the group, `insn<27>` = 1 and `insn<25>` = 0.
pub(super) fn decode(insn: u32) -> Option<Decoded> {
    match (bits(insn, 29, 28), bit(insn, 26), bit(insn, 24)) {
        (0, false, false) => exclusive_or_ordered(insn),
        (1, _, false) => single::decode_literal(insn),
        (2, ..) => pair::decode(insn),
        (3, _, true) => single::decode_unsigned_offset(insn),
        (3, _, false) => match (bit(insn, 21), bits(insn, 11, 10)) {
            (false, 2) => single::decode_unprivileged(insn),
            (false, kind) => single::decode_imm9(insn, kind),
            (true, 0) => atomic::decode(insn),
            (true, 2) => single::decode_register_offset(insn),
            (true, _) => super::pauth::decode_load(insn),
        },
        _ => None,
    }
}

fn exclusive_or_ordered(insn: u32) -> Option<Decoded> {
    match (bit(insn, 23), bit(insn, 21)) {
        (false, pair) if !pair || bit(insn, 31) => exclusive::decode(insn, pair),
        (true, false) => ordered::decode(insn),
        // The pair form has its size in bit 30 and bit 31 clear.
        (single, _) => atomic::decode_compare_and_swap(insn, !single),
    }
}

/// The base address, checked as SP when it is.
///
/// # Safety
/// `o` was made by the decoder.
#[inline(always)]
pub(super) unsafe fn base(cpu: &mut Cpu, o: &Op) -> Result<u64, Trap> {
    if o.rn == slot::SP {
        cpu.check_sp_alignment()?;
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { cpu.reg(o.rn) })
}

/// Defines handlers which access memory, without a path of their own for the TLB hit. The body evaluates to `()`, and
/// leaves with `?` when an access faults.
macro_rules! trapping_handlers {
    ($($(#[$meta:meta])* fn $name:ident [$($generics:tt)*] [$($arg:ident),*] ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$meta])*
        unsafe fn $name<$($generics)*>(cpu: &mut Cpu, op: *const Op) -> Next {
            #[inline(always)]
            unsafe fn execute<$($generics)*>($cpu: &mut Cpu, $op: &Op) -> Result<(), Trap> {
                // SAFETY: as of the handler; pointers from `atomic_ptr` are good for the access they were asked for.
                unsafe { $body }
                Ok(())
            }
            // SAFETY: a handler is called with an op of a live block which does not end there (`Decoded::plain`), and the
            // decoder put only valid slots into its register fields.
            unsafe {
                match execute::<$($arg),*>(cpu, &*op) {
                    Ok(()) => Op::next(cpu, op),
                    Err(trap) => cpu.take_trap(op, trap),
                }
            }
        }
    )*};
}
pub(super) use trapping_handlers;

handlers! {
    /// PRFM, PRFUM.
    fn prefetch(cpu, _o) {}
}
