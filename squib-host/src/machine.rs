//! One virtual machine, from configuration to the end: boot or restore, run, pause, snapshot.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use squib_snapshot::{PageReader, SnapshotId, SnapshotKind};

use crate::boot::{self, fdt};
use crate::build::{self, Disk, Parts};
use crate::checkpoint::{self, Checkpoints, PendingSnapshot};
use crate::config::{
    ClockMode, MachineConfig, RestoreConfig, RunOutcome, SaveTarget, SnapshotReport, StopReason, Watch,
};
use crate::error::{Error, Result};
use crate::layout;
use crate::memory::GuestRam;
use crate::pager::Monitor;
use crate::restore;
use crate::standin;
use crate::terminal::RawTerminal;
use crate::vcpu::control::Cause;
use crate::vcpu::run::Shared;

/// The longest command line: `COMMAND_LINE_SIZE` of Linux' arch/arm64/include/uapi/asm/setup.h without its NUL. Kernels cut off the
/// rest without a word.
const CMDLINE_MAX: usize = 2047;

/// What a snapshot records about the machine as a whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Description {
    pub memory_mib: u64,
    pub kernel: String,
    pub initrd: Option<String>,
    pub cmdline: String,
    pub track_dirty_pages: bool,
    /// Where the device tree lies, if that is known.
    pub fdt: Option<fdt::Place>,
    /// What the machine is made of, which no snapshot may replace.
    pub files: Vec<PathBuf>,
    /// Instructions the guest had executed when it was restored.
    pub instructions_before: u64,
}

impl Description {
    /// Refuses a snapshot in the place of a file that the machine is made of.
    pub(crate) fn spare_own_files(&self, target: &SaveTarget) -> Result<()> {
        let file = |path: &Path| path.metadata().ok().map(|data| (data.dev(), data.ino()));
        for path in [&target.state, &target.memory] {
            let there = file(path);
            if there.is_some() && self.files.iter().any(|own| file(own) == there) {
                let text =
                    "is a disk, the kernel or the initial RAM disk of this machine: give the snapshot another name";
                return Err(Error::Config(format!("{} {text}", path.display())));
            }
        }
        Ok(())
    }
}

/// The one virtual machine of this process. Its vCPUs stand still until [`Machine::run`] or [`Machine::resume`].
#[derive(Debug)]
pub struct Machine {
    // Dropped in this order: threads first, then the memory map, then what they used.
    pub(crate) parts: Parts,
    pub(crate) description: Description,
    pub(crate) clock: ClockMode,
    running: bool,
    /// Instructions executed in this process before the guest's first.
    instructions_at_start: u64,
    /// When the vCPUs were asked to stop, for the pause a snapshot reports.
    pub(crate) stopped_at: Option<Instant>,
    pub(crate) checkpoints: Checkpoints,
    _terminal: Option<RawTerminal>,
}

/// Stops a running machine from another thread (a signal handler's, a timer's).
#[derive(Clone, Debug)]
pub struct Stopper {
    shared: Weak<Shared>,
}

impl Stopper {
    /// Asks the machine to stop; its run ends with [`StopReason::Requested`].
    pub fn stop(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.control.request_stop(Cause::Stop(StopReason::Requested), &shared.vm);
        }
    }
}

impl Machine {
    /// Builds the machine and loads the kernel. Nothing runs yet.
    pub fn boot(mut config: MachineConfig) -> Result<Machine> {
        let clock = config.clock;
        build::check_shape(config.memory_mib, config.cpus, config.disks.len(), clock)?;
        if config.cmdline.len() > CMDLINE_MAX {
            let len = config.cmdline.len();
            let text =
                format!("the kernel's command line is {len} bytes long; arm64 kernels take {CMDLINE_MAX} at most");
            return Err(Error::Config(text));
        }
        let ram = GuestRam::new(layout::RAM_BASE, config.memory_mib << 20, config.track_dirty_pages)?;
        // Before the VM exists: a kernel that cannot be booted is the likeliest mistake.
        let memory = ram.guest_memory()?;
        let loaded = boot::load(&memory, ram.size(), &config.kernel, config.initrd.as_deref())?;

        let parts = build::assemble(ram.into(), config.dirty_granule, config.cpus, clock, &mut config.console)?;
        let disks: Vec<Disk> = config
            .disks
            .iter()
            .map(|d| Disk { path: d.path.clone(), read_only: d.read_only, overridden: false })
            .collect();
        build::attach_devices(&parts, &disks)?;

        build::measure_counter(&parts, clock)?;

        let mpidrs: Vec<u64> = (0..config.cpus).map(layout::mpidr).collect();
        let (rng_seed, kaslr_seed) = build::seeds(clock)?;
        let blob = fdt::build(&fdt::FdtConfig {
            ram_size: config.memory_mib << 20,
            mpidrs: &mpidrs,
            redistributors: &redistributor_regions(parts.shared.redistributors.get().map_or(&[], |r| r)),
            virtio_slots: &build::virtio_slots(disks.len()),
            cmdline: &config.cmdline,
            initrd: loaded.initrd,
            rng_seed,
            kaslr_seed,
        })?;
        boot::load_fdt(&memory, &loaded, &blob)?;
        let shared = &parts.shared;
        shared.control.call(&shared.vm, 0, None, move |vcpu| vcpu.set_entry(loaded.entry, loaded.fdt))??;

        let path = |p: &std::path::Path| p.to_string_lossy().into_owned();
        let description = Description {
            memory_mib: config.memory_mib,
            kernel: path(&config.kernel),
            initrd: config.initrd.as_deref().map(path),
            cmdline: config.cmdline,
            track_dirty_pages: config.track_dirty_pages,
            fdt: Some(fdt::Place { ipa: loaded.fdt, len: blob.len() as u64 }),
            files: [config.kernel].into_iter().chain(config.initrd).chain(disks.into_iter().map(|d| d.path)).collect(),
            instructions_before: 0,
        };
        Machine::finish(parts, description, clock, config.console.input)
    }

