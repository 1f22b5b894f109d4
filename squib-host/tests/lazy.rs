//! Lazy machines and chains of diffs: pages come from the link that holds them, what arrives is not taken for written, and a diff
//! of a machine that is still partly absent holds all that was written.

use std::path::Path;
use std::time::{Duration, Instant};

use squib_host::{
    ClockMode, Machine, MachineConfig, PagerConfig, RestoreBackend, RestoreConfig, RunOutcome, SaveTarget, StopReason,
};

mod common;

use common::{Output, image, turn};

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

fn bare(name: &str) -> MachineConfig {
    MachineConfig {
        memory_mib: 32,
        clock: ClockMode::Deterministic,
        track_dirty_pages: true,
        ..MachineConfig::new(image(name))
    }
}

/// Boots a bare guest until it prints `sign`, and freezes it.
fn frozen(config: MachineConfig, sign: &str, target: &SaveTarget) {
    let mut machine =
        Machine::boot(MachineConfig { console: Output::default().console(Some(sign)), ..config }).unwrap();
    let outcome = machine.run(Some(Duration::from_secs(60))).unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped(StopReason::Watch(_))), "{outcome:?}");
    machine.snapshot(target).unwrap();
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
        console: output.console(None),
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
    frozen(bare("writes.img"), "ready\n", &base[0]);
    let copied = finish(&base, &RestoreBackend::Copy, PagerConfig::default());
    assert!(copied.0.contains("done"), "{}", copied.0);
    for (fault_around, vague) in [(1, false), (4, false), (1, true)] {
        let _details = vague.then(Vague::new);
        let pager = PagerConfig { stream: false, fault_around, ..Default::default() };
        let lazy = finish(&base, &RestoreBackend::File, pager);
        assert_eq!(lazy.0, copied.0);
        assert!(lazy.2 == copied.2, "RAM differs");
    }
}

/// As long as this lives, faults on RAM come without a valid syndrome (ISV 0) and as if walks had met them (S1PTW), where the stand-in
/// is what guests run on.
struct Vague;

impl Vague {
    fn new() -> Vague {
        Vague::switch("fault-details=vague");
        Vague
    }

    fn switch(switch: &str) {
        #[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
        {
            let mut config = squib_sim::Config::default();
            // Beside those the whole suite is being run with.
            config.apply(&std::env::var("SQUIB_SIM").unwrap_or_default()).unwrap();
            config.apply(switch).unwrap();
            squib_sim::configure(config);
        }
        let _ = switch;
    }
}

impl Drop for Vague {
    fn drop(&mut self) {
        Vague::switch("");
    }
}

/// Four vCPUs that write to the same pages, 8 bytes each at a time, at random, all of them absent: each page comes once, and no write is
/// lost by it.
#[test]
fn four_vcpus_meet_the_same_absent_pages() {
    const START: usize = 16 << 20;
    const LEN: usize = 4 << 20;
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let base = [link(directory.path(), 0)];
    let storm = MachineConfig { cpus: 4, clock: ClockMode::Host, ..bare("storm.img") };
    frozen(storm, "go\n", &base[0]);
    let words = |ram: &[u8]| -> Vec<u64> {
        ram[START..START + LEN].as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
    };
    for round in 0..5 {
        let pager = PagerConfig { stream: round == 4, fault_around: 1, ..Default::default() };
        let mut restore = config(&base, &RestoreBackend::File, pager, &Output::default());
        restore.clock = ClockMode::Host;
        let mut machine = Machine::restore(restore).unwrap();
        let before = words(&ram(&machine));
        let begun = Instant::now();
        let stats = loop {
            let outcome = machine.run(Some(Duration::from_millis(200))).unwrap();
            assert!(matches!(outcome, RunOutcome::TimedOut), "{outcome:?}");
            let stats = machine.pager().unwrap().stats();
            if round == 4 || stats.pages_here() > (LEN / 0x4000) as u64 {
                break stats;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "all of them are met: {stats:?}");
        };
        if round < 4 {
            assert_eq!(stats.pages_here(), stats.pages_total - stats.pages_missing, "each page comes once: {stats:?}");
        }
        let after = words(&ram(&machine));
        assert!(before.iter().zip(&after).all(|(before, after)| before <= after), "numbers only grow");
        // What each vCPU wrote last is in memory: its number is the vCPU's X22, or one less if it stands before the store.
        let saved = link(directory.path(), 1 + round);
        machine.snapshot(&saved).unwrap();
        let vcpus = squib_snapshot::StateFile::open(&saved.state).unwrap().state().vcpu_states.clone();
        for (number, vcpu) in vcpus.iter().enumerate() {
            let last = after.iter().skip(number).step_by(8).max().unwrap();
            let count = vcpu.regs.x[22];
            assert!(*last == count || *last + 1 == count, "vCPU {number}: {last} of {count}");
            assert!(count > 0, "it ran");
        }
    }
}
