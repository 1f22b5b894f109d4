//! The in-kernel GIC: creation, injection, registers, state.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::object::{self, Object};
use super::vcpu::{slot, with_vcpu};
use super::vm::{Vm, vm};
use super::{Return, anchor, code, put, ret};
use crate::gic::{self, Gic, Layout, Msi};

anchor!();

/// Calls `f` on the virtual machine's GIC; `HV_NO_DEVICE` if there is none.
fn with_gic<R>(f: impl FnOnce(&Vm, &Gic) -> Result<R, Return>) -> Result<R, Return> {
    let vm: Arc<Vm> = vm()?;
    f(&vm, vm.machine.gic.get().ok_or(ret::NO_DEVICE)?)
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

fn create(handle: *mut c_void) -> Result<(), Return> {
    let vm = vm()?;
    let config = object::with_gic_config(handle, |config| *config)?;
    let msi = config.msi_region.zip(config.msi_range).map(|(base, (first, count))| Msi { base, first, count });
    let layout = Layout { distributor: config.distributor, redistributors: config.redistributors, msi };
    let mut regions =
        vec![(layout.distributor, gic::DISTRIBUTOR_SIZE), (layout.redistributors, gic::REDISTRIBUTOR_REGION_SIZE)];
    regions.extend(msi.map(|msi| (msi.base, gic::MSI_SIZE)));
    let outside = |&(base, size): &(u64, u64)| base + size > vm.machine.stage2.ipa_size();
    let collide = |at: usize| regions[at + 1..].iter().any(|&other| overlap(regions[at], other));
    if regions.iter().any(outside) || (0..regions.len()).any(collide) {
        return Err(ret::BAD_ARGUMENT);
    }
    // Under the slots' lock: no vCPU appears between the check and the creation.
    let slots = vm.slots();
    if slots.iter().any(Option::is_some) {
        return Err(ret::BUSY);
    }
    let gic = Gic::new(layout, vm.machine.config.gic_mmio_exits);
    vm.machine.gic.set(gic).map_err(|_| ret::BUSY)
}

/// `hv_gic_create`: once, before the first vCPU.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_create(config: *mut c_void) -> Return {
    code(create(config))
}

/// `hv_gic_reset`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_reset() -> Return {
    code(with_gic(|_, gic| {
        gic.reset();
        Ok(())
    }))
}

/// `hv_gic_set_spi`: an SPI that no MSI is for.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_set_spi(intid: u32, level: bool) -> Return {
    code(with_gic(|_, gic| {
        let is_msi = gic.layout().msi.is_some_and(|msi| msi.contains(intid));
        if is_msi || !(gic::SPI_BASE..gic::SPI_END).contains(&intid) {
            return Err(ret::BAD_ARGUMENT);
        }
        gic.set_spi(intid, level);
        Ok(())
    }))
}

/// `hv_gic_send_msi`: to the message register of the MSI frame, for one of its interrupts.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_send_msi(address: u64, intid: u32) -> Return {
    code(with_gic(|_, gic| {
        let valid = |msi: Msi| address == msi.base + u64::from(gic::MSI_SETSPI) && msi.contains(intid);
        if !gic.layout().msi.is_some_and(valid) {
            return Err(ret::BAD_ARGUMENT);
        }
        gic.send_msi(intid);
        Ok(())
    }))
}

/// Bytes of a distributor register that the framework's calls reach.
fn distributor_size(offset: u32) -> Result<u8, Return> {
    match offset {
        0x6100..0x7fe0 if offset.is_multiple_of(8) => Ok(8),
        // CTLR, TYPER; IGROUPR to ICACTIVER; IPRIORITYR; ICFGR; PIDR2. Not IGRPMODR.
        0x0000 | 0x0004 | 0x0080..0x0400 | 0x0400..0x07fc | 0x0c00..0x0d00 | 0xffe8 if offset.is_multiple_of(4) => {
            Ok(4)
        }
        _ => Err(ret::BAD_ARGUMENT),
    }
}

