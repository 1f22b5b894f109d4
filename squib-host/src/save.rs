//! Reading the state of a machine that stands still, for a snapshot: everything but RAM.
//!
//! Order: GIC, vCPUs (each on its own thread), devices; RAM and the files follow in [`checkpoint`](crate::checkpoint). Nothing of
//! the guest moves in between; devices were quiesced after the last vCPU had stopped.

use applevisor::prelude::HypervisorError;
use squib_snapshot::{
    ClockMode as RecordedClock, ClockRecord, DeviceState, DeviceStates, GicSnapshotSource, GicState, MachineRecord,
    MicrovmState, MmdsSnapshotSource, MmdsState, PsciVcpuState, VcpuRecord, VcpuState, VmInfo, capture_vcpu_state,
};

use crate::clock;
use crate::config::ClockMode;
use crate::error::{HvContext, Result};
use crate::host;
use crate::hv::gic_state::LiveGic;
use crate::machine::Machine;
use crate::vcpu::psci::Power;
use crate::vcpu::registers::{self, LiveVcpu};
use crate::vcpu::run::VcpuThread;

/// The metadata service of a machine that has none.
struct NoMmds;

impl MmdsSnapshotSource for NoMmds {
    fn capture(&self) -> squib_snapshot::Result<Option<MmdsState>> {
        Ok(None)
    }
}

/// Reads the state of `machine`, which stands still.
pub fn capture(machine: &Machine) -> Result<(MicrovmState, MachineRecord)> {
    let shared = &machine.parts.shared;
    let gic = LiveGic(&shared.vm).capture()?;
    let (mut vcpu_states, mut vcpus) = (Vec::new(), Vec::new());
    for index in 0..machine.parts.threads.count() {
        let (state, record) = shared.control.call(&shared.vm, index, None, capture_vcpu)??;
        vcpu_states.push(state);
        vcpus.push(record);
    }
    let attached = shared.bus.get().into_iter().flat_map(|bus| bus.iter());
    let devices = attached.map(|attached| {
        Ok(DeviceState {
            kind: attached.device.kind().into(),
            id: attached.id.clone(),
            mmio_slot: attached.slot,
            blob: attached.device.save()?,
        })
    });
    let devices: Vec<_> = devices.collect::<Result<_>>()?;
    let description = &machine.description;
    let state = MicrovmState {
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
        mmds_state: NoMmds.capture()?,
    };
    let mut record = MachineRecord {
        vcpus,
        host: host::record(),
        clock: ClockRecord {
            wall_clock_ns: u64::try_from(clock::wall_time().as_nanos()).unwrap_or(u64::MAX),
            guest_counter: shared.control.guest_counter(),
            mode: match machine.clock {
                ClockMode::Host => RecordedClock::Host,
                ClockMode::Deterministic => RecordedClock::Deterministic,
            },
            instructions: machine.total_instructions(),
        },
        blobs: Default::default(),
    };
    if let Some(fdt) = description.fdt {
        fdt.record(&mut record);
    }
    Ok((state, record))
}

fn capture_vcpu(thread: &mut VcpuThread) -> Result<(VcpuState, VcpuRecord)> {
    let power = match thread.shared.control.power(thread.index()) {
        Power::On => PsciVcpuState::On,
        Power::Off => PsciVcpuState::Off,
        Power::OnPending { .. } => PsciVcpuState::OnPending,
    };
    let state = capture_vcpu_state(&LiveVcpu { vcpu: &thread.vcpu, power })?;
    let record = capture_record(thread).hv("read a vCPU's state outside its registers")?;
    Ok((state, record))
}

fn capture_record(thread: &VcpuThread) -> Result<VcpuRecord, HypervisorError> {
    let vcpu = &thread.vcpu;
    let (pending_irq, pending_fiq) = registers::pending(vcpu);
    Ok(VcpuRecord {
        icc_regs: registers::capture_icc(vcpu)?,
        vtimer_offset: vcpu.get_vtimer_offset()?,
        vtimer_masked: vcpu.get_vtimer_mask()?,
        pending_irq,
        pending_fiq,
        trap_debug_exceptions: vcpu.get_trap_debug_exceptions()?,
        trap_debug_reg_accesses: vcpu.get_trap_debug_reg_accesses()?,
        blobs: Default::default(),
    })
}
