//! Disks that are full and files that may not grow: what the kernel refuses in earnest, not what a test pretends. Snapshots
//! fail, guests go on, and the first diff that finds room again is complete.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use squib_host::{ChainDir, DirtyGranule, Machine, MachineConfig, RestoreBackend, SaveTarget, SnapshotKind};
use squib_tests::{Output, Shadow, Squib, all_to, bare_image, counted, run_for, turn};

/// Names the directory to the test that runs in a namespace of its own.
const INSIDE: &str = "SQUIB_TESTS_TMPFS";
/// Where `storm.img` writes, from the start of RAM.
const STORM: u64 = 16 << 20;

fn link(directory: &Path, number: usize) -> SaveTarget {
    let file = |extension| directory.join(format!("{number:04}.{extension}"));
    SaveTarget { state: file("state"), memory: file("mem") }
}

/// Writes a chain into `directory`, in which `fill` leaves too little room and `free` makes enough again, over and over. `refusal` is
/// what the system says.
fn diffs_survive(directory: &Path, refusal: &str, fill: impl Fn(), free: impl Fn()) {
    let (output, mut shadow) = (Output::default(), Shadow::default());
    let mut config = MachineConfig::new(bare_image("storm.img"));
    (config.memory_mib, config.cpus, config.console) = (32, 2, output.console(&["go\n"]));
    (config.track_dirty_pages, config.dirty_granule) = (true, DirtyGranule::Adaptive);
    let mut machine = Machine::boot(config).unwrap();
    output.run_to_watch(&mut machine);
    shadow.check(&mut machine, SnapshotKind::Full, &link(directory, 0));
    for round in 1..6 {
        run_for(&mut machine, Duration::from_millis(3));
        let report = shadow.check(&mut machine, SnapshotKind::Diff, &link(directory, round));
        fill();
        for kind in [SnapshotKind::Diff, SnapshotKind::Full, SnapshotKind::Diff] {
            let (before, next) = (storm(&machine), link(directory, round + 1));
            std::thread::sleep(Duration::from_millis(3));
            let error = machine.checkpoint(kind, &next).and_then(|pending| pending.wait()).unwrap_err().to_string();
            assert!(error.contains(refusal), "{kind:?}: {error}");
            assert_eq!(machine.last_snapshot(), Some(report.identity), "only a commit makes a parent");
            std::thread::sleep(Duration::from_millis(3));
            assert!(storm(&machine) != before, "the guest goes on");
        }
        free();
        machine.pause().unwrap();
    }
    let last = link(directory, 6);
    shadow.check(&mut machine, SnapshotKind::Diff, &last);
    drop(machine);
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

/// What the guest is writing to.
fn storm(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; 4 << 20];
    machine.read_ram(STORM, &mut bytes).unwrap();
    bytes
}

/// The largest file that this process may write, in bytes.
fn set_file_limit(bytes: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place to write to and read from; a signal that is ignored runs no code.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit), 0);
        limit.rlim_cur = bytes.map_or(limit.rlim_max, |bytes| bytes as libc::rlim_t);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0, "{}", std::io::Error::last_os_error());
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
    use std::io::Write;
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
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

/// Printed by the run in the namespace when it has got to its end.
#[cfg(target_os = "linux")]
const ENDED: &str = "the full disk was survived";

#[cfg(target_os = "linux")]
fn on_tmpfs(directory: &Path) {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "none"]).arg(directory).status();
    assert!(mount.expect("mount starts").success());
    // Room for a part of what a diff of the storm holds.
    let (filler, left) = (directory.join("filler.mem"), 1 << 20);
    let fill = || {
        let mut file = fs::File::create(&filler).unwrap();
        let error = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
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
        let patience = std::time::Instant::now();
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
    let (first, dir) = (link(&dir, 0).state, dir);
    let script = format!(
        r#""$0" "$@" & until [ -e '{}' ]; do sleep 0.02; done
        prlimit --pid $! --fsize=1048576: && sleep 0.8 && prlimit --pid $! --fsize=unlimited: && wait $!"#,
        first.display()
    );
    let run = counting(150).option("--exit-on", "count 120\r\n").arg("--json").arg("--track-dirty-pages");
    let run = run.option("--snapshot-every", "0.2").option("--chain", &dir);
    let outcome = run.script(&script).outcome().expect(0);
    assert_eq!(counted(&outcome.console), all_to(120));
    assert!(outcome.event("snapshot-failed")["error"].as_str().is_some_and(|error| error.contains("File too large")));
    assert!(ChainDir::open(&dir).unwrap().links().len() > 1, "{outcome:?}");
    let console = Squib::new("restore").option("--chain", &dir).outcome().expect(0).console;
    assert_eq!(counted(&console).last(), Some(&150), "{console}");
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