    /// Builds a machine from a snapshot, standing where the snapshot was taken. Nothing runs yet.
    pub fn restore(config: RestoreConfig) -> Result<Machine> {
        restore::restore(config)
    }

    pub(crate) fn finish(
        parts: Parts,
        description: Description,
        clock: ClockMode,
        input: crate::config::ConsoleInput,
    ) -> Result<Machine> {
        let terminal = build::start_input(&parts, input)?;
        let instructions_at_start = standin::instructions(parts.threads.count()).unwrap_or(0);
        Ok(Machine {
            parts,
            description,
            clock,
            running: false,
            instructions_at_start,
            stopped_at: None,
            checkpoints: Checkpoints::default(),
            _terminal: terminal,
        })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.parts.shared
    }

    /// Lets all vCPUs that are on go on, and returns at once. If the machine stopped for two reasons at the same moment, the
    /// second one is still to be told: then nothing runs, and [`Machine::wait`] tells it.
    pub fn resume(&mut self) -> Result<()> {
        if self.running || self.shared().control.has_cause() {
            return Ok(());
        }
        self.resume_devices();
        self.stopped_at = None;
        self.shared().control.go();
        self.running = true;
        Ok(())
    }

    /// Stops all vCPUs and devices and returns when every one of them stands still.
    pub fn pause(&mut self) -> Result<()> {
        if self.running {
            self.stopped_at = Some(Instant::now());
            self.shared().control.stop_all(&self.shared().vm)?;
            self.running = false;
            self.quiesce_devices();
        }
        Ok(())
    }

