//! Taking a snapshot of a machine that stands still.
//!
//! Order: GIC, vCPUs (each on its own thread), devices, then RAM and the commit of both files as one. Nothing of the guest moves
//! in between; devices were quiesced after the last vCPU had stopped.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use squib_snapshot::{
    DeviceState, DeviceStates, GicSnapshotSource, GicState, MicrovmState, PsciVcpuState, SaveRequest, SnapshotKind,
    VcpuState, VmInfo, capture_vcpu_state,
};

use crate::clock;
use crate::config::{SaveTarget, SnapshotReport};
use crate::devices::blob;
use crate::error::{Error, Result};
use crate::extra::{self, MachineExtra, VcpuExtra};
use crate::hv::gic_state::LiveGic;
use crate::machine::Machine;
use crate::memory::GRANULE;
use crate::vcpu::psci::Power;
use crate::vcpu::registers::{self, LiveVcpu};
use crate::vcpu::run::VcpuThread;

/// Writes a full snapshot of `machine`, which stands still.
pub fn save(machine: &mut Machine, target: &SaveTarget) -> Result<SnapshotReport> {
    let started = Instant::now();
    let stopped_at = machine.stopped_at.unwrap_or(started);
    let state = capture(machine)?;
    let capture = started.elapsed();
    let ram = machine.parts.mapped.ram();
    let ram_bytes = ram.size();
    squib_snapshot::save(SaveRequest {
        state_path: &target.state,
        memory_path: &target.memory,
        kind: SnapshotKind::Full,
        state,
        memory: &**ram,
        ram_size: ram_bytes,
        memory_page_size: GRANULE,
        dirty: None,
    })?;
    // Only now: a snapshot that failed must not lose what has been written since the last one.
    if let Some(dirty) = ram.dirty() {
        dirty.drain_into(|_| ());
    }
    let pause = stopped_at.elapsed();
    let examine = |path: &Path| {
        let failed = |source| Error::File { action: "examine", path: path.into(), source };
        std::fs::metadata(path).map_err(failed)
    };
    let memory = examine(&target.memory)?;
    Ok(SnapshotReport {
        pause,
        capture,
        ram_bytes,
        memory_file_bytes: memory.len(),
        memory_disk_bytes: memory.blocks() * 512,
        state_file_bytes: examine(&target.state)?.len(),
    })
}

fn capture(machine: &Machine) -> Result<MicrovmState> {
    let shared = &machine.parts.shared;
    let gic = LiveGic(&shared.vm).capture()?;
    let mut vcpu_states = Vec::new();
    let mut extra = MachineExtra {
        counter: shared.control.guest_counter(),
        counter_frequency: clock::counter_frequency(),
        vcpus: Vec::new(),
    };
    for index in 0..machine.parts.threads.count() {
        let (state, vcpu) = shared.control.call(&shared.vm, index, None, capture_vcpu)??;
        vcpu_states.push(state);
        extra.vcpus.push(vcpu);
    }
    let mut devices: Vec<DeviceState> = shared
        .bus
        .get()
        .into_iter()
        .flat_map(|bus| bus.iter())
        .map(|attached| DeviceState {
            kind: attached.device.kind().into(),
            id: attached.id.clone(),
            mmio_slot: attached.slot,
            blob: attached.device.save(),
        })
        .collect();
    devices.push(DeviceState {
        kind: extra::KIND.into(),
        id: extra::KIND.into(),
        mmio_slot: u32::MAX,
        blob: blob::encode(extra::VERSION, &extra),
    });
    let description = &machine.description;
    Ok(MicrovmState {
        vm_info: VmInfo {
            mem_size_mib: description.memory_mib,
            smt: false,
            cpu_template: String::new(),
            kernel_image_path: description.kernel.clone(),
            initrd_path: description.initrd.clone(),
            boot_args: description.cmdline.clone(),
            track_dirty_pages: description.track_dirty_pages,
        },
        vcpu_states,
        device_states: DeviceStates::from_devices(devices),
        gic_state: GicState::from_bytes(gic),
        mmds_state: None,
    })
}

fn capture_vcpu(thread: &mut VcpuThread) -> Result<(VcpuState, VcpuExtra)> {
    let power = match thread.shared.control.power(thread.index()) {
        Power::On => PsciVcpuState::On,
        Power::Off => PsciVcpuState::Off,
        Power::OnPending { .. } => PsciVcpuState::OnPending,
    };
    let state = capture_vcpu_state(&LiveVcpu { vcpu: &thread.vcpu, power })?;
    let failed = |what: &str| {
        let what = what.to_string();
        move |source| Error::Hypervisor { action: what, source }
    };
    let extra = VcpuExtra {
        icc: registers::capture_icc(&thread.vcpu).map_err(failed("read the GIC CPU interface"))?,
        timer_masked: thread.vcpu.get_vtimer_mask().map_err(failed("read the virtual timer's mask"))?,
        pending: registers::pending(&thread.vcpu),
    };
    Ok((state, extra))
}
