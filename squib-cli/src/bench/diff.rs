//! `squib bench diff`: what dirty tracking costs, and how long a guest stands still for a diff.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use squib_host::{DirtyGranule, SnapshotKind, protect_and_resume};

use super::sweep::{Round, Sweeper};
use super::{median, plot};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::progress::Spinner;
use crate::report::{micros, millis};

const PAGE: u64 = 16 << 10;
const BLOCK: u64 = 2 << 20;
const MIB: u64 = 1 << 20;
/// How often each figure is taken; the median counts.
const RUNS: usize = 5;
/// RAM of the guest whose first writes are timed, in MiB, and the rounds of them; the median counts.
const FAULT_RAM: u64 = 192;
const FAULT_ROUNDS: usize = 15;
/// How often 32 MiB are written in a round that several diffs fall into.
const REPEAT: u64 = 128;
const GRANULES: [(&str, DirtyGranule); 3] =
    [("2 MiB", DirtyGranule::Block), ("16 KiB", DirtyGranule::Page), ("adaptive", DirtyGranule::Adaptive)];

const AFTER_HELP: &str = "\
Examples:
  squib bench diff
  squib bench diff --json --svg pause.svg --max-memory 2048

Four tables: what the first write to a protected page or block costs, beside the same guest in a bare loop that does nothing
but open it and go on (both timed by the guest itself, round by round; no fault: the same stores with nothing protected); how much
slower a guest is that writes to all of 32 MiB again and again while a diff is taken every 100 ms; how much more a diff holds
than what was written; how long the guest stands still. All in this process, on a guest that writes and does nothing else.";

/// Dirty tracking and diffs: fault cost, slowdown, overcount, pause.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Where the plot of the pauses goes
    #[arg(long = "svg", alias = "plot", value_name = "SVG", default_value = "diff.svg")]
    plot: PathBuf,
    /// The largest guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 8192, value_parser = clap::value_parser!(u64).range(256..))]
    max_memory: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let spinner = Spinner::new("first writes");
    let faults = fault_cost()?;
    spinner.say("slowdown");
    let slowdown = slowdown()?;
    spinner.say("overcount");
    let overcount = overcount()?;
    spinner.say("pauses");
    let pause = pauses(args.max_memory)?;
    drop(spinner);
    plot::write(&args.plot, &points(&pause.0), &points(&pause.1))?;
    if args.json {
        print_json(&faults, &slowdown, &overcount, &pause);
    } else {
        print_tables(&faults, &slowdown, &overcount, &pause);
        println!("\nplot: {}", args.plot.display());
    }
    Ok(Exit::Done)
}

/// One first write, in nanoseconds: the median round over its stores, each of which faults once.
struct FaultCost {
    granule: &'static str,
    faults: u64,
    /// With nothing protected.
    open: f64,
    /// In a loop that opens the part and resumes, and does nothing else.
    bare: f64,
    /// In a machine that tracks.
    tracked: f64,
}

fn fault_cost() -> Result<Vec<FaultCost>> {
    let mut rows = Vec::new();
    for (name, granule, size, faults) in
        [("16 KiB", DirtyGranule::Page, PAGE, 1024), ("2 MiB", DirtyGranule::Block, BLOCK, 48)]
    {
        let round = Round::touch(size, faults);
        let each = |times: &[Duration]| median(times.to_vec()).as_nanos() as f64 / faults as f64;
        // The first rounds, of either, meet memory that the host has not brought into being yet, and caches that are cold.
        let bare = protect_and_resume(&round.image(), FAULT_RAM, size, 2 * FAULT_ROUNDS, 3 * FAULT_ROUNDS)?;
        let mut sweeper = Sweeper::boot(FAULT_RAM, Some(granule), round)?;
        (0..FAULT_ROUNDS).try_for_each(|_| sweeper.round().map(drop))?;
        let open: Vec<_> = (0..FAULT_ROUNDS).map(|_| sweeper.round()).collect::<Result<_>>()?;
        let mut tracked = Vec::new();
        sweeper.snapshot(SnapshotKind::Full)?;
        for _ in 0..FAULT_ROUNDS {
            tracked.push(sweeper.round()?);
            let report = sweeper.snapshot(SnapshotKind::Diff)?;
            if report.write_faults != faults {
                return Err(Error::Message(format!("{} faults where {faults} were due", report.write_faults)));
            }
        }
        let bare = each(&bare[2 * FAULT_ROUNDS..]);
        rows.push(FaultCost { granule: name, faults, open: each(&open), bare, tracked: each(&tracked) });
    }
    Ok(rows)
}

