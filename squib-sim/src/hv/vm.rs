//! The virtual machine of the process: its configuration, creation and end.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use super::object::{self, Object, VmConfig};
use super::vcpu::Slot;
use super::{Return, anchor, code, put, ret};
use crate::config::{self, Hypervisor};
use crate::host_memory::Window;
use crate::machine::{MAX_VCPUS, Machine};

anchor!();

/// IPA bits of a virtual machine that does not ask for any.
const DEFAULT_IPA_BITS: u32 = 36;
/// The most IPA bits there can be, whatever the switch says: room for 1 TiB of RAM above the devices, and some.
const MAX_IPA_BITS: u32 = 42;
/// The fewest the IPA space can have and still hold a block.
const MIN_IPA_BITS: u32 = 25;

/// The virtual machine as the C functions see it.
pub struct Vm {
    /// What the vCPUs share.
    pub machine: Arc<Machine>,
    /// The vCPUs by slot. Locked for a change of who is there, never while one runs.
    pub slots: Mutex<[Option<Arc<Slot>>; MAX_VCPUS]>,
    /// Where guest memory is mirrored; nowhere if the address space has no room, or a switch says that the guest follows the
    /// host's mappings.
    pub window: Option<Window>,
    /// Serialises map, unmap and protect.
    pub memory: Mutex<()>,
    /// How many vCPUs have ever been run.
    pub runs: AtomicU32,
    busy_destroys: AtomicU32,
}

static VM: RwLock<Option<Arc<Vm>>> = RwLock::new(None);
static BUSY_CREATES: Mutex<Option<u32>> = Mutex::new(None);
static ALLOCATIONS: Mutex<Option<HashMap<usize, usize>>> = Mutex::new(None);

/// The virtual machine, or `HV_NO_DEVICE`.
pub fn vm() -> Result<Arc<Vm>, Return> {
    VM.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone().ok_or(ret::NO_DEVICE)
}

impl Vm {
    /// The vCPU slots.
    pub fn slots(&self) -> MutexGuard<'_, [Option<Arc<Slot>>; MAX_VCPUS]> {
        self.slots.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether a vCPU is inside `hv_vcpu_run`.
    pub fn is_running(&self) -> bool {
        self.slots().iter().flatten().any(|slot| slot.is_running())
    }
}

/// The most IPA bits a virtual machine may ask for. A wrong `SQUIB_SIM` is reported by `hv_vm_create`.
fn max_ipa_bits() -> u32 {
    config::current().unwrap_or_default().max_ipa.clamp(DEFAULT_IPA_BITS, MAX_IPA_BITS)
}

/// `value`, which the system can tell if it has a hypervisor.
fn if_there_is_one(value: u32) -> Result<u32, Return> {
    match config::current().unwrap_or_default().hypervisor {
        Hypervisor::Missing => Err(ret::UNSUPPORTED),
        Hypervisor::Allowed | Hypervisor::Denied => Ok(value),
    }
}

fn create(handle: *mut c_void) -> Result<(), Return> {
    let vm_config =
        if handle.is_null() { VmConfig::default() } else { object::with_vm_config(handle, |config| *config)? };
    let config = config::current().map_err(|error| {
        eprintln!("squib-sim: {error}");
        ret::BAD_ARGUMENT
    })?;
    match config.hypervisor {
        Hypervisor::Allowed => {}
        Hypervisor::Denied => return Err(ret::DENIED),
        Hypervisor::Missing => return Err(ret::UNSUPPORTED),
    }
    let mut vm = VM.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    if vm.is_some() {
        return Err(ret::BUSY);
    }
    if vm_config.el2 {
        return Err(ret::UNSUPPORTED);
    }
    let ipa_bits = if vm_config.ipa_bits == 0 { DEFAULT_IPA_BITS } else { vm_config.ipa_bits };
    if !(MIN_IPA_BITS..=max_ipa_bits()).contains(&ipa_bits) {
        return Err(ret::UNSUPPORTED);
    }
    let mut busy = BUSY_CREATES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let left = busy.get_or_insert(config.busy);
    if *left > 0 {
        *left -= 1;
        return Err(ret::BUSY);
    }
    *busy = None;
    let machine = Arc::new(Machine::new(config, ipa_bits));
    let window = if config.host_remap { None } else { Window::reserve(1 << ipa_bits) };
    *vm = Some(Arc::new(Vm {
        machine,
        slots: Mutex::new([const { None }; MAX_VCPUS]),
        window,
        memory: Mutex::new(()),
        runs: AtomicU32::new(0),
        busy_destroys: AtomicU32::new(config.busy),
    }));
    Ok(())
}

