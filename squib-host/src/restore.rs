//! Bringing a machine back.
//!
//! VM, GIC, memory map, vCPUs on their threads with their MPIDR; then the GIC's state; then each vCPU's registers and GIC CPU
//! interface (the group enables last); then one counter offset for all, compare values, controls, masks; then devices. All
//! vCPUs that were on come back on. What this host cannot honour is refused with the reason, before anything runs.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use squib_snapshot::{
    DeviceState, GicRestoreTarget, MicrovmState, PsciVcpuState, SnapshotError, SysReg, VcpuState, load,
    restore_vcpu_state_as_saved,
};

use crate::build::{self, Disk, Parts};
use crate::clock;
use crate::config::{RestoreBackend, RestoreConfig};
use crate::devices::blob;
use crate::devices::virtio::block::DiskRecord;
use crate::devices::virtio::mmio;
use crate::error::{Error, HvContext, Result};
use crate::extra::{self, MachineExtra, VcpuExtra};
use crate::hv::gic_state::LiveGic;
use crate::layout;
use crate::machine::{Description, Machine};
use crate::memory::{GRANULE, GuestRam};
use crate::vcpu::psci::Power;
use crate::vcpu::registers::{self, LiveVcpu};
use crate::vcpu::run::VcpuThread;

/// Threads that read a memory file for the `copy` backend.
const COPY_THREADS: u64 = 8;

fn refused(error: SnapshotError) -> Error {
    match error {
        SnapshotError::Capture(reason) => Error::Incompatible(reason),
        other => Error::Snapshot(other),
    }
}

/// Restores a machine; its vCPUs stand still where the snapshot was taken.
pub fn restore(mut config: RestoreConfig) -> Result<Machine> {
    let state = load(&config.state)?.state;
    let extra = find_extra(&state)?;
    check_host(&state, &extra)?;
    let disks = disks(&state, &config)?;
    let cpus = state.vcpu_states.len() as u32;
    build::check_shape(state.vm_info.mem_size_mib, cpus, disks.len(), config.clock)?;
    let ram = bring_ram(&config, state.vm_info.mem_size_mib << 20)?;

    let parts = build::assemble(ram, cpus, config.clock, &mut config.console)?;
    build::attach_devices(&parts, &disks, config.clock)?;
    LiveGic(&parts.shared.vm).restore(&state.gic_state.bytes).map_err(refused)?;
    restore_vcpus(&parts, &state, extra)?;
    restore_devices(&parts, &state.device_states.devices)?;

    let info = state.vm_info;
    let description = Description {
        memory_mib: info.mem_size_mib,
        kernel: info.kernel_image_path,
        initrd: info.initrd_path,
        cmdline: info.boot_args,
        track_dirty_pages: config.track_dirty_pages,
    };
    Machine::finish(parts, description, config.clock, config.console.input)
}

fn find_extra(state: &MicrovmState) -> Result<MachineExtra> {
    let device = state.device_states.devices.iter().find(|d| d.kind == extra::KIND);
    let device = device.ok_or_else(|| {
        Error::Incompatible(
            "it lacks the timers and GIC CPU interfaces of its vCPUs; it was not taken by squib run".into(),
        )
    })?;
    blob::decode(extra::KIND, extra::VERSION, &device.blob)
}

fn check_host(state: &MicrovmState, extra: &MachineExtra) -> Result<()> {
    let here = clock::counter_frequency();
    if extra.counter_frequency != here {
        return Err(Error::Incompatible(format!(
            "its guest's counter runs at {} Hz; this host's runs at {here} Hz, and a guest cannot be told",
            extra.counter_frequency
        )));
    }
    if extra.vcpus.len() != state.vcpu_states.len() {
        return Err(Error::Incompatible("its parts disagree about the number of vCPUs".into()));
    }
    for (index, vcpu) in state.vcpu_states.iter().enumerate() {
        if vcpu.mpidr != layout::mpidr(index as u32) {
            return Err(Error::Incompatible(format!(
                "vCPU {index} has MPIDR_EL1 {:#x}; this build gives it {:#x}",
                vcpu.mpidr,
                layout::mpidr(index as u32)
            )));
        }
    }
    Ok(())
}

fn disks(state: &MicrovmState, config: &RestoreConfig) -> Result<Vec<Disk>> {
    let saved: Vec<&DeviceState> = state.device_states.devices.iter().filter(|d| d.kind == "virtio-blk").collect();
    if config.disks.len() > saved.len() {
        return Err(Error::Config(format!(
            "{} disks are named, but the snapshot's machine has {}",
            config.disks.len(),
            saved.len()
        )));
    }
    let disk = |(n, device): (usize, &&DeviceState)| {
        let record = DiskRecord::decode(&mmio::backend_state(&device.kind, &device.blob)?)?;
        let named: Option<PathBuf> = config.disks.get(n).cloned().flatten();
        Ok(Disk { overridden: named.is_some(), path: named.unwrap_or(record.path), read_only: record.read_only })
    };
    saved.iter().enumerate().map(disk).collect()
}

