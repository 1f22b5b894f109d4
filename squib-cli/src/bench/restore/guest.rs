//! The guest that is restored again and again, and what it is watched for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Answer, GuestFaults, Shared, Start};
use crate::bench::median;
use crate::child::{self, Sign, Watched};
use crate::demo::QUICK_BOOT;
use crate::error::{Error, IoContext, Result};
use crate::guest_cache::Guest;

const PATIENCE: Duration = Duration::from_secs(120);
const TYPED: &str = "hello\n";
const ANSWER: &str = "got hello";

/// Where and how often.
#[derive(Debug)]
pub struct Bench<'a> {
    pub guest: Guest,
    pub directory: &'a Path,
    pub runs: u32,
}

/// A guest, frozen at its prompt.
#[derive(Debug)]
pub struct Frozen {
    pub state: PathBuf,
    pub memory: PathBuf,
    pub memory_mib: u64,
}

impl Bench<'_> {
    fn socket(&self) -> PathBuf {
        self.directory.join("pages.sock")
    }

    /// Boots with this much RAM and freezes the guest when it is ready for a line.
    pub fn freeze(&self, memory_mib: u64) -> Result<Frozen> {
        let file = |extension: &str| self.directory.join(format!("{memory_mib}.{extension}"));
        let frozen = Frozen { state: file("state"), memory: file("mem"), memory_mib };
        let mut command = child::myself()?;
        command.arg("run").arg("--kernel").arg(&self.guest.kernel).arg("--initrd").arg(&self.guest.initrd);
        command.args(["--memory", &memory_mib.to_string(), "--snapshot-on", "prompt is up"]);
        let run = "echo prompt is up; while read line; do echo got $line; done";
        command.arg("--cmdline").arg(format!("{QUICK_BOOT} run=\"{run}\""));
        command.arg("--state").arg(&frozen.state).arg("--memory-file").arg(&frozen.memory);
        let process = Watched::spawn(&mut command)?;
        let mut last = String::new();
        while let Some((_, sign)) = process.next(PATIENCE)? {
            if let Sign::Message(line) = sign {
                last = line;
            }
        }
        match process.wait()?.success() {
            true => Ok(frozen),
            false => Err(Error::Message(format!("a guest of {memory_mib} MiB could not be frozen: {last}"))),
        }
    }

    fn restore(&self, frozen: &Frozen, backend: &str) -> Result<Command> {
        self.restore_with(frozen, backend, "ignore")
    }

    /// `working_set`: what a lazy restore does with it.
    fn restore_with(&self, frozen: &Frozen, backend: &str, working_set: &str) -> Result<Command> {
        let mut command = child::myself()?;
        command.args(["restore", "--json", "--backend", backend]).arg("--state").arg(&frozen.state);
        if matches!(backend, "file" | "uffd") {
            command.args(["--working-set", working_set]);
        }
        match backend {
            "uffd" => command.arg("--backend-path").arg(self.socket()),
            _ => command.arg("--memory-file").arg(&frozen.memory),
        };
        Ok(command)
    }

    /// A page server for the snapshot; it ends when this is dropped.
    pub fn serve(&self, frozen: &Frozen) -> Result<Watched> {
        let mut command = child::myself()?;
        command.arg("page-server").arg("--memory-file").arg(&frozen.memory).arg("--state").arg(&frozen.state);
        let server = Watched::spawn(command.arg("--listen").arg(self.socket()))?;
        match server.next(PATIENCE)? {
            // It says where it listens once it does.
            Some((_, Sign::Message(line))) if !line.contains("error") => Ok(server),
            _ => Err(Error::Message("the page server could not be started".into())),
        }
    }

    /// To the first guest instruction, for each size with `map` and `file`. They take turns, so that whatever else the host does
    /// meets all of them alike.
    pub fn starts(&self, all: &[Frozen]) -> Result<Vec<Start>> {
        let cases: Vec<_> = all.iter().flat_map(|frozen| ["map", "file"].map(|backend| (frozen, backend))).collect();
        let mut times = vec![(Vec::new(), Vec::new()); cases.len()];
        for _ in 0..self.runs {
            for ((frozen, backend), (process, own)) in cases.iter().zip(&mut times) {
                let watched = Watched::spawn(&mut self.restore(frozen, backend)?)?;
                let (at, event) = until_event(&watched, "running")?;
                process.push(at);
                own.push(Duration::from_micros(event["after_us"].as_u64().unwrap_or(u64::MAX)));
            }
        }
        let start = |((frozen, backend), (process, own)): (&(&Frozen, &'static str), _)| Start {
            backend,
            memory_mib: frozen.memory_mib,
            process: median(process),
            own: median(own),
        };
        Ok(cases.iter().zip(times).map(start).collect())
    }

    /// Records the working set of a guest that answers one line.
    pub fn record(&self, frozen: &Frozen) -> Result<()> {
        let mut command = self.restore_with(frozen, "file", "record")?;
        let watched = Watched::spawn_typing(command.args(["--exit-on", ANSWER]), TYPED)?;
        until_event(&watched, "working-set").map(drop)
    }

    /// Until a typed line is answered; with the recorded working set or without.
    pub fn answer(&self, frozen: &Frozen, backend: &'static str, working_set: bool) -> Result<Answer> {
        let mut times = Vec::new();
        let restore = || self.restore_with(frozen, backend, if working_set { "use" } else { "ignore" });
        let mut measure = |cold: bool| -> Result<Option<Duration>> {
            times.clear();
            for _ in 0..self.runs {
                if cold && !forget(&frozen.memory)? {
                    return Ok(None);
                }
                let watched = Watched::spawn_typing(&mut restore()?, TYPED)?;
                times.push(until_answer(&watched)?);
            }
            Ok(Some(median(times.clone())))
        };
        let cold = measure(true)?;
        // The first run after the cold ones warms the cache up and is not counted.
        until_answer(&Watched::spawn_typing(&mut self.restore(frozen, "copy")?, TYPED)?)?;
        let hot = measure(false)?.unwrap_or_default();
        Ok(Answer { backend, working_set, hot, cold })
    }

    /// Faults of a guest that answers one line, each of one page, nothing streamed.
    pub fn guest_faults(&self, frozen: &Frozen, backend: &'static str) -> Result<GuestFaults> {
        let mut command = self.restore(frozen, backend)?;
        command.args(["--no-stream", "--fault-around", "1", "--stats", "--exit-on", ANSWER]);
        let watched = Watched::spawn_typing(&mut command, TYPED)?;
        let (_, event) = until_event(&watched, "pager")?;
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let latency = |name: &str| event["guest_latency"][name].as_f64().unwrap_or(f64::NAN);
        let fetched = number(&event["origin"]["file"]) + number(&event["origin"]["server"]);
        // Zero pages are touched, too, and cost no fetch.
        let touched = number(&event["demanded"]).saturating_sub(number(&event["origin"]["zero"]));
        Ok(GuestFaults {
            backend,
            median_us: latency("median_us"),
            p99_us: latency("p99_us"),
            faults: number(&event["guest_latency"]["count"]),
            fetched_over_touched: fetched as f64 / touched.max(1) as f64,
        })
    }

    /// Memory of `clones` restores that have all answered a line, with `map` and with `copy`.
    pub fn shared(&self, frozen: &Frozen, clones: u32) -> Result<Option<Shared>> {
        let total = |backend| -> Result<Option<u64>> {
            let all: Vec<Watched> = (0..clones)
                .map(|_| Watched::spawn_typing(&mut self.restore(frozen, backend)?, TYPED))
                .collect::<Result<_>>()?;
            all.iter().try_for_each(|clone| until_answer(clone).map(drop))?;
            all.iter().map(|clone| proportional_set_size(clone.id())).sum()
        };
        let (map, copy) = (total("map")?, total("copy")?);
        Ok(map.zip(copy).map(|(map, copy)| Shared { clones, map, copy }))
    }
}

