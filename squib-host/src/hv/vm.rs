//! The beginning and the end of the virtual machine. The framework may answer "busy" for a while after the last one, or its last vCPU, is
//! gone; the binding asks once and ignores the answer, after which no other machine could be created in this process. This asks
//! again.

use std::time::Duration;

use applevisor::prelude::{GicDisabled, HypervisorError, VirtualMachine, VirtualMachineInstance};

use crate::error::{CREATE_VM, Error, HvContext, Result};

/// How long to wait before each of the next tries: hardly at first, about 5 s in all.
fn waits() -> impl Iterator<Item = Duration> {
    (0..100).map(|tries: u32| Duration::from_millis(1 << tries.min(6)).min(Duration::from_millis(50)))
}

/// Calls `create` again while it fails because the framework is busy.
pub fn patiently<T>(mut create: impl FnMut() -> Result<T>) -> Result<T> {
    for wait in waits() {
        match create() {
            Err(Error::Hypervisor { source: HypervisorError::Busy, .. }) => std::thread::sleep(wait),
            result => return result,
        }
    }
    create()
}

/// A virtual machine without a GIC.
#[derive(Debug)]
pub struct BareVm {
    /// The machine.
    pub vm: VirtualMachineInstance<GicDisabled>,
    _teardown: Teardown,
}

impl BareVm {
    /// Creates it.
    pub fn create() -> Result<BareVm> {
        let vm = patiently(|| VirtualMachine::new().hv(CREATE_VM))?;
        Ok(BareVm { vm, _teardown: Teardown::new() })
    }
}

/// Dropped last of everything that belongs to a virtual machine.
#[derive(Debug)]
pub struct Teardown(());

impl Teardown {
    /// For the virtual machine that was just created.
    pub fn new() -> Teardown {
        Teardown(())
    }
}

impl Drop for Teardown {
    fn drop(&mut self) {
        for wait in waits() {
            // SAFETY: plain call. Its vCPUs' threads have been joined; where the binding has already destroyed the machine, the
            // call finds none.
            match HypervisorError::from(unsafe { applevisor_sys::hv_vm_destroy() }) {
                HypervisorError::Busy => std::thread::sleep(wait),
                _ => return,
            }
        }
        tracing::warn!("the virtual machine stays busy; no other can be created in this process");
    }
}
