//! Dirty tracking on bare-metal guests, where it is known to the page what is written: every way to write to RAM, what only looks like
//! writing, vCPUs that write to the same block, and snapshots that fail.

use std::path::Path;
use std::time::Duration;

use squib_host::{
    ChainDir, ChainWriter, DirtyGranule, GranuleSteps, Machine, MachineConfig, RestoreBackend, RunOutcome, SaveTarget,
    SnapshotKind,
};
use squib_snapshot::{Chain, StateFile};
use squib_tests::{Output, Random, Shadow, bare_image, rounds, run_for, turn};

const PAGE: u64 = 16 << 10;
/// Where the guests write, in pages from the start of RAM.
const DATA: u64 = (16 << 20) / PAGE;

fn link(directory: &Path, number: usize) -> SaveTarget {
    let file = |extension| directory.join(format!("{number}.{extension}"));
    SaveTarget { state: file("state"), memory: file("mem") }
}

fn tracked(image: &str, granule: DirtyGranule) -> MachineConfig {
    let mut config = MachineConfig::new(bare_image(image));
    (config.memory_mib, config.track_dirty_pages, config.dirty_granule) = (32, true, granule);
    config
}

/// The pages (from the guests' memory on) that a diff holds.
fn pages(target: &SaveTarget) -> Vec<u64> {
    let state = StateFile::open(&target.state).unwrap();
    let pages = state.pages().expect("a diff");
    assert_eq!(pages.page_size(), PAGE);
    pages.iter().map(|page| page - DATA).collect()
}

fn all_ways_to_write(granule: DirtyGranule) -> Vec<u64> {
    let directory = tempfile::tempdir().unwrap();
    let (base, diff) = (link(directory.path(), 0), link(directory.path(), 1));
    let (output, mut shadow) = (Output::default(), Shadow::default());
    let mut config = tracked("writes.img", granule);
    config.console = output.console(&["ready\n", "done\n"]);
    let mut machine = Machine::boot(config).unwrap();
    output.run_to_watch(&mut machine);
    shadow.check(&mut machine, SnapshotKind::Full, &base);
    output.run_to_watch(&mut machine);
    let report = shadow.check(&mut machine, SnapshotKind::Diff, &diff);
    assert!(report.write_faults > 0 && report.dirty_bytes.is_some_and(|bytes| bytes > 0), "{report:?}");
    // The store of 4 bytes at the end of page 9 and 4 in page 10.
    assert_eq!(&shadow.ram()[((DATA + 10) * PAGE) as usize..][..4], &[0; 4]);
    assert_eq!(&shadow.ram()[((DATA + 10) * PAGE - 4) as usize..][..4], &0x1234_5678_u32.to_le_bytes());
    assert!(matches!(machine.run(Some(Duration::from_secs(60))).unwrap(), RunOutcome::PowerOff));
    pages(&diff)
}

/// Every way: general, pair, vector, structure, exclusive, atomic, DC ZVA, write-back, across pages, release, after maintenance of the
/// same page; and the updates of descriptors by a fetch, a load and a store. Loads, fetches, address translation instructions and
/// cache maintenance are none.
fn written() -> Vec<u64> {
    (0..=11).chain([20, 21, 32, 36, 40]).collect()
}

#[test]
fn every_write_is_in_the_diff_and_nothing_else_is() {
    let _turn = turn();
    let mut found = all_ways_to_write(DirtyGranule::Page);
    // Page 14 is invalidated (DC IVAC). Where that needs the right to write, and its fault does not tell what it was, it counts as written.
    if std::env::var("SQUIB_SIM").is_ok_and(|switches| ["harsh", "lenient"].contains(&&*switches)) {
        found.retain(|&page| page != 14);
    }
    assert_eq!(found, written());
    // All of it lies in the first block of 2 MiB.
    assert_eq!(all_ways_to_write(DirtyGranule::Block), (0..128).collect::<Vec<_>>());
}

/// With a fault that tells no more than where; and where DC IVAC of a protected page faults, as a write.
#[cfg(not(all(target_os = "macos", target_arch = "aarch64")))]
#[test]
fn harsher_faults_are_answered_the_same() {
    let _turn = turn();
    let configure = |switches: &str| {
        let mut config = squib_sim::Config::default();
        config.apply(switches).unwrap();
        squib_sim::configure(config);
    };
    for switches in ["fault-details=vague", "ivac-needs-write=on"] {
        configure(switches);
        let found = std::panic::catch_unwind(|| all_ways_to_write(DirtyGranule::Page));
        // Back to what the whole suite is being run with.
        configure(&std::env::var("SQUIB_SIM").unwrap_or_default());
        assert_eq!(found.unwrap(), written(), "{switches}");
    }
}

