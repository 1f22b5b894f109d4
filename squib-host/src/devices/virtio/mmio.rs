//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2), and the thread that serves its queues.
//!
//! A notification wakes the worker, which takes one request after the other off the queues. Between two requests the whole state
//! is in the queues and registers: that is where [`Device::quiesce`] stops it, and what is saved. In deterministic mode there is
//! no worker; the notifying vCPU serves the queues itself, so that completion does not depend on the host's timing.
//!
//! Lock order: backend, then registers. The backend's lock is held while a request is executed, the registers' never.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};

use super::Backend;
use super::saved::{Saved, SavedQueue};
use crate::devices::{Device, IrqLine};
use crate::error::{Error, Result};
use crate::memory::{GuestMemory, GuestRam};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"sqib");
/// Largest queue offered.
const QUEUE_MAX: u16 = 256;
/// Status bit: the device has met something it cannot go on from.
const NEEDS_RESET: u32 = 0x40;
/// Interrupt status: a buffer was used; the configuration (or the status) changed.
const INT_USED: u32 = 1;
const INT_CONFIG: u32 = 2;
const CONFIG_SPACE: u64 = 0x100;

struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    status: u32,
    interrupt_status: u32,
    queues: Vec<Queue>,
}

#[derive(Default)]
struct Work {
    kicked: bool,
    /// A request waits for guest memory that could not be had; it is taken up again when the machine goes on.
    stalled: bool,
    paused: bool,
    ended: bool,
}

/// What became of a look at a queue.
enum Served {
    /// A request was answered, or one has come meanwhile: look again.
    One,
    /// There is nothing to do, or not now.
    Nothing,
}

struct Shared {
    ram: Arc<GuestRam>,
    irq: IrqLine,
    features: u64,
    device_id: u32,
    kind: &'static str,
    registers: Mutex<Registers>,
    backend: Mutex<Box<dyn Backend>>,
    work: Mutex<Work>,
    wake: Condvar,
}

/// A virtio device in an mmio slot.
pub struct VirtioMmio {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

impl fmt::Debug for VirtioMmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtioMmio({})", self.shared.kind)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl VirtioMmio {
    /// A device in its reset state; `synchronous` makes notifications do the work themselves.
    pub fn new(backend: Box<dyn Backend>, ram: Arc<GuestRam>, irq: IrqLine, synchronous: bool) -> Result<VirtioMmio> {
        let ring = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
        let queues = (0..backend.queues())
            .map(|_| Queue::new(QUEUE_MAX).map_err(|e| Error::Config(format!("virtio queue: {e}"))))
            .collect::<Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            ram,
            irq,
            features: backend.features() | ring,
            device_id: backend.device_id(),
            kind: backend.kind(),
            registers: Mutex::new(Registers {
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                status: 0,
                interrupt_status: 0,
                queues,
            }),
            backend: Mutex::new(backend),
            work: Mutex::default(),
            wake: Condvar::new(),
        });
        let worker = match synchronous {
            true => None,
            false => Some(start_worker(&shared)?),
        };
        Ok(VirtioMmio { shared, worker })
    }

    fn kick(&self) {
        if self.worker.is_some() {
            lock(&self.shared.work).kicked = true;
            self.shared.wake.notify_all();
        } else {
            self.shared.drain_here();
        }
    }
}

