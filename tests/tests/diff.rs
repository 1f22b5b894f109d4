//! Diffs of real guests: what base and diffs add up to is the guest's RAM at the moment of the pause, byte for byte, in every one of
//! many rounds; chains on the command line; links that fail.

use std::fs;
use std::path::Path;
use std::time::Duration;

use squib_host::{DirtyGranule, DiskConfig, Machine, MachineConfig, SaveTarget, SnapshotKind};
use squib_snapshot::{Chain, StateFile};
use squib_tests::{
    COUNT_UNTIL_TOLD, Output, Random, Shadow, Squib, all_to, counted, counts_on_until_told, guest, rounds, run_for,
    turn,
};

fn link(directory: &Path, number: usize) -> SaveTarget {
    let file = |extension| directory.join(format!("{number:04}.{extension}"));
    SaveTarget { state: file("state"), memory: file("mem") }
}

/// Runs a guest for `count` random times of at most `longest`, a snapshot after each, now and then a full one.
fn snapshots(mut config: MachineConfig, ready: &str, count: usize, longest: Duration) {
    let _turn = turn();
    let mut random = Random::new();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (output, mut shadow) = (Output::default(), Shadow::default());
    (config.track_dirty_pages, config.console) = (true, output.console(&[ready]));
    let mut machine = Machine::boot(config).expect("the machine boots");
    output.run_to_watch(&mut machine);
    let (mut dirty, mut faults, mut links) = (0, 0, Vec::new());
    for round in 0..count {
        let target = link(directory.path(), round);
        let full = round % 32 == 0;
        let report = shadow.check(&mut machine, if full { SnapshotKind::Full } else { SnapshotKind::Diff }, &target);
        if full {
            links.clear();
        } else {
            dirty += report.dirty_bytes.expect("writes are tracked");
            faults += report.write_faults;
        }
        links.push(target);
        run_for(&mut machine, Duration::from_micros(1 + random.below(longest.as_micros() as u64)));
    }
    println!("{count} rounds: {dirty} bytes of diffs after {faults} write faults");
    assert!(dirty > 0 && faults > 0, "{}", output.text());
    let (base, diffs) = links.split_first().expect("there are links");
    let diffs: Vec<_> = diffs.iter().map(|link| (&link.state, &link.memory)).collect();
    let chain = Chain::open((&base.state, &base.memory), &diffs).expect("they are a chain");
    let mut ram = vec![0; chain.ram_size() as usize];
    chain.read_checked(0, &mut ram).expect("every byte has its checksum");
    assert!(ram == shadow.ram(), "the chain and its files agree");
}

/// A disk of random bytes.
fn scratch_disk(directory: &Path) -> DiskConfig {
    let path = directory.join("scratch.img");
    fs::write(&path, vec![0x5a; 8 << 20]).expect("the disk is written");
    DiskConfig { path, read_only: false }
}

/// A guest whose `commands` begin when it has its disk.
fn with_disk(commands: &str, memory_mib: u64, disk: DiskConfig) -> MachineConfig {
    let commands = format!("until [ -b /dev/vda ]; do sleep 0.05; done; {commands}");
    let mut config = guest("bookworm-cloud", memory_mib, &commands);
    config.cmdline = format!("squib.modules {}", config.cmdline);
    config.disks = vec![disk];
    config
}

/// Two vCPUs fill memory, files and a disk, and read the disk.
#[test]
fn base_and_diffs_are_ram_at_every_pause() {
    let disks = tempfile::tempdir().expect("a temporary directory");
    let commands = "work() { while true; do dd if=/dev/urandom of=/file$1 bs=64k count=24; dd if=/file$1 of=/dev/vda bs=64k \
                    seek=$(($1 * 32)); dd if=/dev/vda of=/copy$1 bs=16k count=90; done 2>/dev/null; }; \
                    echo the work begins; work 0 & work 1 & wait";
    let mut config = with_disk(commands, 128, scratch_disk(disks.path()));
    config.cpus = 2;
    snapshots(config, "the work begins", rounds(100, 600), Duration::from_millis(30));
}

/// One vCPU has a disk read into the same memory again and again, the other one makes diffs so large that reading them takes a while:
/// what devices write after the pause is not in the diff.
#[test]
fn base_and_diffs_are_ram_while_a_disk_is_read() {
    let disks = tempfile::tempdir().expect("a temporary directory");
    let (path, mut random) = (disks.path().join("noise.img"), Random::new());
    let noise: Vec<u8> = (0..3 << 20).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect();
    fs::write(&path, noise).expect("the disk is written");
    let commands = "fill() { while true; do dd if=/dev/zero of=/zeros bs=1M count=32 conv=notrunc; done 2>/dev/null; }; \
                    echo the reading begins; fill & while true; do dd if=/dev/vda of=/dev/null bs=64k count=16 \
                    skip=$(((n=n+17)%360)) 2>/dev/null; echo 1 > /proc/sys/vm/drop_caches; done";
    let mut config = with_disk(commands, 160, DiskConfig { path, read_only: true });
    (config.cpus, config.dirty_granule) = (2, DirtyGranule::Page);
    snapshots(config, "the reading begins", rounds(16, 200), Duration::from_millis(150));
}

