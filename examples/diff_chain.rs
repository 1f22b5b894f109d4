//! Boots a guest and, while it runs, writes a chain into a directory: a full snapshot, then every second what has changed:
//!
//! ```text
//! cargo run -p squib-examples --example diff_chain -- Image initramfs.cpio chain
//! squib restore --chain chain
//! ```
//!
//! Run again, it goes on from the last link, and so does the chain.

use std::error::Error;
use std::time::Duration;

use squib_host::{ChainDir, ChainWriter, ConsoleConfig, Machine, MachineConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let [_, kernel, initrd, dir] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: diff_chain KERNEL INITRD DIRECTORY".into());
    };
    let console = ConsoleConfig { output: Box::new(std::io::stdout()), ..Default::default() };
    let mut machine = match ChainDir::open(dir) {
        Ok(chain) => {
            let mut config = chain.restore_config(None)?;
            (config.track_dirty_pages, config.console) = (true, console);
            Machine::restore(config)?
        }
        Err(_) => {
            let mut config = MachineConfig::new(kernel);
            config.initrd = Some(initrd.into());
            config.cmdline = "console=ttyAMA0 quiet run=\"count 30 0.5\"".into();
            (config.track_dirty_pages, config.console) = (true, console);
            Machine::boot(config)?
        }
    };
    let mut chain = ChainWriter::open(dir, &machine)?;

    machine.resume()?;
    loop {
        if let Some(outcome) = machine.wait(Some(Duration::from_secs(1)))? {
            println!("the guest's run ended: {outcome:?}");
            return Ok(());
        }
        // The guest stands still for a moment, and runs on while the files are written.
        chain.checkpoint(&mut machine)?;
        if let Some(result) = chain.finish() {
            let (files, report) = result?;
            println!("{}: stood still for {:?}, on disk after {:?}", files.state.display(), report.pause, report.total);
        }
    }
}
