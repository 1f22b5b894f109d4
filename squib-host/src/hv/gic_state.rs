//! The in-kernel GIC's state: an opaque blob of distributor and redistributors, without the CPU interfaces.

use applevisor::prelude::{GicEnabled, HypervisorError, VirtualMachineInstance};
use squib_snapshot::{GicRestoreTarget, GicSnapshotSource, SnapshotError};

/// The GIC of a machine whose vCPUs stand still.
#[derive(Debug)]
pub struct LiveGic<'a>(pub &'a VirtualMachineInstance<GicEnabled>);

impl GicSnapshotSource for LiveGic<'_> {
    fn capture(&self) -> squib_snapshot::Result<Vec<u8>> {
        let failed = |error: HypervisorError| SnapshotError::Capture(format!("reading the GIC's state: {error}"));
        let mut state = self.0.gic_state_create().map_err(failed)?;
        let mut blob = vec![0; state.size().map_err(failed)?];
        state.get(&mut blob).map_err(failed)?;
        Ok(blob)
    }
}

impl GicRestoreTarget for LiveGic<'_> {
    fn restore(&mut self, data: &[u8]) -> squib_snapshot::Result<()> {
        // SAFETY: `data` is readable for its length; the framework copies it.
        let code = unsafe { applevisor_sys::hv_gic_set_state(data.as_ptr().cast(), data.len()) };
        if code == 0 {
            return Ok(());
        }
        let error = HypervisorError::from(code);
        Err(SnapshotError::Capture(format!(
            "this system's GIC refuses the saved GIC state ({error}): it was saved by another version of the operating system"
        )))
    }
}
