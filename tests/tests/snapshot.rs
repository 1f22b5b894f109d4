//! A guest that is frozen, whose process ends, and that goes on in another process, loses nothing.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use squib_tests::{Snapshot, Squib, all_to, counted};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Boots, counts to `last`, and is frozen at `last` / 2 ... in the first process.
fn frozen(directory: &tempfile::TempDir, last: u32, cpus: u32) -> (Snapshot, String) {
    let snapshot = Snapshot::new(directory, "first");
    let outcome = Squib::run("bookworm-cloud", &format!("count {last} 0.05"))
        .option("--cpus", cpus.to_string())
        .snapshot_on(&format!("count {}", last / 2), &snapshot)
        .outcome()
        .expect(0);
    assert_eq!(counted(&outcome.console), all_to(last / 2), "{outcome:?}");
    (snapshot, outcome.console)
}

#[track_caller]
fn goes_on(cpus: u32, backend: &str) {
    let directory = directory();
    let (snapshot, before) = frozen(&directory, 20, cpus);
    let after = Squib::restore(&snapshot).option("--backend", backend).outcome().expect(0).console;
    assert_eq!(counted(&(before + &after)), all_to(20), "after the restore: {after}");
    assert!(after.contains("squib-guest: commands ended with 0"), "{after}");
}

#[test]
fn the_count_goes_on() {
    goes_on(1, "map");
}

#[test]
fn the_count_goes_on_when_memory_is_copied() {
    goes_on(1, "copy");
}

#[test]
fn the_count_goes_on_with_four_vcpus() {
    goes_on(4, "map");
}

/// All secondaries come back: each of four processes, pinned to a vCPU of its own, finishes its own sum.
#[test]
fn four_busy_vcpus_finish_their_work() {
    let directory = directory();
    let snapshot = Snapshot::new(&directory, "busy");
    let work = "sum() { i=0; t=0; while [ $i -lt 6000 ]; do i=$((i+1)); t=$((t+i)); done; echo sum $1 is $t; }; \
                for c in 0 1 2 3; do sum $c & taskset -p $((1<<c)) $! >/dev/null; done; sleep 0.3; echo busy; wait; echo all done";
    Squib::run("bookworm-cloud", work).option("--cpus", "4").snapshot_on("busy", &snapshot).outcome().expect(0);
    let mut outcome = Squib::restore(&snapshot).outcome().expect(0).expect_console("all done");
    for cpu in 0..4 {
        outcome = outcome.expect_console(&format!("sum {cpu} is 18003000"));
    }
}

/// Frozen while the kernel itself is only coming up: its secondary is on, devices are not yet.
#[test]
fn a_boot_goes_on() {
    let directory = directory();
    let snapshot = Snapshot::new(&directory, "boot");
    let run =
        Squib::run_with("bookworm-cloud", "console=ttyAMA0 nokaslr cryptomgr.notests=1", "echo $(nproc) processors");
    run.option("--cpus", "2").snapshot_on("devtmpfs: initialized", &snapshot).outcome().expect(0);
    Squib::restore(&snapshot)
        .outcome()
        .expect(0)
        .expect_console("2 processors")
        .expect_console("commands ended with 0");
}

#[test]
fn continuing_after_the_snapshot_changes_neither_side() {
    let directory = directory();
    let snapshot = Snapshot::new(&directory, "first");
    let all = Squib::run("bookworm-cloud", "count 20 0.05")
        .snapshot_on("count 10", &snapshot)
        .option("--then", "continue")
        .arg("--json")
        .outcome()
        .expect(0);
    assert_eq!(counted(&all.console), all_to(20), "{all:?}");
    let event = all.event("snapshot");
    assert_eq!(event["ram_bytes"], 256 << 20);
    assert_eq!(event["memory_file_bytes"], 256 << 20);
    assert!(event["memory_disk_bytes"].as_u64().expect("a number") < 256 << 20, "zero pages are holes: {event}");
    // Twice: a restore only reads.
    for _ in 0..2 {
        let again = Squib::restore(&snapshot).outcome().expect(0);
        assert_eq!(counted(&("count 10".to_owned() + &again.console)), (10..=20).collect::<Vec<_>>(), "{again:?}");
    }
}

/// One guest, frozen and brought back again and again, each time in a new process.
fn rounds(rounds: u32) {
    let directory = directory();
    let last = rounds + 2;
    let mut from = Snapshot::new(&directory, "0");
    let first = Squib::run("bookworm-cloud", &format!("count {last} 0.02")).option("--cpus", "2");
    let mut console = first.snapshot_on("count 1", &from).outcome().expect(0).console;
    for round in 2..=rounds {
        let to = Snapshot::new(&directory, &round.to_string());
        let restore = Squib::restore(&from).option("--snapshot-on", format!("count {round}"));
        console +=
            &restore.option("--state-out", &to.state).option("--memory-out", &to.memory).outcome().expect(0).console;
        fs::remove_file(&from.memory).expect("the memory file is there");
        from = to;
    }
    console += &Squib::restore(&from).outcome().expect(0).console;
    assert_eq!(counted(&console), all_to(last), "{console}");
}

