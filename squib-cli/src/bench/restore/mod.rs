//! `squib bench restore`: how soon a restored guest runs and answers, what a fault costs, what many restores share.
//!
//! Guests are real ones, each restore a process of its own; what concerns our own threads is measured in this process. Every
//! figure stands beside the one it is to be compared with, from the same run.

mod chart;
mod faults;
mod guest;
mod output;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, IoContext, Result};
use crate::exit::Exit;
use crate::guest_cache::GuestArgs;
use crate::progress::Spinner;
use guest::Bench;

const AFTER_HELP: &str = "\
Examples:
  squib bench restore                          RAM of 256 MiB to 8 GiB, about two minutes
  squib bench restore --json --svg restore.svg
  squib bench restore --sizes 256,1024 --runs 3 --clones 4

A guest is booted and frozen at a prompt, once for each size of RAM, in a temporary directory (--dir). Times are from the start
of the process; the median counts. Cold means that the memory file has been dropped from the page cache (Linux only).";

/// Restores: first instruction, first answer, faults, sharing.
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    guest: GuestArgs,
    /// Sizes of RAM in MiB, for the time to the first instruction
    #[arg(long, value_name = "MIB,...", value_delimiter = ',', default_values_t = [256, 1024, 2048, 4096, 8192],
          value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    sizes: Vec<u64>,
    /// RAM in MiB for everything else; one of --sizes, or made in addition
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    memory: u64,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Restores at the same time from one file, for what they share
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    clones: u32,
    /// Where the snapshots are made; they are removed afterwards
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    /// Write a picture of latency over RAM size
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Time to the first guest instruction at one size of RAM.
#[derive(Debug)]
struct Start {
    backend: &'static str,
    memory_mib: u64,
    /// From the start of the process, as its parent sees it.
    process: Duration,
    /// The part spent in our own code, from `main` on.
    own: Duration,
}

/// Time until a typed line is answered.
#[derive(Debug)]
struct Answer {
    backend: &'static str,
    /// The pages that another run had needed were streamed first.
    working_set: bool,
    hot: Duration,
    /// `None` where the page cache cannot be emptied.
    cold: Option<Duration>,
}

/// Faults of a guest that brings only what it needs, one page at a time.
#[derive(Debug)]
struct GuestFaults {
    backend: &'static str,
    median_us: f64,
    p99_us: f64,
    faults: u64,
    /// Pages fetched over pages touched that had to be fetched.
    fetched_over_touched: f64,
}

/// Memory of many restores of one snapshot, in bytes of proportional set size.
#[derive(Debug)]
struct Shared {
    clones: u32,
    map: u64,
    copy: u64,
}

#[derive(Debug)]
struct Results {
    starts: Vec<Start>,
    answers: Vec<Answer>,
    guest_faults: Vec<GuestFaults>,
    host_faults: faults::HostFaults,
    /// `None` where the system does not tell.
    shared: Option<Shared>,
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let guest = args.guest.named_or_cached()?;
    let make = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let directory = make.context(|| "make a directory for the snapshots".into())?;
    let spinner = Spinner::new("booting");
    let bench = Bench { guest, directory: directory.path(), runs: args.runs };
    let results = measure(&args, &bench, &spinner)?;
    drop(spinner);
    if let Some(svg) = &args.svg {
        chart::write(svg, &results.starts)?;
    }
    match args.json {
        true => output::json(&results, &args),
        false => output::table(&results, &args),
    }
    Ok(Exit::Done)
}

fn measure(args: &Args, bench: &Bench<'_>, spinner: &Spinner) -> Result<Results> {
    let mut sizes = args.sizes.clone();
    if !sizes.contains(&args.memory) {
        sizes.push(args.memory);
    }
    let mut all = Vec::new();
    for &memory_mib in &sizes {
        spinner.say(&format!("{memory_mib} MiB: booting"));
        all.push(bench.freeze(memory_mib)?);
    }
    spinner.say("to the first instruction");
    let starts = bench.starts(&all)?;
    let frozen = all.into_iter().find(|frozen| frozen.memory_mib == args.memory);
    let frozen = frozen.ok_or_else(|| Error::Message("no snapshot was made".into()))?;
    let server = bench.serve(&frozen)?;
    let mut answers = Vec::new();
    bench.record(&frozen)?;
    for (backend, working_set) in
        [("copy", false), ("map", false), ("file", false), ("file", true), ("uffd", false), ("uffd", true)]
    {
        spinner.say(&format!("until a line is answered, {backend}"));
        answers.push(bench.answer(&frozen, backend, working_set)?);
    }
    let mut guest_faults = Vec::new();
    for backend in ["file", "uffd"] {
        spinner.say(&format!("a guest's faults, {backend}"));
        guest_faults.push(bench.guest_faults(&frozen, backend)?);
    }
    drop(server);
    spinner.say("faults of our own threads");
    let host_faults = faults::measure(&frozen.state, &frozen.memory)?;
    spinner.say(&format!("{} restores at the same time", args.clones));
    let shared = bench.shared(&frozen, args.clones)?;
    Ok(Results { starts, answers, guest_faults, host_faults, shared })
}
