//! Disks that are full and files that may not grow: what the kernel refuses in earnest, not what a test pretends. Snapshots
//! fail, guests go on, and the first diff that finds room again is complete.

use std::fs;
use std::io::{self, PipeWriter, Write};
use std::path::Path;
#[cfg(target_os = "linux")]
use std::process::Command;
use std::time::{Duration, Instant};

use squib_host::{
    ChainDir, ConsoleConfig, ConsoleInput, DirtyGranule, Machine, MachineConfig, RestoreBackend, SaveTarget,
    SnapshotKind, SnapshotReport,
};
#[cfg(target_os = "linux")]
use squib_tests::{COUNT_UNTIL_TOLD, counts_on_until_told};
use squib_tests::{Output, Shadow, Squib, all_to, bare_image, counted, turn};

/// Names the directory to the test that runs in a namespace of its own.
#[cfg(target_os = "linux")]
const INSIDE: &str = "SQUIB_TESTS_TMPFS";

fn link(directory: &Path, number: usize) -> SaveTarget {
    let file = |extension| directory.join(format!("{number:04}.{extension}"));
    SaveTarget { state: file("state"), memory: file("mem") }
}

/// A guest that stores to 256 random places in 16 MiB whenever it is told to: other pages each time, so that a page that is lost from a
/// diff is not in the next one by chance.
struct Storer {
    machine: Machine,
    typed: PipeWriter,
    output: Output,
}

impl Storer {
    fn boot(directory: &Path) -> Storer {
        // The parameters of a round are behind the image's header: stride, stores, mask of random offsets, repetitions.
        let mut image = fs::read(bare_image("sweep.img")).unwrap();
        for (n, value) in [0, 256, (16 << 20) - 8, 1u64].into_iter().enumerate() {
            image[64 + 8 * n..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let kernel = directory.join("sweep.img");
        fs::write(&kernel, image).unwrap();
        let (output, (input, typed)) = (Output::default(), io::pipe().unwrap());
        let mut config = MachineConfig { memory_mib: 64, ..MachineConfig::new(kernel) };
        config.console = ConsoleConfig { input: ConsoleInput::Reader(Box::new(input)), ..output.console(&[]) };
        (config.track_dirty_pages, config.dirty_granule) = (true, DirtyGranule::Page);
        let mut storer = Storer { machine: Machine::boot(config).unwrap(), typed, output };
        storer.machine.resume().unwrap();
        storer.wait(1);
        storer
    }

    fn rounds(&self) -> usize {
        self.output.text().matches('.').count()
    }

    fn wait(&self, rounds: usize) {
        let patience = Instant::now();
        while self.rounds() < rounds {
            assert!(patience.elapsed() < Duration::from_secs(60), "the guest does not go on: {}", self.output.text());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One more round. The guest runs, and must be able to.
    fn store(&mut self) {
        let before = self.rounds();
        self.machine.resume().unwrap();
        self.typed.write_all(b"x").unwrap();
        self.wait(before + 1);
    }

    /// A snapshot of the guest, which stands still for it; see [`Shadow::check`].
    fn check(&mut self, shadow: &mut Shadow, kind: SnapshotKind, target: &SaveTarget) -> SnapshotReport {
        self.machine.pause().unwrap();
        shadow.check(&mut self.machine, kind, target)
    }
}

/// Writes a chain into `directory`, in which `fill` leaves too little room and `free` makes enough again, over and over. `refusal` is
/// what the system says.
fn diffs_survive(directory: &Path, refusal: &str, fill: impl Fn(), free: impl Fn()) {
    let (elsewhere, mut shadow) = (tempfile::tempdir().unwrap(), Shadow::default());
    let mut guest = Storer::boot(elsewhere.path());
    guest.check(&mut shadow, SnapshotKind::Full, &link(directory, 0));
    for round in 1..6 {
        guest.store();
        let report = guest.check(&mut shadow, SnapshotKind::Diff, &link(directory, round));
        fill();
        for kind in [SnapshotKind::Diff, SnapshotKind::Full, SnapshotKind::Diff] {
            guest.store();
            let next = link(directory, round + 1);
            let error =
                guest.machine.checkpoint(kind, &next).and_then(|pending| pending.wait()).unwrap_err().to_string();
            assert!(error.contains(refusal), "{kind:?}: {error}");
            assert_eq!(guest.machine.last_snapshot(), Some(report.identity), "only a commit makes a parent");
        }
        guest.store();
        free();
    }
    let last = link(directory, 6);
    guest.check(&mut shadow, SnapshotKind::Diff, &last);
    drop(guest);
    for backend in [RestoreBackend::Map, RestoreBackend::Copy, RestoreBackend::File] {
        let mut config = ChainDir::open(directory).unwrap().restore_config(None).unwrap();
        assert_eq!(config.diffs.last(), Some(&last));
        config.backend = backend.clone();
        let machine = Machine::restore(config).unwrap();
        let mut ram = vec![0; machine.ram_size() as usize];
        machine.read_ram(0, &mut ram).unwrap();
        assert!(ram == shadow.ram(), "{backend:?}: what comes back is not what was frozen");
    }
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strange: Vec<_> = names.filter(|name| !name.ends_with(".state") && !name.ends_with(".mem")).collect();
    assert!(strange.is_empty(), "left behind: {strange:?}");
}

/// The largest file that this process may write, in bytes.
fn set_file_limit(bytes: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place to write to and read from; a signal that is ignored runs no code.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit), 0);
        limit.rlim_cur = bytes.map_or(limit.rlim_max, |bytes| bytes as libc::rlim_t);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0, "{}", io::Error::last_os_error());
    }
}

