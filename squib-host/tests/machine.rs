//! The public face of a machine on bare-metal guests, in this very process: one machine after the other, as the framework
//! allows one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use squib_host::pager::{Origin, PageSource, SourceError, Unexplained};
use squib_host::{
    ClockMode, ConsoleConfig, DiskConfig, Error, Machine, MachineConfig, PagerConfig, RestoreBackend, RestoreConfig,
    RunOutcome, SaveTarget, StopReason, Watch, WatchId,
};

mod common;

use common::{Output, image, turn};

/// The guest that prints forty hashes of everything it has, and switches itself off.
fn replay(clock: ClockMode, console: ConsoleConfig) -> MachineConfig {
    MachineConfig { memory_mib: 32, clock, console, ..MachineConfig::new(image("replay.img")) }
}

fn run(machine: &mut Machine) -> RunOutcome {
    machine.run(Some(Duration::from_secs(120))).unwrap()
}

#[test]
fn a_machine_goes_on_in_another_one_of_the_same_process() {
    let _turn = turn();
    let whole = Output::default();
    let mut machine = Machine::boot(replay(ClockMode::Deterministic, whole.console(None))).unwrap();
    assert!(matches!(run(&mut machine), RunOutcome::PowerOff));
    drop(machine);
    assert_eq!(whole.text().matches("hash ").count(), 40);

    let directory = tempfile::tempdir().unwrap();
    let target = SaveTarget { state: directory.path().join("vm.state"), memory: directory.path().join("vm.mem") };
    let marker = whole.text().lines().nth(16).unwrap().to_string();
    let output = Output::default();
    let mut machine = Machine::boot(replay(ClockMode::Deterministic, output.console(Some(&marker)))).unwrap();
    assert!(matches!(run(&mut machine), RunOutcome::Stopped(StopReason::Watch(WatchId(7)))));
    assert!(output.text().ends_with(&marker), "not a byte more");
    let report = machine.snapshot(&target).unwrap();
    assert_eq!(report.ram_bytes, 32 << 20);
    assert!(report.memory_disk_bytes < report.ram_bytes, "{report:?}");
    drop(machine);

    for backend in [RestoreBackend::Map, RestoreBackend::Copy, RestoreBackend::File] {
        let rest = Output::default();
        let mut machine = Machine::restore(RestoreConfig {
            backend: backend.clone(),
            clock: ClockMode::Deterministic,
            console: rest.console(None),
            ..RestoreConfig::new(&target.state, &target.memory)
        })
        .unwrap();
        assert!(matches!(run(&mut machine), RunOutcome::PowerOff));
        assert_eq!(output.text() + &rest.text(), whole.text(), "{backend:?}");
    }
}

#[test]
fn stops_pauses_and_limits() {
    let _turn = turn();
    let output = Output::default();
    let mut machine = Machine::boot(replay(ClockMode::Deterministic, output.console(None))).unwrap();
    machine.stop_after_instructions(12_345).unwrap();
    assert!(matches!(run(&mut machine), RunOutcome::Stopped(StopReason::InstructionLimit)));
    assert_eq!(machine.instructions().unwrap(), 12_345);

    machine.add_watch(Watch { id: WatchId(1), text: "hash".into() }).unwrap();
    assert!(matches!(run(&mut machine), RunOutcome::Stopped(StopReason::Watch(WatchId(1)))));
    assert_eq!(output.text(), "hash");
    assert!(machine.add_watch(Watch { id: WatchId(2), text: String::new() }).is_err());

    // A stop from another thread, and a machine that nobody waits for.
    let stopper = machine.stopper();
    let other = std::thread::spawn(move || stopper.stop());
    let outcome = run(&mut machine);
    other.join().unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped(StopReason::Requested) | RunOutcome::PowerOff), "{outcome:?}");
    machine.pause().unwrap();
    let before = output.text();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(output.text(), before, "a paused machine does nothing");
}

#[test]
fn a_guest_without_end_times_out_and_a_second_machine_has_to_wait() {
    let _turn = turn();
    let mut machine = Machine::boot(replay(ClockMode::Host, ConsoleConfig::default())).unwrap();
    let start = Instant::now();
    let outcome = machine.run(Some(Duration::ZERO)).unwrap();
    assert!(matches!(outcome, RunOutcome::TimedOut), "{outcome:?} after {:?}", start.elapsed());
    assert!(matches!(run(&mut machine), RunOutcome::PowerOff));
}

