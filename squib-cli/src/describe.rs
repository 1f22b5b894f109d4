//! `squib describe`: what is in a snapshot, without restoring it.

use std::path::PathBuf;

use crate::error::{Result, SnapshotContext};
use crate::exit::Exit;
use crate::output;

const AFTER_HELP: &str = "\
Examples:
  squib describe vm.state
  squib describe vm.state --json | jq .vcpu_count

A damaged file is described as far as it can be read; `crc_ok` then says so.";

/// Show what a snapshot holds.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The snapshot's state file
    #[arg(value_name = "STATE")]
    state: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let description = squib_snapshot::describe(&args.state).about(&args.state)?;
    match args.json {
        true => output::line(format_args!("{:#}", description.to_json()))?,
        false => output::line(description.human().trim_end())?,
    }
    Ok(Exit::Done)
}
