//! The functions here are those that `applevisor-sys` declares: one type each, as far as it shows in a call, and one address. Types
//! are compared when this test is compiled.

use std::ffi::c_void;

use applevisor_sys::*;

use super::{gic, gic_config, memory, object, registers, vcpu, vcpu_config, vm};

/// A type as it travels in calls: an enumeration is a number. (Whatever number comes, the stand-in takes: to Rust, an enumeration with
/// a value it does not have is undefined behaviour.)
trait Travels {
    type As;
}

macro_rules! travels {
    ($($types:ty)* => $number:ty) => {$(
        const _: () = assert!(size_of::<$types>() == size_of::<$number>());
        impl Travels for $types {
            type As = $number;
        }
    )*};
}

travels! { () => () }
travels! { bool => bool }
travels! { i32 => i32 }
travels! { u32 => u32 }
travels! { u64 => u64 }
travels! { usize => usize }
travels! { u128 => u128 }
travels! { c_void => c_void }
travels! { hv_allocate_flags_t hv_cache_type_t hv_feature_reg_t hv_interrupt_type_t hv_reg_t hv_simd_fp_reg_t hv_sys_reg_t => u32 }
travels! { hv_gic_distributor_reg_t hv_gic_icc_reg_t hv_gic_ich_reg_t hv_gic_icv_reg_t hv_gic_intid_t => u32 }
travels! { hv_gic_msi_reg_t hv_gic_redistributor_reg_t => u32 }

/// Behind a pointer that the stand-in hands out; the layout is compared in `vcpu.rs`.
impl Travels for hv_vcpu_exit_t {
    type As = c_void;
}

impl<T: Travels> Travels for *mut T {
    type As = *mut T::As;
}

impl<T: Travels> Travels for *const T {
    type As = *const T::As;
}

macro_rules! functions {
    ($($argument:ident)*) => {
        impl<R: Travels, $($argument: Travels),*> Travels for unsafe extern "C" fn($($argument),*) -> R {
            type As = unsafe extern "C" fn($($argument::As),*) -> R::As;
        }
    };
}

functions! {}
functions! { A }
functions! { A B }
functions! { A B C }
functions! { A B C D }

/// The declaration and the definition, which the compiler takes only if they are of one type.
fn same<T: Travels, U: Travels<As = T::As>>(_: T, _: U) {}

