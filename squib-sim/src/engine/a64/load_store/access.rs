//! What is transferred, and by which path: the types loads and stores are specialised by.

use crate::engine::cpu::{Cpu, Privilege, Trap};
use crate::engine::memory::Scalar;
use crate::engine::mmu::PAGE_MASK;
use crate::engine::op::slot;

/// The path to memory. A handler is compiled twice from one body: with [`Hit`], which gives up on anything but a TLB hit
/// before it has changed anything, and with [`Full`], to which it then jumps and which does everything. The first so has no
/// call in it, and no stack frame.
pub(super) trait Path {
    fn load<T: Scalar>(cpu: &mut Cpu, va: u64) -> Result<T, Trap>;
    fn store<T: Scalar>(cpu: &mut Cpu, va: u64, value: T) -> Result<(), Trap>;
    fn load_pair<T: Scalar>(cpu: &mut Cpu, va: u64) -> Result<(T, T), Trap>;
    fn store_pair<T: Scalar>(cpu: &mut Cpu, va: u64, values: (T, T)) -> Result<(), Trap>;
    fn check_sp_alignment(cpu: &mut Cpu) -> Result<(), Trap>;
}

/// Every case, with calls out of line.
pub(super) struct Full;

impl Path for Full {
    #[inline(always)]
    fn load<T: Scalar>(cpu: &mut Cpu, va: u64) -> Result<T, Trap> {
        cpu.load(va, Privilege::Current)
    }
    #[inline(always)]
    fn store<T: Scalar>(cpu: &mut Cpu, va: u64, value: T) -> Result<(), Trap> {
        cpu.store(va, value, Privilege::Current)
    }
    #[inline(always)]
    fn load_pair<T: Scalar>(cpu: &mut Cpu, va: u64) -> Result<(T, T), Trap> {
        let first = Self::load(cpu, va)?;
        Ok((first, Self::load(cpu, va.wrapping_add(T::SIZE))?))
    }
    #[inline(always)]
    fn store_pair<T: Scalar>(cpu: &mut Cpu, va: u64, values: (T, T)) -> Result<(), Trap> {
        Self::store(cpu, va, values.0)?;
        Self::store(cpu, va.wrapping_add(T::SIZE), values.1)
    }
    #[inline(always)]
    fn check_sp_alignment(cpu: &mut Cpu) -> Result<(), Trap> {
        cpu.check_sp_alignment()
    }
}

/// The TLB hit alone. Guest memory is read and written through raw pointers without regard to alignment; each access is one
/// host instruction up to 8 bytes, as single-copy atomicity demands.
pub(super) struct Hit;

impl Hit {
    /// The host address of `size` bytes at `va`, if one TLB entry maps them all and lets them be accessed directly.
    #[inline(always)]
    fn host<const WRITE: bool>(cpu: &Cpu, va: u64, size: u64) -> Result<u64, Trap> {
        // SAFETY: `tlb` points into `cpu.mmu`.
        let entry = unsafe { (*cpu.tlb).entry(va) };
        if entry.tag(WRITE) != va.wrapping_add(size - 1) & PAGE_MASK {
            return Err(Trap);
        }
        Ok(entry.addend.wrapping_add(va))
    }
}

impl Path for Hit {
    #[inline(always)]
    fn load<T: Scalar>(cpu: &mut Cpu, va: u64) -> Result<T, Trap> {
        let host = Self::host::<false>(cpu, va, T::SIZE)? as *const T;
        // SAFETY: a valid entry maps its whole page to host memory that stays mapped until this vCPU has served the request
        // that takes it away. Other vCPUs may write there at the same time: the value is the guest's affair.
        Ok(unsafe { host.read_unaligned() })
    }
    #[inline(always)]
    fn store<T: Scalar>(cpu: &mut Cpu, va: u64, value: T) -> Result<(), Trap> {
        let host = Self::host::<true>(cpu, va, T::SIZE)? as *mut T;
        // SAFETY: as in `load`.
        unsafe { host.write_unaligned(value) };
        Ok(())
    }
    #[inline(always)]
    fn load_pair<T: Scalar>(cpu: &mut Cpu, va: u64) -> Result<(T, T), Trap> {
        let host = Self::host::<false>(cpu, va, 2 * T::SIZE)? as *const T;
        // SAFETY: as in `load`, the entry maps both.
        Ok(unsafe { (host.read_unaligned(), host.add(1).read_unaligned()) })
    }
    #[inline(always)]
    fn store_pair<T: Scalar>(cpu: &mut Cpu, va: u64, values: (T, T)) -> Result<(), Trap> {
        let host = Self::host::<true>(cpu, va, 2 * T::SIZE)? as *mut T;
        // SAFETY: as in `load`, the entry maps both.
        unsafe {
            host.write_unaligned(values.0);
            host.add(1).write_unaligned(values.1);
        }
        Ok(())
    }
    #[inline(always)]
    fn check_sp_alignment(cpu: &mut Cpu) -> Result<(), Trap> {
        if cpu.x[usize::from(slot::SP)] & cpu.sp_align_mask != 0 { Err(Trap) } else { Ok(()) }
    }
}

