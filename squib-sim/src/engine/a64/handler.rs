//! How handlers are written: the macros that turn an instruction's effect into a [`Handler`](crate::engine::op::Handler),
//! the register file's unchecked accessors, and the arithmetic every data-processing class shares.
//!
//! A handler is specialised (const generics) in everything the decoder knows, so what is left at run time is the
//! operation itself and a jump to the next handler.

use crate::engine::cpu::Cpu;

/// Defines handlers that cannot trap and go on to the next op. The body is the instruction's effect.
macro_rules! handlers {
    ($($(#[$meta:meta])* fn $name:ident $(<$(const $g:ident: $t:ty),+>)? ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$meta])*
        pub(super) unsafe fn $name $(<$(const $g: $t),+>)? ($cpu: &mut Cpu, op: *const Op) -> Next {
            // SAFETY: a handler is called with an op of a live block which does not end there (`Decoded::plain`), and the
            // decoder put only valid slots into its register fields.
            unsafe {
                let $op = &*op;
                $body
                Op::next($cpu, op)
            }
        }
    )*};
}

/// Defines handlers that end their block. The body's value is the [`Next`](crate::engine::op::Next).
macro_rules! end_handlers {
    ($($(#[$meta:meta])* fn $name:ident $(<$(const $g:ident: $t:ty),+>)? ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$meta])*
        pub(super) unsafe fn $name $(<$(const $g: $t),+>)? ($cpu: &mut Cpu, op: *const Op) -> Next {
            // SAFETY: a handler is called with an op of a live block, and the decoder put only valid slots into its
            // register fields.
            unsafe {
                let $op = &*op;
                $body
            }
        }
    )*};
}

/// The instance of a handler whose const parameters are the given values: `pick!(add, [sf; bool], [shift; 4])`.
/// Every parameter is given as `value; bool` or `value; n` for 0 to n - 1. A type parameter stands in front: `pick!(load <T>, ...)`.
macro_rules! pick {
    (@ $f:ident [$($done:tt)*]) => { $f::<$($done)*> as crate::engine::op::Handler };
    (@ $f:ident [$($done:tt)*] [$v:expr; bool] $($rest:tt)*) => {
        if $v { pick!(@ $f [$($done)* true,] $($rest)*) } else { pick!(@ $f [$($done)* false,] $($rest)*) }
    };
    (@ $f:ident [$($done:tt)*] [$v:expr; 4] $($rest:tt)*) => {
        match $v {
            0 => pick!(@ $f [$($done)* 0,] $($rest)*),
            1 => pick!(@ $f [$($done)* 1,] $($rest)*),
            2 => pick!(@ $f [$($done)* 2,] $($rest)*),
            _ => pick!(@ $f [$($done)* 3,] $($rest)*),
        }
    };
    (@ $f:ident [$($done:tt)*] [$v:expr; 5] $($rest:tt)*) => {
        match $v {
            0 => pick!(@ $f [$($done)* 0,] $($rest)*),
            1 => pick!(@ $f [$($done)* 1,] $($rest)*),
            2 => pick!(@ $f [$($done)* 2,] $($rest)*),
            3 => pick!(@ $f [$($done)* 3,] $($rest)*),
            _ => pick!(@ $f [$($done)* 4,] $($rest)*),
        }
    };
    (@ $f:ident [$($done:tt)*] [$v:expr; 8] $($rest:tt)*) => {
        match $v {
            0 => pick!(@ $f [$($done)* 0,] $($rest)*),
            1 => pick!(@ $f [$($done)* 1,] $($rest)*),
            2 => pick!(@ $f [$($done)* 2,] $($rest)*),
            3 => pick!(@ $f [$($done)* 3,] $($rest)*),
            4 => pick!(@ $f [$($done)* 4,] $($rest)*),
            5 => pick!(@ $f [$($done)* 5,] $($rest)*),
            6 => pick!(@ $f [$($done)* 6,] $($rest)*),
            _ => pick!(@ $f [$($done)* 7,] $($rest)*),
        }
    };
    (@ $f:ident [$($done:tt)*] [$v:expr; 16] $($rest:tt)*) => {
        match $v {
            0 => pick!(@ $f [$($done)* 0,] $($rest)*),
            1 => pick!(@ $f [$($done)* 1,] $($rest)*),
            2 => pick!(@ $f [$($done)* 2,] $($rest)*),
            3 => pick!(@ $f [$($done)* 3,] $($rest)*),
            4 => pick!(@ $f [$($done)* 4,] $($rest)*),
            5 => pick!(@ $f [$($done)* 5,] $($rest)*),
            6 => pick!(@ $f [$($done)* 6,] $($rest)*),
            7 => pick!(@ $f [$($done)* 7,] $($rest)*),
            8 => pick!(@ $f [$($done)* 8,] $($rest)*),
            9 => pick!(@ $f [$($done)* 9,] $($rest)*),
            10 => pick!(@ $f [$($done)* 10,] $($rest)*),
            11 => pick!(@ $f [$($done)* 11,] $($rest)*),
            12 => pick!(@ $f [$($done)* 12,] $($rest)*),
            13 => pick!(@ $f [$($done)* 13,] $($rest)*),
            14 => pick!(@ $f [$($done)* 14,] $($rest)*),
            _ => pick!(@ $f [$($done)* 15,] $($rest)*),
        }
    };
    ($f:ident <$t:ty>, $([$($param:tt)*]),+) => { pick!(@ $f [$t,] $([$($param)*])+) };
    ($f:ident, $([$($param:tt)*]),+) => { pick!(@ $f [] $([$($param)*])+) };
}

pub(super) use {end_handlers, handlers, pick};

/// The field `insn<hi:lo>`.
#[inline(always)]
pub(super) const fn bits(insn: u32, hi: u32, lo: u32) -> u32 {
    (insn >> lo) & (u32::MAX >> (31 - (hi - lo)))
}

/// The bit `insn<n>`.
#[inline(always)]
pub(super) const fn bit(insn: u32, n: u32) -> bool {
    insn >> n & 1 != 0
}

/// `SignExtend(value<bits-1:0>, 64)`.
#[inline(always)]
pub(super) const fn sign_extend(value: u32, bits: u32) -> u64 {
    ((value as u64) << (64 - bits)).cast_signed().wrapping_shr(64 - bits).cast_unsigned()
}

/// `value` as a 64-bit (`SF`) or 32-bit register holds it: the upper half of a 32-bit result is zero.
#[inline(always)]
pub(super) const fn sized<const SF: bool>(value: u64) -> u64 {
    if SF { value } else { value as u32 as u64 }
}

/// `ShiftReg` with kind 0 = LSL, 1 = LSR, 2 = ASR, 3 = ROR, 4 = none; the amount is below the register's width.
#[inline(always)]
pub(super) fn shift_reg<const SF: bool, const KIND: u32>(value: u64, amount: u32) -> u64 {
    if SF {
        match KIND {
            0 => value.wrapping_shl(amount),
            1 => value.wrapping_shr(amount),
            2 => value.cast_signed().wrapping_shr(amount).cast_unsigned(),
            3 => value.rotate_right(amount),
            _ => value,
        }
    } else {
        let value = value as u32;
        u64::from(match KIND {
            0 => value.wrapping_shl(amount),
            1 => value.wrapping_shr(amount),
            2 => value.cast_signed().wrapping_shr(amount).cast_unsigned(),
            3 => value.rotate_right(amount),
            _ => value,
        })
    }
}

/// `ExtendReg`: 0..=3 = UXTB, UXTH, UXTW, UXTX, 4..=7 = SXTB, SXTH, SXTW, SXTX; then shifted left.
#[inline(always)]
pub(super) fn extend_reg<const KIND: u32>(value: u64, shift: u32) -> u64 {
    let extended = match KIND {
        0 => u64::from(value as u8),
        1 => u64::from(value as u16),
        2 => u64::from(value as u32),
        4 => value as i8 as u64,
        5 => value as i16 as u64,
        6 => value as i32 as u64,
        _ => value,
    };
    extended.wrapping_shl(shift)
}

impl Cpu {
    /// The general-purpose register in a slot.
    ///
    /// # Safety
    /// `slot` comes from [`slot`](crate::engine::op::slot).
    #[inline(always)]
    pub(in crate::engine) unsafe fn reg(&self, slot: u8) -> u64 {
        // SAFETY: slots are indices of `x`.
        unsafe { *self.x.get_unchecked(usize::from(slot)) }
    }

    /// Writes the general-purpose register in a slot.
    ///
    /// # Safety
    /// `slot` comes from [`slot`](crate::engine::op::slot), and is not that of ZR.
    #[inline(always)]
    pub(in crate::engine) unsafe fn set_reg(&mut self, slot: u8, value: u64) {
        // SAFETY: slots are indices of `x`.
        unsafe { *self.x.get_unchecked_mut(usize::from(slot)) = value }
    }

    /// N and Z from a result, which is zero-extended when it is a 32-bit one.
    #[inline(always)]
    pub(super) fn set_nz<const SF: bool>(&mut self, result: u64) {
        let result = if SF { result } else { result as i32 as u64 };
        self.nf = result;
        self.zf = result;
    }

    /// The flags of a logical instruction: N and Z from the result, C and V clear.
    #[inline(always)]
    pub(super) fn set_nz_logical<const SF: bool>(&mut self, result: u64) {
        self.set_nz::<SF>(result);
        self.cf = 0;
        self.vf = 0;
    }

    /// `AddWithCarry(a, b, 0)` with the flags set.
    #[inline(always)]
    pub(super) fn adds<const SF: bool>(&mut self, a: u64, b: u64) -> u64 {
        let (result, c, v) = if SF {
            let (result, c) = a.overflowing_add(b);
            (result, c, a.cast_signed().overflowing_add(b.cast_signed()).1)
        } else {
            let (a, b) = (a as u32, b as u32);
            let (result, c) = a.overflowing_add(b);
            (u64::from(result), c, a.cast_signed().overflowing_add(b.cast_signed()).1)
        };
        self.set_nz::<SF>(result);
        self.cf = u64::from(c);
        self.vf = u64::from(v);
        result
    }

    /// `AddWithCarry(a, NOT(b), 1)` with the flags set.
    #[inline(always)]
    pub(super) fn subs<const SF: bool>(&mut self, a: u64, b: u64) -> u64 {
        let (result, c, v) = if SF {
            (a.wrapping_sub(b), a >= b, a.cast_signed().overflowing_sub(b.cast_signed()).1)
        } else {
            let (a, b) = (a as u32, b as u32);
            (u64::from(a.wrapping_sub(b)), a >= b, a.cast_signed().overflowing_sub(b.cast_signed()).1)
        };
        self.set_nz::<SF>(result);
        self.cf = u64::from(c);
        self.vf = u64::from(v);
        result
    }

    /// `AddWithCarry(a, b, PSTATE.C)`, with the flags set when `S`.
    #[inline(always)]
    pub(super) fn adc<const SF: bool, const S: bool>(&mut self, a: u64, b: u64) -> u64 {
        let (a, b) = (sized::<SF>(a), sized::<SF>(b));
        let sum = u128::from(a) + u128::from(b) + u128::from(self.cf);
        let result = sized::<SF>(sum as u64);
        if S {
            let width = if SF { 64 } else { 32 };
            self.set_nz::<SF>(result);
            self.cf = (sum >> width) as u64;
            self.vf = ((a ^ result) & (b ^ result)) >> (width - 1) & 1;
        }
        result
    }

    /// ADD, ADDS, SUB or SUBS.
    #[inline(always)]
    pub(super) fn add_or_sub<const SF: bool, const SUB: bool, const S: bool>(&mut self, a: u64, b: u64) -> u64 {
        match (SUB, S) {
            (false, false) => sized::<SF>(a.wrapping_add(b)),
            (false, true) => self.adds::<SF>(a, b),
            (true, false) => sized::<SF>(a.wrapping_sub(b)),
            (true, true) => self.subs::<SF>(a, b),
        }
    }
}
