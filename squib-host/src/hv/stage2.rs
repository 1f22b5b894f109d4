//! Stage 2: guest RAM made visible to the guest, and taken away again before the memory goes.

use std::sync::Arc;

use applevisor::prelude::{HypervisorError, MemPerms};

use crate::error::{HvContext, Result};
use crate::memory::GuestRam;

fn check(code: i32) -> Result<(), HypervisorError> {
    if code == 0 { Ok(()) } else { Err(HypervisorError::from(code)) }
}

/// Guest RAM mapped at stage 2. Holds the RAM, so that the memory outlives the mapping.
#[derive(Debug)]
pub struct MappedRam {
    ram: Arc<GuestRam>,
}

impl MappedRam {
    /// Maps all of `ram` for reading, writing and execution, by one call over one VM region.
    pub fn new(ram: Arc<GuestRam>) -> Result<MappedRam> {
        let flags = u64::from(MemPerms::ReadWriteExec);
        // SAFETY: the guest view is one mapping of `size` readable and writable bytes on a 2 MiB boundary; `ram` is held until
        // the range is unmapped, so the guest never reaches memory that is gone.
        let code = unsafe {
            applevisor_sys::hv_vm_map(ram.guest_view().cast_const().cast(), ram.base(), ram.size() as usize, flags)
        };
        check(code).hv(format!("map {} MiB of guest RAM at {:#x}", ram.size() >> 20, ram.base()))?;
        Ok(MappedRam { ram })
    }

    /// The RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}

impl Drop for MappedRam {
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped; no vCPU exists any more (the machine joins their threads first).
        let code = unsafe { applevisor_sys::hv_vm_unmap(self.ram.base(), self.ram.size() as usize) };
        if let Err(error) = check(code) {
            tracing::warn!(%error, "guest RAM could not be unmapped");
        }
    }
}
