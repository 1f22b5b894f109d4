//! Putting a machine together: what booting and restoring have in common.
//!
//! The order is the framework's: VM with its GIC, memory map, vCPUs each on its own thread (MPIDR, then its redistributor),
//! then devices.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::thread::JoinHandle;

use applevisor::prelude::{GicConfig, GicEnabled, Vcpu, VirtualMachine, VirtualMachineConfig, VirtualMachineInstance};

use crate::clock;
use crate::config::{ClockMode, ConsoleConfig, ConsoleInput, DirtyGranule, StopReason};
use crate::devices::console::Console;
use crate::devices::pl011::Pl011;
use crate::devices::pl031::Pl031;
use crate::devices::virtio::Backend;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::mmio::VirtioMmio;
use crate::devices::virtio::rng::{Entropy, Rng};
use crate::devices::{Attached, Bus, Device, InterruptController, IrqLine};
use crate::error::{CREATE_VM, Error, HvContext, Result};
use crate::fault::RamFaults;
use crate::hv::stage2::MappedRam;
use crate::hv::vm::{Teardown, patiently};
use crate::layout;
use crate::memory::GuestRam;
use crate::pager::{Net, PageSource, Pager, Prefetcher};
use crate::standin;
use crate::terminal::{self, RawTerminal, Typed};
use crate::vcpu::control::{Cause, Control};
use crate::vcpu::run::{Shared, VcpuThread};

/// The virtio-mmio slot of the entropy device; disks take the slots from 0 on.
const RNG_SLOT: u32 = layout::VIRTIO_SLOTS - 1;
/// Seed of a deterministic machine's entropy.
const DETERMINISTIC_SEED: u64 = 0x5eed;

/// A disk to attach.
#[derive(Debug)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Opened for reading only.
    pub read_only: bool,
    /// Named at a restore, in place of the recorded one.
    pub overridden: bool,
}

/// The parts of a machine whose vCPUs stand still and whose devices do nothing yet.
#[derive(Debug)]
pub struct Parts {
    // Dropped in this order: no vCPU and no prefetcher is left when the memory map goes.
    /// Brings in absent RAM in the background.
    pub prefetcher: Option<Prefetcher>,
    /// The vCPU threads.
    pub threads: Threads,
    /// Stage 2.
    pub mapped: Arc<MappedRam>,
    /// What the vCPU threads share.
    pub shared: Arc<Shared>,
    /// The UART, where typed bytes go.
    pub uart: Arc<Pl011>,
    /// The console.
    pub console: Arc<Console>,
    _teardown: Teardown,
}

/// The vCPU threads; ended and joined when dropped.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Number of vCPUs.
    pub fn count(&self) -> usize {
        self.handles.len()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.control.end(&self.shared.vm);
        for handle in self.handles.drain(..) {
            // A thread that panicked has said so already.
            let _ = handle.join();
        }
    }
}

struct Gic(VirtualMachineInstance<GicEnabled>);

impl InterruptController for Gic {
    fn set_spi(&self, intid: u32, level: bool) {
        if let Err(error) = self.0.gic_set_spi(intid, level) {
            tracing::error!(intid, level, %error, "an interrupt line could not be driven");
        }
    }
}

/// Checks what a caller asked for.
pub fn check_shape(memory_mib: u64, cpus: u32, disks: usize, clock: ClockMode) -> Result<()> {
    let max = layout::RAM_MAX >> 20;
    if memory_mib == 0 || memory_mib > max {
        return Err(Error::Config(format!("{memory_mib} MiB of RAM: choose between 1 and {max}")));
    }
    if cpus == 0 || cpus > layout::VCPU_MAX {
        return Err(Error::Config(format!("{cpus} vCPUs: choose between 1 and {}", layout::VCPU_MAX)));
    }
    if disks > RNG_SLOT as usize {
        return Err(Error::Config(format!("{disks} disks: at most {RNG_SLOT} fit")));
    }
    if clock == ClockMode::Deterministic && cpus != 1 {
        return Err(Error::Config("the deterministic clock needs a machine with one vCPU".into()));
    }
    standin::set_clock(clock)
}

