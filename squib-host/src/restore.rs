//! Bringing a machine back.
//!
//! VM, GIC, memory map, vCPUs on their threads with their MPIDR; then the GIC's state; then each vCPU's registers and GIC CPU
//! interface (the group enables last); then one counter offset for all, compare values, controls, masks; then devices. All
//! vCPUs that were on come back on. What this host cannot honour is refused with the reason, before anything runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use squib_snapshot::{
    Chain, DeviceState, GicRestoreTarget, MachineRecord, MicrovmState, MmdsRestoreTarget, MmdsState, Pair,
    PsciVcpuState, SnapshotError, StateFile, SysReg, VcpuRecord, VcpuState, restore_vcpu_state_as_saved,
};

use crate::boot::fdt::Place;
use crate::build::{self, Disk, Parts, Ram};
use crate::clock;
use crate::config::{PagerConfig, RestoreBackend, RestoreConfig};
use crate::devices::virtio::block::DiskRecord;
use crate::devices::virtio::saved;
use crate::error::{Error, HvContext, Result};
use crate::host;
use crate::hv::gic_state::LiveGic;
use crate::layout;
use crate::machine::{Description, Machine};
use crate::memory::GuestRam;
use crate::pager::{FileSource, PageSource};
use crate::vcpu::psci::Power;
use crate::vcpu::registers::{self, LiveVcpu};
use crate::vcpu::run::VcpuThread;
use crate::vcpu::walk::Regime;

mod eager;
mod lazy;

use lazy::Plan;

fn refused(error: SnapshotError) -> Error {
    match error {
        SnapshotError::Capture(reason) => Error::Incompatible(reason),
        other => Error::Snapshot(other),
    }
}

/// Restores a machine; its vCPUs stand still where the snapshot was taken.
pub fn restore(mut config: RestoreConfig) -> Result<Machine> {
    let saved = Saved::open(&config)?;
    let file = saved.state_file();
    let (state, identity) = (file.state().clone(), file.identity());
    let record = file.require_record("the timers and GIC CPU interfaces of its vCPUs")?.machine.clone();
    check_host(&state, &record)?;
    NoMmds.restore(state.mmds_state.as_ref()).map_err(refused)?;
    let disks = disks(&state, &config)?;
    let cpus = state.vcpu_states.len() as u32;
    build::check_shape(state.vm_info.mem_size_mib, cpus, disks.len(), config.clock)?;
    let files = disks.iter().map(|disk| disk.path.clone()).collect();
    let ram = bring_ram(&config, saved, state.vm_info.mem_size_mib << 20)?;

    let mut parts = build::assemble(ram, config.dirty_granule, cpus, config.clock, &mut config.console)?;
    build::attach_devices(&parts, &disks)?;
    LiveGic(&parts.shared.vm).restore(&state.gic_state.bytes).map_err(refused)?;
    build::measure_counter(&parts, config.clock)?;
    check_counter(&record)?;
    restore_vcpus(&parts, &state, &record)?;
    restore_devices(&parts, &state.device_states.devices)?;
    // RAM is what the snapshot says: from here on every write is a change.
    if let Some(taken) = parts.shared.faults.checkpoint()? {
        taken.commit();
    }
    let fdt = Place::recorded(&record);
    if config.pager.stream {
        let PagerConfig { first, observer, .. } = std::mem::take(&mut config.pager);
        lazy::stream(&mut parts, observer, Plan::new(&state, fdt, first))?;
    }

    let info = state.vm_info;
    let description = Description {
        memory_mib: info.mem_size_mib,
        kernel: info.kernel_image_path,
        initrd: info.initrd_path,
        cmdline: info.boot_args,
        track_dirty_pages: config.track_dirty_pages,
        fdt,
        files,
        instructions_before: record.clock.instructions,
    };
    let mut machine = Machine::finish(parts, description, config.clock, config.console.input)?;
    machine.checkpoints.continue_from(identity);
    Ok(machine)
}

/// A machine without a metadata service, to which a snapshot of one that has it cannot be restored.
struct NoMmds;

impl MmdsRestoreTarget for NoMmds {
    fn restore(&mut self, state: Option<&MmdsState>) -> squib_snapshot::Result<()> {
        match state {
            None => Ok(()),
            Some(_) => Err(SnapshotError::Capture(
                "its machine had a metadata service, which this build does not offer".into(),
            )),
        }
    }
}

