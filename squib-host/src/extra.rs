//! What a snapshot of ours records beside registers, GIC and devices: the guest's counter, each vCPU's GIC CPU interface and
//! timer mask, and what the machine was taken on.

use serde::{Deserialize, Serialize};

/// One vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuExtra {
    /// GIC CPU interface: encoding and value.
    pub icc: Vec<(u16, u64)>,
    /// The virtual timer's mask.
    pub timer_masked: bool,
    /// Pending IRQ and FIQ set by the host.
    pub pending: (bool, bool),
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineExtra {
    /// CNTVCT_EL0 of every vCPU.
    pub counter: u64,
    /// Its frequency.
    pub counter_frequency: u64,
    /// One for each vCPU.
    pub vcpus: Vec<VcpuExtra>,
}

/// `kind` of the device state that carries it.
pub const KIND: &str = "machine";
/// Version of the encoding.
pub const VERSION: u16 = 1;
