//! The vCPU configuration object: read-only facts about the vCPUs to come.

use std::ffi::c_void;

use super::access::feature_register;
use super::object::{self, Object};
use super::{Return, anchor, code, put, ret};

anchor!();

/// System register encodings of `hv_feature_reg_t`, in its order.
const FEATURE_REGISTERS: [u16; 12] = [
    0xc028, // ID_AA64DFR0_EL1
    0xc029, // ID_AA64DFR1_EL1
    0xc030, // ID_AA64ISAR0_EL1
    0xc031, // ID_AA64ISAR1_EL1
    0xc038, // ID_AA64MMFR0_EL1
    0xc039, // ID_AA64MMFR1_EL1
    0xc03a, // ID_AA64MMFR2_EL1
    0xc020, // ID_AA64PFR0_EL1
    0xc021, // ID_AA64PFR1_EL1
    0xd801, // CTR_EL0
    0xc801, // CLIDR_EL1
    0xd807, // DCZID_EL0
];

/// Level 1 CCSIDR_EL1 values of the data and the instruction cache: 64 KiB in 64-byte lines, 256 sets, 4 ways.
const CCSIDR: [u64; 2] = [255 << 13 | 3 << 3 | 2; 2];

/// Whether the handle stands for an `hv_vcpu_config_t`.
pub fn is_vcpu_config(handle: *mut c_void) -> bool {
    object::with(handle, |object| matches!(object, Object::Vcpu).then_some(())).is_ok()
}

/// `hv_vcpu_config_create`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_vcpu_config_create() -> *mut c_void {
    object::create(Object::Vcpu)
}

/// `hv_vcpu_config_get_feature_reg`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_config_get_feature_reg(
    config: *mut c_void,
    register: u32,
    value: *mut u64,
) -> Return {
    if !is_vcpu_config(config) {
        return ret::BAD_ARGUMENT;
    }
    let found = FEATURE_REGISTERS.get(register as usize).and_then(|&encoding| feature_register(encoding));
    // SAFETY: the C signature: a place for a u64.
    code(found.ok_or(ret::BAD_ARGUMENT).and_then(|found| unsafe { put(value, found) }))
}

/// `hv_vcpu_config_get_ccsidr_el1_sys_reg_values`. The framework's header makes `values` an array of eight, one a cache level;
/// `applevisor` passes room for one. So only level 1 is written.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_vcpu_config_get_ccsidr_el1_sys_reg_values(
    config: *mut c_void,
    cache: u32,
    values: *mut u64,
) -> Return {
    if !is_vcpu_config(config) {
        return ret::BAD_ARGUMENT;
    }
    // SAFETY: the C signature: a place for at least one u64.
    code(CCSIDR.get(cache as usize).ok_or(ret::BAD_ARGUMENT).and_then(|&value| unsafe { put(values, value) }))
}
