//! The host sleeps: what a guest notices of it, and what not. By `squib_sim::control::sleep`, which moves the clocks that go on in sleep; so these tests
//! are about the stand-in. That the framework's clocks do the same is fact A2-15 of the conformance suite.
#![cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]

use std::io::{PipeWriter, Write};
use std::thread;
use std::time::{Duration, Instant};

use squib_host::{ConsoleConfig, ConsoleInput, Machine, MachineConfig, RestoreConfig, RunOutcome, SaveTarget};
use squib_sim::control::sleep;
use squib_sim::mach::wall_time;
use squib_tests::{Output, bare_image, guest, turn};

const HOUR: Duration = Duration::from_secs(3600);

/// The longest that a run may take in awake time; the host sleeps for longer than that.
const LIMIT: Option<Duration> = Some(Duration::from_secs(300));

/// The number, in hexadecimal, of each line of the bare guest that begins with `name`.
fn numbers(console: &str, name: &str) -> Vec<u64> {
    let number = |line: &str| u64::from_str_radix(line.strip_prefix(name)?.trim(), 16).ok();
    console.lines().filter_map(number).collect()
}

/// A timer that is armed before a sleep fires when the rest of its time has passed awake, once; the counter has not seen the sleep, the
/// real-time clock has.
#[test]
fn a_timer_fires_after_the_rest_of_its_awake_time() {
    let _turn = turn();
    let output = Output::default();
    let config =
        MachineConfig { memory_mib: 32, console: output.console(&[]), ..MachineConfig::new(bare_image("timer.img")) };
    let mut machine = Machine::boot(config).unwrap();
    let (begun, first) = (Instant::now(), wall_time().as_secs());
    machine.resume().unwrap();
    output.wait_for("armed\n");
    sleep(HOUR);
    let outcome = machine.wait(LIMIT).unwrap();
    assert!(matches!(outcome, Some(RunOutcome::PowerOff)), "{outcome:?}");
    assert!(begun.elapsed() >= Duration::from_secs(2), "the timer fired early");

    let console = output.text();
    assert_eq!(numbers(&console, "intid "), [27], "{console}");
    let (ticks, frequency) = (numbers(&console, "ticks ")[0], numbers(&console, "frequency ")[0]);
    assert!((2 * frequency..HOUR.as_secs() * frequency).contains(&ticks), "{console}");
    let clock = numbers(&console, "rtc ");
    assert!(
        clock[0] >= first && clock[1] >= clock[0] + HOUR.as_secs() && clock[1] <= wall_time().as_secs(),
        "{console}"
    );
}

/// A machine that stands still while the host sleeps goes on as from any other pause.
#[test]
fn a_sleep_in_a_pause_is_no_guest_time_either() {
    let _turn = turn();
    let output = Output::default();
    let console = output.console(&["armed\n"]);
    let mut machine =
        Machine::boot(MachineConfig { memory_mib: 32, console, ..MachineConfig::new(bare_image("timer.img")) })
            .unwrap();
    output.run_to_watch(&mut machine);
    sleep(HOUR);
    assert!(matches!(machine.run(LIMIT).unwrap(), RunOutcome::PowerOff));
    let console = output.text();
    assert!(numbers(&console, "ticks ")[0] < HOUR.as_secs() * numbers(&console, "frequency ")[0], "{console}");
    let clock = numbers(&console, "rtc ");
    assert!(clock[1] >= clock[0] + HOUR.as_secs(), "{console}");
}

/// What the guest's shell says its clocks show at `word`, in seconds.
struct Clocks {
    /// CLOCK_REALTIME.
    date: u64,
    /// The PL031.
    rtc: u64,
    /// CLOCK_MONOTONIC.
    uptime: u64,
}

const FUNCTIONS: &str =
    "clocks() { echo clocks $1 $(date +%s) $(cat /sys/class/rtc/rtc0/since_epoch) $(cut -d. -f1 /proc/uptime) .; }";

fn clocks(console: &str, word: &str) -> Clocks {
    let start = format!("clocks {word} ");
    let line = console.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("{console}"));
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [date, rtc, uptime] = numbers[..] else { panic!("{console}") };
    Clocks { date, rtc, uptime }
}

