//! Configuration and state objects: what `hv_*_create` hands out and `os_release` takes back.
//!
//! The pointers given out are never dereferenced; they are keys of a table. A stale, foreign or null pointer is found out
//! instead of followed.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{LazyLock, Mutex};

use super::{Return, anchor, ret};

anchor!();

/// `hv_vm_config_t`.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmConfig {
    /// Bits of IPA; 0: the default.
    pub ipa_bits: u32,
    /// EL2 asked for.
    pub el2: bool,
}

/// `hv_gic_config_t`.
#[derive(Clone, Copy, Debug, Default)]
pub struct GicConfig {
    /// IPA of the distributor.
    pub distributor: u64,
    /// IPA of the redistributor region.
    pub redistributors: u64,
    /// IPA of the MSI frame, once set.
    pub msi_region: Option<u64>,
    /// First INTID and number of MSIs, once set.
    pub msi_range: Option<(u32, u32)>,
}

/// An object behind a handle.
#[derive(Debug)]
pub enum Object {
    /// `hv_vm_config_t`.
    Vm(VmConfig),
    /// `hv_vcpu_config_t`, which has nothing to configure.
    Vcpu,
    /// `hv_gic_config_t`.
    Gic(GicConfig),
    /// `hv_gic_state_t`.
    GicState(Vec<u8>),
}

#[derive(Default)]
struct Table {
    objects: HashMap<usize, Object>,
    last: usize,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

/// Handles are multiples of this above a base that no allocation has.
const STEP: usize = 16;
const BASE: usize = 0x5153_0000_0000;

fn with_table<R>(f: impl FnOnce(&mut Table) -> R) -> R {
    f(&mut TABLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// Enters an object and returns its handle.
pub fn create(object: Object) -> *mut c_void {
    with_table(|table| {
        table.last = table.last.max(BASE) + STEP;
        table.objects.insert(table.last, object);
        table.last as *mut c_void
    })
}

/// Calls `f` on what the handle stands for; `HV_BAD_ARGUMENT` if that is nothing, or not what `f` expects.
pub fn with<R>(handle: *mut c_void, f: impl FnOnce(&mut Object) -> Option<R>) -> Result<R, Return> {
    with_table(|table| table.objects.get_mut(&(handle as usize)).and_then(f).ok_or(ret::BAD_ARGUMENT))
}

/// [`with`] for an `hv_vm_config_t`.
pub fn with_vm_config<R>(handle: *mut c_void, f: impl FnOnce(&mut VmConfig) -> R) -> Result<R, Return> {
    with(handle, |object| if let Object::Vm(config) = object { Some(f(config)) } else { None })
}

/// [`with`] for an `hv_gic_config_t`.
pub fn with_gic_config<R>(handle: *mut c_void, f: impl FnOnce(&mut GicConfig) -> R) -> Result<R, Return> {
    with(handle, |object| if let Object::Gic(config) = object { Some(f(config)) } else { None })
}

/// [`with`] for an `hv_gic_state_t`.
pub fn with_gic_state<R>(handle: *mut c_void, f: impl FnOnce(&mut Vec<u8>) -> R) -> Result<R, Return> {
    with(handle, |object| if let Object::GicState(data) = object { Some(f(data)) } else { None })
}

/// Gives up the only reference there is to an object. Null and handles of nothing are ignored.
#[unsafe(no_mangle)]
pub(super) extern "C" fn os_release(object: *mut c_void) {
    with_table(|table| table.objects.remove(&(object as usize)));
}
