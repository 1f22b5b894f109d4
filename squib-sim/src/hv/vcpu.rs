//! vCPUs: creation and end, running, exits, pending interrupts, the virtual timer.
//!
//! A vCPU belongs to the thread that created it; [`with_vcpu`] enforces that. Its model is behind a lock which the owner
//! holds during a run, so that even the switch that lets other threads in keeps to one user at a time.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::ThreadId;

use super::access::HostAccess as _;
use super::vm::{Vm, vm};
use super::{Return, anchor, code, put, ret};
use crate::config::WrongThread;
use crate::engine::run::{Exit, Vcpu};
use crate::engine::shared::VcpuShared;

anchor!();

/// `hv_vcpu_exit_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ExitRecord {
    reason: u32,
    syndrome: u64,
    virtual_address: u64,
    physical_address: u64,
}

#[cfg(test)]
const _: () = {
    use std::mem::offset_of;

    use applevisor_sys::{hv_exit_reason_t as reasons, hv_vcpu_exit_exception_t as Exception, hv_vcpu_exit_t as Exit};

    const EXCEPTION: usize = offset_of!(Exit, exception);
    assert!(size_of::<ExitRecord>() == size_of::<Exit>());
    assert!(offset_of!(ExitRecord, reason) == offset_of!(Exit, reason));
    assert!(offset_of!(ExitRecord, syndrome) == EXCEPTION + offset_of!(Exception, syndrome));
    assert!(offset_of!(ExitRecord, virtual_address) == EXCEPTION + offset_of!(Exception, virtual_address));
    assert!(offset_of!(ExitRecord, physical_address) == EXCEPTION + offset_of!(Exception, physical_address));
    assert!(reason::CANCELED == reasons::CANCELED as u32);
    assert!(reason::EXCEPTION == reasons::EXCEPTION as u32);
    assert!(reason::VTIMER_ACTIVATED == reasons::VTIMER_ACTIVATED as u32);
    assert!(reason::UNKNOWN == reasons::UNKNOWN as u32);
};

/// `hv_exit_reason_t`.
mod reason {
    pub const CANCELED: u32 = 0;
    pub const EXCEPTION: u32 = 1;
    pub const VTIMER_ACTIVATED: u32 = 2;
    pub const UNKNOWN: u32 = 3;
}

/// Encoding of the register that decides about a vCPU's affinity.
pub const MPIDR_EL1: u16 = 0xc005;

/// The model and the exit record, which whoever holds the lock may touch.
pub struct Inner {
    pub vcpu: Vcpu,
    exit: Box<ExitRecord>,
    /// A PSTATE the host has set and no vCPU can be in: it reads back, and refuses to run.
    pub illegal_cpsr: Option<u64>,
}

// SAFETY: a `Vcpu` holds pointers into memory it owns itself or that the machine it belongs to keeps; none is tied to a
// thread. It is used by one thread at a time, because it is only reached through `Slot::inner`'s lock.
unsafe impl Send for Inner {}

/// A vCPU and who it belongs to.
pub struct Slot {
    /// `hv_vcpu_t`, and the index everywhere inside.
    pub id: u64,
    owner: ThreadId,
    /// The side other threads may touch.
    pub shared: Arc<VcpuShared>,
    vm: Arc<Vm>,
    inner: Mutex<Inner>,
    running: AtomicBool,
    exit_lost: AtomicBool,
    exec_time: AtomicU64,
    affinity_set: AtomicBool,
}

