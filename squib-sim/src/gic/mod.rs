//! The GICv3 model: distributor, redistributors, CPU interfaces, MSI frame, state blob.

/// The interrupt controller of a virtual machine.
pub struct Gic {}

impl Gic {
    /// Reads the CPU interface register ICC_* `encoding` (op0:op1:CRn:CRm:op2) of a vCPU. `None`: not one of ours.
    pub fn icc_read(&self, vcpu: usize, encoding: u16) -> Option<u64> {
        let _ = (vcpu, encoding);
        None
    }

    /// Writes a CPU interface register. `false`: not one of ours, or read-only.
    pub fn icc_write(&self, vcpu: usize, encoding: u16, value: u64) -> bool {
        let _ = (vcpu, encoding, value);
        false
    }

    /// Reads `size` bytes at a guest-physical address. `None`: not a GIC address.
    pub fn mmio_read(&self, vcpu: usize, ipa: u64, size: u8) -> Option<u64> {
        let _ = (vcpu, ipa, size);
        None
    }

    /// Writes `size` bytes at a guest-physical address. `false`: not a GIC address.
    pub fn mmio_write(&self, vcpu: usize, ipa: u64, size: u8, value: u64) -> bool {
        let _ = (vcpu, ipa, size, value);
        false
    }

    /// Sets the line of a private peripheral interrupt of a vCPU.
    pub fn set_ppi(&self, vcpu: usize, intid: u32, level: bool) {
        let _ = (vcpu, intid, level);
    }
}