/// A guest that writes to all of 32 MiB, with diffs under it.
struct Slowdown {
    name: &'static str,
    /// Without the pauses.
    time: Duration,
    diffs: usize,
    faults: u64,
}

fn slowdown() -> Result<Vec<Slowdown>> {
    let round = Round { stride: 64, stores: 32 * MIB / 64, mask: 0, repeat: REPEAT };
    let mut off = Sweeper::boot(128, None, round)?;
    let time = median((0..RUNS).map(|_| Ok(off.round_with_diffs(None)?.0)).collect::<Result<_>>()?);
    drop(off);
    let mut rows = vec![Slowdown { name: "off", time, diffs: 0, faults: 0 }];
    for (name, granule) in GRANULES {
        let mut sweeper = Sweeper::boot(128, Some(granule), round)?;
        sweeper.snapshot(SnapshotKind::Full)?;
        let (mut times, mut diffs, mut faults) = (Vec::new(), 0, 0);
        for _ in 0..RUNS {
            let (time, reports) = sweeper.round_with_diffs(Some(Duration::from_millis(100)))?;
            times.push(time);
            diffs += reports.len();
            faults += reports.iter().map(|report| report.write_faults).sum::<u64>();
        }
        rows.push(Slowdown { name, time: median(times), diffs, faults });
    }
    Ok(rows)
}

/// What a diff holds for each byte that changed (in pages of 16 KiB), by granule.
struct Overcount {
    workload: &'static str,
    ratios: Vec<f64>,
}

fn overcount() -> Result<Vec<Overcount>> {
    let workloads = [
        ("a page of every block", Round::touch(BLOCK, 32)),
        ("256 random stores in 64 MiB", Round { stride: 0, stores: 256, mask: 64 * MIB - 8, repeat: 1 }),
        ("every page of 8 MiB", Round::touch(PAGE, 512)),
    ];
    let mut rows = Vec::new();
    for (workload, round) in workloads {
        let mut ratios = Vec::new();
        for (_, granule) in GRANULES {
            let mut sweeper = Sweeper::boot(128, Some(granule), round)?;
            sweeper.snapshot(SnapshotKind::Full)?;
            // Adaptive tracking learns in the first diffs.
            for _ in 0..2 {
                sweeper.round()?;
                sweeper.snapshot(SnapshotKind::Diff)?;
            }
            let (mut held, mut changed) = (0, 0);
            for _ in 0..RUNS {
                let before = sweeper.ram()?;
                sweeper.round()?;
                let after = sweeper.ram()?;
                let pages = before.chunks(PAGE as usize).zip(after.chunks(PAGE as usize));
                changed += pages.filter(|(before, after)| before != after).count() as u64 * PAGE;
                held += sweeper.snapshot(SnapshotKind::Diff)?.dirty_bytes.unwrap_or(0);
            }
            ratios.push(held as f64 / changed.max(1) as f64);
        }
        rows.push(Overcount { workload, ratios });
    }
    Ok(rows)
}

/// MiB, pause and total time.
type Pauses = Vec<(u64, Duration, Duration)>;

/// By MiB written (512 MiB of RAM), and by MiB of RAM (4 MiB written).
fn pauses(max_memory: u64) -> Result<(Pauses, Pauses)> {
    let measure = |memory: u64, written: u64| -> Result<(Duration, Duration)> {
        let round = Round::touch(PAGE, written * MIB / PAGE);
        let mut sweeper = Sweeper::boot(memory, Some(DirtyGranule::Page), round)?;
        sweeper.snapshot(SnapshotKind::Full)?;
        let (mut pauses, mut totals) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            sweeper.round()?;
            let report = sweeper.snapshot(SnapshotKind::Diff)?;
            pauses.push(report.pause);
            totals.push(report.total);
        }
        Ok((median(pauses), median(totals)))
    };
    let row = |mib, (pause, total): (Duration, Duration)| (mib, pause, total);
    let by_dirty =
        [1, 4, 16, 64, 128].into_iter().map(|mib| Ok(row(mib, measure(512, mib)?))).collect::<Result<_>>()?;
    let sizes = [256, 512, 1024, 2048, 4096, 8192].into_iter().filter(|mib| *mib <= max_memory);
    let by_memory = sizes.map(|mib| Ok(row(mib, measure(mib, 4)?))).collect::<Result<_>>()?;
    Ok((by_dirty, by_memory))
}