#[test]
fn a_crash_is_reported_with_the_instruction() {
    let _turn = turn();
    let config = MachineConfig { memory_mib: 32, ..MachineConfig::new(image("crash.img")) };
    let mut machine = Machine::boot(config).unwrap();
    let RunOutcome::GuestCrash(report) = run(&mut machine) else { panic!("no crash") };
    assert_eq!(report.x[7], 0x1234);
    assert_eq!(report.physical_address, 0x0900_0000);
    assert!(report.disassembly().contains("ldp"), "{report}");
}

#[test]
fn what_cannot_be_built_is_refused_before_anything_exists() {
    let _turn = turn();
    let refused = |change: fn(&mut MachineConfig)| {
        let mut config = replay(ClockMode::Host, ConsoleConfig::default());
        change(&mut config);
        Machine::boot(config).unwrap_err().to_string()
    };
    assert!(refused(|c| c.cpus = 0).contains("between 1 and 32"));
    assert!(refused(|c| c.memory_mib = 0).contains("RAM"));
    assert!(refused(|c| c.memory_mib = 1).contains("at least"));
    assert!(refused(|c| c.kernel = "/nowhere/Image".into()).contains("/nowhere/Image"));
    assert!(refused(|c| c.kernel = file!().into()).contains("machine.rs"));
    assert!(
        refused(|c| c.disks = vec![DiskConfig { path: "/nowhere.img".into(), read_only: true }])
            .contains("/nowhere.img")
    );
    let two = |c: &mut MachineConfig| (c.cpus, c.clock) = (2, ClockMode::Deterministic);
    assert!(refused(two).contains("one vCPU"));
    let missing = Machine::restore(RestoreConfig::new("/nowhere.state", "/nowhere.mem")).unwrap_err();
    assert!(matches!(missing, Error::Snapshot(_)), "{missing}");
}

/// A memory file as a source that can be away.
#[derive(Debug)]
struct Remote {
    bytes: Vec<u8>,
    away: AtomicBool,
}

impl PageSource for Remote {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(SourceError::Unavailable("nobody answers".into()));
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(Origin::Server)
    }

    fn read_quietly(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, Unexplained> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Unexplained);
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(Origin::Server)
    }
}

/// A machine whose source goes away stops with an error and goes on where it stood when the source is back: nothing is lost, not
/// an instruction.
#[test]
fn a_source_that_is_away_stops_the_machine_and_nothing_is_lost() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let target = SaveTarget { state: directory.path().join("vm.state"), memory: directory.path().join("vm.mem") };
    let mut machine = Machine::boot(replay(ClockMode::Deterministic, ConsoleConfig::default())).unwrap();
    machine.stop_after_instructions(200_000).unwrap();
    assert!(matches!(run(&mut machine), RunOutcome::Stopped(StopReason::InstructionLimit)));
    machine.snapshot(&target).unwrap();
    drop(machine);
    let finish = |backend: RestoreBackend, source: Option<&Remote>| {
        let output = Output::default();
        let mut config = RestoreConfig::new(&target.state, &target.memory);
        config.backend = backend;
        config.clock = ClockMode::Deterministic;
        config.console = output.console(None);
        config.pager = PagerConfig { stream: false, fault_around: 1, ..Default::default() };
        let mut machine = Machine::restore(config).unwrap();
        let mut stops = 0;
        loop {
            // Away every time the machine begins to run, for as long as it takes to notice.
            if let Some(source) = source.filter(|_| stops < 20) {
                source.away.store(stops % 2 == 0, Ordering::Relaxed);
                machine.stop_after_instructions(1000).unwrap();
            }
            match machine.run(Some(Duration::from_secs(120))) {
                Ok(RunOutcome::PowerOff) => break,
                Ok(RunOutcome::Stopped(StopReason::InstructionLimit)) => {}
                Err(Error::PageUnavailable { reason, .. }) => assert!(reason.contains("nobody answers")),
                other => panic!("{other:?}"),
            }
            stops += 1;
        }
        (output.text(), machine.instructions().unwrap(), stops)
    };
    let (text, instructions, _) = finish(RestoreBackend::Copy, None);
    let remote = Arc::new(Remote { bytes: std::fs::read(&target.memory).unwrap(), away: AtomicBool::new(true) });
    let lazy = finish(RestoreBackend::Source(Arc::clone(&remote) as Arc<dyn PageSource>), Some(&remote));
    assert_eq!((lazy.0, lazy.1), (text, instructions));
    assert!(lazy.2 >= 20);
    let short = Arc::new(Remote { bytes: vec![0; 1 << 20], away: AtomicBool::new(false) });
    let config = RestoreConfig {
        backend: RestoreBackend::Source(short),
        ..RestoreConfig::new(&target.state, "/no/memory/file/is/opened")
    };
    let error = Machine::restore(config).unwrap_err().to_string();
    assert!(error.contains("1048576 bytes"), "{error}");
}