fn create_vm(ram_size: u64) -> Result<VirtualMachineInstance<GicEnabled>> {
    let needed = 64 - (layout::RAM_BASE + ram_size - 1).leading_zeros();
    patiently(|| {
        let mut config = VirtualMachineConfig::new();
        if needed > VirtualMachineConfig::get_default_ipa_size().hv("tell its address size")? {
            let max = VirtualMachineConfig::get_max_ipa_size().hv("tell its largest address size")?;
            if needed > max {
                return Err(Error::Config(format!(
                    "{} MiB of RAM need {needed} address bits; this host offers {max}, enough for {} MiB",
                    ram_size >> 20,
                    ((1u64 << max) - layout::RAM_BASE) >> 20
                )));
            }
            config.set_ipa_size(max).hv("set the address size")?;
        }
        VirtualMachine::with_gic(config, gic_config()?).hv(format!("{CREATE_VM} with a GIC"))
    })
}

fn gic_config() -> Result<GicConfig> {
    let fits = |what: &str, base: u64, align: usize, size: usize, end: u64| {
        if base.is_multiple_of(align as u64) && base + size as u64 <= end {
            return Ok(());
        }
        Err(Error::Config(format!(
            "this host's GIC {what} ({size:#x} bytes, aligned to {align:#x}) does not fit squib's memory map at {base:#x}"
        )))
    };
    let ask = "describe its GIC";
    let mut config = GicConfig::new();
    let (align, size) =
        (GicConfig::get_distributor_base_alignment().hv(ask)?, GicConfig::get_distributor_size().hv(ask)?);
    fits("distributor", layout::GIC_DISTRIBUTOR, align, size, layout::GIC_MSI_FRAME)?;
    config.set_distributor_base(layout::GIC_DISTRIBUTOR).hv("place the GIC distributor")?;

    let (align, size) =
        (GicConfig::get_redistributor_base_alignment().hv(ask)?, GicConfig::get_redistributor_region_size().hv(ask)?);
    fits("redistributor region", layout::GIC_REDISTRIBUTORS, align, size, layout::GIC_REDISTRIBUTORS_END)?;
    config.set_redistributor_base(layout::GIC_REDISTRIBUTORS).hv("place the GIC redistributors")?;

    let (align, size) =
        (GicConfig::get_msi_region_base_alignment().hv(ask)?, GicConfig::get_msi_region_size().hv(ask)?);
    fits("MSI frame", layout::GIC_MSI_FRAME, align, size, layout::UART)?;
    config.set_msi_region_base(layout::GIC_MSI_FRAME).hv("place the GIC MSI frame")?;
    let (first, count) = GicConfig::get_spi_interrupt_range().hv(ask)?;
    let msi = (first + count).saturating_sub(layout::MSI_INTIDS);
    let last_used = layout::SPI_BASE + layout::VIRTIO_SPI + layout::VIRTIO_SLOTS;
    if first > layout::SPI_BASE || msi < last_used {
        return Err(Error::Config(format!("this host's GIC has too few interrupts ({first} and {count} more)")));
    }
    config.set_msi_interrupt_range(msi, layout::MSI_INTIDS).hv("set the MSI range")?;
    Ok(config)
}

/// The RAM of a machine that is being put together.
#[derive(Debug)]
pub struct Ram {
    /// The RAM.
    pub ram: Arc<GuestRam>,
    /// If it is absent: where its pages come from, and how many of them a fault may open.
    pub lazy: Option<(Arc<dyn PageSource>, u32)>,
}

impl From<Arc<GuestRam>> for Ram {
    /// RAM whose bytes are all there.
    fn from(ram: Arc<GuestRam>) -> Ram {
        Ram { ram, lazy: None }
    }
}

