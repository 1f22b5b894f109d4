//! The `squib` program: boots aarch64 Linux microVMs, snapshots them and brings them back.
//!
//! One file per subcommand. The guest's console is standard output; whatever squib itself has to say goes to standard
//! error, progress only where that is a terminal. Exit codes: see [`exit::Exit`].

#[macro_use]
mod output;

mod backend;
mod bench;
mod child;
mod demo;
mod describe;
mod drive;
mod error;
mod exit;
mod guest_cache;
mod interrupt;
mod merge;
mod options;
mod page_server;
mod pager;
mod progress;
mod recover;
mod report;
mod restore;
mod run;
mod streaming;
mod tracking;
mod verify;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use crate::exit::Exit;

const AFTER_HELP: &str = "\
Examples:
  squib demo
      Boot, count, freeze, end the process, resume in a new one, go on counting.
  squib run --kernel Image --initrd initramfs.cpio
      Boot a guest and talk to its console; Ctrl-A x ends it.
  squib run --kernel Image --initrd initramfs.cpio --snapshot-on 'ready' --state vm.state --memory-file vm.mem
      Freeze it the moment it prints 'ready' ...
  squib restore --state vm.state --memory-file vm.mem
      ... and go on from there, in any number of new processes.
  squib run --kernel Image --initrd initramfs.cpio --track-dirty-pages --snapshot-every 5 --chain vm
      A full snapshot, then every 5 seconds what has changed since; `squib restore --chain vm` goes on from the last.

Exit codes:
  0    the guest switched itself off or asked for a reset (standard error says so), or what was asked for is done
  1    an error; one line on standard error says which and what to do. Also when the guest ended well, but its snapshot, or the
       last link of its chain, could not be written: that does not end the guest
  2    wrong usage
  3    the guest did something the host cannot answer; registers on standard error
  124  the time given by --timeout is up
  128+N  ended by signal N (129 SIGHUP, 130 SIGINT, 143 SIGTERM); a snapshot that was being written is complete

Guest images: `make guest` in squib's repository puts them into ~/.cache/squib-guest.";

/// Boots aarch64 Linux microVMs, snapshots them and brings them back.
#[derive(Parser)]
#[command(name = "squib", version, after_help = AFTER_HELP, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Restore(restore::Args),
    Describe(describe::Args),
    Verify(verify::Args),
    Merge(merge::Args),
    Recover(recover::Args),
    PageServer(page_server::Args),
    Demo(demo::Args),
    Bench(bench::Args),
}

fn main() -> Exit {
    // A file that grows beyond the limit set for it (`ulimit -f`) is an error that can be dealt with, not the end of the guest.
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::<AtomicBool>::default()) {
        eprintln!("squib: files that grow beyond their limit will end this program: {error}");
    }
    let result = command().and_then(|exit| {
        output::check()?;
        Ok(exit)
    });
    result.unwrap_or_else(|error| {
        eprintln!("squib: error: {error}");
        match error {
            Error::Usage(_) => Exit::Usage,
            _ => Exit::Error,
        }
    })
}

fn command() -> Result<Exit> {
    match Cli::parse().command {
        Command::Run(args) => run::main(args),
        Command::Restore(args) => restore::main(args),
        Command::Describe(args) => describe::main(args),
        Command::Verify(args) => verify::main(args),
        Command::Merge(args) => merge::main(args),
        Command::Recover(args) => recover::main(args),
        Command::PageServer(args) => page_server::main(args),
        Command::Demo(args) => demo::main(args),
        Command::Bench(args) => bench::main(args),
    }
}
