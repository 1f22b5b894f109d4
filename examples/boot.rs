//! Boots a kernel and an initramfs with the guest's console on this terminal (Ctrl-A x ends it):
//!
//! ```text
//! cargo run -p squib-examples --example boot -- Image initramfs.cpio
//! ```

use std::error::Error;

use squib_host::{ConsoleConfig, ConsoleInput, Machine, MachineConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let [_, kernel, initrd] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: boot KERNEL INITRD".into());
    };
    let mut config = MachineConfig::new(kernel);
    config.initrd = Some(initrd.into());
    config.cmdline = "console=ttyAMA0 quiet".into();
    config.cpus = 2;
    config.console =
        ConsoleConfig { output: Box::new(std::io::stdout()), input: ConsoleInput::Stdin, ..Default::default() };

    let outcome = Machine::boot(config)?.run(None)?;
    println!("the guest's run ended: {outcome:?}");
    Ok(())
}
