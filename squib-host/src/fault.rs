//! Guest faults on RAM: what a vCPU's thread does when stage 2 refuses an access to an IPA inside RAM.
//!
//! Absent pages come first (the pager makes them present and maps them), write protection second (dirty tracking marks and
//! reopens). Either way the guest's instruction is executed again: nothing of it has happened yet. Whether the access was a store is
//! told by WnR, except that cache maintenance reports WnR = 1 without storing, and that a walk of the translation tables may
//! store (hardware access flag and dirty state); see Arm ARM D24.2.40.

use std::sync::Arc;

use crate::error::Result;
use crate::hv::stage2::MappedRam;
use crate::pager::{Brought, Cause, Pager};

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
    /// Nothing here explains the fault.
    Unexplained,
}

/// Everything that explains a fault on RAM.
#[derive(Debug)]
pub struct RamFaults {
    mapped: Arc<MappedRam>,
    pager: Option<Arc<Pager>>,
}

impl RamFaults {
    /// RAM that is mapped whole, with every permission, or absent and brought by `pager`.
    pub fn new(mapped: Arc<MappedRam>, pager: Option<Arc<Pager>>) -> RamFaults {
        RamFaults { mapped, pager }
    }

    /// The pager of a RAM that started absent.
    pub fn pager(&self) -> Option<&Arc<Pager>> {
        self.pager.as_ref()
    }

    /// RAM at stage 2.
    pub fn mapped(&self) -> &Arc<MappedRam> {
        &self.mapped
    }

    /// Makes the access possible, on the thread of the vCPU that faulted. Called by several vCPUs at once.
    /// [`Resolution::Unexplained`] also means: another vCPU met the same fault and answered it before this one looked.
    pub fn resolve(&self, fault: RamFault) -> Result<Resolution> {
        if let Some(pager) = self.pager.as_ref().filter(|pager| !pager.is_done()) {
            let cause = match fault.access {
                _ if fault.walk => Cause::GuestWalk,
                Access::Fetch => Cause::GuestFetch,
                Access::Read | Access::Write => Cause::GuestData,
            };
            if pager.guest_fault(fault.ipa - self.mapped.ram().base(), cause)? == Brought::Now {
                return Ok(Resolution::Retry);
            }
        }
        Ok(Resolution::Unexplained)
    }
}
