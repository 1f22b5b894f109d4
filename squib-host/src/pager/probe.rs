//! Lazy RAM without a machine around it, for measuring what one fault costs, of our own threads and of a guest; and the floor to
//! compare it with.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use applevisor::prelude::{Reg, Vcpu};
use vm_memory::{Bytes, GuestAddress};

use super::{Cause, Net, PageSource, Pager, PagerStats};
use crate::error::{Error, HvContext, Result};
use crate::hv::exit::Exit;
use crate::hv::stage2::MappedRam;
use crate::hv::vm::BareVm;
use crate::layout::{self, RAM_BASE};
use crate::memory::object::{Mapping, MemoryObject};
use crate::memory::{GRANULE, GuestMemory, GuestRam};

/// `LDR X1, [X0]`, `HVC #0`, and back to the load.
const LOAD: [u32; 3] = [0xf940_0001, 0xd400_0002, 0x17ff_fffe];
/// EL1h, everything masked.
const CPSR: u64 = 0x3c5;

/// RAM that is absent until it is touched, in a virtual machine of its own. One lives at a time in a process.
#[derive(Debug)]
pub struct LazyMemory {
    // Dropped in this order: the memory map goes before the machine.
    _net: Arc<Net>,
    pager: Arc<Pager>,
    ram: Arc<GuestRam>,
    machine: BareVm,
}

impl LazyMemory {
    /// All of `source`, absent. A fault brings one page.
    ///
    /// # Errors
    /// [`Error::Hypervisor`] if there can be no virtual machine now; [`Error::System`] if there is no memory.
    pub fn new(source: Arc<dyn PageSource>) -> Result<LazyMemory> {
        let machine = BareVm::create()?;
        let ram = GuestRam::absent(RAM_BASE, source.size(), false)?;
        let pager = Pager::new(Arc::new(MappedRam::absent(Arc::clone(&ram))), source, 1)?;
        let net = Arc::new(Net::spread(&pager)?);
        ram.set_net(Arc::downgrade(&net));
        Ok(LazyMemory { _net: net, pager, ram, machine })
    }

