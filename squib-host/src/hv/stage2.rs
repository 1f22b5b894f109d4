//! Stage 2: guest RAM made visible to the guest, whole or granule by granule, and taken away again before the memory goes.
//!
//! Offsets and lengths are in bytes from the start of RAM, multiples of [`GRANULE`]. `hv_vm_map` asks for a single VM region of the host's
//! in a call. Every range is mapped from the one guest view; where the view was opened piece by piece, each piece is mapped by a
//! call of its own. No call crosses a multiple of [`REGION`], to map, protect or unmap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use applevisor::prelude::{HypervisorError, MemPerms};

use crate::error::{Error, HvContext, Result};
use crate::memory::{GRANULE, GuestRam};

/// macOS puts shared memory together from objects of 4 GiB, each of which is a VM region of its own where the memory is mapped
/// (`pshm_truncate` and `pshm_mmap` of xnu, `bsd/kern/posix_shm.c`).
const REGION: u64 = 4 << 30;

/// What the guest may do with mapped RAM. Execution is always allowed: taking it away would fault fetches for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// A guest write exits with a permission fault.
    ReadExec,
    /// Nothing faults.
    ReadWriteExec,
}

impl Permission {
    fn flags(self) -> u64 {
        u64::from(match self {
            Permission::ReadExec => MemPerms::ReadExec,
            Permission::ReadWriteExec => MemPerms::ReadWriteExec,
        })
    }
}

/// The parts of a range of RAM, each in one [`REGION`]: offset and length.
fn regions(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let part = move |start: u64| (start, end.min((start / REGION + 1) * REGION) - start);
    let first = (len > 0).then_some(part(offset));
    std::iter::successors(first, move |&(start, len)| (start + len < end).then(|| part(start + len)))
}

fn check(code: i32) -> Result<(), HypervisorError> {
    if code == 0 { Ok(()) } else { Err(HypervisorError::from(code)) }
}

/// Why a range could not be mapped. It is passed on without an allocation, and becomes an [`Error`] where somebody tells it: threads
/// of the pager's net map pages, too (`pager/quiet.rs`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MapError {
    start: u64,
    len: u64,
    /// `None`: the framework was not even asked.
    source: Option<HypervisorError>,
}

impl MapError {
    /// Whether the hypervisor has no room for another mapping.
    pub fn is_scarcity(&self) -> bool {
        self.source == Some(HypervisorError::NoResources)
    }
}

impl From<MapError> for Error {
    fn from(MapError { start, len, source }: MapError) -> Error {
        match source {
            Some(source) => {
                Error::Hypervisor { action: format!("map {len:#x} bytes of guest RAM at {start:#x}"), source }
            }
            None => Error::State(format!("{len:#x} bytes at {start:#x} are no granules of guest RAM")),
        }
    }
}

/// Guest RAM at stage 2. Holds the RAM, so that the memory outlives every mapping.
///
/// Callers keep the framework's rules: what is mapped is not mapped again, what is protected or unmapped is mapped. Who knows
/// which granules are mapped is [`crate::fault::RamFaults`].
#[derive(Debug)]
pub struct MappedRam {
    ram: Arc<GuestRam>,
    /// Of a RAM that is mapped whole: how much of it, from the start.
    whole: AtomicU64,
    /// What arrives later is mapped without write permission.
    arrives_protected: AtomicBool,
}

impl MappedRam {
    /// RAM of which nothing is mapped yet.
    pub fn absent(ram: Arc<GuestRam>) -> MappedRam {
        MappedRam { ram, whole: AtomicU64::new(0), arrives_protected: AtomicBool::new(false) }
    }

    /// Maps all of `ram`, with every permission.
    pub fn whole(ram: Arc<GuestRam>) -> Result<MappedRam> {
        let mapped = MappedRam::absent(ram);
        for (start, len) in regions(0, mapped.ram.size()) {
            mapped.map_region(start, len, Permission::ReadWriteExec)?;
            mapped.whole.store(start + len, Ordering::Release);
        }
        Ok(mapped)
    }

    /// The RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The permission that pages are mapped with which come into place while the machine runs.
    pub fn arrival(&self) -> Permission {
        match self.arrives_protected.load(Ordering::Acquire) {
            true => Permission::ReadExec,
            false => Permission::ReadWriteExec,
        }
    }

    /// Sets [`MappedRam::arrival`]. While no page comes into place.
    pub fn set_arrival(&self, permission: Permission) {
        self.arrives_protected.store(permission == Permission::ReadExec, Ordering::Release);
    }