/// Four vCPUs write to the same two blocks all the time; blocks come to be tracked by pages between two diffs, and whole again
/// while all four write to them.
#[test]
fn a_change_of_granule_under_load_loses_nothing() {
    let _turn = turn();
    let (mut random, directory) = (Random::new(), tempfile::tempdir().unwrap());
    let (output, mut shadow) = (Output::default(), Shadow::default());
    let mut config = tracked("storm.img", DirtyGranule::Adaptive);
    (config.cpus, config.console) = (4, output.console(&["go\n"]));
    let mut machine = Machine::boot(config).unwrap();
    output.run_to_watch(&mut machine);
    shadow.check(&mut machine, SnapshotKind::Full, &link(directory.path(), 0));
    let (mut round, mut steps) = (0, GranuleSteps::default());
    while round < rounds(40, 400) || steps.down < 4 || steps.up < 4 {
        round += 1;
        assert!(round < 2000, "the granule hardly ever changes: {steps:?}");
        // Short ones touch few pages of a block, long ones all of them.
        let longest = if random.below(2) == 0 { 60 } else { 4000 };
        run_for(&mut machine, Duration::from_micros(random.below(longest)));
        steps = shadow.check(&mut machine, SnapshotKind::Diff, &link(directory.path(), round)).granule_steps;
    }
    println!("{round} diffs, {steps:?}");
}

/// Two vCPUs write to the same two blocks all the time.
#[test]
fn a_storm_on_one_block_loses_nothing() {
    let _turn = turn();
    let mut random = Random::new();
    for granule in [DirtyGranule::Page, DirtyGranule::Block] {
        let directory = tempfile::tempdir().unwrap();
        let (output, mut shadow) = (Output::default(), Shadow::default());
        let mut config = tracked("storm.img", granule);
        (config.cpus, config.console) = (2, output.console(&["go\n"]));
        let mut machine = Machine::boot(config).unwrap();
        output.run_to_watch(&mut machine);
        shadow.check(&mut machine, SnapshotKind::Full, &link(directory.path(), 0));
        for round in 1..rounds(25, 200) {
            run_for(&mut machine, Duration::from_micros(random.below(4000)));
            shadow.check(&mut machine, SnapshotKind::Diff, &link(directory.path(), round));
        }
    }
}