thread_local! {
    /// The vCPU of this thread: the way around the table for nearly every call.
    static CURRENT: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

impl Slot {
    /// Whether the vCPU is inside `hv_vcpu_run`.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Whether the host has written MPIDR_EL1.
    pub fn has_affinity(&self) -> bool {
        self.affinity_set.load(Ordering::Relaxed)
    }

    /// The host has written MPIDR_EL1.
    pub fn set_affinity(&self, mpidr: u64) {
        self.affinity_set.store(true, Ordering::Relaxed);
        if let Some(gic) = self.vm.machine.gic.get() {
            gic.set_affinity(self.index(), mpidr);
        }
    }

    fn index(&self) -> usize {
        self.id as usize
    }

    fn run(&self, inner: &mut Inner) {
        let clock = &self.vm.machine.clock;
        if self.vm.machine.config.follows_protection() {
            self.vm.machine.observe_host_protection();
        }
        self.running.store(true, Ordering::SeqCst);
        self.vm.runs.fetch_add(1, Ordering::Relaxed);
        let start = clock.mach_absolute_time();
        let exit = inner.vcpu.run();
        // A run that was too short for the clock to move still took time.
        self.exec_time.fetch_add((clock.mach_absolute_time() - start).max(1), Ordering::Relaxed);
        self.running.store(false, Ordering::SeqCst);
        *inner.exit = match exit {
            Exit::Canceled => ExitRecord { reason: reason::CANCELED, ..ExitRecord::default() },
            Exit::VtimerActivated => ExitRecord { reason: reason::VTIMER_ACTIVATED, ..ExitRecord::default() },
            Exit::Exception { esr, far, ipa } => {
                ExitRecord { reason: reason::EXCEPTION, syndrome: esr, virtual_address: far, physical_address: ipa }
            }
        };
    }
}

/// The vCPU in slot `id`, whoever asks.
pub fn slot(id: u64) -> Result<Arc<Slot>, Return> {
    let vm = vm()?;
    let slots = vm.slots();
    let index = usize::try_from(id).map_err(|_| ret::BAD_ARGUMENT)?;
    slots.get(index).and_then(Clone::clone).ok_or(ret::BAD_ARGUMENT)
}

fn with_slot<R>(slot: &Slot, f: impl FnOnce(&Slot, &mut Inner) -> Result<R, Return>) -> Result<R, Return> {
    match slot.inner.try_lock() {
        Ok(mut inner) => f(slot, &mut inner),
        Err(TryLockError::Poisoned(poisoned)) => f(slot, &mut poisoned.into_inner()),
        // Only the switch that admits other threads leads here: the vCPU is running.
        Err(TryLockError::WouldBlock) => Err(ret::BUSY),
    }
}

/// Calls `f` on vCPU `id`, which must belong to the calling thread.
pub fn with_vcpu<R>(id: u64, f: impl FnOnce(&Slot, &mut Inner) -> Result<R, Return>) -> Result<R, Return> {
    let own = CURRENT.with_borrow(|current| current.as_ref().filter(|slot| slot.id == id).cloned());
    if let Some(slot) = own {
        return with_slot(&slot, f);
    }
    let slot = slot(id)?;
    match slot.vm.machine.config.wrong_thread {
        WrongThread::BadArgument => Err(ret::BAD_ARGUMENT),
        WrongThread::Denied => Err(ret::DENIED),
        WrongThread::Works => with_slot(&slot, f),
    }
}

/// Reads something of a vCPU and writes it through the caller's pointer.
///
/// # Safety
/// `place` is null or valid for a write of a `T`.
unsafe fn get<T>(id: u64, place: *mut T, f: impl FnOnce(&Slot, &mut Inner) -> T) -> Return {
    if place.is_null() {
        return ret::BAD_ARGUMENT;
    }
    // SAFETY: the caller's promise.
    code(with_vcpu(id, |slot, inner| Ok(f(slot, inner))).and_then(|value| unsafe { put(place, value) }))
}

fn create() -> Result<Arc<Slot>, Return> {
    let vm = vm()?;
    let mut slots = vm.slots();
    // With a switch another thread may have destroyed what this one had.
    let is_there = |own: &Arc<Slot>| slots.iter().flatten().any(|slot| Arc::ptr_eq(slot, own));
    if CURRENT.with_borrow(|current| current.as_ref().is_some_and(is_there)) {
        return Err(ret::BUSY);
    }
    let index = slots.iter().position(Option::is_none).ok_or(ret::NO_RESOURCES)?;
    let shared = VcpuShared::new(index);
    vm.machine.add_vcpu(shared.clone());
    let vcpu = Vcpu::new(vm.machine.clone(), shared.clone());
    if let Some(gic) = vm.machine.gic.get() {
        let mpidr = vcpu.get_sys_reg(MPIDR_EL1).unwrap_or_default();
        gic.attach(index, mpidr, shared.clone());
    }
    let exit = Box::new(ExitRecord { reason: reason::UNKNOWN, ..ExitRecord::default() });
    let slot = Arc::new(Slot {
        id: index as u64,
        owner: std::thread::current().id(),
        shared,
        vm: vm.clone(),
        inner: Mutex::new(Inner { vcpu, exit, illegal_cpsr: None }),
        running: AtomicBool::new(false),
        exit_lost: AtomicBool::new(false),
        exec_time: AtomicU64::new(0),
        affinity_set: AtomicBool::new(false),
    });
    slots[index] = Some(slot.clone());
    CURRENT.set(Some(slot.clone()));
    Ok(slot)
}

fn destroy(slot: &Slot) {
    let machine = &slot.vm.machine;
    slot.vm.slots()[slot.index()] = None;
    if let Some(gic) = machine.gic.get() {
        gic.detach(slot.index());
    }
    machine.remove_vcpu(slot.index());
    if slot.owner == std::thread::current().id() {
        CURRENT.set(None);
    }
}

/// `hv_vcpu_create`: the vCPU belongs to the calling thread, which has none yet.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_create(
    vcpu: *mut u64,
    exit: *mut *const std::ffi::c_void,
    config: *mut std::ffi::c_void,
) -> Return {
    if vcpu.is_null() || exit.is_null() {
        return ret::BAD_ARGUMENT;
    }
    if !config.is_null() && !super::vcpu_config::is_vcpu_config(config) {
        return ret::BAD_ARGUMENT;
    }
    let created = create().and_then(|slot| {
        let record = with_slot(&slot, |_, inner| Ok(&raw const *inner.exit))?;
        // SAFETY: the C signature: places for an id and a pointer. The record is boxed, so it stays where it is for the
        // life of the vCPU.
        unsafe {
            put(vcpu, slot.id)?;
            put(exit, record.cast())
        }
    });
    code(created)
}

