//! Guest-physical memory: `hv_vm_map`, `unmap`, `protect`, and allocation of memory to map.

use std::ffi::c_void;

use super::vm::{Vm, vm, with_allocations};
use super::{Return, anchor, code, put, ret};
use crate::config::{OverlappingMap, ProtNoneMap, UnmapGap};
use crate::host_memory::{self, HostMemoryError, HostProtection, Protections, Shown};
use crate::stage2::{Perms, Stage2Error};

anchor!();

impl From<Stage2Error> for Failure {
    fn from(error: Stage2Error) -> Failure {
        Failure(match error {
            Stage2Error::Misaligned | Stage2Error::Overlap => ret::BAD_ARGUMENT,
            Stage2Error::NotMapped => ret::ERROR,
        })
    }
}

impl From<HostMemoryError> for Failure {
    fn from(error: HostMemoryError) -> Failure {
        Failure(match error {
            HostMemoryError::NotOneObject => ret::BAD_ARGUMENT,
            HostMemoryError::NoResources => ret::NO_RESOURCES,
        })
    }
}

impl From<Return> for Failure {
    fn from(code: Return) -> Failure {
        Failure(code)
    }
}

struct Failure(Return);

fn finish(result: Result<(), Failure>) -> Return {
    code(result.map_err(|failure| failure.0))
}

fn perms(flags: u64) -> Result<Perms, Failure> {
    Perms::from_flags(flags).ok_or(Failure(ret::BAD_ARGUMENT))
}

fn map(vm: &Vm, host: *mut u8, ipa: u64, size: u64, flags: u64) -> Result<(), Failure> {
    let stage2 = &vm.machine.stage2;
    let perms = perms(flags)?;
    stage2.check_range(ipa, size)?;
    if host.is_null() || host as u64 & (stage2.granule() - 1) != 0 {
        return Err(Failure(ret::BAD_ARGUMENT));
    }
    // Before the lock: it may take the host a while, and other pages need not wait for it.
    let shown = Shown::at(host).filter(|shown| shown.len >= size);
    let protection = match shown {
        Some(_) => Ok(HostProtection::Readable),
        None => Protections::probe(host, size as usize),
    };
    let _serialised = vm.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if stage2.is_mapped(ipa, size) {
        match vm.machine.config.overlapping_map {
            OverlappingMap::BadArgument => return Err(Failure(ret::BAD_ARGUMENT)),
            OverlappingMap::Error => return Err(Failure(ret::ERROR)),
            OverlappingMap::Replace => {}
        }
        // Replacing: nothing may use the old memory while the window changes under it.
        stage2.clear(ipa, size);
        vm.machine.stage2_changed(ipa, size, true);
    }
    if protection? == HostProtection::None {
        if vm.machine.config.prot_none_map == ProtNoneMap::Error {
            return Err(Failure(ret::ERROR));
        }
        stage2.map(host, ipa, size, perms, true)?;
    } else {
        let (_, hole_end) = stage2.hole_around(ipa);
        let (address, allowed) = match &vm.window {
            Some(window) => window.share(host, shown, ipa, size, hole_end)?,
            None => (host, Perms::ALL),
        };
        stage2.map(address, ipa, size, perms & allowed, false)?;
        stage2.follow(ipa, size, host as u64);
    }
    // No vCPU has a translation of what was not mapped: there is nothing to flush.
    Ok(())
}

fn unmap(vm: &Vm, ipa: u64, size: u64) -> Result<(), Failure> {
    let _serialised = vm.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let unmapped = vm.machine.stage2.unmap(ipa, size);
    if unmapped == Err(Stage2Error::NotMapped) && vm.machine.config.unmap_gap == UnmapGap::Killed {
        eprintln!(
            "squib-sim: hv_vm_unmap of {size:#x} bytes at {ipa:#x}, of which something is not mapped: killed (unmap-gap)"
        );
        std::process::abort();
    }
    unmapped?;
    vm.machine.stage2_changed(ipa, size, true);
    if let Some(window) = &vm.window {
        let (start, end) = vm.machine.stage2.hole_around(ipa);
        window.release(start, end);
    }
    Ok(())
}

fn protect(vm: &Vm, ipa: u64, size: u64, flags: u64) -> Result<(), Failure> {
    let perms = perms(flags)?;
    let _serialised = vm.memory.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // A permission that a translation lacks makes the vCPU walk again, so only a loss must be made known.
    if vm.machine.stage2.protect(ipa, size, perms)? {
        vm.machine.stage2_changed(ipa, size, false);
    }
    Ok(())
}

/// `hv_vm_map`: shares the object behind a host range with the guest.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vm_map(address: *const c_void, ipa: u64, size: usize, flags: u64) -> Return {
    finish(vm().map_err(Failure).and_then(|vm| map(&vm, address.cast_mut().cast(), ipa, size as u64, flags)))
}

/// `hv_vm_unmap`: all of the range must be mapped.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vm_unmap(ipa: u64, size: usize) -> Return {
    finish(vm().map_err(Failure).and_then(|vm| unmap(&vm, ipa, size as u64)))
}

/// `hv_vm_protect`: all of the range must be mapped.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vm_protect(ipa: u64, size: usize, flags: u64) -> Return {
    finish(vm().map_err(Failure).and_then(|vm| protect(&vm, ipa, size as u64, flags)))
}

/// `hv_vm_allocate`: anonymous memory, aligned so that it can be mapped.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vm_allocate(address: *mut *mut c_void, size: usize, _flags: u32) -> Return {
    const PAGE: usize = 0x4000;
    if address.is_null() || size == 0 || !size.is_multiple_of(PAGE) {
        return ret::BAD_ARGUMENT;
    }
    let Some(memory) = host_memory::allocate(size, PAGE) else {
        return ret::NO_RESOURCES;
    };
    with_allocations(|allocations| allocations.insert(memory as usize, size));
    // SAFETY: the C signature: a place for a pointer.
    code(unsafe { put(address, memory.cast()) })
}

/// `hv_vm_deallocate`: takes back what `hv_vm_allocate` gave, whole.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vm_deallocate(address: *const c_void, size: usize) -> Return {
    let known = with_allocations(|allocations| {
        let known = allocations.get(&(address as usize)) == Some(&size);
        if known {
            allocations.remove(&(address as usize));
        }
        known
    });
    if !known {
        return ret::BAD_ARGUMENT;
    }
    // SAFETY: the table says that this is an allocation of ours of that size; that it is not used any more is the caller's
    // promise. A guest it is mapped into keeps the object through the window.
    unsafe { host_memory::deallocate(address.cast_mut().cast(), size) };
    ret::SUCCESS
}