/// A guest that writes to 96 MiB without end: the pages of a diff are read while it changes them, more of them than are ever kept.
#[test]
fn large_diffs_are_read_under_a_writing_guest() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random::new();
    for granule in [DirtyGranule::Block, DirtyGranule::Page] {
        // One store to each of 6144 pages, and again for ever; the parameters are behind the image's header.
        let mut image = std::fs::read(bare_image("sweep.img")).unwrap();
        for (n, value) in [PAGE, 6144, 0, 1 << 40].into_iter().enumerate() {
            image[64 + 8 * n..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let kernel = directory.path().join("sweep.img");
        std::fs::write(&kernel, image).unwrap();
        let mut config = MachineConfig { memory_mib: 136, ..tracked("sweep.img", granule) };
        config.kernel = kernel;
        let (mut machine, mut shadow) = (Machine::boot(config).unwrap(), Shadow::default());
        run_for(&mut machine, Duration::from_millis(200));
        shadow.check(&mut machine, SnapshotKind::Full, &link(directory.path(), 0));
        let (mut round, mut large, mut patience) = (0, 0, 20);
        while round < rounds(5, 40) || large < 2 {
            assert!(patience < 10_000, "{granule:?}: {large} diffs of more than 64 MiB");
            round += 1;
            run_for(&mut machine, Duration::from_millis(patience + random.below(60)));
            let report = shadow.check(&mut machine, SnapshotKind::Diff, &link(directory.path(), round));
            match report.dirty_bytes > Some(64 << 20) {
                true => large += 1,
                // A guest that is slow here gets more time.
                false => patience *= 2,
            }
        }
    }
}

/// The links of a chain are one memory, the machine of any of them comes back either way, and goes on with the chain.
#[test]
fn a_chain_is_restored_at_any_link_and_continued() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let output = Output::default();
    let mut config = tracked("storm.img", DirtyGranule::Adaptive);
    (config.cpus, config.console) = (2, output.console(&["go\n"]));
    let mut machine = Machine::boot(config).unwrap();
    output.run_to_watch(&mut machine);
    let mut writer = ChainWriter::open(directory.path(), &machine).unwrap();
    let mut moments = Vec::new();
    for _ in 0..4 {
        run_for(&mut machine, Duration::from_millis(5));
        assert_eq!(writer.checkpoint(&mut machine).unwrap(), None);
        let (files, report) = writer.finish().unwrap().unwrap();
        assert_eq!(report.parent.is_none(), moments.is_empty());
        let mut ram = vec![0; machine.ram_size() as usize];
        machine.read_ram(0, &mut ram).unwrap();
        moments.push((files, ram));
    }
    // Only its machine continues a chain, and only one at a time.
    let error = ChainWriter::open(directory.path(), &machine).unwrap_err().to_string();
    assert!(error.contains("another squib"), "{error}");
    let elsewhere = link(directory.path(), 99);
    machine.snapshot(&SaveTarget { state: directory.path().join("vm.state"), ..elsewhere }).unwrap();
    let error = writer.checkpoint(&mut machine).unwrap_err().to_string();
    assert!(error.contains("start a new one"), "{error}");
    drop((writer, machine));

    let chain = ChainDir::open(directory.path()).unwrap();
    assert_eq!(chain.links().len(), moments.len());
    for (at, (_, ram)) in moments.iter().enumerate() {
        for backend in [RestoreBackend::Map, RestoreBackend::File, RestoreBackend::Copy] {
            let mut config = chain.restore_config(Some(at)).unwrap();
            (config.backend, config.track_dirty_pages) = (backend.clone(), true);
            let mut machine = Machine::restore(config).unwrap();
            let mut now = vec![0; machine.ram_size() as usize];
            machine.read_ram(0, &mut now).unwrap();
            assert!(now == *ram, "link {at}, {backend:?}");
            if at + 1 < moments.len() {
                let error = ChainWriter::open(directory.path(), &machine).unwrap_err().to_string();
                assert!(error.contains("does not continue"), "{error}");
                continue;
            }
            run_for(&mut machine, Duration::from_millis(5));
            if !matches!(backend, RestoreBackend::Copy) {
                // A diff on top of what was restored, without a full snapshot in between; not into the chain.
                Shadow::of(chain.links()).check(&mut machine, SnapshotKind::Diff, &link(directory.path(), 100));
                continue;
            }
            let mut writer = ChainWriter::open(directory.path(), &machine).unwrap();
            writer.checkpoint(&mut machine).unwrap();
            let (_, report) = writer.finish().unwrap().unwrap();
            assert!(report.parent.is_some());
        }
    }
    let links = ChainDir::open(directory.path()).unwrap().links().to_vec();
    assert_eq!(links.len(), moments.len() + 1);
    let diffs: Vec<_> = links[1..].iter().map(|link| (&link.state, &link.memory)).collect();
    Chain::open((&links[0].state, &links[0].memory), &diffs).unwrap().verify_report().unwrap();
}

/// Snapshots that fail, in the pause and after it, lose nothing: the next diff is complete.
#[test]
fn a_failed_snapshot_loses_no_page() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let gone = link(&directory.path().join("no such directory"), 0);
    let (output, mut shadow) = (Output::default(), Shadow::default());
    let mut config = tracked("storm.img", DirtyGranule::Adaptive);
    (config.cpus, config.console) = (2, output.console(&["go\n"]));
    let mut machine = Machine::boot(config).unwrap();
    output.run_to_watch(&mut machine);
    let error = machine.snapshot_diff(&link(directory.path(), 0)).unwrap_err().to_string();
    assert!(error.contains("take a full one first"), "{error}");
    machine.snapshot(&gone).unwrap_err();
    assert_eq!(machine.last_snapshot(), None);
    for round in 0..12 {
        let good = link(directory.path(), round);
        let kind = if round % 4 == 0 { SnapshotKind::Full } else { SnapshotKind::Diff };
        let report = shadow.check(&mut machine, kind, &good);
        assert_eq!(machine.last_snapshot(), Some(report.identity));
        // With the guest running, one after the other, and without a snapshot in between.
        for failing in 0..round % 3 + 1 {
            machine.resume().unwrap();
            std::thread::sleep(Duration::from_millis(2));
            let kind = if failing == 1 { SnapshotKind::Full } else { SnapshotKind::Diff };
            match machine.checkpoint(kind, &gone) {
                Ok(pending) => drop(pending.wait().unwrap_err()),
                Err(_) => assert_eq!(kind, SnapshotKind::Full, "a diff is written, and fails, after the pause"),
            }
            assert_eq!(machine.last_snapshot(), Some(report.identity), "only a commit makes a parent");
        }
        run_for(&mut machine, Duration::from_millis(2));
    }
}
