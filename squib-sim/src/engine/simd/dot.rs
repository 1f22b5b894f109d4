//! SDOT and UDOT, by vector and by element (FEAT_DotProd).

use super::lanes::*;
use crate::engine::cpu::Cpu;
use crate::engine::op::{Decoded, Next, Op};

/// Decodes SDOT/UDOT; `index` selects the element of the by-element form.
pub fn decode(insn: u32, width: Width, index: Option<u32>) -> Option<Decoded> {
    let run = if insn >> 29 & 1 == 0 { dot::<true> } else { dot::<false> };
    // With ra = 4 (no element) each 32-bit lane meets its own in Vm.
    masked(run, insn, width, index.unwrap_or(4))
}

/// Four-way dot products of bytes, added to 32-bit lanes.
///
/// # Safety
/// See [`Handler`](crate::engine::op::Handler).
unsafe fn dot<const S: bool>(cpu: &mut Cpu, op: *const Op) -> Next {
    // SAFETY: the caller's promise.
    unsafe {
        let o = &*op;
        let (n, m) = (lanes::<u32>(cpu, o.rn), lanes::<u32>(cpu, o.rm));
        let mut d = lanes::<u32>(cpu, o.rd);
        for (i, d) in d.iter_mut().enumerate() {
            let at = if o.ra < 4 { usize::from(o.ra) } else { i };
            for (n, m) in n[i].to_le_bytes().into_iter().zip(m[at].to_le_bytes()) {
                let product = if S { i32::from(n as i8) * i32::from(m as i8) } else { i32::from(n) * i32::from(m) };
                *d = d.wrapping_add(product as u32);
            }
        }
        set_v(cpu, o.rd, u32::join(d) & mask(o));
        Op::next(cpu, op)
    }
}