/// `hv_vcpu_destroy`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_destroy(vcpu: u64) -> Return {
    code(with_vcpu(vcpu, |slot, _| {
        destroy(slot);
        Ok(())
    }))
}

/// `hv_vcpu_run`: returns on the next exit.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_run(vcpu: u64) -> Return {
    code(with_vcpu(vcpu, |slot, inner| {
        if inner.illegal_cpsr.is_some() {
            return Err(ret::ILLEGAL_GUEST_STATE);
        }
        slot.run(inner);
        Ok(())
    }))
}

/// `hv_vcpus_exit`: from any thread. A vCPU that is not running does not start next time.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpus_exit(vcpus: *const u64, count: u32) -> Return {
    if count == 0 {
        return ret::SUCCESS;
    }
    if vcpus.is_null() {
        return ret::BAD_ARGUMENT;
    }
    // SAFETY: the C signature: an array of `count` ids.
    let ids = unsafe { std::slice::from_raw_parts(vcpus, count as usize) };
    code(ids.iter().map(|&id| slot(id)).collect::<Result<Vec<_>, _>>().map(|slots| {
        for slot in slots {
            let loses = slot.vm.machine.config.lost_exits && !slot.is_running();
            if !loses || slot.exit_lost.swap(true, Ordering::Relaxed) {
                slot.shared.request_exit();
            }
        }
    }))
}

/// `hv_interrupt_type_t`.
mod interrupt {
    pub const FIQ: u32 = 0;
    pub const IRQ: u32 = 1;
}

