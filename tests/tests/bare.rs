//! Bare-metal guests: replay to the bit under the deterministic clock, and a guest that the host gives up on.

use std::fs;
use std::path::PathBuf;

use squib_snapshot::MicrovmState;
use squib_tests::{Outcome, Snapshot, Squib};

fn sources() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare")
}

fn run(image: &str) -> Squib {
    Squib::new("run").option("--kernel", sources().join(image)).option("--memory", "32").arg("--json")
}

fn replay() -> Squib {
    run("replay.img").option("--clock", "deterministic")
}

fn instructions(outcome: &Outcome) -> u64 {
    outcome.event("end")["instructions"].as_u64().unwrap_or_else(|| panic!("a number of instructions: {outcome:?}"))
}

/// Everything of a snapshot that the guest could see: not its identity, nor when it was taken.
fn seen_by_the_guest(snapshot: &Snapshot) -> (MicrovmState, Vec<u8>) {
    let state = squib_snapshot::load(&snapshot.state).expect("the state can be loaded").state;
    (state, fs::read(&snapshot.memory).expect("the memory can be read"))
}

#[test]
fn two_runs_are_the_same_run() {
    let first = replay().outcome().expect(0);
    let second = replay().outcome().expect(0);
    assert_eq!(first.console.lines().count(), 41, "{first:?}");
    assert!(!first.console.contains('!'), "an exception nobody expected: {first:?}");
    assert_eq!(first.console, second.console);
    assert_eq!(instructions(&first), instructions(&second));
}

#[test]
fn cuts_change_nothing() {
    cut_at_twenty_points(replay);
}

/// The same for a whole boot of Debian's kernel, up to the commands of its `/init`.
#[cfg(feature = "long")]
#[test]
fn cuts_change_nothing_of_a_linux_boot() {
    cut_at_twenty_points(|| {
        Squib::run("bookworm-cloud", "uname -a; seq 100 | sha256sum").arg("--json").option("--clock", "deterministic")
    });
}

/// A run that is cut by save and restore into a new process, at any of twenty points, is the run that was never cut: same
/// output, and at one late moment the same registers, interrupt controller, devices and RAM.
fn cut_at_twenty_points(start: impl Fn() -> Squib) {
    const CUTS: u64 = 20;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let whole = start().outcome().expect(0);
    let total = instructions(&whole);
    let late = total - total / 50;

    let reference = Snapshot::new(&directory, "reference");
    let files = |squib: Squib, to: &Snapshot| squib.option("--state", &to.state).option("--memory-file", &to.memory);
    files(start(), &reference).option("--snapshot-after-instructions", late.to_string()).outcome().expect(0);
    let (state, memory) = seen_by_the_guest(&reference);

    for cut in 1..=CUTS {
        let at = total * cut / (CUTS + 2);
        let (middle, end) = (Snapshot::new(&directory, "middle"), Snapshot::new(&directory, "end"));
        let before =
            files(start(), &middle).option("--snapshot-after-instructions", at.to_string()).outcome().expect(0);
        assert_eq!(instructions(&before), at, "the cut is exact");
        let after = Squib::restore(&middle)
            .arg("--json")
            .option("--clock", "deterministic")
            .option("--snapshot-after-instructions", (late - at).to_string())
            .option("--state-out", &end.state)
            .option("--memory-out", &end.memory)
            .option("--then", "continue")
            .outcome()
            .expect(0);
        assert_eq!(before.console + &after.console, whole.console, "cut after {at} of {total} instructions");
        let (state_then, memory_then) = seen_by_the_guest(&end);
        assert_eq!(state_then, state, "cut after {at} of {total} instructions");
        assert!(memory_then == memory, "RAM differs: cut after {at} of {total} instructions");
    }
}

#[test]
fn a_guest_the_host_gives_up_on_ends_with_3_and_says_where() {
    let outcome = run("crash.img").outcome().expect(3);
    for word in ["syndrome", "ldp", "x8, x9, [x5]", "0000000009000000", "0000000000001234"] {
        assert!(outcome.stderr.contains(word), "'{word}' is missing: {outcome:?}");
    }
    assert_eq!(outcome.event("end")["reason"], "guest-crash");
}

/// The images are kept beside their sources; this is how they stay true to them.
#[cfg(target_os = "linux")]
#[test]
fn images_are_what_their_sources_say() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let built =
        std::process::Command::new(sources().join("build.sh")).arg(directory.path()).output().expect("build.sh starts");
    assert!(built.status.success(), "make deps installs the assembler: {}", String::from_utf8_lossy(&built.stderr));
    for name in ["crash.img", "read-ptp.img", "replay.img", "storm.img", "sweep.img", "timer.img", "writes.img"] {
        let fresh = fs::read(directory.path().join(name)).expect("built");
        assert!(fs::read(sources().join(name)).expect("kept") == fresh, "{name}: run guest-images/bare/build.sh");
    }
}
