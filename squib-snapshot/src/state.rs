//! What a version 5.0 state file says about a machine: [`MicrovmState`] and its parts.
//!
//! Field order is wire order (see [`format`](crate::format)): nothing here may be reordered, renamed on the wire or extended.
//! What later versions add stands in [`SnapshotRecord`](crate::SnapshotRecord).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Result, SnapshotError};

/// Most vCPUs a snapshot may have.
pub(crate) const MAX_VCPUS: usize = 32;

/// General registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpRegs {
    /// X0 to X30.
    pub x: [u64; 31],
    /// SP_EL1.
    pub sp: u64,
    /// Program counter.
    pub pc: u64,
    /// PSTATE in the form of CPSR/SPSR.
    pub pstate: u64,
}

/// FP and Advanced SIMD registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpSimdRegs {
    /// V0 to V31 as `[low, high]`.
    pub v: [[u64; 2]; 32],
    /// FPSR.
    pub fpsr: u64,
    /// FPCR.
    pub fpcr: u64,
}

/// Power state of a vCPU as PSCI's AFFINITY_INFO tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PsciVcpuState {
    /// Running or idle.
    On,
    /// Off, waiting for CPU_ON.
    #[default]
    Off,
    /// CPU_ON was called and the vCPU has not started yet.
    OnPending,
}

/// One vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// MPIDR_EL1.
    pub mpidr: u64,
    /// General registers.
    pub regs: GpRegs,
    /// FP/SIMD registers.
    pub fp_regs: FpSimdRegs,
    /// System registers by [`SysReg::as_encoded`](crate::SysReg::as_encoded).
    #[serde(deserialize_with = "crate::bounded::map")]
    pub sys_regs: BTreeMap<u64, u64>,
    /// Power state when it was captured.
    pub psci_state: PsciVcpuState,
}

impl VcpuState {
    /// A vCPU that is off, with every register zero.
    #[must_use]
    pub fn new(mpidr: u64) -> Self {
        Self {
            mpidr,
            regs: GpRegs::default(),
            fp_regs: FpSimdRegs::default(),
            sys_regs: BTreeMap::new(),
            psci_state: PsciVcpuState::Off,
        }
    }
}

/// The interrupt controller's state, opaque to this crate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GicState {
    /// Length of `bytes`.
    pub len: u64,
    /// The blob.
    pub bytes: Vec<u8>,
}

impl GicState {
    /// Wraps a blob.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len() as u64, bytes }
    }
}

/// The metadata service's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmdsState {
    /// The data store as JSON text.
    pub data_json: String,
    /// Life of a session token; `None` is MMDS version 1.
    pub token_ttl_seconds: Option<u32>,
}

impl MmdsState {
    /// Serialises a tree.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn with_data(value: &serde_json::Value, token_ttl_seconds: Option<u32>) -> Result<Self, serde_json::Error> {
        Ok(Self { data_json: serde_json::to_string(value)?, token_ttl_seconds })
    }

    /// Parses the tree; empty text is `null`.
    ///
    /// # Errors
    /// The parser's.
    pub fn data_value(&self) -> Result<serde_json::Value, serde_json::Error> {
        if self.data_json.is_empty() {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_str(&self.data_json)
    }
}

/// How the machine was configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// RAM in MiB.
    pub mem_size_mib: u64,
    /// Simultaneous multithreading; always false on aarch64.
    pub smt: bool,
    /// CPU template.
    pub cpu_template: String,
    /// Kernel the machine was booted from.
    pub kernel_image_path: String,
    /// Initial RAM disk.
    pub initrd_path: Option<String>,
    /// Kernel command line.
    pub boot_args: String,
    /// Whether dirty pages are tracked, which diff snapshots need.
    pub track_dirty_pages: bool,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Class, such as `virtio-block`.
    pub kind: String,
    /// Name within the machine.
    pub id: String,
    /// MMIO slot.
    pub mmio_slot: u32,
    /// The device's own state, opaque to this crate.
    pub blob: Vec<u8>,
}

/// All devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStates {
    /// In the order of [`DeviceStates::from_devices`].
    #[serde(deserialize_with = "crate::bounded::devices")]
    pub devices: Vec<DeviceState>,
}

impl DeviceStates {
    /// Collects devices, sorted by slot and then name.
    pub fn from_devices<I: IntoIterator<Item = DeviceState>>(iter: I) -> Self {
        let mut devices: Vec<_> = iter.into_iter().collect();
        devices.sort_by(|a, b| (a.mmio_slot, &a.id).cmp(&(b.mmio_slot, &b.id)));
        Self { devices }
    }
}

