//! Guest virtual memory as the instruction handlers see it: the software TLB in front, the table walk behind.
//!
//! Signatures are the seam between this module and the instruction families.

use super::cpu::{Cpu, Privilege, Trap};

/// A value one memory access can carry.
pub trait Scalar: Copy + Default + 'static {
    /// Bytes.
    const SIZE: u64;
}

macro_rules! scalar {
    ($($t:ty)*) => {$(impl Scalar for $t { const SIZE: u64 = size_of::<$t>() as u64; })*};
}
scalar!(u8 u16 u32 u64 u128);

impl Cpu {
    /// Little-endian load, any alignment (alignment faults as SCTLR_EL1.A and Device memory say). Single-copy atomic when
    /// naturally aligned, up to 8 bytes.
    #[inline(always)]
    pub fn load<T: Scalar>(&mut self, va: u64, privilege: Privilege) -> Result<T, Trap> {
        let _ = (va, privilege);
        Err(Trap)
    }

    /// Little-endian store, the counterpart of [`Cpu::load`].
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, va: u64, value: T, privilege: Privilege) -> Result<(), Trap> {
        let _ = (va, value, privilege);
        Err(Trap)
    }

    /// Host address of `T::SIZE` naturally aligned bytes of RAM, readable, and writable when `write`: for atomics,
    /// exclusives and ordered accesses, which then use a host atomic. Faults on misalignment, and on anything but RAM.
    #[inline(always)]
    pub fn atomic_ptr<T: Scalar>(&mut self, va: u64, write: bool) -> Result<*mut T, Trap> {
        let _ = (va, write);
        Err(Trap)
    }
}