    /// Waits for a resumed machine to stop by itself, at most `timeout`. `None` when the time is up (it runs on).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<RunOutcome>> {
        // A timeout beyond the end of time is none.
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        if !self.shared().control.wait_for_cause(deadline) {
            return Ok(None);
        }
        self.pause()?;
        Ok(Some(match self.shared().control.take_cause() {
            None => RunOutcome::Stopped(StopReason::Requested),
            Some(Cause::PowerOff) => RunOutcome::PowerOff,
            Some(Cause::Reset) => RunOutcome::Reset,
            Some(Cause::Crash(report)) => RunOutcome::GuestCrash(report),
            Some(Cause::Stop(reason)) => RunOutcome::Stopped(reason),
            Some(Cause::Failed(error)) => return Err(error),
        }))
    }

    /// Resumes and waits. The vCPUs stand still when this returns, [`RunOutcome::TimedOut`] included.
    pub fn run(&mut self, timeout: Option<Duration>) -> Result<RunOutcome> {
        self.resume()?;
        match self.wait(timeout)? {
            Some(outcome) => Ok(outcome),
            None => {
                self.pause()?;
                Ok(RunOutcome::TimedOut)
            }
        }
    }

    /// Whether a snapshot could be written to `target` now: names a mistake before the guest runs that could not be saved in the end.
    ///
    /// # Errors
    /// Those with which [`Machine::snapshot`] would begin.
    pub fn check_target(&self, target: &SaveTarget) -> Result<()> {
        self.description.spare_own_files(target)?;
        Ok(squib_snapshot::check_destination(&target.state, &target.memory)?)
    }

    /// Writes a full snapshot. Pauses a running machine for it, and leaves it paused: call [`Machine::run`] or
    /// [`Machine::resume`] to go on.
    pub fn snapshot(&mut self, target: &SaveTarget) -> Result<SnapshotReport> {
        self.snapshot_paused(SnapshotKind::Full, target)
    }

    /// Writes the pages that were written since the last snapshot, as a diff on top of it. Otherwise as [`Machine::snapshot`].
    pub fn snapshot_diff(&mut self, target: &SaveTarget) -> Result<SnapshotReport> {
        self.snapshot_paused(SnapshotKind::Diff, target)
    }

    fn snapshot_paused(&mut self, kind: SnapshotKind, target: &SaveTarget) -> Result<SnapshotReport> {
        self.checkpoints.settle();
        self.pause()?;
        self.checkpoint(kind, target)?.wait()
    }

    /// Takes a snapshot that the guest does not wait for: stops it, puts aside what the snapshot needs, lets it go on (if it ran) and
    /// returns; the files become durable meanwhile. Waits for the snapshot before it, with the guest running.
    ///
    /// A snapshot that fails changes nothing: the guest runs on, and the next diff holds the pages of this one too.
    pub fn checkpoint(&mut self, kind: SnapshotKind, target: &SaveTarget) -> Result<PendingSnapshot> {
        self.checkpoints.settle();
        if kind == SnapshotKind::Diff {
            self.diff_parent()?;
        }
        let was_running = self.running;
        self.pause()?;
        let begun = checkpoint::begin(self, kind, target);
        let stopped_at = self.stopped_at;
        if was_running {
            self.resume()?;
        }
        let pause = stopped_at.filter(|_| was_running).map(|at| at.elapsed());
        self.checkpoints.finish(begun?, pause)
    }

    /// The snapshot that a diff taken now would continue: the last one that was committed, or the one that was restored.
    pub fn last_snapshot(&self) -> Option<SnapshotId> {
        self.checkpoints.parent()
    }

    /// Whether diffs can be taken of this machine.
    pub fn tracks_dirty_pages(&self) -> bool {
        self.description.track_dirty_pages
    }

    pub(crate) fn diff_parent(&self) -> Result<SnapshotId> {
        if !self.description.track_dirty_pages {
            let text = "a diff needs a machine that tracks its dirty pages from the start (--track-dirty-pages)";
            return Err(Error::State(text.into()));
        }
        let text = "a diff continues a snapshot, and none has been taken: take a full one first";
        self.last_snapshot().ok_or_else(|| Error::State(text.into()))
    }

    /// Bytes of guest RAM.
    pub fn ram_size(&self) -> u64 {
        self.parts.mapped.ram().size()
    }

    /// Copies guest RAM from `offset` (counted from the start of RAM) on. What a running guest writes meanwhile may or may not be
    /// seen: pause it first.
    pub fn read_ram(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let ram: &GuestRam = self.parts.mapped.ram();
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > ram.size()) {
            return Err(Error::GuestMemory { what: "reading RAM", address: ram.base().wrapping_add(offset), len });
        }
        ram.read_at(offset, buf).map_err(|source| Error::System { action: "read guest RAM".into(), source })
    }

    /// Adds a text to wait for on the console, from the next byte on.
    pub fn add_watch(&mut self, watch: Watch) -> Result<()> {
        self.parts.console.add_watch(watch)
    }

    /// Ends the next run when the guest has executed `count` more instructions ([`StopReason::InstructionLimit`]). Stand-in,
    /// deterministic clock, one vCPU.
    pub fn stop_after_instructions(&mut self, count: u64) -> Result<()> {
        if self.clock != ClockMode::Deterministic {
            return Err(Error::Config("stopping after a number of instructions needs the deterministic clock".into()));
        }
        standin::stop_after_instructions(count)
    }

    /// Instructions executed so far by all vCPUs of this process. Stand-in only.
    pub fn instructions(&self) -> Result<u64> {
        Ok(standin::instructions(self.parts.threads.count())? - self.instructions_at_start)
    }

    /// Instructions executed since boot, over all restores; 0 where nobody counts them.
    pub(crate) fn total_instructions(&self) -> u64 {
        self.description.instructions_before.saturating_add(self.instructions().unwrap_or(0))
    }

    /// A view of the pager, if the machine was restored with one.
    pub fn pager(&self) -> Option<Monitor> {
        self.shared().faults.pager().map(|pager| pager.monitor())
    }

    /// A handle that can stop the machine from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper { shared: Arc::downgrade(self.shared()) }
    }

    fn quiesce_devices(&self) {
        self.shared().bus.get().into_iter().flat_map(|bus| bus.iter()).for_each(|a| a.device.quiesce());
    }

    fn resume_devices(&self) {
        self.shared().bus.get().into_iter().flat_map(|bus| bus.iter()).for_each(|a| a.device.resume());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.parts.uart.close();
    }
}

/// Neighbouring redistributor frames as regions: base and size.
fn redistributor_regions(bases: &[u64]) -> Vec<(u64, u64)> {
    let mut sorted = bases.to_vec();
    sorted.sort_unstable();
    let mut regions: Vec<(u64, u64)> = Vec::new();
    for base in sorted {
        match regions.last_mut() {
            Some((start, size)) if *start + *size == base => *size += layout::GIC_REDISTRIBUTOR_SIZE,
            _ => regions.push((base, layout::GIC_REDISTRIBUTOR_SIZE)),
        }
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_redistributors_are_one_region() {
        assert_eq!(redistributor_regions(&[0x1002_0000, 0x1000_0000]), [(0x1000_0000, 0x4_0000)]);
        let apart = redistributor_regions(&[0x1000_0000, 0x1010_0000]);
        assert_eq!(apart, [(0x1000_0000, 0x2_0000), (0x1010_0000, 0x2_0000)]);
    }
}
