//! Pointer authentication (FEAT_PAuth): adding, checking and stripping codes, and the branches and loads that check.
//!
//! The cipher is the implementation's choice (ID_AA64ISAR1_EL1.API/GPI): a multiplicative hash over pointer, modifier and the
//! whole 128-bit key, cheap and unsuited to keep secrets from anyone but an honest guest. A code that does not fit puts the
//! error code into the pointer (no FEAT_FPAC, no EnhancedPAC), so that its use faults.

use super::handler::{bit, bits, end_handlers, handlers, pick, sign_extend};
use super::load_store::{base, trapping_handlers};
use crate::engine::cpu::{Cpu, Privilege, Trap};
use crate::engine::op::{Decoded, Next, Op, slot};

/// The four keys for pointers, numbered as the instructions' opcodes have them. Even keys are "A", odd ones "B"; from 2 on
/// they are for data.
mod key {
    pub const IA: u32 = 0;
    pub const IB: u32 = 1;
    pub const DA: u32 = 2;
    pub const DB: u32 = 3;
}

/// The bit that selects the half of the address space.
const HALF: u64 = 1 << 55;

/// Where codes go in a pointer, worked out from TCR_EL1 once for each of its values.
#[derive(Clone, Copy, Debug, Default)]
pub struct CodeBits {
    /// The value of TCR_EL1 the masks are of.
    tcr: Option<u64>,
    /// The bits of the code: from the bottom to 54, and the top byte when that is not a tag; for instructions and data, in
    /// the lower and the upper half.
    masks: [[u64; 2]; 2],
}

impl CodeBits {
    #[cold]
    fn of(tcr: u64) -> CodeBits {
        let mask = |data: bool, upper: bool| {
            let (tsz, tbi, tbid) = if upper { (tcr >> 16, 38, 52) } else { (tcr, 37, 51) };
            // `CalculateBottomPACBit`; out of range values are taken as the nearest in range.
            let bottom = 64 - (tsz & 0x3f).clamp(16, 39);
            let low = HALF - (1 << bottom);
            // `EffectiveTBI`.
            let tagged = tcr >> tbi & 1 != 0 && (data || tcr >> tbid & 1 == 0);
            if tagged { low } else { low | 0xff << 56 }
        };
        let both = |data| [mask(data, false), mask(data, true)];
        CodeBits { tcr: Some(tcr), masks: [both(false), both(true)] }
    }
}

/// `ptr` with its half's own extension bits in the place of the code.
fn strip(ptr: u64, mask: u64) -> u64 {
    if ptr & HALF != 0 { ptr | mask } else { ptr & !mask }
}

/// The top byte is not part of the code.
fn is_tagged(mask: u64) -> bool {
    mask >> 63 == 0
}

/// `ComputePAC`. Every bit of the inputs reaches every bit of the result: a product folded in half spreads both up and down.
fn compute_pac(ptr: u64, modifier: u64, key: [u64; 2]) -> u64 {
    let fold = |value: u64, by: u64| {
        let product = u128::from(value) * u128::from(by);
        product as u64 ^ (product >> 64) as u64
    };
    let hash = fold(ptr ^ key[0], 0x9e37_79b9_7f4a_7c15) ^ modifier;
    let hash = fold(hash, 0xd6e8_feb8_6659_fd93) ^ key[1];
    fold(hash, 0xca5a_8263_9512_1157)
}

impl Cpu {
    /// The masks of both halves.
    #[inline]
    fn code_masks(&mut self, data: bool) -> [u64; 2] {
        if self.code_bits.tcr != Some(self.sys.tcr) {
            self.code_bits = CodeBits::of(self.sys.tcr);
        }
        self.code_bits.masks[usize::from(data)]
    }

    /// The mask of the half `ptr` is in.
    #[inline]
    fn code_mask(&mut self, ptr: u64, data: bool) -> u64 {
        self.code_masks(data)[usize::from(ptr & HALF != 0)]
    }

    /// The key, or `None` when SCTLR_EL1 does not enable the instructions of this key.
    #[inline]
    fn pac_key<const KEY: u32>(&self) -> Option<[u64; 2]> {
        // EnIA, EnIB, EnDA, EnDB.
        let enable = [31, 30, 27, 13][KEY as usize];
        if self.sys.sctlr >> enable & 1 == 0 {
            return None;
        }
        Some(match KEY {
            0 => self.sys.apia,
            1 => self.sys.apib,
            2 => self.sys.apda,
            _ => self.sys.apdb,
        })
    }