/// Starts a device's thread, and returns when it has its guest memory.
fn start_worker(shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    let (ready, started) = mpsc::sync_channel(1);
    let worker = Arc::clone(shared);
    let run = move || {
        let (memory, result) = match worker.ram.guest_memory() {
            Ok(memory) => (Some(memory), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // Whoever starts us waits for this.
        let _ = ready.send(result);
        if let Some(memory) = memory {
            worker.serve(&memory);
        }
    };
    let spawned = std::thread::Builder::new().name(shared.kind.into()).spawn(run);
    let thread = spawned.map_err(|source| Error::System { action: "start a device thread".into(), source })?;
    started.recv().map_err(|_| Error::State(format!("the thread of a {} device ended", shared.kind)))??;
    Ok(thread)
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        lock(&self.shared.work).ended = true;
        self.shared.wake.notify_all();
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has said so already.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn serve(&self, memory: &GuestMemory) {
        loop {
            let mut work = lock(&self.work);
            while !work.ended && (work.paused || !work.kicked) {
                work = self.wake.wait(work).unwrap_or_else(|e| e.into_inner());
            }
            if work.ended {
                return;
            }
            work.kicked = false;
            drop(work);
            self.drain(memory);
        }
    }

    /// Serves all queues on the calling thread. If it cannot have guest memory, its requests wait until the machine goes on.
    fn drain_here(&self) {
        match self.ram.guest_memory() {
            Ok(memory) => self.drain(&memory),
            Err(error) => {
                tracing::error!(device = self.kind, %error, "guest memory cannot be reached; requests wait");
                lock(&self.work).stalled = true;
            }
        }
    }

    /// Serves all queues until they are empty or the device is paused.
    fn drain(&self, memory: &GuestMemory) {
        let mut backend = lock(&self.backend);
        let queues = lock(&self.registers).queues.len();
        for index in 0..queues {
            if let Err(reason) = self.drain_queue(memory, &mut **backend, index) {
                tracing::warn!(device = self.kind, %reason, "the driver broke the virtio protocol; the device asks for a reset");
                let mut registers = lock(&self.registers);
                registers.status |= NEEDS_RESET;
                registers.interrupt_status |= INT_CONFIG;
                self.irq.set(true);
            }
        }
    }

    /// Serves one queue. Where guest memory cannot be had (the machine is stopping for it), the request in question goes back onto
    /// its queue and is taken up again when the machine goes on: nothing of it has been seen by the guest.
    fn drain_queue(&self, memory: &GuestMemory, backend: &mut dyn Backend, index: usize) -> Result<(), String> {
        let before = self.ram.failures();
        loop {
            let position = lock(&self.registers).queues[index].next_avail();
            let result = self.serve_one(memory, backend, index);
            if before != self.ram.failures() {
                if !matches!(result, Ok(Served::One)) {
                    lock(&self.registers).queues[index].set_next_avail(position);
                }
                lock(&self.work).stalled = true;
                return Ok(());
            }
            match result? {
                Served::One => {}
                Served::Nothing => return Ok(()),
            }
        }
    }

    fn serve_one(&self, memory: &GuestMemory, backend: &mut dyn Backend, index: usize) -> Result<Served, String> {
        if lock(&self.work).paused {
            return Ok(Served::Nothing);
        }
        let chain = {
            let mut registers = lock(&self.registers);
            if registers.status & (VIRTIO_CONFIG_S_DRIVER_OK | NEEDS_RESET) != VIRTIO_CONFIG_S_DRIVER_OK {
                return Ok(Served::Nothing);
            }
            let queue = &mut registers.queues[index];
            if !queue.ready() {
                return Ok(Served::Nothing);
            }
            let next = queue.iter(memory).map_err(|e| e.to_string())?.next();
            match next {
                Some(chain) => chain,
                None if queue.enable_notification(memory).map_err(|e| e.to_string())? => return Ok(Served::One),
                None => return Ok(Served::Nothing),
            }
        };
        let head = chain.head_index();
        let written = backend.execute(memory, chain).map_err(|e| e.to_string())?;
        let mut registers = lock(&self.registers);
        let queue = &mut registers.queues[index];
        queue.add_used(memory, head, written).map_err(|e| e.to_string())?;
        // The rings have just been touched: this does not fail for want of memory.
        if queue.needs_notification(memory).map_err(|e| e.to_string())? {
            registers.interrupt_status |= INT_USED;
            self.irq.set(true);
        }
        Ok(Served::One)
    }

    fn reset(&self) {
        // Waits for the request in flight: the driver may reuse its buffers as soon as the reset is done.
        let _idle = lock(&self.backend);
        let mut registers = lock(&self.registers);
        registers.queues.iter_mut().for_each(QueueT::reset);
        *registers = Registers {
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            status: 0,
            interrupt_status: 0,
            queues: std::mem::take(&mut registers.queues),
        };
        self.irq.set(false);
    }
}

impl Registers {
    fn selected(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.queue_sel as usize)
    }

    fn set_status(&mut self, mut value: u32, offered: u64) {
        if value & VIRTIO_CONFIG_S_FEATURES_OK != 0 && self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            let wanted = self.driver_features;
            if wanted & !offered != 0 || wanted & 1 << VIRTIO_F_VERSION_1 == 0 {
                value &= !VIRTIO_CONFIG_S_FEATURES_OK;
            } else {
                let event_idx = wanted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
                self.queues.iter_mut().for_each(|queue| queue.set_event_idx(event_idx));
            }
        }
        self.status = value | self.status & NEEDS_RESET;
    }
}