/// `hv_gic_get_distributor_reg`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_get_distributor_reg(offset: u32, value: *mut u64) -> Return {
    let read = |_: &Vm, gic: &Gic| Ok(gic.distributor_reg(offset, distributor_size(offset)?));
    // SAFETY: the C signature: a place for a u64.
    code(with_gic(read).and_then(|found| unsafe { put(value, found) }))
}

/// `hv_gic_set_distributor_reg`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_set_distributor_reg(offset: u32, value: u64) -> Return {
    code(with_gic(|_, gic| {
        gic.set_distributor_reg(offset, distributor_size(offset)?, value);
        Ok(())
    }))
}

/// Bytes of a redistributor register that the framework's calls reach.
fn redistributor_size(offset: u32) -> Result<u8, Return> {
    match offset {
        0x0008 => Ok(8),
        0xffe8 | 0x1_0080 | 0x1_0100 | 0x1_0180 | 0x1_0200 | 0x1_0280 | 0x1_0300 | 0x1_0380 | 0x1_0c00 | 0x1_0c04 => {
            Ok(4)
        }
        0x1_0400..0x1_0420 if offset.is_multiple_of(4) => Ok(4),
        // CTLR, WAKER and IGRPMODR0 exist and are refused, too.
        _ => Err(ret::BAD_ARGUMENT),
    }
}

/// `hv_gic_get_redistributor_base`: once MPIDR_EL1 has been set.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_get_redistributor_base(vcpu: u64, base: *mut u64) -> Return {
    let found = with_gic(|_, gic| {
        if !slot(vcpu)?.has_affinity() {
            return Err(ret::BAD_ARGUMENT);
        }
        Ok(gic.redistributor_base(vcpu as usize))
    });
    // SAFETY: the C signature: a place for a u64.
    code(found.and_then(|found| unsafe { put(base, found) }))
}

/// `hv_gic_get_redistributor_reg`: by the owning thread.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_get_redistributor_reg(vcpu: u64, offset: u32, value: *mut u64) -> Return {
    let read = |_: &Vm, gic: &Gic| {
        with_vcpu(vcpu, |_, _| Ok(gic.redistributor_reg(vcpu as usize, offset, redistributor_size(offset)?)))
    };
    // SAFETY: the C signature: a place for a u64.
    code(with_gic(read).and_then(|found| unsafe { put(value, found) }))
}

/// `hv_gic_set_redistributor_reg`: by the owning thread.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_set_redistributor_reg(vcpu: u64, offset: u32, value: u64) -> Return {
    code(with_gic(|_, gic| {
        with_vcpu(vcpu, |_, _| {
            gic.set_redistributor_reg(vcpu as usize, offset, redistributor_size(offset)?, value);
            Ok(())
        })
    }))
}

/// The `hv_gic_icc_reg_t` a host can reach without EL2, and whether it can be written.
fn icc_register(register: u32) -> Result<(u16, bool), Return> {
    match register {
        0xc230 | 0xc643 | 0xc644 | 0xc648 | 0xc663..=0xc667 => Ok((register as u16, true)),
        // RPR.
        0xc65b => Ok((register as u16, false)),
        _ => Err(ret::BAD_ARGUMENT),
    }
}

/// `hv_gic_get_icc_reg`: by the owning thread.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_get_icc_reg(vcpu: u64, register: u32, value: *mut u64) -> Return {
    let read = |_: &Vm, gic: &Gic| {
        with_vcpu(vcpu, |_, _| {
            let (encoding, _) = icc_register(register)?;
            gic.icc_read(vcpu as usize, encoding).ok_or(ret::BAD_ARGUMENT)
        })
    };
    // SAFETY: the C signature: a place for a u64.
    code(with_gic(read).and_then(|found| unsafe { put(value, found) }))
}