    /// The calling thread's way to the RAM.
    ///
    /// # Errors
    /// [`Error::Mach`] if the thread cannot be registered for exceptions.
    pub fn toucher(&self) -> Result<Toucher<'_>> {
        Ok(Toucher { memory: self.ram.guest_memory()?, ram: &self.ram })
    }

    /// Lets a vCPU load the 8 bytes at each of these offsets of RAM, on the calling thread, and answers its faults as a machine
    /// does. How long each took, from entering the guest to the exit behind the load.
    ///
    /// # Errors
    /// [`Error::GuestMemory`] for an offset outside RAM, and whatever keeps a page from being brought.
    pub fn guest_faults(&self, offsets: &[u64]) -> Result<Vec<Duration>> {
        let code = GuestRam::new(layout::PROBE, GRANULE, false)?;
        let failed = |_| Error::GuestMemory { what: "a probe", address: layout::PROBE, len: 12 };
        code.guest_memory()?.write_obj(LOAD, GuestAddress(layout::PROBE)).map_err(failed)?;
        let _code = MappedRam::whole(code)?;
        let vcpu = self.machine.vm.vcpu_create().hv("create a vCPU")?;
        for (register, value) in [(Reg::CPSR, CPSR), (Reg::PC, layout::PROBE)] {
            vcpu.set_reg(register, value).hv("set a register")?;
        }
        offsets.iter().map(|&offset| self.guest_fault(&vcpu, offset)).collect()
    }

    fn guest_fault(&self, vcpu: &Vcpu, offset: u64) -> Result<Duration> {
        let address = RAM_BASE.saturating_add(offset);
        if offset >= self.ram.size() {
            return Err(Error::GuestMemory { what: "a probe", address, len: 8 });
        }
        vcpu.set_reg(Reg::X0, address).hv("set a register")?;
        let begun = Instant::now();
        loop {
            vcpu.run().hv("run a vCPU")?;
            match Exit::decode(&vcpu.get_exit_info()) {
                Exit::Hvc => return Ok(begun.elapsed()),
                Exit::DataAbort(abort) => {
                    self.pager.guest_fault(abort.ipa.wrapping_sub(RAM_BASE), Cause::GuestData)?;
                }
                Exit::Canceled | Exit::VtimerActivated => {}
                exit => return Err(Error::State(format!("measuring a guest's fault ended in {exit:?}"))),
            }
        }
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

/// What bringing a page would cost if there were nothing to it: one `pread` of 16 KiB and two changes of protection, on two views
/// of one object as the pager has them.
#[derive(Debug)]
pub struct BareFloor {
    file: File,
    views: [Mapping; 2],
}

impl BareFloor {
    /// For pages of `file`, in `size` bytes of which nothing can be accessed yet.
    ///
    /// # Errors
    /// [`Error::System`] if there is no memory.
    pub fn new(file: &File, size: u64) -> Result<BareFloor> {
        let make = || {
            let object = MemoryObject::new(usize::try_from(size).map_err(io::Error::other)?)?;
            Ok(BareFloor { file: file.try_clone()?, views: [object.map_closed()?, object.map_closed()?] })
        };
        make().map_err(floor_failed)
    }

    /// Reads the page at `offset` and opens it in both views. Called by many threads at once. How long it took.
    ///
    /// # Errors
    /// [`Error::System`] if the system refuses.
    pub fn bring(&self, offset: u64) -> Result<Duration> {
        let bring = || {
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            let mut page = [0; GRANULE as usize];
            let begun = Instant::now();
            self.file.read_exact_at(&mut page, offset)?;
            self.views.iter().try_for_each(|view| view.open(at, page.len()))?;
            Ok(begun.elapsed())
        };
        bring().map_err(floor_failed)
    }
}

fn floor_failed(source: io::Error) -> Error {
    Error::System { action: "measure the floor".into(), source }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::testing::{TestSource, turn};
    use super::*;

    #[test]
    fn every_way_of_faulting_brings_its_page_and_nothing_else() {
        const PAGES: u64 = 64;
        let _turn = turn();
        let source = TestSource::pattern(PAGES);
        let word =
            |page: u64| source.bytes()[(page * GRANULE) as usize..].first_chunk().map(|b| u64::from_le_bytes(*b));
        let lazy = LazyMemory::new(Arc::clone(&source) as Arc<dyn PageSource>).unwrap();
        let toucher = lazy.toucher().unwrap();
        assert_eq!(Some(toucher.read(5 * GRANULE).unwrap()), word(5));
        assert_eq!(Some(toucher.touch(6 * GRANULE).unwrap()), word(6).map(|word| word as u8));
        let faults = lazy.guest_faults(&[7 * GRANULE, 2 * GRANULE]).unwrap();
        assert!(faults.len() == 2 && faults.iter().all(|time| !time.is_zero()));
        let stats = lazy.stats();
        assert_eq!((stats.faults_host, stats.faults_exception, stats.faults_guest_data), (1, 1, 2));
        assert_eq!(stats.pages_missing, PAGES - 4);
        let outside = [toucher.read(PAGES * GRANULE).map(drop), toucher.touch(PAGES * GRANULE).map(drop)];
        assert!(outside.iter().all(|result| matches!(result, Err(Error::GuestMemory { .. }))), "{outside:?}");
        assert!(lazy.guest_faults(&[u64::MAX]).is_err());
    }

    #[test]
    fn the_floor_reads_and_opens() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 2 * GRANULE as usize]).unwrap();
        let floor = BareFloor::new(&file, 3 * GRANULE).unwrap();
        assert!(floor.bring(GRANULE).unwrap() > Duration::ZERO);
        assert!(floor.bring(2 * GRANULE).is_err(), "behind the end of the file");
    }
}