/// The 32-bit half of `value` that `sel` names; nothing beyond.
fn half(value: u64, sel: u32) -> u32 {
    match sel {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

impl Device for VirtioMmio {
    fn kind(&self) -> &'static str {
        self.shared.kind
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        if offset >= CONFIG_SPACE {
            let config = lock(&self.shared.backend).config();
            let at = (offset - CONFIG_SPACE) as usize;
            let byte = |n: usize| u64::from(config.get(at + n).copied().unwrap_or(0));
            return (0..usize::from(size)).fold(0, |value, n| value | byte(n) << (8 * n));
        }
        let mut registers = lock(&self.shared.registers);
        let value = match offset {
            0x000 => MAGIC,
            0x004 => 2,
            0x008 => self.shared.device_id,
            0x00c => VENDOR,
            0x010 => half(self.shared.features, registers.device_features_sel),
            0x034 => registers.selected().map_or(0, |queue| u32::from(queue.max_size())),
            0x044 => registers.selected().map_or(0, |queue| u32::from(queue.ready())),
            0x060 => registers.interrupt_status,
            0x070 => registers.status,
            // No shared memory regions: length and base read as all ones.
            0x0b0..=0x0bc => u32::MAX,
            _ => 0,
        };
        u64::from(value)
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let value = value as u32;
        let shared = &*self.shared;
        match offset {
            0x050 => return self.kick(),
            0x070 if value == 0 => return shared.reset(),
            _ => {}
        }
        let mut registers = lock(&shared.registers);
        let configurable = registers.status & VIRTIO_CONFIG_S_DRIVER_OK == 0;
        match offset {
            0x014 => registers.device_features_sel = value,
            0x020 if registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => match registers.driver_features_sel {
                0 => registers.driver_features = registers.driver_features & !0xffff_ffff | u64::from(value),
                1 => registers.driver_features = registers.driver_features & 0xffff_ffff | u64::from(value) << 32,
                _ => {}
            },
            0x024 => registers.driver_features_sel = value,
            0x030 => registers.queue_sel = value,
            0x064 => {
                registers.interrupt_status &= !value;
                shared.irq.set(registers.interrupt_status != 0);
            }
            0x070 => {
                registers.set_status(value, shared.features);
                if configurable && registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
                    drop(registers);
                    self.kick();
                }
            }
            // The rest sets up the selected queue, which a running driver must not do to a ready one.
            _ => {
                let Some(queue) = registers.selected() else { return };
                match offset {
                    0x044 => queue.set_ready(value == 1),
                    _ if queue.ready() => {}
                    0x038 => queue.set_size(value as u16),
                    0x080 => queue.set_desc_table_address(Some(value), None),
                    0x084 => queue.set_desc_table_address(None, Some(value)),
                    0x090 => queue.set_avail_ring_address(Some(value), None),
                    0x094 => queue.set_avail_ring_address(None, Some(value)),
                    0x0a0 => queue.set_used_ring_address(Some(value), None),
                    0x0a4 => queue.set_used_ring_address(None, Some(value)),
                    _ => {}
                }
            }
        }
    }

    fn save(&self) -> Result<Vec<u8>> {
        let backend = lock(&self.shared.backend).save()?;
        let registers = lock(&self.shared.registers);
        let saved = Saved {
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            driver_features: registers.driver_features,
            queue_sel: registers.queue_sel,
            status: registers.status,
            interrupt_status: registers.interrupt_status,
            queues: registers.queues.iter().map(|queue| SavedQueue::from(queue.state())).collect(),
            backend,
        };
        saved.encode(self.kind())
    }

    fn restore(&self, blob: &[u8]) -> Result<()> {
        let kind = self.shared.kind;
        let saved = Saved::decode(kind, blob)?;
        let refuse = |reason: String| Error::DeviceState { device: kind.into(), reason };
        if saved.driver_features & !self.shared.features != 0 {
            let missing = saved.driver_features & !self.shared.features;
            return Err(refuse(format!("its driver uses features this device does not have ({missing:#x})")));
        }
        lock(&self.shared.backend).restore(&saved.backend)?;
        let mut registers = lock(&self.shared.registers);
        if saved.queues.len() != registers.queues.len() {
            return Err(refuse(format!("it has {} queues, not {}", saved.queues.len(), registers.queues.len())));
        }
        let restore_queue = |queue: &SavedQueue| {
            Queue::try_from(QueueState::from(queue)).map_err(|e| refuse(format!("a queue is invalid: {e}")))
        };
        let queues = saved.queues.iter().map(restore_queue).collect::<Result<Vec<_>>>()?;
        *registers = Registers {
            device_features_sel: saved.device_features_sel,
            driver_features_sel: saved.driver_features_sel,
            driver_features: saved.driver_features,
            queue_sel: saved.queue_sel,
            status: saved.status,
            interrupt_status: saved.interrupt_status,
            queues,
        };
        Ok(())
    }

    fn quiesce(&self) {
        lock(&self.shared.work).paused = true;
        // The worker holds the backend while a request is in flight; once we have had it, none is.
        drop(lock(&self.shared.backend));
    }

    fn resume(&self) {
        let registers = lock(&self.shared.registers);
        self.shared.irq.set(registers.interrupt_status != 0);
        let live = registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        drop(registers);
        let stalled = {
            let mut work = lock(&self.shared.work);
            work.paused = false;
            std::mem::take(&mut work.stalled)
        };
        if live && (stalled || self.worker.is_some()) {
            // A notification may have come while the device was paused. (Without a worker none can have: notifications come
            // from vCPUs, and those stood still.)
            self.kick();
        }
    }
}
