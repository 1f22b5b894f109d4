//! Reads and writes of one region.
//!
//! `vm-memory` has a ready-made implementation, which goes through one slice of the whole region: it would make all of a lazy RAM
//! present to read eight bytes. This one asks for exactly the range it touches.

use std::sync::atomic::Ordering;

use vm_memory::{
    AtomicAccess, Bytes, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress, ReadVolatile, VolatileSlice,
    WriteVolatile,
};

use super::{DirtyHook, RamRegion};

type Result<T> = std::result::Result<T, GuestMemoryError>;

impl RamRegion {
    /// As much of `count` bytes from `at` as lies in the region.
    fn part(&self, at: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, DirtyHook>> {
        let rest = self.len().checked_sub(at.0).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        self.get_slice(at, count.min(usize::try_from(rest).unwrap_or(usize::MAX)))
    }
}

impl Bytes<MemoryRegionAddress> for RamRegion {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], at: MemoryRegionAddress) -> Result<usize> {
        Ok(self.part(at, buf.len())?.write(buf, 0)?)
    }

    fn read(&self, buf: &mut [u8], at: MemoryRegionAddress) -> Result<usize> {
        Ok(self.part(at, buf.len())?.read(buf, 0)?)
    }

    fn write_slice(&self, buf: &[u8], at: MemoryRegionAddress) -> Result<()> {
        Ok(self.get_slice(at, buf.len())?.write_slice(buf, 0)?)
    }

    fn read_slice(&self, buf: &mut [u8], at: MemoryRegionAddress) -> Result<()> {
        Ok(self.get_slice(at, buf.len())?.read_slice(buf, 0)?)
    }

    fn read_volatile_from<F: ReadVolatile>(&self, at: MemoryRegionAddress, src: &mut F, count: usize) -> Result<usize> {
        Ok(self.part(at, count)?.read_volatile_from(0, src, count)?)
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        at: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<()> {
        Ok(self.get_slice(at, count)?.read_exact_volatile_from(0, src, count)?)
    }

    fn write_volatile_to<F: WriteVolatile>(&self, at: MemoryRegionAddress, dst: &mut F, count: usize) -> Result<usize> {
        Ok(self.part(at, count)?.write_volatile_to(0, dst, count)?)
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        at: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<()> {
        Ok(self.get_slice(at, count)?.write_all_volatile_to(0, dst, count)?)
    }

    fn store<T: AtomicAccess>(&self, value: T, at: MemoryRegionAddress, order: Ordering) -> Result<()> {
        Ok(self.get_slice(at, size_of::<T>())?.store(value, 0, order)?)
    }

    fn load<T: AtomicAccess>(&self, at: MemoryRegionAddress, order: Ordering) -> Result<T> {
        Ok(self.get_slice(at, size_of::<T>())?.load(0, order)?)
    }
}
