//! Reads a snapshot's state without any hypervisor, on any system:
//!
//! ```text
//! cargo run -p squib-examples --example inspect -- vm.state
//! ```

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let [_, path] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: inspect STATE".into());
    };
    let snapshot = squib_snapshot::load(path.as_ref())?;
    println!("format {}", snapshot.source_version);
    for (index, vcpu) in snapshot.state.vcpu_states.iter().enumerate() {
        println!(
            "vCPU {index}: {:?}, pc {:#x}, {} system registers",
            vcpu.psci_state,
            vcpu.regs.pc,
            vcpu.sys_regs.len()
        );
    }
    for device in &snapshot.state.device_states.devices {
        println!("{} {} in slot {}: {} bytes of state", device.kind, device.id, device.mmio_slot, device.blob.len());
    }
    Ok(())
}