fn points(pauses: &Pauses) -> Vec<(f64, f64)> {
    pauses.iter().map(|(mib, pause, _)| (*mib as f64, pause.as_secs_f64() * 1e3)).collect()
}

fn print_tables(faults: &[FaultCost], slowdown: &[Slowdown], overcount: &[Overcount], pause: &(Pauses, Pauses)) {
    println!(
        "{:<22} {:>8} {:>10} {:>18} {:>10} {:>14}",
        "first write to", "faults", "no fault", "protect + resume", "tracked", "tracked : bare"
    );
    for row in faults {
        let micros = |nanos: f64| format!("{:.2} us", nanos / 1e3);
        let (open, bare, tracked) = (micros(row.open), micros(row.bare), micros(row.tracked));
        let ratio = row.tracked / row.bare;
        println!("{:<22} {:>8} {open:>10} {bare:>18} {tracked:>10} {ratio:>14.2}", row.granule, row.faults);
    }
    println!(
        "\n{:<34} {:>12} {:>12} {:>8} {:>12}",
        format!("32 MiB written {REPEAT} times"),
        "time",
        "to off",
        "diffs",
        "faults"
    );
    for row in slowdown {
        let ratio = row.time.as_secs_f64() / slowdown[0].time.as_secs_f64();
        println!("{:<34} {:>12} {ratio:>12.2} {:>8} {:>12}", row.name, millis(row.time), row.diffs, row.faults);
    }
    println!("\n{:<34} {:>12} {:>12} {:>12}", "diff to what changed", GRANULES[0].0, GRANULES[1].0, GRANULES[2].0);
    for row in overcount {
        print!("{:<34}", row.workload);
        row.ratios.iter().for_each(|ratio| print!(" {ratio:>12.2}"));
        println!();
    }
    let titles = ["pause by MiB written (512 MiB of RAM)", "pause by MiB of RAM (4 MiB written)"];
    for (title, rows) in titles.into_iter().zip([&pause.0, &pause.1]) {
        println!("\n{title:<38} {:>8} {:>12}", "pause", "on disk");
        for (mib, pause, total) in rows {
            println!("{mib:<34} {:>12} {:>12}", millis(*pause), millis(*total));
        }
    }
}

fn print_json(faults: &[FaultCost], slowdown: &[Slowdown], overcount: &[Overcount], pause: &(Pauses, Pauses)) {
    let pauses = |rows: &Pauses| -> Vec<Value> {
        let row = |(mib, pause, total): &(u64, Duration, Duration)| json!({"mib": mib, "pause_us": micros(*pause), "total_us": micros(*total)});
        rows.iter().map(row).collect()
    };
    let slow = |row: &Slowdown| json!({"tracking": row.name, "time_us": micros(row.time), "diffs": row.diffs, "write_faults": row.faults});
    let over = |row: &Overcount| {
        let ratios: Vec<_> = GRANULES
            .iter()
            .zip(&row.ratios)
            .map(|((name, _), ratio)| json!({"granule": name, "ratio": ratio}))
            .collect();
        json!({"workload": row.workload, "ratios": ratios})
    };
    let fault = |row: &FaultCost| json!({"granule": row.granule, "faults": row.faults, "no_fault_ns": row.open, "protect_and_resume_ns": row.bare, "tracked_ns": row.tracked});
    println!(
        "{:#}",
        json!({
            "bench": "diff",
            "runs": RUNS,
            "first_write": faults.iter().map(fault).collect::<Vec<_>>(),
            "slowdown": slowdown.iter().map(slow).collect::<Vec<_>>(),
            "overcount": overcount.iter().map(over).collect::<Vec<_>>(),
            "pause_by_mib_written": pauses(&pause.0),
            "pause_by_mib_of_ram": pauses(&pause.1),
        })
    );
}
