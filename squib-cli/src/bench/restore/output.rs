//! The results as a table and as JSON.

use serde_json::json;

use super::{Args, Results, Start};
use crate::report::{micros, millis};

/// Time at the largest RAM over that at the smallest.
fn flatness(starts: &[Start], backend: &str) -> f64 {
    let of = || starts.iter().filter(|start| start.backend == backend);
    let small = of().min_by_key(|start| start.memory_mib);
    let large = of().max_by_key(|start| start.memory_mib);
    match small.zip(large) {
        Some((small, large)) => large.process.as_secs_f64() / small.process.as_secs_f64(),
        None => f64::NAN,
    }
}

/// For machines.
pub fn json(results: &Results, args: &Args) {
    let Results { starts, answers, guest_faults, host_faults, shared } = results;
    let spread = |s: super::faults::Spread| json!({"median_us": s.median_us, "p99_us": s.p99_us});
    let starts_json: Vec<_> = starts
        .iter()
        .map(|s| {
            json!({"backend": s.backend, "memory_mib": s.memory_mib,
                   "process_us": micros(s.process), "own_us": micros(s.own)})
        })
        .collect();
    let answers: Vec<_> = answers
        .iter()
        .map(|a| json!({"backend": a.backend, "working_set": a.working_set, "hot_us": micros(a.hot), "cold_us": a.cold.map(micros)}))
        .collect();
    let guest_faults: Vec<_> = guest_faults
        .iter()
        .map(|f| {
            json!({"backend": f.backend, "faults": f.faults, "median_us": f.median_us, "p99_us": f.p99_us,
                   "fetched_over_touched": f.fetched_over_touched})
        })
        .collect();
    let host = host_faults;
    println!(
        "{:#}",
        json!({
            "bench": "restore", "runs": args.runs, "memory_mib": args.memory,
            "first_instruction": starts_json,
            "flatness": {"map": flatness(starts, "map"), "file": flatness(starts, "file")},
            "first_answer": answers,
            "guest_faults": guest_faults,
            "host_faults": {
                "pages": host.pages, "one": spread(host.one), "floor": spread(host.floor),
                "pages_per_second": host.rate.alone, "storm_pages_per_second": host.rate.storm,
                "floor_pages_per_second": host.floor_rate.alone,
                "floor_storm_pages_per_second": host.floor_rate.storm,
                "storm_threads": host.threads, "storm_wrong": host.wrong,
            },
            "shared": shared.as_ref().map(|s| {
                json!({"clones": s.clones, "map_pss_bytes": s.map, "copy_pss_bytes": s.copy,
                       "ratio": s.map as f64 / s.copy as f64})
            }),
        })
    );
}

/// For people.
pub fn table(results: &Results, args: &Args) {
    let Results { starts, answers, guest_faults, host_faults: host, shared } = results;
    println!("restore to the first guest instruction, from the start of the process, median of {}", args.runs);
    println!("{:<10} {:>10} {:>12} {:>12}", "backend", "RAM", "process", "own work");
    for start in starts {
        let ram = format!("{} MiB", start.memory_mib);
        println!("{:<10} {:>10} {:>12} {:>12}", start.backend, ram, millis(start.process), millis(start.own));
    }
    for backend in ["map", "file"] {
        println!("largest RAM over smallest, {backend}: {:.2}", flatness(starts, backend));
    }
    println!("\nuntil a typed line is answered, {} MiB, median of {}", args.memory, args.runs);
    println!("{:<20} {:>12} {:>12}", "backend", "hot", "cold");
    for answer in answers {
        let cold = answer.cold.map_or_else(|| "-".into(), millis);
        let name = format!("{}{}", answer.backend, if answer.working_set { ", working set" } else { "" });
        println!("{name:<20} {:>12} {:>12}", millis(answer.hot), cold);
    }
    println!("\none fault, 16 KiB, nothing streamed");
    println!("{:<24} {:>8} {:>12} {:>12}", "", "faults", "median", "99 %");
    let row = |name: &str, count: u64, median: f64, p99: f64| {
        println!("{name:<24} {count:>8} {median:>9.1} us {p99:>9.1} us");
    };
    for faults in guest_faults {
        row(&format!("guest, {}", faults.backend), faults.faults, faults.median_us, faults.p99_us);
    }
    row("our own thread, file", host.pages as u64, host.one.median_us, host.one.p99_us);
    row("pread and two protects", host.pages as u64, host.floor.median_us, host.floor.p99_us);
    for faults in guest_faults {
        println!("pages fetched over pages touched, {}: {:.3}", faults.backend, faults.fetched_over_touched);
    }
    println!("\nfault storm, {} threads on random pages; {} words wrong", host.threads, host.wrong);
    println!("{:<24} {:>12} {:>12} {:>8}", "pages/s", "one thread", "all", "times");
    for (name, rate) in [("our own threads, file", host.rate), ("pread and two protects", host.floor_rate)] {
        println!("{name:<24} {:>12.0} {:>12.0} {:>8.2}", rate.alone, rate.storm, rate.storm / rate.alone);
    }
    if let Some(shared) = shared {
        println!(
            "{} restores of {} MiB at once: {} MiB of memory with map, {} MiB with copy ({:.2})",
            shared.clones,
            args.memory,
            shared.map >> 20,
            shared.copy >> 20,
            shared.map as f64 / shared.copy as f64
        );
    }
}
