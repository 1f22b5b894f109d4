//! Exception generation and system instructions (Arm ARM C4.1.94: the encodings `1101 0100`, `1101 0101`, and exception
//! return).
//!
//! Whatever may change the execution context, the interrupt state or the clock ends its block, so that it takes effect at an
//! exact place however code is cut into blocks.

mod hint;
mod maintenance;
mod registers;
mod wait;

pub use registers::{CLIDR, CTR};

use super::cpu::Cpu;
use super::op::{Decoded, Handler, Next, Op, slot};
use super::syndrome::ec;

/// The encoding is one of this module's.
pub fn claims(insn: u32) -> bool {
    match insn >> 24 {
        0xd4 | 0xd5 => true,
        // ERET, ERETAA, ERETAB, DRPS.
        0xd6 => matches!(insn >> 21 & 7, 4 | 5),
        _ => false,
    }
}

/// Decodes one instruction; `None` when it is unallocated.
pub fn decode(insn: u32) -> Option<Decoded> {
    match insn >> 24 {
        0xd4 => exception_generation(insn),
        0xd6 => exception_return(insn),
        0xd5 if insn >> 22 & 3 != 0 => None,
        _ => {
            let (op0, op1, crn, crm, op2) = fields(insn);
            match (insn >> 21 & 1, op0) {
                (0, 0) => hint::decode(insn, op1, crn, crm, op2),
                (0, 1) => maintenance::decode(insn, op1, crn, crm, op2),
                (_, 2 | 3) => registers::decode(insn),
                _ => None,
            }
        }
    }
}

/// op0, op1, CRn, CRm, op2.
fn fields(insn: u32) -> (u32, u32, u32, u32, u32) {
    (insn >> 19 & 3, insn >> 16 & 7, insn >> 12 & 15, insn >> 8 & 15, insn >> 5 & 7)
}

/// ISS of a trapped MSR, MRS or system instruction (EC 0x18).
fn access_iss(insn: u32) -> u32 {
    let (op0, op1, crn, crm, op2) = fields(insn);
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | (insn & 31) << 5 | crm << 1 | insn >> 21 & 1
}

fn exception_generation(insn: u32) -> Option<Decoded> {
    let run: Handler = match (insn >> 21 & 7, insn & 31) {
        (0, 1) => svc,
        (0, 2) => hvc,
        (0, 3) => smc,
        (1, 0) => brk,
        // HLT with halting debug not allowed, and DCPSn outside Debug state, are UNDEFINED like the unallocated rest.
        _ => return None,
    };
    Some(Decoded::end(Op { imm: u64::from(insn >> 5 & 0xffff), ..Op::new(run, insn) }))
}

fn exception_return(insn: u32) -> Option<Decoded> {
    let run: Handler = match insn {
        0xd69f_03e0 => eret::<0>,
        0xd69f_0bff => eret::<1>,
        0xd69f_0fff => eret::<2>,
        _ => return None,
    };
    Some(Decoded::end(Op::new(run, insn)))
}

/// Defines handlers that may trap and end their block. The body's value is `Result<Next, Trap>`; `cpu.pc` has been set to the
/// instruction behind.
macro_rules! ending {
    ($($(#[$meta:meta])* fn $name:ident $(<const $g:ident: $t:ty>)? ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$meta])*
        pub(super) unsafe fn $name $(<const $g: $t>)? ($cpu: &mut Cpu, op: *const Op) -> Next {
            // SAFETY: a handler is called with an op of a live block.
            let $op = unsafe { &*op };
            // SAFETY: as above.
            $cpu.pc = unsafe { $cpu.pc_of(op) }.wrapping_add(4);
            let body = |$cpu: &mut Cpu| -> Result<Next, $crate::engine::cpu::Trap> { $body };
            match body($cpu) {
                Ok(next) => next,
                // SAFETY: as above.
                Err(trap) => unsafe { $cpu.take_trap(op, trap) },
            }
        }
    )*};
}

/// Defines handlers that may trap and go on to the next op. The body's value is `Result<(), Trap>`.
macro_rules! plain {
    ($($(#[$meta:meta])* fn $name:ident $(<const $g:ident: $t:ty>)? ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$meta])*
        pub(super) unsafe fn $name $(<const $g: $t>)? ($cpu: &mut Cpu, op: *const Op) -> Next {
            // SAFETY: a handler is called with an op of a live block.
            let $op = unsafe { &*op };
            let body = |$cpu: &mut Cpu| -> Result<(), $crate::engine::cpu::Trap> { $body };
            match body($cpu) {
                // SAFETY: the decoder makes these plain ops, which do not end their block.
                Ok(()) => unsafe { Op::next($cpu, op) },
                // SAFETY: as above.
                Err(trap) => unsafe { $cpu.take_trap(op, trap) },
            }
        }
    )*};
}
use {ending, plain};

ending! {
    fn svc(cpu, op) {
        let pc = cpu.pc;
        cpu.ss = false;
        cpu.take_exception(ec::SVC, op.imm as u32, None, pc);
        Ok(Next::Lookup)
    }
    /// Leaves to the host with PC behind the instruction (its preferred return address).
    fn hvc(cpu, op) {
        if cpu.el == 0 {
            return Err(cpu.undefined());
        }
        cpu.ss = false;
        Ok(cpu.stop(ec::HVC, op.imm as u32, 0, 0))
    }
    /// Leaves to the host with PC on the instruction.
    fn smc(cpu, op) {
        if cpu.el == 0 {
            return Err(cpu.undefined());
        }
        Err(cpu.host_fault(ec::SMC, op.imm as u32))
    }
    /// Leaves to the host with PC on the instruction.
    fn brk(cpu, op) {
        Err(cpu.host_fault(ec::BRK, op.imm as u32))
    }
    /// ERET, ERETAA, ERETAB.
    fn eret<const KEY: u32>(cpu, _op) {
        if cpu.el == 0 {
            return Err(cpu.undefined());
        }
        let (elr, sp) = (cpu.sys.elr, cpu.x[usize::from(slot::SP)]);
        let target = match KEY {
            1 => cpu.authenticate::<0>(elr, sp),
            2 => cpu.authenticate::<1>(elr, sp),
            _ => elr,
        };
        cpu.exception_return(target);
        Ok(Next::Lookup)
    }
}