/// Waits for an event of `--json`.
fn until_event(process: &Watched, name: &str) -> Result<(Duration, Value)> {
    let mut last = String::new();
    while let Some((at, sign)) = process.next(PATIENCE)? {
        let Sign::Message(line) = sign else { continue };
        match child::event(&line) {
            Some((found, event)) if found == name => return Ok((at, event)),
            _ => last = line,
        }
    }
    Err(Error::Message(format!("a restore ended without telling '{name}': {last}")))
}

/// Waits until the guest has answered; the process is left running.
fn until_answer(process: &Watched) -> Result<Duration> {
    let (mut console, mut last) = (Vec::new(), String::new());
    while let Some((at, sign)) = process.next(PATIENCE)? {
        match sign {
            Sign::Console(bytes) => console.extend(bytes),
            Sign::Message(line) => last = line,
        }
        if String::from_utf8_lossy(&console).contains(ANSWER) {
            return Ok(at);
        }
    }
    Err(Error::Message(format!("a restored guest did not answer: {last}")))
}

/// Drops a file from the page cache; `false` where that cannot be asked for.
fn forget(path: &Path) -> Result<bool> {
    let cannot = || format!("drop {} from the page cache", path.display());
    let file = File::open(path).context(cannot)?;
    file.sync_all().context(cannot)?;
    #[cfg(target_os = "linux")]
    {
        use std::time::Instant;
        // Pages that a process which has just ended had mapped may still be on their way out.
        let begun = Instant::now();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(Into::into).context(cannot)?;
        while begun.elapsed() < Duration::from_millis(20) {
            std::thread::sleep(Duration::from_millis(5));
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(Into::into).context(cannot)?;
        }
        Ok(true)
    }
    #[cfg(not(target_os = "linux"))]
    Ok(false)
}

/// Bytes of memory of a process, what it shares with others counted in parts. `None` where the system does not tell.
fn proportional_set_size(id: u32) -> Result<Option<u64>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let text = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))
        .context(|| format!("read the memory use of process {id}"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| Some(kib << 10)).ok_or_else(|| Error::Message(format!("process {id} has ended")))
}