    /// Maps an unmapped range. The bytes must be complete: the guest sees them at once.
    pub fn map(&self, offset: u64, len: u64, permission: Permission) -> Result<(), MapError> {
        self.check_range(offset, len)?;
        regions(offset, len).try_for_each(|(start, len)| self.map_region(start, len, permission))
    }

    fn map_region(&self, offset: u64, len: u64, permission: Permission) -> Result<(), MapError> {
        // SAFETY: the range lies in the guest view (checked by the caller), which is one mapping of readable and writable bytes on
        // a 2 MiB boundary; `ram` is held until everything is unmapped, so the guest never reaches memory that is gone.
        let code = unsafe {
            let host = self.ram.guest_view().add(offset as usize);
            applevisor_sys::hv_vm_map(
                host.cast_const().cast(),
                self.ram.base() + offset,
                len as usize,
                permission.flags(),
            )
        };
        check(code).map_err(|source| MapError { start: self.ram.base() + offset, len, source: Some(source) })
    }

    /// Changes the permission of a range that is mapped. In force for every vCPU when this returns.
    pub fn protect(&self, offset: u64, len: u64, permission: Permission) -> Result<()> {
        self.check_range(offset, len)?;
        regions(offset, len).try_for_each(|(start, len)| {
            let address = self.ram.base() + start;
            // SAFETY: plain call; a range that is not mapped is an error of the framework.
            let code = unsafe { applevisor_sys::hv_vm_protect(address, len as usize, permission.flags()) };
            check(code).hv_with(|| format!("protect {len:#x} bytes of guest RAM at {address:#x}"))
        })
    }

    /// Takes a range away from the guest, at the end of the machine.
    fn unmap(&self, offset: u64, len: u64) {
        for (offset, len) in regions(offset, len) {
            // SAFETY: no vCPU exists any more (the machine joins their threads first), so nothing reaches what is unmapped.
            let code = unsafe { applevisor_sys::hv_vm_unmap(self.ram.base() + offset, len as usize) };
            if let Err(error) = check(code) {
                tracing::warn!(%error, offset, len, "guest RAM could not be unmapped");
            }
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), MapError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.ram.size());
        if inside && offset.is_multiple_of(GRANULE) && (len.is_multiple_of(GRANULE) || offset + len == self.ram.size())
        {
            return Ok(());
        }
        Err(MapError { start: self.ram.base().saturating_add(offset), len, source: None })
    }
}

impl Drop for MappedRam {
    fn drop(&mut self) {
        // What is not mapped must not be unmapped: a newer macOS ends the process for it.
        let Some(states) = self.ram.states() else { return self.unmap(0, self.whole.load(Ordering::Acquire)) };
        // What is present is what is mapped.
        let mut page = 0;
        while page < states.count() {
            let (present, end) = states.stretch(page, states.count());
            if present {
                self.unmap(page * GRANULE, (end * GRANULE).min(self.ram.size()) - page * GRANULE);
            }
            page = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second RAM finds its place taken. It leaves the first one's mapping alone; and nothing is unmapped twice, which would end this
    /// process here.
    #[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
    #[test]
    fn what_could_not_be_mapped_is_not_unmapped() {
        use squib_sim::config::{OverlappingMap, UnmapGap, current};
        let _turn = crate::pager::testing::turn();
        let before = current().unwrap();
        let unmap_gap = UnmapGap::Killed;
        squib_sim::configure(squib_sim::Config { unmap_gap, overlapping_map: OverlappingMap::Error, ..before });
        let machine = super::super::vm::BareVm::create().unwrap();
        squib_sim::configure(before);
        let ram = || GuestRam::new(1 << 30, GRANULE, false).unwrap();
        let first = MappedRam::whole(ram()).unwrap();
        assert!(MappedRam::whole(ram()).is_err());
        drop(first);
        drop(machine);
    }

    #[test]
    fn no_part_crosses_a_region() {
        let parts = |offset, len| regions(offset, len).collect::<Vec<_>>();
        assert_eq!(parts(0, 0), []);
        assert_eq!(parts(GRANULE, GRANULE), [(GRANULE, GRANULE)]);
        assert_eq!(parts(0, REGION), [(0, REGION)]);
        assert_eq!(parts(REGION, GRANULE), [(REGION, GRANULE)]);
        let last = REGION - GRANULE;
        let whole = [(last, GRANULE), (REGION, REGION), (2 * REGION, GRANULE)];
        assert_eq!(parts(last, REGION + 2 * GRANULE), whole);
    }
}
