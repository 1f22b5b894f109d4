//! `squib recover`: finishes or undoes the commits that a crash interrupted in a directory.

use std::path::PathBuf;

use serde_json::json;
use squib_snapshot::recover;

use crate::error::{Error, Result, SnapshotContext};
use crate::exit::Exit;
use crate::output;

const AFTER_HELP: &str = "\
Examples:
  squib recover /var/lib/snapshots
  squib recover . --json

Restoring a snapshot does this for its own files. Call it to clean up a directory after a crash.";

/// Clean up after saves that a crash interrupted.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// A directory with snapshots
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    if !args.directory.is_dir() {
        return Err(Error::Message(format!("{} is not a directory", args.directory.display())));
    }
    let report = recover(&args.directory).about(&args.directory)?;
    let groups = [
        ("finished", "its interrupted save was finished", &report.finished),
        ("undone", "its interrupted save was undone", &report.undone),
        ("removed", "left by a save that never committed, removed", &report.removed),
        ("busy", "being written right now, left alone", &report.busy),
    ];
    if args.json {
        let lists = groups.map(|(name, _, paths)| {
            let paths: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
            (name.to_owned(), json!(paths))
        });
        output::line(format_args!("{:#}", json!(lists.into_iter().collect::<serde_json::Map<_, _>>())))?;
    } else if report.is_clean() {
        output::line("nothing to do")?;
    } else {
        for (_, what, paths) in groups {
            for path in paths {
                output::line(format_args!("{}: {what}", path.display()))?;
            }
        }
    }
    Ok(Exit::Done)
}
