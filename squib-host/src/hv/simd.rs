//! `hv_vcpu_set_simd_fp_reg` takes its 128-bit value in the vector register q0 (Apple's type is a 16-byte vector), while
//! `applevisor-sys` declares it as `u128`, which travels in x2:x3. On Apple targets this module makes the call itself; on
//! others the stand-in's definition and the binding agree. Reading goes by pointer and needs no care.

use applevisor::prelude::{HypervisorError, SimdFpReg, Vcpu};

/// V0..V31.
pub const VECTORS: [SimdFpReg; 32] = {
    use applevisor_sys::hv_simd_fp_reg_t::*;
    [
        Q0, Q1, Q2, Q3, Q4, Q5, Q6, Q7, Q8, Q9, Q10, Q11, Q12, Q13, Q14, Q15, Q16, Q17, Q18, Q19, Q20, Q21, Q22, Q23,
        Q24, Q25, Q26, Q27, Q28, Q29, Q30, Q31,
    ]
};

/// Sets a vector register of a vCPU owned by this thread.
#[cfg(all(target_arch = "aarch64", target_vendor = "apple"))]
pub fn set(vcpu: &Vcpu, reg: SimdFpReg, value: u128) -> Result<(), HypervisorError> {
    let mut result = vcpu.id();
    // SAFETY: the call follows AAPCS64 with the prototype of Apple's header, hv_vcpu_set_simd_fp_reg(uint64_t vcpu (x0),
    // uint32_t reg (w1), simd_uchar16_t value (q0)): `value` is 16 readable bytes, and `clobber_abi` declares everything the
    // callee may change, the link register included.
    unsafe {
        core::arch::asm!(
            "ldr q0, [{value}]",
            "bl {function}",
            value = in(reg) &value,
            function = sym applevisor_sys::hv_vcpu_set_simd_fp_reg,
            inlateout("x0") result,
            in("x1") reg as u32 as u64,
            clobber_abi("C"),
        );
    }
    match result as i32 {
        0 => Ok(()),
        code => Err(HypervisorError::from(code)),
    }
}

/// Sets a vector register of a vCPU owned by this thread.
#[cfg(not(all(target_arch = "aarch64", target_vendor = "apple")))]
pub fn set(vcpu: &Vcpu, reg: SimdFpReg, value: u128) -> Result<(), HypervisorError> {
    vcpu.set_simd_fp_reg(reg, value)
}