/// Creates the VM, maps `ram` and starts the vCPU threads.
pub fn assemble(
    ram: Ram,
    granule: DirtyGranule,
    cpus: u32,
    clock: ClockMode,
    console: &mut ConsoleConfig,
) -> Result<Parts> {
    let Ram { ram, lazy } = ram;
    let vm = create_vm(ram.size())?;
    let max = Vcpu::get_max_count().hv("tell how many vCPUs it supports")?;
    if cpus > max {
        return Err(Error::Config(format!("{cpus} vCPUs: this host supports {max}")));
    }
    let (mapped, pager, net) = match lazy {
        None => (Arc::new(MappedRam::whole(ram)?), None, None),
        Some((source, fault_around)) => {
            let mapped = Arc::new(MappedRam::absent(ram));
            let pager = Pager::new(Arc::clone(&mapped), source, fault_around)?;
            let net = Arc::new(Net::spread(&pager)?);
            mapped.ram().set_net(Arc::downgrade(&net));
            (mapped, Some(pager), Some(net))
        }
    };
    let shared = Arc::new(Shared {
        faults: RamFaults::new(Arc::clone(&mapped), pager.clone(), granule),
        vm,
        control: Control::new(cpus as usize),
        bus: OnceLock::new(),
        ram: Arc::clone(mapped.ram()),
        redistributors: OnceLock::new(),
        deterministic: clock == ClockMode::Deterministic,
        _net: net,
    });
    if let Some(pager) = pager {
        let stopper = Arc::downgrade(&shared);
        pager.on_failure(move |error| {
            if let Some(shared) = stopper.upgrade() {
                shared.control.request_stop(Cause::Failed(error), &shared.vm);
            }
        });
    }
    let threads = start_vcpus(&shared, cpus as usize)?;
    let stopper = Arc::downgrade(&shared);
    let request_stop = Box::new(move |reason| request_stop(&stopper, reason));
    let output = std::mem::replace(&mut console.output, Box::new(std::io::sink()));
    let console = Arc::new(Console::new(output, std::mem::take(&mut console.watches), request_stop)?);
    let irq: Arc<dyn InterruptController> = Arc::new(Gic(shared.vm.clone()));
    let uart = Arc::new(Pl011::new(Arc::clone(&console), IrqLine::new(irq, layout::SPI_BASE + layout::UART_SPI)));
    Ok(Parts { prefetcher: None, threads, mapped, shared, uart, console, _teardown: Teardown::new() })
}

fn request_stop(shared: &Weak<Shared>, reason: StopReason) {
    if let Some(shared) = shared.upgrade() {
        shared.control.request_stop(Cause::Stop(reason), &shared.vm);
    }
}

fn start_vcpus(shared: &Arc<Shared>, count: usize) -> Result<Threads> {
    let (tx, rx) = mpsc::channel();
    let mut threads = Threads { shared: Arc::clone(shared), handles: Vec::new() };
    // One after the other: redistributor frames and vCPU numbers are then the same every time.
    let mut redistributors = Vec::new();
    for index in 0..count {
        let (shared, tx) = (Arc::clone(shared), tx.clone());
        let spawned = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(8 << 20)
            .spawn(move || VcpuThread::main(index, shared, tx));
        threads.handles.push(spawned.map_err(|source| Error::System { action: "start a vCPU thread".into(), source })?);
        let (_, created) = rx.recv().map_err(|_| Error::State(format!("the thread of vCPU {index} ended")))?;
        redistributors.push(created?);
    }
    // Set once, here, before anything runs.
    let _ = shared.redistributors.set(redistributors);
    Ok(threads)
}

/// Measures the guest's counter on vCPU 0, which is to be given its registers afterwards. After the GIC's state is restored, since
/// that must happen before any vCPU runs.
pub fn measure_counter(parts: &Parts, clock: ClockMode) -> Result<()> {
    let shared = &parts.shared;
    let frequency = shared.control.call(&shared.vm, 0, None, VcpuThread::measure_counter)??;
    clock::set_counter_frequency(frequency, clock);
    shared.control.set_guest_counter(0);
    Ok(())
}

