//! Boots a guest and freezes it the moment it prints a text:
//!
//! ```text
//! cargo run -p squib-examples --example freeze -- Image initramfs.cpio 'user space is up' vm
//! ```
//!
//! writes `vm.state` and `vm.mem`, which the example `resume` brings back.

use std::error::Error;

use squib_host::{ConsoleConfig, Machine, MachineConfig, RunOutcome, SaveTarget, StopReason, Watch, WatchId};

fn main() -> Result<(), Box<dyn Error>> {
    let [_, kernel, initrd, text, name] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: freeze KERNEL INITRD TEXT NAME".into());
    };
    let mut config = MachineConfig::new(kernel);
    config.initrd = Some(initrd.into());
    config.cmdline = "console=ttyAMA0 quiet".into();
    config.console = ConsoleConfig {
        output: Box::new(std::io::stdout()),
        watches: vec![Watch { id: WatchId(0), text: text.clone() }],
        ..Default::default()
    };

    let mut machine = Machine::boot(config)?;
    match machine.run(None)? {
        RunOutcome::Stopped(StopReason::Watch(WatchId(0))) => {
            let target = SaveTarget { state: format!("{name}.state").into(), memory: format!("{name}.mem").into() };
            let report = machine.snapshot(&target)?;
            println!("\nthe guest stood still for {:?}", report.pause);
            Ok(())
        }
        outcome => Err(format!("the guest never printed '{text}': {outcome:?}").into()),
    }
}