fn check_counter(record: &MachineRecord) -> Result<()> {
    let (then, here) = (record.host.counter_frequency, clock::counter_frequency());
    if then == here {
        return Ok(());
    }
    Err(Error::Incompatible(format!(
        "its guest's counter runs at {then} Hz; this host's runs at {here} Hz, and a guest cannot be told"
    )))
}

fn check_host(state: &MicrovmState, record: &MachineRecord) -> Result<()> {
    if record.vcpus.len() != state.vcpu_states.len() {
        return Err(Error::Incompatible("its parts disagree about the number of vCPUs".into()));
    }
    for (index, vcpu) in state.vcpu_states.iter().enumerate() {
        let here = layout::mpidr(index as u32);
        if vcpu.mpidr != here {
            let then = vcpu.mpidr;
            let message = format!("vCPU {index} has MPIDR_EL1 {then:#x}; this build gives it {here:#x}");
            return Err(Error::Incompatible(message));
        }
    }
    for difference in host::differences(&record.host) {
        tracing::warn!(%difference, "this is not the host that the snapshot was taken on");
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
        let record = DiskRecord::decode(&saved::backend_state(&device.kind, &device.blob)?)?;
        let named: Option<PathBuf> = config.disks.get(n).cloned().flatten();
        if named.is_none() && !record.path.exists() {
            let path = record.path.display();
            return Err(Error::Config(format!(
                "its machine has the disk {path}, which is not there: name a copy made at the time of the snapshot with --disk"
            )));
        }
        Ok(Disk { overridden: named.is_some(), path: named.unwrap_or(record.path), read_only: record.read_only })
    };
    saved.iter().enumerate().map(disk).collect()
}

/// A snapshot, open.
enum Saved {
    /// With its memory.
    Chain(Chain),
    /// The state only: somebody else has the memory.
    State(Box<StateFile>),
}

impl Saved {
    fn open(config: &RestoreConfig) -> Result<Saved> {
        if let RestoreBackend::Source(_) = config.backend {
            let newest = config.diffs.last().map_or(&config.state, |diff| &diff.state);
            let file = StateFile::open(newest).map_err(|e| Error::of_file(newest, e))?;
            file.state().verify_compatible()?;
            return Ok(Saved::State(Box::new(file)));
        }
        let open = |state: &Path, memory: &Path| Pair::open(state, memory).map_err(|e| Error::of_file(state, e));
        let pair = open(&config.state, &config.memory)?;
        if let Some(parent) = pair.state_file().parent() {
            let text =
                format!("it is a diff on top of snapshot {parent}: give the whole chain, the full snapshot first");
            return Err(Error::Incompatible(text));
        }
        let diffs = config.diffs.iter().map(|diff| open(&diff.state, &diff.memory));
        Ok(Saved::Chain(Chain::from_pairs(pair, diffs.collect::<Result<_>>()?)?))
    }

    fn state_file(&self) -> &StateFile {
        match self {
            Saved::Chain(chain) => chain.state_file(),
            Saved::State(file) => file,
        }
    }
}

fn check_size(what: &str, found: u64, size: u64) -> Result<()> {
    if found == size {
        return Ok(());
    }
    Err(Error::Incompatible(format!("{what} holds {found} bytes, its machine has {size} bytes of RAM")))
}

fn bring_ram(config: &RestoreConfig, saved: Saved, size: u64) -> Result<Ram> {
    let absent = |source: Arc<dyn PageSource>| -> Result<Ram> {
        let ram = GuestRam::absent(layout::RAM_BASE, size, config.track_dirty_pages)?;
        Ok(Ram { ram, lazy: Some((source, config.pager.fault_around)) })
    };
    match (&config.backend, saved) {
        (RestoreBackend::Source(source), _) => {
            check_size("the page source", source.size(), size)?;
            absent(Arc::clone(source))
        }
        (_, Saved::State(_)) => Err(Error::State("a snapshot without its memory".into())),
        (backend, Saved::Chain(chain)) => {
            check_size("its memory file", chain.ram_size(), size)?;
            match backend {
                RestoreBackend::Map => {
                    let file = chain.links()[0].memory_file();
                    let ram = GuestRam::map_file(layout::RAM_BASE, size, file, config.track_dirty_pages)?;
                    check_sample(&chain)?;
                    eager::overlay(&ram, &chain)?;
                    Ok(ram.into())
                }
                RestoreBackend::Copy => {
                    let ram = GuestRam::new(layout::RAM_BASE, size, config.track_dirty_pages)?;
                    eager::copy(&ram, &chain)?;
                    Ok(ram.into())
                }
                _ => {
                    check_sample(&chain)?;
                    absent(Arc::new(FileSource::new(chain)))
                }
            }
        }
    }
}