    /// `AddPACIA` and its like.
    #[inline]
    fn add_pac<const KEY: u32>(&mut self, ptr: u64, modifier: u64) -> u64 {
        match self.pac_key::<KEY>() {
            Some(key) => self.add_pac_with(ptr, modifier, key, KEY >= 2),
            None => ptr,
        }
    }

    /// `AddPAC`.
    fn add_pac_with(&mut self, ptr: u64, modifier: u64, key: [u64; 2], data: bool) -> u64 {
        let masks = self.code_masks(data);
        // With tags in use in either half bit 55 selects it, otherwise bit 63. Whether there is a tag is always bit 55's say.
        let select = if is_tagged(masks[0] & masks[1]) { 55 } else { 63 };
        let upper = ptr >> select & 1 != 0;
        let mask = masks[usize::from(upper)] & (HALF - 1) | masks[usize::from(ptr & HALF != 0)] & !HALF & !(HALF - 1);
        let extended = if upper { ptr | mask | HALF } else { ptr & !mask & !HALF };
        let mut pac = compute_pac(extended, modifier, key);
        // A pointer that is not canonical gets a code that will not authenticate.
        let extension = ptr & (mask | HALF);
        if extension != 0 && extension != mask | HALF {
            pac ^= 1 << if is_tagged(mask) { 54 } else { 62 };
        }
        extended & !mask | pac & mask
    }

    /// `AuthIA` and its like.
    #[inline]
    pub(in crate::engine) fn authenticate<const KEY: u32>(&mut self, ptr: u64, modifier: u64) -> u64 {
        match self.pac_key::<KEY>() {
            Some(key) => self.auth_with(ptr, modifier, key, KEY >= 2, KEY & 1 != 0),
            None => ptr,
        }
    }

    /// `Auth`.
    fn auth_with(&mut self, ptr: u64, modifier: u64, key: [u64; 2], data: bool, key_b: bool) -> u64 {
        let mask = self.code_mask(ptr, data);
        let original = strip(ptr, mask);
        let pac = compute_pac(original, modifier, key);
        if (pac ^ ptr) & mask == 0 {
            return original;
        }
        let error_code = if key_b { 2 } else { 1 };
        let place = if is_tagged(mask) { 53 } else { 61 };
        original & !(3 << place) | error_code << place
    }
}

/// The one-source forms: PACIA to AUTDB (modifier in Rn, which may be SP), PACIZA to AUTDZB (modifier 0), XPACI, XPACD.
pub(super) fn decode_one_source(insn: u32) -> Option<Op> {
    let opcode = bits(insn, 15, 10);
    // Rn = 31 is demanded where there is no modifier, and as ZR supplies its zero.
    if opcode & 8 != 0 || opcode >= 16 {
        (bits(insn, 9, 5) == 31).then_some(())?;
    }
    let run = match opcode {
        0..=15 => pick!(pac_or_auth, [bit(opcode, 2); bool], [opcode & 3; 4]),
        16 => xpac::<false>,
        17 => xpac::<true>,
        _ => return None,
    };
    let rn = if opcode & 8 != 0 { slot::ZR } else { slot::sp(insn >> 5) };
    Some(Op { rd: slot::dst(insn), rn, ..Op::new(run, insn) })
}

/// PACGA.
pub(super) fn decode_pacga(insn: u32) -> Op {
    Op { rd: slot::dst(insn), rn: slot::src(insn >> 5), rm: slot::sp(insn >> 16), ..Op::new(pacga, insn) }
}

/// The forms in the hint space, by `CRm:op2` (the hint's number): PACIA1716, PACIASP, AUTIAZ, XPACLRI, ... They are on X30
/// with modifier SP or zero, or on X17 with modifier X16. What is unallocated among these numbers is a NOP like every hint.
pub fn decode_hint(insn: u32) -> Option<Decoded> {
    if insn & 0xffff_f01f != 0xd503_201f {
        return None;
    }
    let hint = bits(insn, 11, 5);
    let pac_auth = |auth: bool, key_b: bool, rd: u8, rn: u8| {
        let run = pick!(pac_or_auth, [auth; bool], [u32::from(key_b); 4]);
        Some(Decoded::plain(Op { rd, rn, ..Op::new(run, insn) }))
    };
    let (auth, key_b) = (hint & 4 != 0, hint & 2 != 0);
    match hint {
        7 => Some(Decoded::plain(Op { rd: 30, ..Op::new(xpac::<false>, insn) })),
        8 | 10 | 12 | 14 => pac_auth(auth, key_b, 17, 16),
        24 | 26 | 28 | 30 => pac_auth(auth, key_b, 30, slot::ZR),
        25 | 27 | 29 | 31 => pac_auth(auth, key_b, 30, slot::SP),
        9 | 11 | 13 | 15 => Some(Decoded::plain(Op::new(nop, insn))),
        _ => None,
    }
}

