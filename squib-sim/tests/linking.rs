//! A program that knows only `applevisor` links against the stand-in, and every symbol it may need is there.

extern crate squib_sim as _;

use applevisor::prelude::*;

#[test]
fn a_machine_comes_and_goes() {
    let vm = VirtualMachine::new().unwrap();
    assert!(matches!(VirtualMachine::new(), Err(HypervisorError::Busy)));
    let vcpu = vm.vcpu_create().unwrap();
    vcpu.set_reg(Reg::X3, 5).unwrap();
    assert_eq!(vcpu.get_reg(Reg::X3), Ok(5));
    drop(vcpu);
    drop(vm);
    drop(VirtualMachine::new().unwrap());
}

macro_rules! symbols {
    ($($name:ident)*) => {
        #[test]
        fn every_declared_symbol_is_defined() {
            let addresses = [$((stringify!($name), applevisor_sys::$name as *const () as usize)),*];
            for (name, address) in addresses {
                assert_ne!(address, 0, "{name}");
            }
            let mut distinct: Vec<_> = addresses.iter().map(|(_, address)| address).collect();
            distinct.sort();
            distinct.dedup();
            // Functions with one body may share it.
            assert!(distinct.len() + 8 >= addresses.len());
        }
    };
}

symbols! {
    hv_gic_config_create
    hv_gic_config_set_distributor_base
    hv_gic_config_set_msi_interrupt_range
    hv_gic_config_set_msi_region_base
    hv_gic_config_set_redistributor_base
    hv_gic_create
    hv_gic_get_distributor_base_alignment
    hv_gic_get_distributor_reg
    hv_gic_get_distributor_size
    hv_gic_get_icc_reg
    hv_gic_get_ich_reg
    hv_gic_get_icv_reg
    hv_gic_get_intid
    hv_gic_get_msi_reg
    hv_gic_get_msi_region_base_alignment
    hv_gic_get_msi_region_size
    hv_gic_get_redistributor_base
    hv_gic_get_redistributor_base_alignment
    hv_gic_get_redistributor_reg
    hv_gic_get_redistributor_region_size
    hv_gic_get_redistributor_size
    hv_gic_get_spi_interrupt_range
    hv_gic_reset
    hv_gic_send_msi
    hv_gic_set_distributor_reg
    hv_gic_set_icc_reg
    hv_gic_set_ich_reg
    hv_gic_set_icv_reg
    hv_gic_set_msi_reg
    hv_gic_set_redistributor_reg
    hv_gic_set_spi
    hv_gic_set_state
    hv_gic_state_create
    hv_gic_state_get_data
    hv_gic_state_get_size
    hv_vcpu_config_create
    hv_vcpu_config_get_ccsidr_el1_sys_reg_values
    hv_vcpu_config_get_feature_reg
    hv_vcpu_create
    hv_vcpu_destroy
    hv_vcpu_get_exec_time
    hv_vcpu_get_pending_interrupt
    hv_vcpu_get_reg
    hv_vcpu_get_simd_fp_reg
    hv_vcpu_get_sys_reg
    hv_vcpu_get_trap_debug_exceptions
    hv_vcpu_get_trap_debug_reg_accesses
    hv_vcpu_get_vtimer_mask
    hv_vcpu_get_vtimer_offset
    hv_vcpu_run
    hv_vcpu_set_pending_interrupt
    hv_vcpu_set_reg
    hv_vcpu_set_simd_fp_reg
    hv_vcpu_set_sys_reg
    hv_vcpu_set_trap_debug_exceptions
    hv_vcpu_set_trap_debug_reg_accesses
    hv_vcpu_set_vtimer_mask
    hv_vcpu_set_vtimer_offset
    hv_vcpus_exit
    hv_vm_allocate
    hv_vm_config_create
    hv_vm_config_get_default_ipa_size
    hv_vm_config_get_el2_enabled
    hv_vm_config_get_el2_supported
    hv_vm_config_get_ipa_size
    hv_vm_config_get_max_ipa_size
    hv_vm_config_set_el2_enabled
    hv_vm_config_set_ipa_size
    hv_vm_create
    hv_vm_deallocate
    hv_vm_destroy
    hv_vm_get_max_vcpu_count
    hv_vm_map
    hv_vm_protect
    hv_vm_unmap
    os_release
}