/// `hv_vcpu_get_pending_interrupt`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_pending_interrupt(vcpu: u64, kind: u32, pending: *mut bool) -> Return {
    if kind > interrupt::IRQ {
        return ret::BAD_ARGUMENT;
    }
    let read = |_: &Slot, inner: &mut Inner| inner.vcpu.pending_interrupt(kind == interrupt::FIQ);
    // SAFETY: the C signature: a place for a bool.
    unsafe { get(vcpu, pending, read) }
}

/// `hv_vcpu_set_pending_interrupt`: lasts until `hv_vcpu_run` returns.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_set_pending_interrupt(vcpu: u64, kind: u32, pending: bool) -> Return {
    code(with_vcpu(vcpu, |_, inner| {
        if kind > interrupt::IRQ {
            return Err(ret::BAD_ARGUMENT);
        }
        inner.vcpu.set_pending_interrupt(kind == interrupt::FIQ, pending);
        Ok(())
    }))
}

/// `hv_vcpu_get_exec_time`: `mach_absolute_time` ticks inside `hv_vcpu_run`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_exec_time(vcpu: u64, time: *mut u64) -> Return {
    // SAFETY: the C signature: a place for a u64.
    unsafe { get(vcpu, time, |slot, _| slot.exec_time.load(Ordering::Relaxed)) }
}

/// `hv_vcpu_get_vtimer_mask`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_vtimer_mask(vcpu: u64, masked: *mut bool) -> Return {
    // SAFETY: the C signature: a place for a bool.
    unsafe { get(vcpu, masked, |_, inner| inner.vcpu.vtimer_mask()) }
}

/// `hv_vcpu_set_vtimer_mask`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_set_vtimer_mask(vcpu: u64, masked: bool) -> Return {
    code(with_vcpu(vcpu, |_, inner| {
        inner.vcpu.set_vtimer_mask(masked);
        Ok(())
    }))
}

/// `hv_vcpu_get_vtimer_offset`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_vtimer_offset(vcpu: u64, offset: *mut u64) -> Return {
    // SAFETY: the C signature: a place for a u64.
    unsafe { get(vcpu, offset, |_, inner| inner.vcpu.vtimer_offset()) }
}

/// `hv_vcpu_set_vtimer_offset`: the guest's virtual counter is `mach_absolute_time` less this.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_set_vtimer_offset(vcpu: u64, offset: u64) -> Return {
    code(with_vcpu(vcpu, |_, inner| {
        inner.vcpu.set_vtimer_offset(offset);
        Ok(())
    }))
}

/// `hv_vcpu_get_trap_debug_exceptions`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_trap_debug_exceptions(vcpu: u64, value: *mut bool) -> Return {
    // SAFETY: the C signature: a place for a bool.
    unsafe { get(vcpu, value, |_, inner| inner.vcpu.cpu.trap_debug_exceptions) }
}

/// `hv_vcpu_set_trap_debug_exceptions`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_set_trap_debug_exceptions(vcpu: u64, value: bool) -> Return {
    code(with_vcpu(vcpu, |_, inner| {
        inner.vcpu.cpu.trap_debug_exceptions = value;
        inner.vcpu.cpu.refresh();
        Ok(())
    }))
}

/// `hv_vcpu_get_trap_debug_reg_accesses`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_trap_debug_reg_accesses(vcpu: u64, value: *mut bool) -> Return {
    // SAFETY: the C signature: a place for a bool.
    unsafe { get(vcpu, value, |_, inner| inner.vcpu.cpu.trap_debug_reg_accesses) }
}

/// `hv_vcpu_set_trap_debug_reg_accesses`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_set_trap_debug_reg_accesses(vcpu: u64, value: bool) -> Return {
    code(with_vcpu(vcpu, |_, inner| {
        inner.vcpu.cpu.trap_debug_reg_accesses = value;
        inner.vcpu.cpu.refresh();
        Ok(())
    }))
}
