//! The end of the virtual machine. The framework may answer "busy" for a while after the last vCPU is gone; the binding asks once
//! and ignores the answer, after which no other machine could be created in this process. This asks again.

use std::time::Duration;

use applevisor::prelude::HypervisorError;

const RETRIES: u32 = 100;
const WAIT: Duration = Duration::from_millis(20);

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
        for _ in 0..RETRIES {
            // SAFETY: plain call. Its vCPUs' threads have been joined; where the binding has already destroyed the machine, the
            // call finds none.
            match HypervisorError::from(unsafe { applevisor_sys::hv_vm_destroy() }) {
                HypervisorError::Busy => std::thread::sleep(WAIT),
                _ => return,
            }
        }
        tracing::warn!("the virtual machine stays busy; no other can be created in this process");
    }
}
