//! GIC register frames whose accesses arrive as data aborts, passed on to the in-kernel GIC.
//!
//! Whether the framework handles distributor and redistributor accesses itself is contradicted by public evidence; where it
//! does not, this does. Registers the framework does not offer read as zero and ignore writes.
//!
//! The framework's calls take the register's offset as a number. The binding's enumerations name only the offsets known
//! to it, so the functions are declared here with the number itself.

use applevisor::prelude::Vcpu;

unsafe extern "C" {
    fn hv_gic_get_distributor_reg(reg: u32, value: *mut u64) -> i32;
    fn hv_gic_set_distributor_reg(reg: u32, value: u64) -> i32;
    fn hv_gic_get_redistributor_reg(vcpu: u64, reg: u32, value: *mut u64) -> i32;
    fn hv_gic_set_redistributor_reg(vcpu: u64, reg: u32, value: u64) -> i32;
}

/// Reads a distributor register, from any thread.
pub fn read_distributor(offset: u64) -> u64 {
    let mut value = 0;
    // SAFETY: plain call; `value` is a valid place for the result. An unknown offset is answered with an error code.
    let code = unsafe { hv_gic_get_distributor_reg(offset as u32, &mut value) };
    if code == 0 { value } else { 0 }
}

/// Writes a distributor register, from any thread.
pub fn write_distributor(offset: u64, value: u64) {
    // SAFETY: plain call. An unknown offset is answered with an error code: the write is then ignored, as the GIC would.
    unsafe { hv_gic_set_distributor_reg(offset as u32, value) };
}

/// Reads a register of the redistributor of a vCPU owned by this thread.
pub fn read_redistributor(vcpu: &Vcpu, offset: u64) -> u64 {
    let mut value = 0;
    // SAFETY: as for the distributor; the vCPU is owned by this thread (`Vcpu` is not `Send`).
    let code = unsafe { hv_gic_get_redistributor_reg(vcpu.id(), offset as u32, &mut value) };
    if code == 0 { value } else { 0 }
}

/// Writes a register of the redistributor of a vCPU owned by this thread.
pub fn write_redistributor(vcpu: &Vcpu, offset: u64, value: u64) {
    // SAFETY: as for reading.
    unsafe { hv_gic_set_redistributor_reg(vcpu.id(), offset as u32, value) };
}
