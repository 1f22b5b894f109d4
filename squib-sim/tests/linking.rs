//! A program that knows only `applevisor` links against the stand-in. (That every symbol is there: `src/hv/signatures.rs`.)

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
