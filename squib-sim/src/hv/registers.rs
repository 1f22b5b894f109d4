//! Register access: general, FP/SIMD and system registers.

use super::access::{HostAccess, is_legal};
use super::vcpu::{Inner, MPIDR_EL1, Slot, with_vcpu};
use super::{Return, anchor, code, put, ret};

anchor!();

/// `hv_reg_t` beyond X0..X30.
mod reg {
    pub const PC: u32 = 31;
    pub const FPCR: u32 = 32;
    pub const FPSR: u32 = 33;
    pub const CPSR: u32 = 34;
}

fn get_reg(inner: &Inner, register: u32) -> Result<u64, Return> {
    let cpu = &inner.vcpu.cpu;
    Ok(match register {
        0..=30 => cpu.x[register as usize],
        reg::PC => cpu.pc,
        reg::FPCR => cpu.fpcr.into(),
        reg::FPSR => cpu.fpsr.into(),
        reg::CPSR => inner.illegal_cpsr.unwrap_or_else(|| cpu.pstate()),
        _ => return Err(ret::BAD_ARGUMENT),
    })
}

fn set_reg(inner: &mut Inner, register: u32, value: u64) -> Result<(), Return> {
    let vcpu = &mut inner.vcpu;
    match register {
        0..=30 => vcpu.cpu.x[register as usize] = value,
        reg::PC => vcpu.cpu.pc = value,
        reg::FPCR => vcpu.set_fpcr(value),
        reg::FPSR => vcpu.set_fpsr(value),
        reg::CPSR if is_legal(value) => {
            inner.illegal_cpsr = None;
            vcpu.cpu.set_pstate(value);
        }
        reg::CPSR => inner.illegal_cpsr = Some(value),
        _ => return Err(ret::BAD_ARGUMENT),
    }
    Ok(())
}

fn set_sys_reg(slot: &Slot, inner: &mut Inner, register: u32, value: u64) -> Result<(), Return> {
    let encoding = u16::try_from(register).map_err(|_| ret::BAD_ARGUMENT)?;
    if !inner.vcpu.set_sys_reg(encoding, value) {
        return Err(ret::BAD_ARGUMENT);
    }
    if encoding == MPIDR_EL1 {
        slot.set_affinity(value);
    }
    Ok(())
}

/// `hv_vcpu_get_reg`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_reg(vcpu: u64, register: u32, value: *mut u64) -> Return {
    // SAFETY: the C signature: a place for a u64.
    code(with_vcpu(vcpu, |_, inner| get_reg(inner, register)).and_then(|found| unsafe { put(value, found) }))
}

/// `hv_vcpu_set_reg`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_set_reg(vcpu: u64, register: u32, value: u64) -> Return {
    code(with_vcpu(vcpu, |_, inner| set_reg(inner, register, value)))
}

/// `hv_vcpu_get_sys_reg`: an encoding that is not in the set is a bad argument.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_sys_reg(vcpu: u64, register: u32, value: *mut u64) -> Return {
    let read = |inner: &mut Inner| {
        let encoding = u16::try_from(register).ok()?;
        inner.vcpu.get_sys_reg(encoding)
    };
    // SAFETY: the C signature: a place for a u64.
    code(
        with_vcpu(vcpu, |_, inner| read(inner).ok_or(ret::BAD_ARGUMENT)).and_then(|found| unsafe { put(value, found) }),
    )
}

/// `hv_vcpu_set_sys_reg`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_set_sys_reg(vcpu: u64, register: u32, value: u64) -> Return {
    code(with_vcpu(vcpu, |slot, inner| set_sys_reg(slot, inner, register, value)))
}

fn simd_index(register: u32) -> Result<usize, Return> {
    if register < 32 { Ok(register as usize) } else { Err(ret::BAD_ARGUMENT) }
}

/// `hv_vcpu_get_simd_fp_reg`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_get_simd_fp_reg(vcpu: u64, register: u32, value: *mut u128) -> Return {
    let read = |_: &Slot, inner: &mut Inner| simd_index(register).map(|index| inner.vcpu.cpu.v[index]);
    // SAFETY: the C signature: a place for sixteen bytes.
    code(with_vcpu(vcpu, read).and_then(|found| unsafe { put(value, found) }))
}

/// What `hv_vcpu_set_simd_fp_reg` does, with the value in memory.
extern "C" fn set_simd_fp_reg(vcpu: u64, register: u32, value: &u128) -> Return {
    code(with_vcpu(vcpu, |_, inner| {
        inner.vcpu.cpu.v[simd_index(register)?] = *value;
        Ok(())
    }))
}

/// `hv_vcpu_set_simd_fp_reg`. `applevisor-sys` passes a `u128`, and so it is here ...
#[cfg(not(all(target_arch = "aarch64", target_vendor = "apple")))]
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_set_simd_fp_reg(vcpu: u64, register: u32, value: u128) -> Return {
    set_simd_fp_reg(vcpu, register, &value)
}

/// ... but on Apple silicon the framework's own type is a vector, which travels in q0, and callers go by that.
#[cfg(all(target_arch = "aarch64", target_vendor = "apple"))]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub(super) extern "C" fn hv_vcpu_set_simd_fp_reg(vcpu: u64, register: u32) -> Return {
    // AAPCS64: x0 and w1 are in place, the vector is in q0. It is spilt below the frame record, and its address becomes the
    // third argument.
    std::arch::naked_asm!(
        "sub sp, sp, #32",
        "stp x29, x30, [sp, #16]",
        "add x29, sp, #16",
        "str q0, [sp]",
        "mov x2, sp",
        "bl {inner}",
        "ldp x29, x30, [sp, #16]",
        "add sp, sp, #32",
        "ret",
        inner = sym set_simd_fp_reg,
    )
}