/// Every function, with a placeholder for each argument: the types are those of the two functions.
macro_rules! all {
    ($($(#[$where:meta])* $module:ident::$name:ident($($argument:tt),*))*) => {
        #[test]
        fn every_declared_function_is_defined_with_its_type() {
            $(
                $(#[$where])*
                {
                    let declared: unsafe extern "C" fn($($argument),*) -> _ = applevisor_sys::$name;
                    let defined: unsafe extern "C" fn($($argument),*) -> _ = $module::$name;
                    same(declared, defined);
                    assert_eq!(declared as usize, defined as usize, stringify!($name));
                }
            )*
        }
    };
}

all! {
    gic::hv_gic_create(_)
    gic::hv_gic_get_distributor_reg(_, _)
    gic::hv_gic_get_icc_reg(_, _, _)
    gic::hv_gic_get_ich_reg(_, _, _)
    gic::hv_gic_get_icv_reg(_, _, _)
    gic::hv_gic_get_msi_reg(_, _)
    gic::hv_gic_get_redistributor_base(_, _)
    gic::hv_gic_get_redistributor_reg(_, _, _)
    gic::hv_gic_reset()
    gic::hv_gic_send_msi(_, _)
    gic::hv_gic_set_distributor_reg(_, _)
    gic::hv_gic_set_icc_reg(_, _, _)
    gic::hv_gic_set_ich_reg(_, _, _)
    gic::hv_gic_set_icv_reg(_, _, _)
    gic::hv_gic_set_msi_reg(_, _)
    gic::hv_gic_set_redistributor_reg(_, _, _)
    gic::hv_gic_set_spi(_, _)
    gic::hv_gic_set_state(_, _)
    gic::hv_gic_state_create()
    gic::hv_gic_state_get_data(_, _)
    gic::hv_gic_state_get_size(_, _)
    gic_config::hv_gic_config_create()
    gic_config::hv_gic_config_set_distributor_base(_, _)
    gic_config::hv_gic_config_set_msi_interrupt_range(_, _, _)
    gic_config::hv_gic_config_set_msi_region_base(_, _)
    gic_config::hv_gic_config_set_redistributor_base(_, _)
    gic_config::hv_gic_get_distributor_base_alignment(_)
    gic_config::hv_gic_get_distributor_size(_)
    gic_config::hv_gic_get_intid(_, _)
    gic_config::hv_gic_get_msi_region_base_alignment(_)
    gic_config::hv_gic_get_msi_region_size(_)
    gic_config::hv_gic_get_redistributor_base_alignment(_)
    gic_config::hv_gic_get_redistributor_region_size(_)
    gic_config::hv_gic_get_redistributor_size(_)
    gic_config::hv_gic_get_spi_interrupt_range(_, _)
    memory::hv_vm_allocate(_, _, _)
    memory::hv_vm_deallocate(_, _)
    memory::hv_vm_map(_, _, _, _)
    memory::hv_vm_protect(_, _, _)
    memory::hv_vm_unmap(_, _)
    object::os_release(_)
    registers::hv_vcpu_get_reg(_, _, _)
    registers::hv_vcpu_get_simd_fp_reg(_, _, _)
    registers::hv_vcpu_get_sys_reg(_, _, _)
    registers::hv_vcpu_set_reg(_, _, _)
    // On Apple silicon the declaration is wrong, and the definition is not by it: see there.
    #[cfg(not(all(target_arch = "aarch64", target_vendor = "apple")))]
    registers::hv_vcpu_set_simd_fp_reg(_, _, _)
    registers::hv_vcpu_set_sys_reg(_, _, _)
    vcpu::hv_vcpu_create(_, _, _)
    vcpu::hv_vcpu_destroy(_)
    vcpu::hv_vcpu_get_exec_time(_, _)
    vcpu::hv_vcpu_get_pending_interrupt(_, _, _)
    vcpu::hv_vcpu_get_trap_debug_exceptions(_, _)
    vcpu::hv_vcpu_get_trap_debug_reg_accesses(_, _)
    vcpu::hv_vcpu_get_vtimer_mask(_, _)
    vcpu::hv_vcpu_get_vtimer_offset(_, _)
    vcpu::hv_vcpu_run(_)
    vcpu::hv_vcpu_set_pending_interrupt(_, _, _)
    vcpu::hv_vcpu_set_trap_debug_exceptions(_, _)
    vcpu::hv_vcpu_set_trap_debug_reg_accesses(_, _)
    vcpu::hv_vcpu_set_vtimer_mask(_, _)
    vcpu::hv_vcpu_set_vtimer_offset(_, _)
    vcpu::hv_vcpus_exit(_, _)
    vcpu_config::hv_vcpu_config_create()
    vcpu_config::hv_vcpu_config_get_ccsidr_el1_sys_reg_values(_, _, _)
    vcpu_config::hv_vcpu_config_get_feature_reg(_, _, _)
    vm::hv_vm_config_create()
    vm::hv_vm_config_get_default_ipa_size(_)
    vm::hv_vm_config_get_el2_enabled(_, _)
    vm::hv_vm_config_get_el2_supported(_)
    vm::hv_vm_config_get_ipa_size(_, _)
    vm::hv_vm_config_get_max_ipa_size(_)
    vm::hv_vm_config_set_el2_enabled(_, _)
    vm::hv_vm_config_set_ipa_size(_, _)
    vm::hv_vm_create(_)
    vm::hv_vm_destroy()
    vm::hv_vm_get_max_vcpu_count(_)
}
