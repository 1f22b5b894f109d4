//! `/dev/ptp0` of Debian's kernels: the host's time, with the guest's counter at that moment, as a hypervisor service. A guest that follows it
//! finds the time again after a restore, or after the host slept.

use std::fmt::Write as _;
use std::time::Duration;

use squib_host::{ConsoleConfig, Machine, MachineConfig, RestoreConfig, RunOutcome, SaveTarget};
use squib_tests::{Output, bare_image, guest, turn};

/// What `guest-images/bare/read-ptp.S` prints, in nanoseconds.
#[derive(Debug)]
struct Reading {
    /// `/dev/ptp0`.
    ptp: u64,
    /// CLOCK_MONOTONIC_RAW before and after the precise reading.
    raw: [u64; 2],
    /// The precise one: `/dev/ptp0`, and CLOCK_REALTIME and CLOCK_MONOTONIC_RAW at that moment, by the counter that came with it.
    precise: [u64; 3],
}

/// The line that begins with `word`.
fn reading(console: &str, word: &str) -> Reading {
    let line = console.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    let numbers: Option<Vec<u64>> =
        line.and_then(|line| line.split_whitespace().map(|number| u64::from_str_radix(number, 16).ok()).collect());
    let Some([ptp, before, precise, realtime, raw, after]) = numbers.as_deref() else { panic!("{word}: {console}") };
    Reading { ptp: *ptp, raw: [*before, *after], precise: [*precise, *realtime, *raw] }
}

impl Reading {
    /// Times are in order, and the counter that comes with the time is the guest's.
    #[track_caller]
    fn check(&self) {
        assert!(self.precise[0] >= self.ptp, "{self:x?}");
        assert!(self.raw[0] <= self.precise[2] && self.precise[2] <= self.raw[1], "{self:x?}");
    }

    /// By how much the guest's wall time is behind the host's.
    fn behind(&self) -> Duration {
        Duration::from_nanos(self.precise[0].saturating_sub(self.precise[1]))
    }
}

/// A Debian guest that has the program as `/read-ptp`.
fn reader(name: &str, commands: &str) -> MachineConfig {
    let mut hex = String::new();
    for byte in std::fs::read(bare_image("read-ptp.img")).unwrap() {
        write!(hex, "{byte:02x}").unwrap();
    }
    guest(name, 256, &format!("echo {hex} | xxd -r -p >/read-ptp; chmod +x /read-ptp; {commands}"))
}

#[track_caller]
fn run_to_end(machine: &mut Machine, output: &Output) {
    let outcome = machine.run(Some(Duration::from_secs(120))).unwrap();
    assert!(matches!(outcome, RunOutcome::PowerOff), "{outcome:?}: {}", output.text());
}

#[track_caller]
fn boot(config: MachineConfig, console: ConsoleConfig) -> Machine {
    Machine::boot(MachineConfig { console, ..config }).unwrap()
}

#[test]
fn debians_kernels_read_the_hosts_clock() {
    let _turn = turn();
    for name in ["bookworm-cloud", "trixie-cloud", "sid-cloud"] {
        let output = Output::default();
        let commands =
            "cat /sys/class/ptp/ptp0/clock_name; echo first $(/read-ptp); echo second $(/read-ptp); dmesg | grep smccc";
        let mut machine = boot(MachineConfig { cpus: 2, ..reader(name, commands) }, output.console(&[]));
        run_to_end(&mut machine, &output);
        let text = output.text();
        assert!(text.contains("\nKVM virtual PTP\n"), "{text}");
        let (first, second) = (reading(&text, "first"), reading(&text, "second"));
        first.check();
        second.check();
        assert!(first.precise[0] <= second.ptp, "{text}");
        // The kernel found these two services, and no other one of KVM's.
        assert!(text.contains("hypervisor services detected (0x00000000 0x00000000 0x00000000 0x00000003)"), "{text}");
    }
}

/// Time passes that the guest does not see: the stand-in's host sleeps.
#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
mod host {
    use std::time::Duration;