#[test]
fn ten_rounds_lose_nothing() {
    rounds(10);
}

#[cfg(feature = "long")]
#[test]
fn fifty_rounds_lose_nothing() {
    rounds(50);
}

/// One process reads the nanoseconds of CLOCK_MONOTONIC on each of four vCPUs in turn, and is frozen in between: no reading is
/// before the one it follows, on whatever vCPU, and the guest has not seen how long it was frozen.
#[test]
fn the_guests_clock_is_monotonic_on_every_vcpu_and_does_not_jump() {
    const READINGS: usize = 60;
    let directory = directory();
    let snapshot = Snapshot::new(&directory, "clock");
    let watch = "n=0; while [ $n -lt 60 ]; do n=$((n+1)); taskset -p $((1 << n % 4)) $$ >/dev/null; \
                 while read word at time rest; do [ $word = now ] && break; done </proc/timer_list; echo $n at $time; done";
    let started = Instant::now();
    let run = Squib::run("bookworm-cloud", &format!("{watch}; echo clock done")).option("--cpus", "4");
    let before = run.snapshot_on("30 at", &snapshot).outcome().expect(0).console;
    let first_half = started.elapsed();
    std::thread::sleep(Duration::from_secs(3));
    let restored = Instant::now();
    let console = before + &Squib::restore(&snapshot).outcome().expect(0).expect_console("clock done").console;
    let running = first_half + restored.elapsed();
    let times: Vec<u64> =
        console.lines().filter_map(|line| line.split_once(" at ")?.1.trim_end().parse().ok()).collect();
    assert_eq!(times.len(), READINGS, "{console}");
    for pair in times.windows(2) {
        assert!(pair[0] <= pair[1], "from {} back to {}: {console}", pair[0], pair[1]);
    }
    // Both processes together have run for longer than that, however slow the host.
    let seen = Duration::from_nanos(times[READINGS - 1] - times[0]);
    assert!(seen < running, "the guest counted {seen:?}, its processes ran for {running:?}: {console}");
}

#[test]
fn a_snapshot_that_never_came_is_an_error() {
    let directory = directory();
    let snapshot = Snapshot::new(&directory, "never");
    let run = Squib::run("bookworm-cloud", "true").snapshot_on("no such text", &snapshot).outcome();
    run.expect_error(&["no snapshot was taken", "no such text"]);
    assert!(!snapshot.state.exists() && !snapshot.memory.exists());
}

#[test]
fn damaged_files_are_refused_with_a_plain_line() {
    let directory = directory();
    let (snapshot, _) = frozen(&directory, 4, 1);

    // One flipped bit in the state.
    let whole = fs::read(&snapshot.state).expect("the state file");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&snapshot.state, &flipped).expect("writable");
    Squib::restore(&snapshot).outcome().expect_error(&["CRC"]);
    // A state that ends too early, and none.
    fs::write(&snapshot.state, &whole[..whole.len() / 3]).expect("writable");
    Squib::restore(&snapshot).outcome().expect_error(&[]);
    fs::write(&snapshot.state, b"").expect("writable");
    Squib::restore(&snapshot).outcome().expect_error(&["short"]);
    fs::remove_file(&snapshot.state).expect("there");
    Squib::restore(&snapshot).outcome().expect_error(&["first.state"]);
    fs::write(&snapshot.state, &whole).expect("writable");

    // A memory file that is too short, and none.
    let memory = fs::OpenOptions::new().write(true).open(&snapshot.memory).expect("the memory file");
    let length = memory.metadata().expect("its size").len();
    memory.set_len(length - 4096).expect("truncated");
    Squib::restore(&snapshot).outcome().expect_error(&["first.mem"]);
    memory.set_len(length).expect("its old length");
    fs::rename(&snapshot.memory, directory.path().join("elsewhere")).expect("renamed");
    Squib::restore(&snapshot).outcome().expect_error(&["first.mem"]);
}

#[test]
fn one_flipped_bit_of_memory_is_found() {
    let directory = directory();
    let (snapshot, _) = frozen(&directory, 4, 1);
    // In the kernel's text, 4 MiB into RAM.
    let memory = fs::OpenOptions::new().read(true).write(true).open(&snapshot.memory).expect("the memory file");
    let mut byte = [0];
    memory.read_exact_at(&mut byte, 4 << 20).expect("readable");
    byte[0] ^= 1;
    memory.write_all_at(&byte, 4 << 20).expect("writable");
    drop(memory);
    let verify = || Squib::new("verify").arg(&snapshot.state).arg(&snapshot.memory).without_timeout();
    verify().outcome().expect_error(&["first.mem", "1 of its blocks"]).expect_console("0x400000..");
    Squib::restore(&snapshot).option("--backend", "copy").outcome().expect_error(&["first.mem", "0x400000"]);
}
