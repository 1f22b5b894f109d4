//! Guest faults on RAM: what a vCPU's thread does when stage 2 refuses an access to an IPA inside RAM.
//!
//! Absent pages come first (the pager makes them present and maps them), write protection second (dirty tracking marks and
//! reopens). Either way the guest's instruction is executed again: nothing of it has happened yet. What counts as a store is decided
//! where exits are decoded ([`Exit`](crate::hv::exit::Exit)), why is said in [`track`](crate::track).

use std::sync::Arc;

use crate::config::DirtyGranule;
use crate::error::Result;
use crate::hv::stage2::{MappedRam, Permission};
use crate::memory::GRANULE;
use crate::pager::{Brought, Cause, Pager};
use crate::track::{Taken, WriteTracker};

/// What the guest was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load, a walk that only reads, or cache maintenance.
    Read,
    /// A store, or a walk that updates a descriptor.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// A fault inside RAM.
#[derive(Clone, Copy, Debug)]
pub struct RamFault {
    /// Where, or (for a fault of a walk) in which page.
    pub ipa: u64,
    /// What.
    pub access: Access,
    /// Met by a walk of the guest's translation tables.
    pub walk: bool,
}

/// Whether the guest can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Execute the instruction again.
    Retry,
    /// The same, but after a little while: a snapshot's writer is behind.
    RetryLater,
    /// Nothing here explains the fault.
    Unexplained,
}

/// Everything that explains a fault on RAM.
#[derive(Debug)]
pub struct RamFaults {
    mapped: Arc<MappedRam>,
    pager: Option<Arc<Pager>>,
    tracker: Option<WriteTracker>,
}

impl RamFaults {
    /// RAM that is mapped whole, with every permission, or absent and brought by `pager`. With a log, the guest's writes can be
    /// tracked in it.
    pub fn new(mapped: Arc<MappedRam>, pager: Option<Arc<Pager>>, granule: DirtyGranule) -> RamFaults {
        let log = mapped.ram().dirty().cloned();
        let tracker = log.map(|log| WriteTracker::new(Arc::clone(&mapped), log, granule));
        RamFaults { mapped, pager, tracker }
    }

    /// The pager of a RAM that started absent.
    pub fn pager(&self) -> Option<&Arc<Pager>> {
        self.pager.as_ref()
    }

    /// Makes the access possible, on the thread of the vCPU that faulted. Called by several vCPUs at once.
    /// [`Resolution::Unexplained`] also means: another vCPU met the same fault and answered it before this one looked.
    pub fn resolve(&self, fault: RamFault) -> Result<Resolution> {
        let offset = fault.ipa - self.mapped.ram().base();
        let pager = self.pager.as_ref().filter(|pager| !pager.is_done());
        if let Some(pager) = pager {
            let cause = match fault.access {
                _ if fault.walk => Cause::GuestWalk,
                Access::Fetch => Cause::GuestFetch,
                Access::Read | Access::Write => Cause::GuestData,
            };
            if pager.guest_fault(offset, cause)? == Brought::Now {
                return Ok(Resolution::Retry);
            }
        }
        match (&self.tracker, fault.access) {
            (Some(tracker), Access::Write) => {
                let opened = tracker.open(offset, pager.is_none())?;
                Ok(if opened { Resolution::Retry } else { Resolution::RetryLater })
            }
            _ => Ok(Resolution::Unexplained),
        }
    }

    /// Begins a new epoch of dirty tracking, while no vCPU runs, devices rest and the pager is quiet: write permission is taken from
    /// all RAM that is mapped, and the pages written in the last epoch are handed out. `None` if writes are not tracked.
    pub fn checkpoint(&self) -> Result<Option<Taken>> {
        self.tracker.as_ref().map(|tracker| tracker.checkpoint(|| self.protect())).transpose()
    }

    fn protect(&self) -> Result<()> {
        let (ram, states) = (self.mapped.ram(), self.mapped.ram().states().filter(|states| states.missing() > 0));
        let Some(states) = states else {
            return self.mapped.protect(0, ram.size(), Permission::ReadExec);
        };
        let mut page = 0;
        while page < states.count() {
            let (present, end) = states.stretch(page, states.count());
            if present {
                let (start, end) = (page * GRANULE, (end * GRANULE).min(ram.size()));
                self.mapped.protect(start, end - start, Permission::ReadExec)?;
            }
            page = end;
        }
        Ok(())
    }
}
