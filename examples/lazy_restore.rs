//! Brings a frozen guest back without its memory: it runs at once, and each page is read, and compared with its checksum, when it is
//! first needed. What the guest has not asked for arrives in the background.
//!
//! ```text
//! cargo run -p squib-examples --example lazy_restore -- vm
//! ```
//!
//! reads `vm.state` and `vm.mem`, and changes neither. A source of pages that is away (a page server, a network file system) stops
//! the machine with an error that loses nothing: it goes on when it is run again.

use std::error::Error;
use std::thread::sleep;
use std::time::Duration;

use squib_host::{ConsoleConfig, ConsoleInput, Error as HostError, Machine, RestoreBackend, RestoreConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let [_, name] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: lazy_restore NAME".into());
    };
    let mut config = RestoreConfig::new(format!("{name}.state"), format!("{name}.mem"));
    config.backend = RestoreBackend::File;
    config.console =
        ConsoleConfig { output: Box::new(std::io::stdout()), input: ConsoleInput::Stdin, ..Default::default() };

    let mut machine = Machine::restore(config)?;
    let pager = machine.pager().ok_or("a lazy machine has a pager")?;
    let outcome = loop {
        match machine.run(None) {
            Err(error @ HostError::PageUnavailable { .. }) => {
                eprintln!("{error}; trying again");
                sleep(Duration::from_secs(1));
            }
            ended => break ended?,
        }
    };
    let stats = pager.stats();
    println!("the guest's run ended: {outcome:?}");
    println!(
        "{} faults, {} pages needed, {} prefetched, {} still absent of {}; a guest's fault took {:?} (median)",
        stats.faults(),
        stats.pages_demanded,
        stats.pages_prefetched,
        stats.pages_missing,
        stats.pages_total,
        stats.guest_latency.median,
    );
    Ok(())
}