/// One way to move a register to or from memory.
pub(super) trait Transfer {
    /// What stands in memory.
    type Memory: Scalar;

    /// Writes a loaded value to the register.
    ///
    /// # Safety
    /// `rt` is a destination slot, or for FP the number of the register.
    unsafe fn write(cpu: &mut Cpu, rt: u8, value: Self::Memory);

    /// The register's value to store.
    ///
    /// # Safety
    /// `rt` is a source slot, or for FP the number of the register.
    unsafe fn read(cpu: &Cpu, rt: u8) -> Self::Memory;
}

macro_rules! transfers {
    ($($name:ident: $memory:ty, |$value:ident| $extended:expr, $doc:literal;)*) => {$(
        #[doc = $doc]
        pub(super) struct $name;
        impl Transfer for $name {
            type Memory = $memory;
            #[inline(always)]
            unsafe fn write(cpu: &mut Cpu, rt: u8, $value: $memory) {
                // SAFETY: the caller's promise.
                unsafe { cpu.set_reg(rt, $extended) }
            }
            #[inline(always)]
            unsafe fn read(cpu: &Cpu, rt: u8) -> $memory {
                // SAFETY: the caller's promise.
                unsafe { cpu.reg(rt) as $memory }
            }
        }
    )*};
}

transfers! {
    Byte: u8, |v| u64::from(v), "LDRB, STRB";
    Half: u16, |v| u64::from(v), "LDRH, STRH";
    Word: u32, |v| u64::from(v), "LDR, STR of W registers";
    Double: u64, |v| v, "LDR, STR of X registers";
    SignedByte: u8, |v| v.cast_signed() as u64, "LDRSB to an X register";
    SignedHalf: u16, |v| v.cast_signed() as u64, "LDRSH to an X register";
    SignedWord: u32, |v| v.cast_signed() as u64, "LDRSW";
    SignedByteW: u8, |v| u64::from(v.cast_signed() as u32), "LDRSB to a W register";
    SignedHalfW: u16, |v| u64::from(v.cast_signed() as u32), "LDRSH to a W register";
}

macro_rules! fp_transfers {
    ($($name:ident: $memory:ty, $doc:literal;)*) => {$(
        #[doc = $doc]
        pub(super) struct $name;
        impl Transfer for $name {
            type Memory = $memory;
            #[inline(always)]
            unsafe fn write(cpu: &mut Cpu, rt: u8, value: $memory) {
                // SAFETY: the caller's promise.
                unsafe { *cpu.v.get_unchecked_mut(usize::from(rt)) = u128::from(value) }
            }
            #[inline(always)]
            unsafe fn read(cpu: &Cpu, rt: u8) -> $memory {
                // SAFETY: the caller's promise.
                unsafe { *cpu.v.get_unchecked(usize::from(rt)) as $memory }
            }
        }
    )*};
}

fp_transfers! {
    FpB: u8, "B registers";
    FpH: u16, "H registers";
    FpS: u32, "S registers";
    FpD: u64, "D registers";
    FpQ: u128, "Q registers";
}

/// Defines handlers with a path of their own for the TLB hit. The body is written once, with `$path` for the [`Path`] it is
/// compiled for; it evaluates to `()` and leaves with `?` before it has changed anything.
macro_rules! access_handlers {
    ($($(#[$meta:meta])*
       fn $name:ident <$path:ident; $t:ident: $bound:ident $(, const $g:ident: $gt:ty)*>
       ($cpu:ident, $op:ident) $body:block)*) => {$(
        $(#[$meta])*
        unsafe fn $name<$t: $bound $(, const $g: $gt)*>(cpu: &mut Cpu, op: *const Op) -> Next {
            #[inline(always)]
            unsafe fn execute<$path: Path, $t: $bound $(, const $g: $gt)*>(
                $cpu: &mut Cpu,
                $op: &Op,
            ) -> Result<(), Trap> {
                // SAFETY: as of the handler.
                unsafe { $body }
                Ok(())
            }
            #[cold]
            #[inline(never)]
            unsafe fn full<$t: $bound $(, const $g: $gt)*>(cpu: &mut Cpu, op: *const Op) -> Next {
                // SAFETY: as of the handler.
                unsafe {
                    match execute::<Full, $t $(, $g)*>(cpu, &*op) {
                        Ok(()) => Op::next(cpu, op),
                        Err(trap) => cpu.take_trap(op, trap),
                    }
                }
            }
            // SAFETY: a handler is called with an op of a live block which does not end there (`Decoded::plain`,
            // `Decoded::fp`), and the decoder put only valid slots into its register fields.
            unsafe {
                match execute::<Hit, $t $(, $g)*>(cpu, &*op) {
                    Ok(()) => Op::next(cpu, op),
                    Err(_) => full::<$t $(, $g)*>(cpu, op),
                }
            }
        }
    )*};
}
pub(super) use access_handlers;
