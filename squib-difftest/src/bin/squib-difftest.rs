//! The command-line form: any class, any length, any seed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use squib_difftest::campaign::{self, Limits, Subject, Table};
use squib_difftest::encodings;
use squib_difftest::engine::Engine;
use squib_difftest::generator::Draw;
use squib_difftest::reference::{Error, Reference};
use squib_difftest::rng;

/// Runs random aarch64 instruction sequences on the squib-sim engine and on qemu-aarch64, and compares.
#[derive(Parser)]
struct Options {
    /// How long, all classes together.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The seed; one from the clock, printed, when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these classes.
    #[arg(long, value_enum)]
    class: Vec<Draw>,
    /// Only this case (with --class and --seed).
    #[arg(long, requires = "seed", requires = "class")]
    index: Option<u64>,
    /// End a class after this many differing cases.
    #[arg(long, default_value_t = 20)]
    failures: u64,
    /// Explain this many differences of one encoding.
    #[arg(long, default_value_t = 2)]
    reports: usize,
    /// The reference emulator.
    #[arg(long, default_value = "qemu-aarch64")]
    qemu: PathBuf,
    /// Compare the reference with a second one, or with the table of encodings, instead of the engine: checks the test itself.
    #[arg(long)]
    self_check: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("squib-difftest: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<bool, Error> {
    let seed = options.seed.unwrap_or_else(rng::any_seed);
    let classes = if options.class.is_empty() { &Draw::ALL[..] } else { &options.class[..] };
    println!("seed {seed}");
    let mut engine = if options.self_check { None } else { Some(Engine::new()?) };
    let mut coverage = BTreeMap::new();
    let mut different = 0;
    for kind in classes {
        let limits = Limits {
            // What is walked is walked to its end.
            time: kind.cases().map_or(Duration::from_secs(options.seconds) / classes.len() as u32, |_| Duration::MAX),
            cases: if options.index.is_some() { 1 } else { kind.cases().unwrap_or(u64::MAX) },
            failures: options.failures,
            reports: options.reports,
        };
        let mut second;
        let subject: &mut dyn Subject = match &mut engine {
            Some(engine) => engine,
            None if kind.only_undefined() => &mut Table,
            None => {
                second = Reference::start(&options.qemu, kind.cpu())?;
                &mut second
            }
        };
        let summary = campaign::run(subject, &options.qemu, *kind, seed, options.index.unwrap_or(0), limits)?;
        println!(
            "{kind:?}: {} sequences, {} instructions of {} kinds, {} differ",
            summary.cases,
            summary.instructions,
            summary.coverage.len(),
            summary.different
        );
        for failure in &summary.failures {
            print!("{}", failure.report);
        }
        different += summary.different;
        for (name, count) in summary.coverage {
            *coverage.entry(name).or_insert(0) += count;
        }
    }
    let missed = campaign::uncovered(&coverage);
    let names: std::collections::BTreeSet<_> = encodings::rows().iter().map(|row| row.name).collect();
    println!("{} of {} encodings of the table were executed", coverage.len(), names.len());
    if options.class.is_empty() && !missed.is_empty() {
        println!("not executed: {}", missed.join(", "));
    }
    Ok(different == 0)
}