fn destroy() -> Result<(), Return> {
    let mut vm = VM.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Some(current) = vm.as_ref() else {
        return Err(ret::NO_DEVICE);
    };
    if current.slots().iter().any(Option::is_some) {
        return Err(ret::BUSY);
    }
    if current.busy_destroys.load(Ordering::Relaxed) > 0 {
        current.busy_destroys.fetch_sub(1, Ordering::Relaxed);
        return Err(ret::BUSY);
    }
    *vm = None;
    Ok(())
}

/// `hv_vm_config_create`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vm_config_create() -> *mut c_void {
    object::create(Object::Vm(VmConfig::default()))
}

/// `hv_vm_create`: one virtual machine per process.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vm_create(config: *mut c_void) -> Return {
    code(create(config))
}

/// `hv_vm_destroy`: refused while there are vCPUs.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vm_destroy() -> Return {
    code(destroy())
}

/// `hv_vm_get_max_vcpu_count`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vm_get_max_vcpu_count(count: *mut u32) -> Return {
    // SAFETY: the C signature: a place for a u32.
    code(if_there_is_one(MAX_VCPUS as u32).and_then(|value| unsafe { put(count, value) }))
}

/// `hv_vm_config_get_max_ipa_size`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> Return {
    // SAFETY: the C signature: a place for a u32.
    code(if_there_is_one(max_ipa_bits()).and_then(|value| unsafe { put(bits, value) }))
}

/// `hv_vm_config_get_default_ipa_size`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vm_config_get_default_ipa_size(bits: *mut u32) -> Return {
    // SAFETY: the C signature: a place for a u32.
    code(if_there_is_one(DEFAULT_IPA_BITS).and_then(|value| unsafe { put(bits, value) }))
}

/// `hv_vm_config_set_ipa_size`: 0 is the default, above the maximum is unsupported.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> Return {
    if bits > max_ipa_bits() {
        return ret::UNSUPPORTED;
    }
    code(object::with_vm_config(config, |config| config.ipa_bits = bits))
}

/// `hv_vm_config_get_ipa_size`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vm_config_get_ipa_size(config: *mut c_void, bits: *mut u32) -> Return {
    // SAFETY: the C signature: a place for a u32.
    code(object::with_vm_config(config, |config| config.ipa_bits).and_then(|value| unsafe { put(bits, value) }))
}

/// `hv_vm_config_get_el2_supported`: no.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vm_config_get_el2_supported(supported: *mut bool) -> Return {
    // SAFETY: the C signature: a place for a bool.
    code(unsafe { put(supported, false) })
}

/// `hv_vm_config_get_el2_enabled`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vm_config_get_el2_enabled(config: *mut c_void, enabled: *mut bool) -> Return {
    // SAFETY: the C signature: a place for a bool.
    code(object::with_vm_config(config, |config| config.el2).and_then(|value| unsafe { put(enabled, value) }))
}

/// `hv_vm_config_set_el2_enabled`: can always be asked for; `hv_vm_create` says no.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vm_config_set_el2_enabled(config: *mut c_void, enabled: bool) -> Return {
    code(object::with_vm_config(config, |config| config.el2 = enabled))
}

/// The live allocations of `hv_vm_allocate`, address to size. They outlive the virtual machine, like any memory.
pub fn with_allocations<R>(f: impl FnOnce(&mut HashMap<usize, usize>) -> R) -> R {
    f(ALLOCATIONS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert_default())
}
