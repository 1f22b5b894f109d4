//! Hints, barriers and writes of PSTATE fields by immediate (Arm ARM C4.1.94, op0 = 0).

use std::sync::atomic::{Ordering, fence};

use super::wait::{wfe, wfi, yield_hint};
use super::{access_iss, ending, plain};
use crate::engine::a64::pauth;
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Handler, Next, Op};
use crate::engine::pstate::sctlr;
use crate::engine::syndrome::ec;

/// Decodes an instruction with op0 = 0 and L = 0.
pub(super) fn decode(insn: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> Option<Decoded> {
    let op = |run: Handler| Op { imm: u64::from(crm), ..Op::new(run, insn) };
    if insn & 31 != 31 {
        return None;
    }
    Some(match (crn, op1, op2) {
        (2, 3, _) => match crm << 3 | op2 {
            0b01 => Decoded::end(op(yield_hint)),
            0b10 => Decoded::end(op(wfe)),
            0b11 => Decoded::end(op(wfi)),
            // NOP, SEV, SEVL, ESB and CSDB (nothing speculates or defers here), BTI, and the unallocated.
            _ => pauth::decode_hint(insn).unwrap_or_else(|| Decoded::plain(op(nop))),
        },
        (3, 3, 2) => Decoded::plain(op(clrex)),
        (3, 3, 4) => Decoded::end(op(dsb)),
        (3, 3, 5) => Decoded::plain(op(dmb)),
        (3, 3, 6) => Decoded::end(op(isb)),
        (4, 0, 0) if crm == 0 => Decoded::plain(op(cfinv)),
        (4, 0, 4) if crm < 2 => Decoded::end(op(msr_pan)),
        (4, 0, 5) if crm < 2 => Decoded::end(op(msr_sp_sel)),
        (4, 3, 1) if crm < 2 => Decoded::plain(op(msr_ssbs)),
        (4, 3, 6) => Decoded::end(op(msr_daif::<true>)),
        (4, 3, 7) => Decoded::end(op(msr_daif::<false>)),
        _ => return None,
    })
}

plain! {
    fn nop(_cpu, _op) { Ok(()) }
    fn clrex(cpu, _op) {
        cpu.exclusive.armed = false;
        Ok(())
    }
    fn dmb(_cpu, _op) {
        fence(Ordering::SeqCst);
        Ok(())
    }
    fn cfinv(cpu, _op) {
        cpu.cf ^= 1;
        Ok(())
    }
    fn msr_ssbs(cpu, op) {
        cpu.ssbs = op.imm & 1 != 0;
        Ok(())
    }
}

ending! {
    fn dsb(cpu, _op) {
        fence(Ordering::SeqCst);
        cpu.wait_for_broadcasts();
        // What the wait has served may have made this block stale.
        Ok(Next::Lookup)
    }
    fn isb(_cpu, _op) {
        Ok(Next::Lookup)
    }
    fn msr_pan(cpu, op) {
        if cpu.el == 0 {
            return Err(cpu.undefined());
        }
        cpu.pan = op.imm & 1 != 0;
        cpu.refresh();
        Ok(Next::Lookup)
    }
    fn msr_sp_sel(cpu, op) {
        if cpu.el == 0 {
            return Err(cpu.undefined());
        }
        cpu.switch_sp(1, op.imm as u8 & 1);
        Ok(Next::Lookup)
    }
    fn msr_daif<const SET: bool>(cpu, op) {
        if cpu.el == 0 && cpu.sys.sctlr & sctlr::UMA == 0 {
            return Err(cpu.guest_fault(ec::SYSTEM_REGISTER, access_iss(op.insn), None));
        }
        let bits = op.imm as u8 & 15;
        cpu.daif = if SET { cpu.daif | bits } else { cpu.daif & !bits };
        cpu.interrupt_masks_changed();
        Ok(if cpu.slow_mode { Next::Lookup } else { Next::Taken })
    }
}