fn bring_ram(config: &RestoreConfig, size: u64) -> Result<Arc<GuestRam>> {
    let failed = |action| {
        let path = config.memory.clone();
        move |source| Error::File { action, path, source }
    };
    let file = File::open(&config.memory).map_err(failed("open the memory file"))?;
    let len = file.metadata().map_err(failed("examine the memory file"))?.len();
    if len < size || !size.is_multiple_of(GRANULE) {
        return Err(Error::Incompatible(format!(
            "the memory file {} is {len} bytes long, but the machine has {size} bytes of RAM: it belongs to another snapshot",
            config.memory.display()
        )));
    }
    match config.backend {
        RestoreBackend::Map => GuestRam::map_file(layout::RAM_BASE, size, &file, config.track_dirty_pages),
        RestoreBackend::Copy => {
            let ram = GuestRam::new(layout::RAM_BASE, size, config.track_dirty_pages)?;
            let part = (size / COPY_THREADS).next_multiple_of(GRANULE);
            let copy = |n: u64| {
                let start = (n * part).min(size);
                ram.fill_from_file(&file, start, part.min(size - start))
            };
            std::thread::scope(|scope| {
                let readers: Vec<_> = (0..=size / part).map(|n| scope.spawn(move || copy(n))).collect();
                readers.into_iter().try_for_each(|r| r.join().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into())))
            })
            .map_err(failed("read the memory file"))?;
            Ok(ram)
        }
    }
}

fn restore_vcpus(parts: &Parts, state: &MicrovmState, extra: MachineExtra) -> Result<()> {
    let shared = &parts.shared;
    for (index, (vcpu, extra)) in state.vcpu_states.iter().zip(&extra.vcpus).enumerate() {
        let (vcpu, extra) = (vcpu.clone(), extra.clone());
        shared.control.call(&shared.vm, index, None, move |thread| restore_registers(thread, &vcpu, &extra))??;
    }
    shared.control.set_guest_counter(extra.counter);
    for (index, (vcpu, extra)) in state.vcpu_states.iter().zip(&extra.vcpus).enumerate() {
        let timer = |reg: SysReg| vcpu.sys_regs.get(&reg.as_encoded()).copied().unwrap_or(0);
        let (cval, ctl, masked) = (timer(SysReg::CntvCvalEl0), timer(SysReg::CntvCtlEl0), extra.timer_masked);
        shared.control.call(&shared.vm, index, None, move |thread| {
            thread.take_offset()?;
            registers::restore_timer(&thread.vcpu, cval, ctl, masked).hv("set the virtual timer")
        })??;
        let power = match vcpu.psci_state {
            PsciVcpuState::On => Power::On,
            PsciVcpuState::Off => Power::Off,
            PsciVcpuState::OnPending => {
                let message = format!("vCPU {index} was between off and on, and its entry point is not recorded");
                return Err(Error::Incompatible(message));
            }
        };
        shared.control.set_power(index, power);
    }
    Ok(())
}

fn restore_registers(thread: &mut VcpuThread, state: &VcpuState, extra: &VcpuExtra) -> Result<()> {
    let mut live = LiveVcpu { vcpu: &thread.vcpu, power: state.psci_state };
    restore_vcpu_state_as_saved(&mut live, state).map_err(refused)?;
    registers::restore_icc(&thread.vcpu, &extra.icc).map_err(|(register, error)| {
        Error::Incompatible(format!("the GIC CPU interface's register {register:#x} cannot be set: {error}"))
    })?;
    registers::set_pending(&thread.vcpu, extra.pending).hv("set pending interrupts")
}

fn restore_devices(parts: &Parts, saved: &[DeviceState]) -> Result<()> {
    for attached in parts.shared.bus.get().into_iter().flat_map(|bus| bus.iter()) {
        let kind = attached.device.kind();
        let state = saved.iter().find(|d| d.kind == kind && d.id == attached.id).ok_or_else(|| Error::DeviceState {
            device: format!("{kind} {}", attached.id),
            reason: "the snapshot does not have it".into(),
        })?;
        attached.device.restore(&state.blob)?;
    }
    let known = |d: &DeviceState| {
        d.kind == extra::KIND
            || parts.shared.bus.get().is_some_and(|bus| bus.iter().any(|a| a.device.kind() == d.kind && a.id == d.id))
    };
    match saved.iter().find(|d| !known(d)) {
        None => Ok(()),
        Some(d) => Err(Error::DeviceState {
            device: format!("{} {}", d.kind, d.id),
            reason: "this build has no such device".into(),
        }),
    }
}
