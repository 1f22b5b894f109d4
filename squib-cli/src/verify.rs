//! `squib verify`: compares every byte of a snapshot's memory with the checksums in its state.

use std::path::PathBuf;

use squib_snapshot::Pair;

use crate::error::{Error, Result, SnapshotContext};
use crate::exit::Exit;
use crate::output;
use crate::progress::Spinner;

const AFTER_HELP: &str = "\
Examples:
  squib verify vm.state vm.mem
  squib verify vm.state vm.mem --json | jq .damaged

Exit code 0: every byte is what was saved. 1: it is not, and the damaged ranges of RAM are listed.";

/// Check that a snapshot's memory is what was saved.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The snapshot's state file
    #[arg(value_name = "STATE")]
    state: PathBuf,
    /// The snapshot's memory file
    #[arg(value_name = "MEMORY")]
    memory: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let spinner = Spinner::new("reading the memory file");
    let pair = Pair::open(&args.state, &args.memory).about(&args.state)?;
    let report = pair.verify_report().about(&args.memory)?;
    drop(spinner);
    match args.json {
        true => output::line(format_args!("{:#}", report.to_json()))?,
        false => output::line(report.human().trim_end())?,
    }
    match report.damaged.len() {
        0 => Ok(Exit::Done),
        damaged => Err(Error::Message(format!(
            "{} is damaged: {damaged} of its blocks are not what was saved",
            args.memory.display()
        ))),
    }
}
