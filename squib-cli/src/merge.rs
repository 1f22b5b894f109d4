//! `squib merge`: folds a full snapshot and the diffs on top of it into one full snapshot.

use std::path::PathBuf;

use indicatif::BinaryBytes;
use serde_json::json;
use squib_snapshot::{Chain, Pair, inferred_memory_path, merge};

use crate::error::{Result, SnapshotContext};
use crate::exit::Exit;
use crate::output;
use crate::progress::Spinner;

const AFTER_HELP: &str = "\
Examples:
  squib merge --base vm.state --diff vm1.state --diff vm2.state --out merged.state
  squib merge --base vm.state,ram.bin --diff vm1.state --out vm.state

STATE stands for the pair STATE and its memory file: the same name ending in .mem, or what follows a comma. The result may
replace a file it was made from; until it is complete, the old files are as they were.";

/// Fold a full snapshot and its diffs into one.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The full snapshot
    #[arg(long, value_name = "STATE[,MEMORY]", value_parser = files)]
    base: Files,
    /// A diff on top of it; again for the next one, oldest first
    #[arg(long = "diff", value_name = "STATE[,MEMORY]", value_parser = files, required = true)]
    diffs: Vec<Files>,
    /// Where the result goes
    #[arg(long, value_name = "STATE[,MEMORY]", value_parser = files)]
    out: Files,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The two files of a snapshot.
pub type Files = (PathBuf, PathBuf);

/// `STATE` or `STATE,MEMORY`.
pub fn files(value: &str) -> Result<Files, String> {
    if let Some((state, memory)) = value.rsplit_once(',') {
        return Ok((state.into(), memory.into()));
    }
    let state = PathBuf::from(value);
    let memory = inferred_memory_path(&state)
        .filter(|memory| *memory != state)
        .ok_or_else(|| format!("name the memory file too: {value},MEMORY"))?;
    Ok((state, memory))
}

/// Opens a full snapshot and the diffs on top of it, oldest first.
pub fn open_chain(base: &Files, diffs: &[Files]) -> Result<Chain> {
    let open = |(state, memory): &Files| Pair::open(state, memory).about(state);
    let diffs = diffs.iter().map(open).collect::<Result<_>>()?;
    Chain::from_pairs(open(base)?, diffs).about(&base.0)
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let spinner = Spinner::new("merging");
    let chain = open_chain(&args.base, &args.diffs)?;
    let (state, memory) = &args.out;
    let report = merge(&chain, state, memory).about(state)?;
    drop(spinner);
    match args.json {
        true => output::line(format_args!(
            "{:#}",
            json!({
                "identity": report.identity.to_string(),
                "diffs": report.diffs,
                "cloned": report.cloned,
                "bytes_written": report.bytes_written,
                "bytes_copied": report.bytes_copied,
            })
        ))?,
        false => output::line(format_args!(
            "{} diffs folded into {}: {} written, {} copied{}",
            report.diffs,
            state.display(),
            BinaryBytes(report.bytes_written),
            BinaryBytes(report.bytes_copied),
            if report.cloned { ", the rest shared with the base" } else { "" },
        ))?,
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_named_by_its_state() {
        assert_eq!(files("a/vm.state"), Ok(("a/vm.state".into(), "a/vm.mem".into())));
        assert_eq!(files("vm.state,ram.bin"), Ok(("vm.state".into(), "ram.bin".into())));
        assert!(files("vm.mem").is_err());
    }
}