/// `stress-ng` on four vCPUs writes memory and disk, in a Debian root.
#[cfg(feature = "long")]
#[test]
fn base_and_diffs_are_ram_under_stress() {
    let disks = tempfile::tempdir().expect("a temporary directory");
    let path = disks.path().join("root.ext4");
    fs::copy(squib_tests::image("debian-root/bookworm.ext4", "make root-disk"), &path).expect("the disk is copied");
    let commands = "cd /home; echo the stress begins; \
                    stress-ng --vm 2 --vm-bytes 48M --hdd 1 --hdd-bytes 32M --temp-path /home --memcpy 1 -t 3600";
    let mut config = guest("bookworm-cloud", 320, commands);
    config.cmdline = format!("squib.root=/dev/vda {}", config.cmdline);
    (config.cpus, config.disks) = (4, vec![DiskConfig { path, read_only: false }]);
    snapshots(config, "the stress begins", rounds(300, 300), Duration::from_millis(400));
}

/// A guest that counts to `to`, with a chain; the run ends before, at `end`.
fn counting(directory: &Path, to: u32, end: u32) -> Squib {
    Squib::run("bookworm-cloud", &format!("count {to} 0.05"))
        .option("--exit-on", format!("count {end}\r\n"))
        .arg("--json")
        .arg("--track-dirty-pages")
        .option("--snapshot-every", "0.3")
        .option("--chain", directory)
}

fn links(directory: &Path) -> usize {
    (0..).take_while(|number| link(directory, *number).state.exists()).count()
}

/// The program writes a chain while its guest counts; every link of it is a guest that goes on counting, and the last one goes on with
/// the chain.
#[test]
fn a_chain_grows_while_its_guest_runs() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let dir = directory.path().join("chain");
    let outcome = counting(&dir, 40, 24).outcome().expect(0);
    assert_eq!(counted(&outcome.console), all_to(24), "snapshots do not disturb the guest");
    let first = outcome.event("snapshot");
    assert!(first["parent"].is_null() && first["total_us"].as_u64() >= first["pause_us"].as_u64(), "{first}");
    let written = links(&dir);
    assert!(written >= 3, "{outcome:?}");

    let restore = |at: usize| Squib::new("restore").option("--chain", &dir).option("--at", at.to_string());
    for (at, backend) in [(0, "map"), (1, "map"), (written - 1, "copy"), (written - 1, "file")] {
        let console = restore(at).option("--backend", backend).outcome().expect(0).console;
        let rest = counted(&console);
        assert_eq!(rest.last(), Some(&40), "link {at}, {backend}: {console}");
        assert!(rest.windows(2).all(|pair| pair[0] + 1 == pair[1]), "link {at}, {backend}: {console}");
    }
    restore(written).outcome().expect_error(&["has no link", &written.to_string()]);

    // The same by its files, and a chain of its own.
    let own = directory.path().join("own");
    let files = |number| link(&dir, number);
    let restored = Squib::new("restore")
        .option("--state", files(0).state)
        .option("--memory-file", files(0).memory)
        .option("--diff", files(1).state)
        .arg("--track-dirty-pages")
        .option("--snapshot-every", "0.3")
        .option("--chain-out", &own);
    restored.outcome().expect(0);
    assert!(links(&own) >= 2 && links(&dir) == written);

    // Not the last link: its diffs would not continue the chain. The last one: they do.
    let go_on = |restore: Squib| restore.arg("--track-dirty-pages").option("--snapshot-every", "0.05");
    go_on(restore(0)).outcome().expect_error(&["does not continue", "--chain"]);
    let last = StateFile::open(&files(written - 1).state).expect("a link").identity();
    go_on(Squib::new("restore").option("--chain", &dir)).outcome().expect(0);
    let next = StateFile::open(&files(written).state).expect("the chain went on");
    assert_eq!(next.parent(), Some(last));
    let chain: Vec<_> = (1..links(&dir)).map(files).map(|link| (link.state, link.memory)).collect();
    let chain = Chain::open((files(0).state, files(0).memory), &chain).expect("one chain");
    chain.verify_report().expect("every page is what was saved");
    counting(&dir, 5, 5).outcome().expect_error(&["does not continue", "empty directory"]);
}

/// A directory that is away for a while costs the links of that while, and no page. Everything waits for what the program says, however
/// long that takes.
#[test]
fn links_that_fail_leave_the_guest_running_and_their_pages_to_the_next() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (dir, away) = (directory.path().join("chain"), directory.path().join("away"));
    let mut guest = Squib::run("bookworm-cloud", COUNT_UNTIL_TOLD)
        .arg("--json")
        .arg("--track-dirty-pages")
        .option("--snapshot-every", "0.3")
        .option("--chain", &dir)
        .watched();
    guest.console("count 1");
    let committed = || guest.message(r#""event":"snapshot""#);
    committed();
    committed();
    fs::rename(&dir, &away).expect("the directory goes away");
    let failure = guest.message("snapshot-failed");
    assert!(failure.contains("No such file or directory"), "{failure}");
    let before = links(&away);
    fs::rename(&away, &dir).expect("the directory comes back");
    committed();
    // Not the last link of all, which may be of a guest that has said its last word.
    let counting = links(&dir) - 1;
    assert!(counting >= before, "the chain goes on");
    let last = guest.stop_counting();
    let restore = Squib::new("restore").option("--chain", &dir).option("--at", counting.to_string());
    counts_on_until_told(restore.option("--backend", "copy"), last);
}