/// A whole machine, without its memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MicrovmState {
    /// Configuration.
    pub vm_info: VmInfo,
    /// vCPUs, by index.
    #[serde(deserialize_with = "crate::bounded::vcpus")]
    pub vcpu_states: Vec<VcpuState>,
    /// Devices.
    pub device_states: DeviceStates,
    /// Interrupt controller.
    pub gic_state: GicState,
    /// Metadata service, if the machine has one.
    pub mmds_state: Option<MmdsState>,
}

impl MicrovmState {
    /// Whether this VMM can run the machine: 1 to 32 vCPUs, no SMT, a GIC blob of the stated length.
    ///
    /// # Errors
    /// [`SnapshotError::Incompatible`].
    pub fn verify_compatible(&self) -> Result<()> {
        let ok = (1..=MAX_VCPUS).contains(&self.vcpu_states.len())
            && !self.vm_info.smt
            && !self.gic_state.bytes.is_empty()
            && self.gic_state.len == self.gic_state.bytes.len() as u64;
        if ok { Ok(()) } else { Err(SnapshotError::Incompatible) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runnable() -> MicrovmState {
        MicrovmState {
            vcpu_states: vec![VcpuState::new(0)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        }
    }

    #[test]
    fn verify_compatible_checks_each_condition() {
        runnable().verify_compatible().unwrap();
        let broken: [fn(&mut MicrovmState); 5] = [
            |s| s.vcpu_states.clear(),
            |s| s.vcpu_states = vec![VcpuState::new(0); 33],
            |s| s.vm_info.smt = true,
            |s| s.gic_state = GicState::default(),
            |s| s.gic_state.len += 1,
        ];
        for break_it in broken {
            let mut state = runnable();
            break_it(&mut state);
            assert!(matches!(state.verify_compatible(), Err(SnapshotError::Incompatible)));
        }
        let mut most = runnable();
        most.vcpu_states = vec![VcpuState::new(0); 32];
        most.verify_compatible().unwrap();
        assert!(MicrovmState::default().verify_compatible().is_err());
    }

    #[test]
    fn devices_sort_by_slot_then_name_and_keep_ties_in_order() {
        let dev = |slot, id: &str, blob| DeviceState { kind: "k".into(), id: id.into(), mmio_slot: slot, blob };
        let sorted = DeviceStates::from_devices([
            dev(1, "b", vec![0]),
            dev(1, "a", vec![1]),
            dev(0, "z", vec![2]),
            dev(1, "a", vec![3]),
        ]);
        let order: Vec<u8> = sorted.devices.iter().map(|d| d.blob[0]).collect();
        assert_eq!(order, [2, 1, 3, 0]);
    }

    #[test]
    fn mmds_text() {
        let tree = serde_json::json!({"a": [1, null]});
        let state = MmdsState::with_data(&tree, Some(60)).unwrap();
        assert_eq!(state.data_value().unwrap(), tree);
        assert_eq!(MmdsState::default().data_value().unwrap(), serde_json::Value::Null);
        assert!(MmdsState { data_json: "{".into(), token_ttl_seconds: None }.data_value().is_err());
    }

    #[test]
    fn golden_values_without_envelope() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let enc = |v: PsciVcpuState| hex(bitcode::serialize(&v).unwrap());
        assert_eq!(
            [enc(PsciVcpuState::On), enc(PsciVcpuState::Off), enc(PsciVcpuState::OnPending)],
            ["00", "01", "02"]
        );
        assert_eq!(hex(bitcode::serialize(&VmInfo::default()).unwrap()), "0600000000000000");
        assert_eq!(hex(bitcode::serialize(&GicState::from_bytes(vec![1, 2, 3])).unwrap()), "0603030639");
        let mmds = MmdsState { data_json: "{}".into(), token_ttl_seconds: Some(60) };
        assert_eq!(hex(bitcode::serialize(&mmds).unwrap()), "027b7d01043c");
        let dev = DeviceState { kind: "virtio-net".into(), id: "eth0".into(), mmio_slot: 2, blob: vec![9, 8, 7] };
        assert_eq!(hex(bitcode::serialize(&dev).unwrap()), "0a76697274696f2d6e65740465746830040203028907");
    }
}
