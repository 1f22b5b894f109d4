//! `squib bench diff`: what dirty tracking costs, and how long a guest stands still for a diff.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use squib_host::{DirtyGranule, SnapshotKind, protect_and_resume};

use super::sweep::{Round, Sweeper};
use super::{median, plot};
use crate::error::Result;
use crate::exit::Exit;
use crate::progress::Spinner;
use crate::report::{micros, millis};

const PAGE: u64 = 16 << 10;
const BLOCK: u64 = 2 << 20;
const MIB: u64 = 1 << 20;
/// How often each figure is taken; the median counts.
const RUNS: usize = 5;
/// First writes of one measurement.
const FAULTS: u64 = 1024;
/// How often 32 MiB are written in a round that several diffs fall into.
const REPEAT: u64 = 128;
const GRANULES: [(&str, DirtyGranule); 3] =
    [("2 MiB", DirtyGranule::Block), ("16 KiB", DirtyGranule::Page), ("adaptive", DirtyGranule::Adaptive)];

const AFTER_HELP: &str = "\
Examples:
  squib bench diff
  squib bench diff --json --plot pause.svg --max-memory 2048

Four tables: what the first write to a protected page costs, beside a loop that does nothing but open the page and go on; how much
slower a guest is that writes to all of 32 MiB again and again while a diff is taken every 100 ms; how much more a diff holds
than what was written; how long the guest stands still. All in this process, on a guest that writes and does nothing else.";

/// Dirty tracking and diffs: fault cost, slowdown, overcount, pause.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Where the plot of the pauses goes
    #[arg(long, value_name = "SVG", default_value = "diff.svg")]
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

/// Name, and nanoseconds of one first write.
type Faults = Vec<(&'static str, f64)>;

fn fault_cost() -> Result<Faults> {
    let each = |time: Duration, faults: u64| time.as_nanos() as f64 / faults as f64;
    let baseline = (0..RUNS).map(|_| protect_and_resume(FAULTS)).collect::<Result<Vec<_>, _>>()?;
    let mut rows = vec![("protect + resume", each(median(baseline), FAULTS))];
    for (name, granule, stride) in
        [("tracked, 16 KiB", DirtyGranule::Page, PAGE), ("tracked, 2 MiB", DirtyGranule::Block, BLOCK)]
    {
        let stores = if stride == PAGE { FAULTS } else { FAULTS / 8 };
        let mut sweeper = Sweeper::boot(32 + stores * stride / MIB + 32, Some(granule), Round::touch(stride, stores))?;
        let open = (0..RUNS).map(|_| sweeper.round()).collect::<Result<Vec<_>>>()?;
        sweeper.snapshot(SnapshotKind::Full)?;
        let mut protected = Vec::new();
        for _ in 0..RUNS {
            protected.push(sweeper.round()?);
            sweeper.snapshot(SnapshotKind::Diff)?;
        }
        // The rounds differ by the faults alone, and noise only adds.
        let least = |times: Vec<Duration>| times.into_iter().min().unwrap_or_default();
        rows.push((name, each(least(protected).saturating_sub(least(open)), stores)));
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
    let time = median((0..RUNS).map(|_| off.round()).collect::<Result<_>>()?);
    drop(off);
    let mut rows = vec![Slowdown { name: "off", time, diffs: 0, faults: 0 }];
    for (name, granule) in GRANULES {
        let mut sweeper = Sweeper::boot(128, Some(granule), round)?;
        sweeper.snapshot(SnapshotKind::Full)?;
        let (mut times, mut diffs, mut faults) = (Vec::new(), 0, 0);
        for _ in 0..RUNS {
            let (time, reports) = sweeper.round_with_diffs(Duration::from_millis(100))?;
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

fn print_tables(faults: &Faults, slowdown: &[Slowdown], overcount: &[Overcount], pause: &(Pauses, Pauses)) {
    println!("{:<34} {:>12}", "first write", "each");
    for (name, nanos) in faults {
        println!("{name:<34} {:>9.2} us", nanos / 1e3);
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

fn print_json(faults: &Faults, slowdown: &[Slowdown], overcount: &[Overcount], pause: &(Pauses, Pauses)) {
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
    println!(
        "{:#}",
        json!({
            "bench": "diff",
            "runs": RUNS,
            "first_write": faults.iter().map(|(name, nanos)| json!({"what": name, "ns": nanos})).collect::<Vec<_>>(),
            "slowdown": slowdown.iter().map(slow).collect::<Vec<_>>(),
            "overcount": overcount.iter().map(over).collect::<Vec<_>>(),
            "pause_by_mib_written": pauses(&pause.0),
            "pause_by_mib_of_ram": pauses(&pause.1),
        })
    );
}
