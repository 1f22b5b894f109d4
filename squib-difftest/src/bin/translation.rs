//! The command-line form of the translation test: any length, any seed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use squib_difftest::reference::Error;
use squib_difftest::rng;
use squib_difftest::translation::{self, ACCESSES};

/// Makes random accesses under random translation tables on the squib-sim engine and on qemu-system-aarch64, and compares.
#[derive(Parser)]
struct Options {
    /// How long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The seed; one from the clock, printed, when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this access.
    #[arg(long, requires = "seed")]
    index: Option<u64>,
    /// Stop after this many differences.
    #[arg(long, default_value_t = 20)]
    failures: usize,
    /// The reference emulator.
    #[arg(long, default_value = "qemu-system-aarch64")]
    qemu: PathBuf,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("translation: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<bool, Error> {
    let seed = options.seed.unwrap_or_else(rng::any_seed);
    println!("seed {seed}");
    let start = Instant::now();
    let mut first = options.index.unwrap_or(0);
    let count = if options.index.is_some() { 1 } else { ACCESSES as u64 };
    let (mut done, mut differences, mut syndromes) = (0, 0, BTreeMap::new());
    loop {
        let comparison = translation::compare(&options.qemu, seed, first, count)?;
        for (syndrome, count) in comparison.syndromes {
            *syndromes.entry(syndrome).or_insert(0u64) += count;
        }
        for (index, story) in comparison.different {
            if differences < options.failures {
                println!(
                    "repeat: cargo run --release -p squib-difftest --bin translation -- --seed {seed} --index {index}"
                );
                print!("  {story}");
            }
            differences += 1;
        }
        (done, first) = (done + count, first + count);
        let over = start.elapsed() >= Duration::from_secs(options.seconds);
        if over || options.index.is_some() || differences >= options.failures {
            break;
        }
    }
    for (syndrome, count) in &syndromes {
        println!("ESR_EL1 {syndrome:#010x}: {count}");
    }
    println!("{done} accesses, {differences} differ");
    Ok(differences == 0)
}