/// `hv_gic_set_icc_reg`: by the owning thread.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_set_icc_reg(vcpu: u64, register: u32, value: u64) -> Return {
    code(with_gic(|_, gic| {
        with_vcpu(vcpu, |_, _| match icc_register(register)? {
            (encoding, true) if gic.icc_write(vcpu as usize, encoding, value) => Ok(()),
            _ => Err(ret::BAD_ARGUMENT),
        })
    }))
}

macro_rules! el2_registers {
    ($($(#[$meta:meta])* $get:ident, $set:ident;)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub(super) extern "C" fn $get(vcpu: u64, _register: u32, _value: *mut u64) -> Return {
            code(with_gic(|_, _| with_vcpu(vcpu, |_, _| Err(ret::UNSUPPORTED))))
        }

        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub(super) extern "C" fn $set(vcpu: u64, _register: u32, _value: u64) -> Return {
            code(with_gic(|_, _| with_vcpu(vcpu, |_, _| Err(ret::UNSUPPORTED))))
        }
    )*};
}

el2_registers! {
    /// ICH registers need EL2, which there is not.
    hv_gic_get_ich_reg, hv_gic_set_ich_reg;
    /// ICV registers need EL2, which there is not.
    hv_gic_get_icv_reg, hv_gic_set_icv_reg;
}

fn msi_register(gic: &Gic, register: u32) -> Result<u32, Return> {
    let known = register == 0x0008 || register == gic::MSI_SETSPI;
    if known && gic.layout().msi.is_some() { Ok(register) } else { Err(ret::BAD_ARGUMENT) }
}

/// `hv_gic_get_msi_reg`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_get_msi_reg(register: u32, value: *mut u64) -> Return {
    let read = |_: &Vm, gic: &Gic| Ok(gic.msi_reg(msi_register(gic, register)?));
    // SAFETY: the C signature: a place for a u64.
    code(with_gic(read).and_then(|found| unsafe { put(value, found) }))
}

/// `hv_gic_set_msi_reg`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_set_msi_reg(register: u32, value: u64) -> Return {
    code(with_gic(|_, gic| {
        gic.set_msi_reg(msi_register(gic, register)?, value);
        Ok(())
    }))
}

/// `hv_gic_state_create`: null unless there is a GIC and all vCPUs are stopped.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_state_create() -> *mut c_void {
    let state = with_gic(|vm, gic| if vm.is_running() { Err(ret::BUSY) } else { Ok(gic.save()) });
    state.map_or(std::ptr::null_mut(), |data| object::create(Object::GicState(data)))
}

/// `hv_gic_state_get_size`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_state_get_size(state: *mut c_void, size: *mut usize) -> Return {
    // SAFETY: the C signature: a place for a size_t.
    code(object::with_gic_state(state, |data| data.len()).and_then(|length| unsafe { put(size, length) }))
}

/// `hv_gic_state_get_data`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_state_get_data(state: *mut c_void, buffer: *mut c_void) -> Return {
    if buffer.is_null() {
        return ret::BAD_ARGUMENT;
    }
    code(object::with_gic_state(state, |data| {
        // SAFETY: the C signature: the buffer has at least as many bytes as `hv_gic_state_get_size` says, and the state is not
        // in it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), buffer.cast(), data.len()) };
    }))
}

/// `hv_gic_set_state`: before any vCPU has run.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_set_state(data: *const c_void, size: usize) -> Return {
    code(with_gic(|vm, gic| {
        if data.is_null() || vm.machine.config.gic_state_refused {
            return Err(ret::BAD_ARGUMENT);
        }
        if vm.runs.load(Ordering::SeqCst) != 0 {
            return Err(ret::BUSY);
        }
        // SAFETY: the C signature: a buffer of `size` bytes.
        let data = unsafe { std::slice::from_raw_parts(data.cast(), size) };
        if gic.load(data) { Ok(()) } else { Err(ret::BAD_ARGUMENT) }
    }))
}