/// Catches a memory file that belongs to another snapshot, without reading all of it: compares with its checksum the RAM
/// that each vCPU was working in. No two moments of a guest have the same stacks.
fn check_sample(chain: &Chain) -> Result<()> {
    let mut damage = None;
    let mut read = |ipa: u64| {
        let mut word = [0; 8];
        let offset = ipa.checked_sub(layout::RAM_BASE).filter(|offset| offset.saturating_add(8) <= chain.ram_size())?;
        match chain.read_checked(offset, &mut word) {
            Ok(()) => Some(u64::from_le_bytes(word)),
            Err(error) => {
                damage.get_or_insert(error);
                None
            }
        }
    };
    for vcpu in &chain.state_file().state().vcpu_states {
        let regime = regime(vcpu);
        for address in [vcpu.regs.sp, vcpu.regs.pc] {
            // An address that leads nowhere is the guest's business.
            if let Some(ipa) = regime.walk(address, &mut read) {
                read(ipa & !7);
            }
        }
    }
    match damage {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

/// The translation regime that a saved vCPU was in.
fn regime(vcpu: &VcpuState) -> Regime {
    let reg = |reg: SysReg| vcpu.sys_regs.get(&reg.as_encoded()).copied().unwrap_or(0);
    Regime {
        sctlr: reg(SysReg::SctlrEl1),
        tcr: reg(SysReg::TcrEl1),
        ttbr0: reg(SysReg::Ttbr0El1),
        ttbr1: reg(SysReg::Ttbr1El1),
    }
}

fn restore_vcpus(parts: &Parts, state: &MicrovmState, record: &MachineRecord) -> Result<()> {
    let shared = &parts.shared;
    for (index, (vcpu, record)) in state.vcpu_states.iter().zip(&record.vcpus).enumerate() {
        let (vcpu, record) = (vcpu.clone(), record.clone());
        shared.control.call(&shared.vm, index, None, move |thread| restore_registers(thread, &vcpu, &record))??;
    }
    shared.control.set_guest_counter(record.clock.guest_counter);
    for (index, (vcpu, record)) in state.vcpu_states.iter().zip(&record.vcpus).enumerate() {
        let timer = |reg: SysReg| vcpu.sys_regs.get(&reg.as_encoded()).copied().unwrap_or(0);
        let (cval, ctl, masked) = (timer(SysReg::CntvCvalEl0), timer(SysReg::CntvCtlEl0), record.vtimer_masked);
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

fn restore_registers(thread: &mut VcpuThread, state: &VcpuState, record: &VcpuRecord) -> Result<()> {
    let mut live = LiveVcpu { vcpu: &thread.vcpu, power: state.psci_state };
    restore_vcpu_state_as_saved(&mut live, state).map_err(refused)?;
    registers::restore_icc(&thread.vcpu, &record.icc_regs).map_err(|(register, error)| {
        Error::Incompatible(format!("the GIC CPU interface's register {register:#x} cannot be set: {error}"))
    })?;
    let pending = (record.pending_irq, record.pending_fiq);
    registers::set_pending(&thread.vcpu, pending).hv("set pending interrupts")?;
    let (exceptions, accesses) = (record.trap_debug_exceptions, record.trap_debug_reg_accesses);
    thread.vcpu.set_trap_debug_exceptions(exceptions).hv("set the routing of debug exceptions")?;
    thread.vcpu.set_trap_debug_reg_accesses(accesses).hv("set the routing of debug register accesses")
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
        parts.shared.bus.get().is_some_and(|bus| bus.iter().any(|a| a.device.kind() == d.kind && a.id == d.id))
    };
    match saved.iter().find(|d| !known(d)) {
        None => Ok(()),
        Some(d) => Err(Error::DeviceState {
            device: format!("{} {}", d.kind, d.id),
            reason: "this build has no such device".into(),
        }),
    }
}