/// BRAA, BRAAZ, BLRAA, BLRAAZ, RETAA and their B-key forms.
pub(super) fn decode_branch(insn: u32) -> Option<Op> {
    let (rn, rm) = (bits(insn, 9, 5), bits(insn, 4, 0));
    let key_b = bit(insn, 10);
    let (run, rm) = match bits(insn, 24, 21) {
        0 if rm == 31 => (pick!(branch_auth, [false; bool], [key_b; bool]), slot::ZR),
        1 if rm == 31 => (pick!(branch_auth, [true; bool], [key_b; bool]), slot::ZR),
        2 if rn == 31 && rm == 31 => {
            let op = Op { rn: 30, rm: slot::SP, ..Op::new(pick!(branch_auth, [false; bool], [key_b; bool]), insn) };
            return Some(op);
        }
        8 => (pick!(branch_auth, [false; bool], [key_b; bool]), slot::sp(rm)),
        9 => (pick!(branch_auth, [true; bool], [key_b; bool]), slot::sp(rm)),
        _ => return None,
    };
    Some(Op { rn: slot::src(rn), rm, ..Op::new(run, insn) })
}

/// LDRAA, LDRAB.
pub(super) fn decode_load(insn: u32) -> Option<Decoded> {
    if bits(insn, 31, 30) != 3 || bit(insn, 26) || !bit(insn, 10) {
        return None;
    }
    let imm = sign_extend(bits(insn, 22, 22) << 9 | bits(insn, 20, 12), 10) << 3;
    let run = pick!(load_authenticated, [bit(insn, 23); bool], [bit(insn, 11); bool]);
    Some(Decoded::plain(Op { imm, rd: slot::dst(insn), rn: slot::sp(insn >> 5), ..Op::new(run, insn) }))
}

handlers! {
    fn pac_or_auth<const AUTH: bool, const KEY: u32>(cpu, o) {
        let (ptr, modifier) = (cpu.reg(o.rd), cpu.reg(o.rn));
        let result = if AUTH { cpu.authenticate::<KEY>(ptr, modifier) } else { cpu.add_pac::<KEY>(ptr, modifier) };
        cpu.set_reg(o.rd, result);
    }
    fn nop(cpu, _o) {}
    fn xpac<const DATA: bool>(cpu, o) {
        let ptr = cpu.reg(o.rd);
        let mask = cpu.code_mask(ptr, DATA);
        cpu.set_reg(o.rd, strip(ptr, mask));
    }
    fn pacga(cpu, o) {
        let pac = compute_pac(cpu.reg(o.rn), cpu.reg(o.rm), cpu.sys.apga);
        cpu.set_reg(o.rd, pac & !0xffff_ffff);
    }
}

end_handlers! {
    fn branch_auth<const LINK: bool, const B: bool>(cpu, o) {
        let (ptr, modifier) = (cpu.reg(o.rn), cpu.reg(o.rm));
        let target = if B {
            cpu.authenticate::<{ key::IB }>(ptr, modifier)
        } else {
            cpu.authenticate::<{ key::IA }>(ptr, modifier)
        };
        if LINK {
            cpu.x[30] = cpu.pc_of(o).wrapping_add(4);
        }
        cpu.branch_to(target)
    }
}

trapping_handlers! {
    fn load_authenticated[const B: bool, const WRITE_BACK: bool][B, WRITE_BACK](cpu, o) {
        let base = base(cpu, o)?;
        let base = if B { cpu.authenticate::<{ key::DB }>(base, 0) } else { cpu.authenticate::<{ key::DA }>(base, 0) };
        let address = base.wrapping_add(o.imm);
        let value = cpu.load::<u64>(address, Privilege::Current)?;
        cpu.set_reg(o.rd, value);
        if WRITE_BACK {
            cpu.set_reg(o.rn, address);
        }
    }
}