    pub use squib_sim::mach::wall_time;

    pub const GAP: Duration = Duration::from_secs(3600);

    pub fn gap() {
        squib_sim::control::sleep(GAP);
    }
}

/// Nobody puts a Mac to sleep for a test: there the guest stands still for a while.
#[cfg(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim")))]
mod host {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    pub const GAP: Duration = Duration::from_secs(20);

    pub fn gap() {
        std::thread::sleep(GAP);
    }

    #[expect(clippy::disallowed_methods, reason = "it is what the guest is to know")]
    pub fn wall_time() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970")
    }
}

/// Time passes between a snapshot and its restore, and once more while the guest is paused: each time `/dev/ptp0` has the host's time at
/// once, the guest's own is behind by the gap, and is right when it has been set to the other.
#[test]
fn a_guest_finds_the_time_again_after_a_restore_and_after_sleep() {
    let wall = || host::wall_time().as_nanos() as u64;
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let file = |name| directory.path().join(name);
    let target = SaveTarget { state: file("vm.state"), memory: file("vm.mem") };
    let commands = "echo booted $(/read-ptp); echo freeze now; echo restored $(/read-ptp); /read-ptp set >/dev/null; \
                    echo set $(/read-ptp); echo pause now; echo woken $(/read-ptp); /read-ptp set >/dev/null; echo again $(/read-ptp)";
    let begun = wall();
    let output = Output::default();
    let mut machine = boot(reader("bookworm-cloud", commands), output.console(&["freeze now"]));
    output.run_to_watch(&mut machine);
    machine.snapshot(&target).unwrap();
    drop(machine);
    host::gap();
    let console = output.console(&["pause now"]);
    let mut machine =
        Machine::restore(RestoreConfig { console, ..RestoreConfig::new(&target.state, &target.memory) }).unwrap();
    output.run_to_watch(&mut machine);
    host::gap();
    run_to_end(&mut machine, &output);

    let text = output.text();
    let mut last = begun;
    for (word, lost) in [("booted", false), ("restored", true), ("set", false), ("woken", true), ("again", false)] {
        let reading = reading(&text, word);
        reading.check();
        // There was a gap just before, or none.
        assert!(reading.ptp >= last + if lost { host::GAP.as_nanos() as u64 } else { 0 }, "{word}: {text}");
        assert_eq!(reading.behind() > host::GAP / 2, lost, "{word}: {text}");
        last = reading.precise[0];
    }
    assert!(last <= wall(), "{text}");
}

/// With the deterministic clock, which only the stand-in has, this time is counted in instructions too: a run that is cut by save and restore reads what the whole one reads.
#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
#[test]
fn the_deterministic_clock_is_the_same_every_time() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let file = |name| directory.path().join(name);
    let target = SaveTarget { state: file("vm.state"), memory: file("vm.mem") };
    let (clock, commands) = (squib_host::ClockMode::Deterministic, "echo first $(/read-ptp); echo second $(/read-ptp)");
    let boot = |console| boot(MachineConfig { clock, ..reader("bookworm-cloud", commands) }, console);
    let whole = Output::default();
    let mut machine = boot(whole.console(&[]));
    run_to_end(&mut machine, &whole);
    drop(machine);

    let cut = Output::default();
    let mut machine = boot(cut.console(&["first "]));
    cut.run_to_watch(&mut machine);
    machine.snapshot(&target).unwrap();
    drop(machine);
    let console = cut.console(&[]);
    let config = RestoreConfig { clock, console, ..RestoreConfig::new(&target.state, &target.memory) };
    run_to_end(&mut Machine::restore(config).unwrap(), &cut);

    assert_eq!(cut.text(), whole.text());
    let (first, second) = (reading(&cut.text(), "first"), reading(&cut.text(), "second"));
    first.check();
    second.check();
    // Within the first hour of 2024, when this clock begins.
    let hours = |reading: &Reading| reading.ptp / 3_600_000_000_000;
    assert_eq!((hours(&first), hours(&second)), (473_352, 473_352), "{first:x?} {second:x?}");
}