/// Creates all devices in their reset state and attaches them.
pub fn attach_devices(parts: &Parts, disks: &[Disk]) -> Result<()> {
    let shared = &parts.shared;
    let irq: Arc<dyn InterruptController> = Arc::new(Gic(shared.vm.clone()));
    let mut bus = Bus::default();
    bus.attach(Attached {
        base: layout::UART,
        size: layout::DEVICE_SIZE,
        slot: layout::UART_SPI,
        id: "uart0".into(),
        device: Arc::clone(&parts.uart) as Arc<dyn Device>,
    });
    let time = Arc::downgrade(shared);
    let wall = shared.wall_clock();
    let seconds = move || wall.time(time.upgrade().map_or(0, |shared| shared.control.guest_counter())).as_secs();
    bus.attach(Attached {
        base: layout::RTC,
        size: layout::DEVICE_SIZE,
        slot: 0,
        id: "rtc0".into(),
        device: Arc::new(Pl031::new(Arc::new(seconds))),
    });
    let mut virtio = |slot: u32, id: String, backend: Box<dyn Backend>| -> Result<()> {
        let line = IrqLine::new(Arc::clone(&irq), layout::SPI_BASE + layout::VIRTIO_SPI + slot);
        let device = VirtioMmio::new(backend, Arc::clone(&shared.ram), line, shared.deterministic)?;
        let (base, size) = (layout::virtio_base(slot), layout::DEVICE_SIZE);
        bus.attach(Attached { base, size, slot, id, device: Arc::new(device) });
        Ok(())
    };
    for (slot, disk) in disks.iter().enumerate() {
        let id = format!("disk{slot}");
        let block = Block::open(&disk.path, disk.read_only, format!("squib-{id}"), disk.overridden)?;
        virtio(slot as u32, id, Box::new(block))?;
    }
    let entropy = if shared.deterministic { Entropy::Seeded(DETERMINISTIC_SEED) } else { Entropy::system()? };
    virtio(RNG_SLOT, "rng0".into(), Box::new(Rng::new(entropy)))?;
    // Set once, here, before anything runs.
    let _ = shared.bus.set(bus);
    Ok(())
}

/// The slots that have a virtio device, for the device tree.
pub fn virtio_slots(disks: usize) -> Vec<u32> {
    (0..disks as u32).chain([RNG_SLOT]).collect()
}

/// Seeds for the device tree.
pub fn seeds(clock: ClockMode) -> Result<([u8; 32], u64)> {
    let mut entropy = match clock {
        ClockMode::Host => Entropy::system()?,
        ClockMode::Deterministic => Entropy::Seeded(DETERMINISTIC_SEED.rotate_left(32)),
    };
    let (mut rng, mut kaslr) = ([0; 32], [0; 8]);
    let filled = entropy.fill(&mut rng).and_then(|()| entropy.fill(&mut kaslr));
    filled.map_err(|source| Error::System { action: "get random bytes".into(), source })?;
    Ok((rng, u64::from_le_bytes(kaslr)))
}

/// Starts feeding the console's input to the UART. Returns the terminal's guard, if a terminal was changed.
pub fn start_input(parts: &Parts, input: ConsoleInput) -> Result<Option<RawTerminal>> {
    let (reader, escape, terminal): (Box<dyn std::io::Read + Send>, bool, _) = match input {
        ConsoleInput::None => return Ok(None),
        ConsoleInput::Reader(reader) => (reader, false, None),
        ConsoleInput::Stdin => {
            let raw = RawTerminal::enter()
                .map_err(|source| Error::System { action: "put the terminal into raw mode".into(), source })?;
            (Box::new(std::io::stdin()), raw.is_some(), raw)
        }
    };
    let (uart, shared) = (Arc::downgrade(&parts.uart), Arc::downgrade(&parts.shared));
    let deliver = move |typed| match (typed, uart.upgrade()) {
        (Typed::Bytes(bytes), Some(uart)) => uart.receive(&bytes),
        (Typed::Quit, Some(_)) => {
            request_stop(&shared, StopReason::EscapeKey);
            true
        }
        (_, None) => false,
    };
    // Not joined: it may stand in a read for ever. It holds nothing of the machine meanwhile.
    std::thread::Builder::new()
        .name("console-input".into())
        .spawn(move || terminal::pump(reader, escape, deliver))
        .map_err(|source| Error::System { action: "start the console input thread".into(), source })?;
    Ok(terminal)
}
