//! Lazy machines and chains of diffs: pages come from the link that holds them, what arrives is not taken for written, and a diff
//! of a machine that is still partly absent holds all that was written.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use squib_host::{
    ClockMode, ConsoleConfig, Machine, MachineConfig, PagerConfig, RestoreBackend, RestoreConfig, RunOutcome,
    SaveTarget, StopReason, Watch, WatchId,
};

/// One virtual machine per process: the tests of this file take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    fn console(&self) -> ConsoleConfig {
        ConsoleConfig { output: Box::new(self.clone()), ..Default::default() }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

fn link(directory: &Path, number: usize) -> SaveTarget {
    SaveTarget { state: directory.join(format!("{number}.state")), memory: directory.join(format!("{number}.mem")) }
}

/// Everything that can be seen of a machine: what it printed, how far it came, its RAM.
type Seen = (String, u64, Vec<u8>);

fn ram(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; machine.ram_size() as usize];
    machine.read_ram(0, &mut bytes).unwrap();
    bytes
}

fn bare(image: &str) -> MachineConfig {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare").join(image);
    MachineConfig {
        memory_mib: 32,
        clock: ClockMode::Deterministic,
        track_dirty_pages: true,
        ..MachineConfig::new(image)
    }
}

const STEP: u64 = 100_000;

fn step(machine: &mut Machine) {
    machine.stop_after_instructions(STEP).unwrap();
    let outcome = machine.run(Some(Duration::from_secs(120))).unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped(StopReason::InstructionLimit)), "{outcome:?}");
}

fn config(links: &[SaveTarget], backend: &RestoreBackend, pager: PagerConfig, output: &Output) -> RestoreConfig {
    RestoreConfig {
        diffs: links[1..].to_vec(),
        backend: backend.clone(),
        pager,
        clock: ClockMode::Deterministic,
        track_dirty_pages: true,
        console: output.console(),
        ..RestoreConfig::new(&links[0].state, &links[0].memory)
    }
}

fn finish(links: &[SaveTarget], backend: &RestoreBackend, pager: PagerConfig) -> Seen {
    let output = Output::default();
    let mut machine = Machine::restore(config(links, backend, pager, &output)).unwrap();
    let outcome = machine.run(Some(Duration::from_secs(120))).unwrap();
    assert!(matches!(outcome, RunOutcome::PowerOff), "{outcome:?}");
    (output.text(), machine.instructions().unwrap(), ram(&machine))
}

/// Each link of the chain is a diff of a machine that was itself restored lazily from the links before it, in every way a pager can be
/// set up; restored from any number of links, eagerly or lazily, it is the same machine to the bit.
#[test]
fn a_chain_of_lazy_machines_is_one_machine() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let mut machine = Machine::boot(bare("replay.img")).unwrap();
    step(&mut machine);
    let mut links = vec![link(directory.path(), 0)];
    machine.snapshot(&links[0]).unwrap();
    drop(machine);

    let on_demand = PagerConfig { stream: false, fault_around: 1, ..Default::default() };
    let around = PagerConfig { stream: false, ..Default::default() };
    let streaming = PagerConfig::default();
    for (number, pager) in [&on_demand, &around, &streaming].into_iter().enumerate() {
        let mut lazy =
            Machine::restore(config(&links, &RestoreBackend::File, pager.clone(), &Output::default())).unwrap();
        step(&mut lazy);
        let absent = lazy.pager().unwrap().stats().pages_missing;
        assert!(pager.stream || absent > 0, "it is still partly absent");
        let next = link(directory.path(), number + 1);
        let report = lazy.snapshot_diff(&next).unwrap();
        assert!(report.memory_disk_bytes < 16 << 20, "pages that only arrived are not written: {report:?}");
        let seen = ram(&lazy);
        drop(lazy);
        links.push(next);
        let copied =
            Machine::restore(config(&links, &RestoreBackend::Copy, around.clone(), &Output::default())).unwrap();
        assert!(ram(&copied) == seen, "the chain of {} links holds what the machine had", links.len());
    }
    let copied = finish(&links, &RestoreBackend::Copy, PagerConfig::default());
    assert!(copied.0.contains("hash "));
    for pager in [on_demand, around, streaming] {
        assert!(finish(&links, &RestoreBackend::File, pager.clone()) == copied, "{pager:?}");
    }
    assert!(finish(&links, &RestoreBackend::Map, PagerConfig::default()) == copied);
}

/// A guest that reads, writes and fetches in every way there is (pairs, vectors, exclusives, atomics, DC ZVA, cache maintenance, across
/// pages, and walks that update descriptors), each in a page of its own, over memory that is absent: the same bytes come of it.
#[test]
fn every_kind_of_access_meets_absent_memory() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let base = [link(directory.path(), 0)];
    let mut boot = bare("writes.img");
    boot.console.watches = vec![Watch { id: WatchId(1), text: "ready\n".into() }];
    let mut machine = Machine::boot(boot).unwrap();
    let outcome = machine.run(Some(Duration::from_secs(60))).unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped(StopReason::Watch(_))), "{outcome:?}");
    machine.snapshot(&base[0]).unwrap();
    drop(machine);
    let copied = finish(&base, &RestoreBackend::Copy, PagerConfig::default());
    assert!(copied.0.contains("done"), "{}", copied.0);
    for fault_around in [1, 4] {
        let pager = PagerConfig { stream: false, fault_around, ..Default::default() };
        let lazy = finish(&base, &RestoreBackend::File, pager);
        assert_eq!((&lazy.0, lazy.1), (&copied.0, copied.1));
        assert!(lazy.2 == copied.2, "RAM differs");
    }
}