/// EFBIG, wherever the suite runs: the limit for files is lowered under the running machine and raised again.
#[test]
fn diffs_survive_a_limit_for_files() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    diffs_survive(directory.path(), "File too large", || set_file_limit(Some(1 << 20)), || set_file_limit(None));
}

/// ENOSPC in the middle of a diff: a small file system that is filled up and emptied. To mount one, the test runs once more in a mount
/// namespace of its own.
#[cfg(target_os = "linux")]
#[test]
fn diffs_survive_a_full_disk() {
    let _turn = turn();
    if let Some(directory) = std::env::var_os(INSIDE) {
        return on_tmpfs(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let test = std::env::current_exe().unwrap();
    let mut refusals = String::new();
    for way in ["unshare --user --map-root-user --mount", "unshare --mount", "sudo -n unshare --mount"] {
        let words: Vec<_> = way.split(' ').collect();
        let run = |command: &[&str]| {
            let mut inside = Command::new(words[0]);
            inside.args(&words[1..]).arg("--").args(command).env("RUST_BACKTRACE", "0");
            inside.output().map_err(|error| error.to_string())
        };
        let place = directory.path().to_str().expect("a path of plain characters");
        match run(&["mount", "-t", "tmpfs", "-o", "size=1m", "none", place]) {
            Ok(tried) if tried.status.success() => {}
            Ok(tried) => {
                refusals += &format!("  {way}: {}\n", String::from_utf8_lossy(&tried.stderr).trim());
                continue;
            }
            Err(error) => {
                refusals += &format!("  {way}: {error}\n");
                continue;
            }
        }
        let setting = format!("{INSIDE}={place}");
        let program = test.to_str().expect("a path of plain characters");
        let command = ["env", &setting, program, "--exact", "diffs_survive_a_full_disk", "--nocapture"];
        let outcome = run(&command).expect("it ran a moment ago");
        let said = String::from_utf8_lossy(&outcome.stdout).into_owned() + &String::from_utf8_lossy(&outcome.stderr);
        assert!(outcome.status.success() && said.contains(ENDED), "{way}: {said}");
        return;
    }
    // Past the harness, which hides what a test that passes prints.
    let text = format!("NOT TESTED: diffs on a full disk. No file system may be mounted here:\n{refusals}");
    io::stderr().write_all(text.as_bytes()).unwrap();
}

/// Printed by the run in the namespace when it has got to its end.
#[cfg(target_os = "linux")]
const ENDED: &str = "the full disk was survived";

#[cfg(target_os = "linux")]
fn on_tmpfs(directory: &Path) {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=160m", "none"]).arg(directory).status();
    assert!(mount.expect("mount starts").success());
    // Room for a part of what a diff holds.
    let (filler, left) = (directory.join("filler.mem"), 1 << 20);
    let fill = || {
        let mut file = fs::File::create(&filler).unwrap();
        let error = io::copy(&mut io::repeat(1), &mut file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        file.set_len(file.metadata().unwrap().len() - left).unwrap();
    };
    diffs_survive(directory, "No space left on device", fill, || fs::remove_file(&filler).unwrap());
    println!("{ENDED}");
}

fn counting(to: u32) -> Squib {
    Squib::run("bookworm-cloud", &format!("count {to} 0.02"))
}

/// Moves a directory away as soon as it holds `file`.
fn moved_away(dir: &Path, away: &Path, file: &str) -> std::thread::JoinHandle<()> {
    let (dir, away, file) = (dir.to_owned(), away.to_owned(), dir.join(file));
    std::thread::spawn(move || {
        let patience = Instant::now();
        while !file.exists() && patience.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::rename(&dir, &away).expect("the directory goes away");
    })
}

/// The directory goes away for good, before the first link or after the second: the guest does not suffer, the exit code tells, and the
/// last line says what is safe.
#[test]
fn a_chain_that_lost_its_end_says_what_is_safe() {
    let _turn = turn();
    for (file, safe) in [("chain.lock", false), ("0001.state", true)] {
        let directory = tempfile::tempdir().unwrap();
        let (dir, away) = (directory.path().join("chain"), directory.path().join("away"));
        let mover = moved_away(&dir, &away, file);
        let run = counting(100).arg("--track-dirty-pages").option("--snapshot-every", "0.2").option("--chain", &dir);
        let outcome = run.outcome().expect(1);
        mover.join().expect("the directory can be moved");
        assert_eq!(counted(&outcome.console), all_to(100));
        let lines: Vec<_> = outcome.stderr.lines().collect();
        let (last, attempts) = lines.split_last().expect("it says what happened");
        assert!(
            !attempts.is_empty() && attempts.iter().all(|line| line.contains(".state was not written")),
            "{outcome:?}"
        );
        if !safe {
            assert!(last.starts_with("squib: error: ") && last.contains("holds nothing of this run"), "{outcome:?}");
            continue;
        }
        let end = ChainDir::open(&away).unwrap().links().len() - 1;
        let text = format!("ends with link {end:04}, which is complete");
        assert!(last.starts_with("squib: error: ") && last.contains(&text), "{outcome:?}");
        let console = Squib::new("restore").option("--chain", &away).outcome().expect(0).console;
        assert_eq!(counted(&console).last(), Some(&100), "{console}");
    }
}

/// The same limit as above on the program itself, which the signal that goes with it must not end; the chain goes on when it is lifted.
#[cfg(target_os = "linux")]
#[test]
fn the_program_outlives_a_limit_for_files() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("chain");
    let run = Squib::run("bookworm-cloud", COUNT_UNTIL_TOLD).arg("--json").arg("--track-dirty-pages");
    let mut guest = run.option("--snapshot-every", "0.2").option("--chain", &dir).watched();
    guest.console("count 1");
    let committed = || guest.message(r#""event":"snapshot""#);
    let limit = |bytes: &str| {
        let mut prlimit = Command::new("prlimit");
        let set = prlimit.args(["--pid", &guest.id().to_string(), &format!("--fsize={bytes}:")]).status();
        assert!(set.is_ok_and(|status| status.success()), "prlimit (util-linux)");
    };
    committed();
    limit("1048576");
    let failure = guest.message("snapshot-failed");
    assert!(failure.contains("File too large"), "{failure}");
    limit("unlimited");
    committed();
    // Not the last link of all, which may be of a guest that has said its last word.
    let counting = ChainDir::open(&dir).unwrap().links().len() - 1;
    assert!(counting > 0);
    let last = guest.stop_counting();
    counts_on_until_told(Squib::new("restore").option("--chain", &dir).option("--at", counting.to_string()), last);
}

/// A snapshot that cannot be written does not end its guest, whatever was to come after it.
#[test]
fn a_snapshot_that_fails_does_not_end_its_guest() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    // A name that is found to be too long only when the new state is written beside it.
    let (state, memory) = (directory.path().join("n".repeat(240)), directory.path().join("vm.mem"));
    let snapshot = squib_tests::Snapshot { state, memory };
    for then in ["exit", "continue"] {
        let outcome = counting(20).snapshot_on("count 5", &snapshot).option("--then", then).outcome().expect(1);
        assert_eq!(counted(&outcome.console), all_to(20), "--then {then}");
        for words in ["nnn was not written, the guest runs on", "squib: error: the run ended without its snapshot"] {
            assert!(outcome.stderr.contains(words), "--then {then}: '{words}' is missing: {outcome:?}");
        }
    }
    // What can be known before is said before.
    let nowhere = squib_tests::Snapshot { state: directory.path().join("no/vm.state"), memory: snapshot.memory };
    let outcome = counting(20)
        .snapshot_on("count 5", &nowhere)
        .outcome()
        .expect_error(&["vm.state", "No such file or directory"]);
    assert_eq!(outcome.console, "");
}
