//! `squib page-server`: gives out the memory of a snapshot to machines that are restored elsewhere.

use std::path::PathBuf;

use indicatif::BinaryBytes;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use squib_host::pager::{Images, PageServer};

use crate::error::{Error, IoContext, Result};
use crate::exit::Exit;
use crate::merge::{Files, files, open_chain};

const AFTER_HELP: &str = "\
Examples:
  squib page-server --memory-file vm.mem --state vm.state --listen pages.sock
  squib page-server --memory-file vm.mem --state vm.state --diff vm1.state --diff vm2.state --listen pages.sock
  squib restore --state vm.state --backend uffd --backend-path pages.sock

Any number of machines can be restored from one server at the same time. With --state the server tells which snapshot it
serves, so that a machine of another one is refused at once, and notices damage of its file first. Without, machines check every page
all the same. Ctrl-C ends the server; machines that still need pages then wait for it to come back.

The protocol is in docs/page-server.md.";

/// Serve the memory of a snapshot to machines restored with --backend uffd.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The memory file of a full snapshot
    #[arg(long, value_name = "FILE")]
    memory_file: PathBuf,
    /// The state file that goes with it
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// A diff on top of it; again for the next one, oldest first
    #[arg(long = "diff", value_name = "STATE[,MEMORY]", value_parser = files, requires = "state")]
    diffs: Vec<Files>,
    /// The Unix socket to listen at; it is removed at the end
    #[arg(long, value_name = "SOCKET")]
    listen: PathBuf,
    /// End when the first machine has gone
    #[arg(long)]
    once: bool,
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let images = match &args.state {
        Some(state) => Images::chain(&open_chain(&(state.clone(), args.memory_file), &args.diffs)?)?,
        None => Images::memory_file(&args.memory_file)?,
    };
    let what = match images.identities().last() {
        Some(identity) if args.state.is_some() => format!("snapshot {identity}"),
        _ => "memory of an unnamed snapshot".into(),
    };
    let ram = BinaryBytes(images.ram_size());
    // Before the socket is there: no signal may leave it behind.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context(|| "wait for signals".into())?;
    let server = PageServer::bind(images, &args.listen)?.log_to(Box::new(|line| eprintln!("squib: {line}")));
    let stop = server.stop_handle()?;
    let waiting = std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            stop.stop();
        }
    });
    waiting.map_err(|source| Error::Io { action: "wait for signals".into(), source })?;
    eprintln!("squib: {what}, {ram} of RAM, at {}", args.listen.display());
    server.serve(args.once)?;
    Ok(Exit::Done)
}
