//! Brings a frozen guest back, in this new process, with its console on this terminal:
//!
//! ```text
//! cargo run -p squib-examples --example resume -- vm
//! ```
//!
//! reads `vm.state` and `vm.mem`, and changes neither: any number of processes can start from them.

use std::error::Error;

use squib_host::{ConsoleConfig, ConsoleInput, Machine, RestoreConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let [_, name] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: resume NAME".into());
    };
    let mut config = RestoreConfig::new(format!("{name}.state"), format!("{name}.mem"));
    config.console =
        ConsoleConfig { output: Box::new(std::io::stdout()), input: ConsoleInput::Stdin, ..Default::default() };

    let outcome = Machine::restore(config)?.run(None)?;
    println!("the guest's run ended: {outcome:?}");
    Ok(())
}
