//! Lazy RAM without a guest, for measuring what a fault of our own threads costs; and the floor to compare it with.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use applevisor::prelude::{GicDisabled, VirtualMachine, VirtualMachineInstance};
use vm_memory::{Bytes, GuestAddress};

use super::{MachPager, PageSource, Pager, PagerStats, spread};
use crate::error::{Error, HvContext, Result};
use crate::hv::stage2::MappedRam;
use crate::layout::RAM_BASE;
use crate::memory::{GRANULE, GuestMemory, GuestRam, MemoryObject};

/// RAM that is absent until it is touched, in a virtual machine without vCPUs. One lives at a time in a process.
#[derive(Debug)]
pub struct LazyMemory {
    // Dropped in this order: the memory map goes before the machine.
    _net: Arc<MachPager>,
    pager: Arc<Pager>,
    ram: Arc<GuestRam>,
    _vm: VirtualMachineInstance<GicDisabled>,
}

impl LazyMemory {
    /// All of `source`, absent. A fault brings one page.
    ///
    /// # Errors
    /// [`Error::Hypervisor`] if there can be no virtual machine now; [`Error::System`] if there is no memory.
    pub fn new(source: Arc<dyn PageSource>) -> Result<LazyMemory> {
        let vm = VirtualMachine::new().hv("create a virtual machine")?;
        let ram = GuestRam::absent(RAM_BASE, source.size(), false)?;
        let pager = Pager::new(Arc::new(MappedRam::absent(Arc::clone(&ram))), source, 1)?;
        let net = Arc::new(spread(&pager)?);
        ram.set_net(Arc::downgrade(&net));
        Ok(LazyMemory { _net: net, pager, ram, _vm: vm })
    }

    /// The calling thread's way to the RAM.
    ///
    /// # Errors
    /// [`Error::Mach`] if the thread cannot be registered for exceptions.
    pub fn toucher(&self) -> Result<Toucher<'_>> {
        Ok(Toucher { memory: self.ram.guest_memory()?, ram: &self.ram })
    }

    /// What the pager did.
    pub fn stats(&self) -> PagerStats {
        self.pager.monitor().stats()
    }
}

/// One thread's way to a [`LazyMemory`].
#[derive(Debug)]
pub struct Toucher<'a> {
    memory: GuestMemory,
    ram: &'a GuestRam,
}

impl Toucher<'_> {
    /// Reads the 8 bytes at `offset` of RAM as a device does: the accessor brings their page first.
    ///
    /// # Errors
    /// [`Error::GuestMemory`] if they are not inside RAM or cannot be had.
    pub fn read(&self, offset: u64) -> Result<u64> {
        let address = RAM_BASE.saturating_add(offset);
        let failed = |_| Error::GuestMemory { what: "a probe", address, len: 8 };
        self.memory.read_obj(GuestAddress(address)).map_err(failed)
    }

    /// Reads the byte at `offset` of RAM without announcing it: where it is absent an exception brings its page. If its page cannot
    /// be had, the process ends there, as with any fault.
    ///
    /// # Errors
    /// [`Error::GuestMemory`] if it is not inside RAM.
    pub fn touch(&self, offset: u64) -> Result<u8> {
        if offset >= self.ram.size() {
            return Err(Error::GuestMemory { what: "a probe", address: RAM_BASE.saturating_add(offset), len: 1 });
        }
        // SAFETY: a byte of the guest view (checked), read volatilely; where it is absent, the exception port of this thread
        // (which `memory` keeps registered) has it brought before the read goes on.
        Ok(unsafe { self.ram.guest_view().add(offset as usize).read_volatile() })
    }
}

/// What bringing each of these pages of `file` would cost if there were nothing to it: one `pread` of 16 KiB and two changes of
/// protection.
///
/// # Errors
/// [`Error::System`] if the system refuses any of that.
pub fn bare_floor(file: &File, size: u64, offsets: &[u64]) -> Result<Vec<Duration>> {
    let measure = || -> io::Result<Vec<Duration>> {
        let object = MemoryObject::new(usize::try_from(size).map_err(io::Error::other)?)?;
        let views = [object.map_closed()?, object.map_closed()?];
        let mut page = [0; GRANULE as usize];
        let one = |&offset: &u64| {
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            let begun = Instant::now();
            file.read_exact_at(&mut page, offset)?;
            for view in &views {
                view.open(at, GRANULE as usize)?;
            }
            Ok(begun.elapsed())
        };
        offsets.iter().map(one).collect()
    };
    measure().map_err(|source| Error::System { action: "measure the floor".into(), source })
}
