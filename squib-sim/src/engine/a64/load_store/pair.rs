//! Loads and stores of register pairs: LDP, STP, LDPSW, LDNP, STNP.

use super::super::handler::{bit, bits, pick, sign_extend};
use super::access::*;
use crate::engine::cpu::{Cpu, Trap};
use crate::engine::op::{Decoded, Handler, Next, Op, slot};

/// Addressing modes, as `insn<24:23>` has them; 2 is an offset without write-back.
mod mode {
    /// The non-temporal form, an offset as well.
    pub const NO_ALLOCATE: u32 = 0;
    pub const POST: u32 = 1;
    pub const PRE: u32 = 3;
}

pub(super) fn decode(insn: u32) -> Option<Decoded> {
    let (opc, fp, is_load, mode) = (bits(insn, 31, 30), bit(insn, 26), bit(insn, 22), bits(insn, 24, 23));
    let rn = slot::sp(insn >> 5);
    let sp = rn == slot::SP;
    macro_rules! of {
        ($f:ident, $t:ident) => {
            pick!($f<$t>, [mode; 4], [sp; bool])
        };
    }
    // The size of one register as a shift.
    let (run, scale): (Handler, u32) = match (fp, opc, is_load) {
        (false, 0, false) => (of!(store_pair, Word), 2),
        (false, 0, true) => (of!(load_pair, Word), 2),
        (false, 1, true) if mode != mode::NO_ALLOCATE => (of!(load_pair, SignedWord), 2),
        (false, 2, false) => (of!(store_pair, Double), 3),
        (false, 2, true) => (of!(load_pair, Double), 3),
        (true, 0, false) => (of!(store_pair, FpS), 2),
        (true, 0, true) => (of!(load_pair, FpS), 2),
        (true, 1, false) => (of!(store_pair, FpD), 3),
        (true, 1, true) => (of!(load_pair, FpD), 3),
        (true, 2, false) => (of!(store_pair, FpQ), 4),
        (true, 2, true) => (of!(load_pair, FpQ), 4),
        _ => return None,
    };
    let register = |n: u32| match (fp, is_load) {
        (true, _) => (n & 31) as u8,
        (false, true) => slot::dst(n),
        (false, false) => slot::src(n),
    };
    let imm = sign_extend(bits(insn, 21, 15), 7) << scale;
    let op = Op { imm, rn, rd: register(insn), ra: register(insn >> 10), ..Op::new(run, insn) };
    Some(if fp { Decoded::fp(op) } else { Decoded::plain(op) })
}

/// # Safety
/// `o` was made by the decoder.
#[inline(always)]
unsafe fn address<P: Path, const MODE: u32, const SP: bool>(cpu: &mut Cpu, o: &Op) -> Result<u64, Trap> {
    if SP {
        P::check_sp_alignment(cpu)?;
    }
    // SAFETY: the caller's promise.
    let base = unsafe { cpu.reg(o.rn) };
    Ok(if MODE == mode::POST { base } else { base.wrapping_add(o.imm) })
}

/// # Safety
/// `o` was made by the decoder.
#[inline(always)]
unsafe fn write_back<const MODE: u32>(cpu: &mut Cpu, o: &Op, address: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        match MODE {
            mode::PRE => cpu.set_reg(o.rn, address),
            mode::POST => cpu.set_reg(o.rn, address.wrapping_add(o.imm)),
            _ => {}
        }
    }
}

access_handlers! {
    fn load_pair<P; T: Transfer, const MODE: u32, const SP: bool>(cpu, o) {
        let address = address::<P, MODE, SP>(cpu, o)?;
        let (first, second) = P::load_pair::<T::Memory>(cpu, address)?;
        T::write(cpu, o.rd, first);
        T::write(cpu, o.ra, second);
        write_back::<MODE>(cpu, o, address);
    }
    fn store_pair<P; T: Transfer, const MODE: u32, const SP: bool>(cpu, o) {
        let address = address::<P, MODE, SP>(cpu, o)?;
        P::store_pair::<T::Memory>(cpu, address, (T::read(cpu, o.rd), T::read(cpu, o.ra)))?;
        write_back::<MODE>(cpu, o, address);
    }
}