/// A console that stops the machine at `text`, and what types on it.
fn console(output: &Output, text: &[&str]) -> (ConsoleConfig, PipeWriter) {
    let (reader, keyboard) = std::io::pipe().unwrap();
    (ConsoleConfig { input: ConsoleInput::Reader(Box::new(reader)), ..output.console(text) }, keyboard)
}

/// Lets the host sleep for an hour when the guest has said `word`, and wakes the guest's shell up.
fn sleep_at(output: &Output, word: &str, mut keyboard: PipeWriter) -> thread::JoinHandle<PipeWriter> {
    let (output, text) = (output.clone(), format!("clocks {word} "));
    thread::spawn(move || {
        output.wait_for(&text);
        sleep(HOUR);
        keyboard.write_all(b"\n").unwrap();
        keyboard
    })
}

/// A Linux that is surprised by a sleep of an hour, then by one between snapshot and restore: its time is behind by the hour, the real-time
/// clock is not, its timers go on, nothing is reported as stuck; `hwclock` puts the time right. No limit of squib's own expires.
#[test]
fn linux_loses_nothing_but_the_hour() {
    let _turn = turn();
    let (directory, output) = (tempfile::tempdir().unwrap(), Output::default());
    let file = |name| directory.path().join(name);
    let target = SaveTarget { state: file("vm.state"), memory: file("vm.mem") };
    let complaints = "dmesg | grep -v run= | grep -iE 'stall|lockup|hung|unstable|blocked for'; echo end of complaints";
    let commands = format!(
        "{FUNCTIONS}; sleep 1 & clocks before; read key; clocks after; wait; hwclock -s -u; clocks set; echo freeze now; \
         sleep 1; clocks thawed; read key; clocks again; hwclock -s -u; clocks reset; {complaints}"
    );
    let (console, keyboard) = console(&output, &["freeze now"]);
    let mut machine =
        Machine::boot(MachineConfig { cpus: 2, console, ..guest("bookworm-cloud", 256, &commands) }).unwrap();
    let started = wall_time().as_secs();
    let night = sleep_at(&output, "before", keyboard);
    let outcome = machine.run(LIMIT).unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped(_)), "{outcome:?}: {}", output.text());
    night.join().unwrap();
    machine.snapshot(&target).unwrap();
    drop(machine);

    sleep(HOUR);
    let (console, keyboard) = self::console(&output, &[]);
    let mut machine =
        Machine::restore(RestoreConfig { console, ..RestoreConfig::new(&target.state, &target.memory) }).unwrap();
    let night = sleep_at(&output, "thawed", keyboard);
    let outcome = machine.run(LIMIT).unwrap();
    assert!(matches!(outcome, RunOutcome::PowerOff), "{outcome:?}: {}", output.text());
    night.join().unwrap();

    let text = output.text();
    let at = |word| clocks(&text, word);
    let hour = HOUR.as_secs();
    let (before, after, set) = (at("before"), at("after"), at("set"));
    let (thawed, again, reset) = (at("thawed"), at("again"), at("reset"));
    // A guest starts with the host's time, to the second.
    assert!(before.date + 1 >= started && before.date <= before.rtc + 1, "{text}");
    for (slept, earlier, later) in [(1, &before, &after), (1, &set, &thawed), (2, &set, &again)] {
        assert!(later.rtc >= earlier.rtc + slept * hour, "the real-time clock has it: {text}");
        assert!(
            later.date < earlier.date + hour && later.uptime < earlier.uptime + hour,
            "the guest's time has not: {text}"
        );
        assert!(later.rtc + 1 >= later.date + slept * hour, "it is behind by that: {text}");
    }
    for (lost, found) in [(&after, &set), (&again, &reset)] {
        assert!(found.date + 1 >= lost.rtc && found.date <= found.rtc + 1, "hwclock has set it: {text}");
    }
    assert!(reset.rtc <= wall_time().as_secs() && reset.uptime < before.uptime + hour, "{text}");
    let (_, complaints) = text.split_once("clocks reset").unwrap();
    assert_eq!(complaints.lines().nth(1), Some("end of complaints"), "{text}");
}
