//! Lazy restores of real guests through the pager: nothing is lost, whatever is absent when; what cannot be had ends in an error
//! and not in zeroes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::Value;
use squib_tests::{Outcome, QUICK_BOOT, Snapshot, Squib, all_to, counted};

const PAGE: u64 = 16 << 10;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A guest that counts to 16, frozen at 8.
fn frozen(directory: &tempfile::TempDir, cpus: u32) -> (Snapshot, String) {
    let snapshot = Snapshot::new(directory, "first");
    let run = Squib::run("bookworm-cloud", "count 16 0.02").option("--cpus", cpus.to_string());
    let console = run.snapshot_on("count 8", &snapshot).outcome().expect(0).console;
    (snapshot, console)
}

fn lazily(snapshot: &Snapshot) -> Squib {
    Squib::restore(snapshot).option("--backend", "file").arg("--stats").arg("--json")
}

/// Only what is needed, one page at a time.
fn on_demand(snapshot: &Snapshot) -> Squib {
    lazily(snapshot).arg("--no-stream").option("--fault-around", "1")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("a number: {value}"))
}

#[track_caller]
fn counts_on(before: &str, after: &Outcome) {
    assert_eq!(after.event("pager")["faults"]["exception"], 0, "the accessor is asked for everything: {after:?}");
    assert_eq!(counted(&(before.to_owned() + &after.console)), all_to(16), "{after:?}");
}

/// With everything streamed in behind the guest's back, and with what it needs and no more.
#[track_caller]
fn the_count_goes_on(snapshot: &Snapshot, before: &str) {
    let after = lazily(snapshot).outcome().expect(0);
    counts_on(before, &after);
    let pager = after.event("pager");
    assert_eq!(pager["pages"]["total"], (256 << 20) / PAGE);
    // A fault that tells little (SQUIB_SIM=harsh) may be any kind.
    let faults = ["guest_fetch", "guest_walk"].map(|kind| number(&pager["faults"][kind]));
    assert!(faults.iter().sum::<u64>() > 0, "it began with nothing: {pager}");

    let after = on_demand(snapshot).outcome().expect(0);
    counts_on(before, &after);
    let pager = after.event("pager");
    let (total, missing) = (number(&pager["pages"]["total"]), number(&pager["pages"]["missing"]));
    assert!(missing > total / 2, "most of RAM was never needed: {pager}");
    let brought = number(&pager["origin"]["file"]) + number(&pager["origin"]["zero"]);
    assert_eq!(brought, total - missing, "{pager}");
    assert_eq!(number(&pager["demanded"]), brought, "nothing was brought that was not needed: {pager}");
    assert!(number(&pager["faults"]["guest_walk"]) > 0, "the first walk met absent tables: {pager}");
}

#[cfg(feature = "long")]
#[test]
fn the_count_goes_on_with_one_vcpu() {
    let directory = directory();
    let (snapshot, before) = frozen(&directory, 1);
    the_count_goes_on(&snapshot, &before);
}

#[test]
fn the_count_goes_on_with_four_vcpus() {
    let directory = directory();
    let (snapshot, before) = frozen(&directory, 4);
    the_count_goes_on(&snapshot, &before);
    under_switches(&snapshot, &before, &["fault-details=vague"]);
}

/// Whatever the stand-in does differently on request, where the framework's behaviour is not certain.
#[cfg(feature = "long")]
#[test]
fn the_count_goes_on_with_two_vcpus_and_every_switch() {
    let directory = directory();
    let (snapshot, before) = frozen(&directory, 2);
    the_count_goes_on(&snapshot, &before);
    let switches = ["fault-details=vague", "prot-none-map=error", "overlapping-map=error", "host-mprotect=on"];
    under_switches(&snapshot, &before, &switches);
}

fn under_switches(snapshot: &Snapshot, before: &str, switches: &[&str]) {
    for switch in switches {
        // Beside those the whole suite is being run with.
        let switches = format!("{},{switch}", std::env::var("SQUIB_SIM").unwrap_or_default());
        let restore = on_demand(snapshot).environment("SQUIB_SIM", &switches);
        counts_on(before, &restore.outcome().expect(0));
    }
}

/// A disk's rings and buffers are absent when the disk is used, and no exception handler is needed: the accessor announces every touch.
#[test]
fn a_disk_works_over_absent_memory() {
    let directory = directory();
    let snapshot = Snapshot::new(&directory, "disk");
    let disk = directory.path().join("disk.img");
    fs::write(&disk, (0..1u64 << 20).flat_map(|n| (n * n).to_le_bytes()).collect::<Vec<_>>()).expect("a disk");
    let work = "echo frozen; sleep 0.1; sha256sum /dev/vda; seq 20000 | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null";
    let parameters = format!("{QUICK_BOOT} squib.modules");
    let run = Squib::run_with("bookworm-cloud", &parameters, work).option("--disk", &disk);
    run.snapshot_on("frozen", &snapshot).outcome().expect(0);
    // Not every Mac has a sha256sum; the suite wants python3 anyway.
    let program = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
    let sum = Command::new("python3").args(["-c", program]).arg(&disk).output().expect("python3").stdout;
    let sum = String::from_utf8_lossy(&sum[..64]).into_owned();
    let after = on_demand(&snapshot).option("--disk", &disk).outcome().expect(0).expect_console(&sum);
    let numbers: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert!(fs::read(&disk).expect("the disk").starts_with(numbers.as_bytes()), "what the guest wrote");
    let faults = &after.event("pager")["faults"];
    assert!(number(&faults["host"]) > 0, "the device met absent memory first: {after:?}");
    assert_eq!(faults["exception"], 0, "and its accessor was asked each time: {after:?}");
}

/// The snapshot of a machine most of whose RAM is absent is a whole one. Saving over the very files the machine came from is as
/// good, mapped or lazy.
#[test]
fn a_snapshot_of_a_partly_absent_machine_is_whole() {
    let directory = directory();
    let (first, before) = frozen(&directory, 2);
    for (backend, over_itself) in [("file", false), ("file", true), ("map", true)] {
        let from = Snapshot::new(&directory, &format!("from-{backend}-{over_itself}"));
        fs::hard_link(&first.state, &from.state).expect("linked");
        fs::hard_link(&first.memory, &from.memory).expect("linked");
        let to = if over_itself { from.clone() } else { Snapshot::new(&directory, "to") };
        let restore = Squib::restore(&from).option("--backend", backend);
        let restore = if backend == "file" { restore.arg("--no-stream") } else { restore };
        let middle = restore
            .option("--snapshot-on", "count 12")
            .option("--state-out", &to.state)
            .option("--memory-out", &to.memory)
            .option("--then", "continue")
            .outcome()
            .expect(0);
        assert_eq!(counted(&(before.clone() + &middle.console)), all_to(16), "{middle:?}");
        Squib::new("verify").without_timeout().arg(&to.state).arg(&to.memory).outcome().expect(0);
        let after = Squib::restore(&to).option("--backend", "file").outcome().expect(0);
        let (seen, _) = middle.console.split_once("count 12").expect("frozen there");
        assert_eq!(counted(&(before.clone() + seen + "count 12" + &after.console)), all_to(16), "{after:?}");
    }
}

/// Every page that is not zero is altered, but for those that the restore itself looks at first: the guest meets one at once.
#[test]
fn damaged_memory_is_an_error_that_names_it() {
    let directory = directory();
    let (snapshot, _) = frozen(&directory, 1);
    let file = fs::File::options().read(true).write(true).open(&snapshot.memory).expect("the memory file");
    let length = file.metadata().expect("its length").len();
    let mut page = vec![0; PAGE as usize];
    for at in (0..length).step_by(PAGE as usize) {
        file.read_exact_at(&mut page, at).expect("read");
        if page.iter().any(|&byte| byte != 0) {
            file.write_all_at(&[page[100] ^ 1], at + 100).expect("altered");
        }
    }
    for stream in [true, false] {
        let restore = Squib::restore(&snapshot).option("--backend", "file");
        let restore = if stream { restore } else { restore.arg("--no-stream") };
        restore.outcome().expect_error(&["is damaged", "0x", "checksum"]);
    }
}

/// A block of the memory file that is filled with `pattern` throughout.
fn block_of(memory: &std::path::Path, pattern: &[u8]) -> u64 {
    let file = fs::File::open(memory).expect("the memory file");
    let mut block = vec![0; 2 << 20];
    let length = file.metadata().expect("its length").len();
    let found = (0..length).step_by(block.len()).find(|&at| {
        file.read_exact_at(&mut block, at).expect("read");
        block.chunks(pattern.len()).all(|part| part == pattern)
    });
    found.expect("a block of RAM that holds nothing but the guest's file")
}

/// What the guest has written and not yet synced is damaged, and its disk is the first to look: the run ends with an error that names
/// the page, and nothing but the guest's own bytes is on the disk.
#[test]
fn a_device_that_meets_damage_writes_nothing_of_it() {
    let directory = directory();
    let snapshot = Snapshot::new(&directory, "disk");
    let (disk, size) = (directory.path().join("disk.img"), 12 << 20);
    fs::write(&disk, vec![b'o'; size]).expect("a disk");
    let work = format!(
        "for delay in dirty_expire dirty_writeback; do echo 360000 > /proc/sys/vm/${{delay}}_centisecs; done; \
         exec 3<>/dev/vda; yes ZZZZZZZ | dd bs=64k count={} iflag=fullblock >&3; echo frozen; sleep 0.1; sync; echo written",
        size >> 16
    );
    let run = Squib::run_with("bookworm-cloud", &format!("{QUICK_BOOT} squib.modules"), &work).option("--disk", &disk);
    run.snapshot_on("frozen", &snapshot).outcome().expect(0);
    assert!(fs::read(&disk).expect("the disk").iter().all(|&byte| byte == b'o'), "nothing was written yet");
    let block = block_of(&snapshot.memory, b"ZZZZZZZ\n");
    let memory = fs::File::options().write(true).open(&snapshot.memory).expect("the memory file");
    memory.write_all_at(b"Y", block + 1_000_000).expect("altered");

    let restore = Squib::restore(&snapshot).option("--backend", "file").arg("--no-stream").option("--disk", &disk);
    let start = format!("{block:#x}..");
    let after = restore.outcome().expect_error(&["disk.mem", &start, "is damaged", "checksum"]);
    assert!(!after.console.contains("written"), "{after:?}");
    let disk = fs::read(&disk).expect("the disk");
    let guests = disk.chunks(8).filter(|part| part == b"ZZZZZZZ\n").count();
    assert!(guests > 0, "the disk was at work when it met the damage");
    assert_eq!(
        disk.chunks(8).filter(|part| part == b"oooooooo").count(),
        size / 8 - guests,
        "zeroes, or what is damaged"
    );
}

/// A file in the guest's RAM that it never reads again is damaged. Streaming finds out while the guest waits for a line: that is told
/// at once, the guest goes on, and the run ends with an error.
#[test]
fn damage_that_only_streaming_meets_is_told_while_the_guest_runs_on() {
    let directory = directory();
    let snapshot = Snapshot::new(&directory, "first");
    let work = "yes ZZZZZZZ | head -c 25165824 > /blob; echo frozen; read line; echo got $line";
    Squib::run("bookworm-cloud", work).snapshot_on("frozen", &snapshot).outcome().expect(0);
    let block = block_of(&snapshot.memory, b"ZZZZZZZ\n");
    let file = fs::File::options().write(true).open(&snapshot.memory).expect("the memory file");
    file.write_all_at(b"Y", block + 1_000_000).expect("altered");
    let start = format!("{:#x}..", 0x4000_0000 + block);

    let mut restore = Squib::restore(&snapshot).option("--backend", "file").watched();
    let message = restore.message("is lost");
    for words in ["first.mem", &start, "checksum", "the guest runs on until it needs it", "squib verify"] {
        assert!(message.contains(words), "'{words}': {message}");
    }
    restore.type_line("hello");
    restore.console("got hello");
    let error = restore.message("squib: error: ");
    assert!(error.contains("pages of guest memory are lost") && error.contains("first.mem"), "{error}");
    assert_eq!(restore.end().0, Some(1));

    let mut restore = lazily(&snapshot).watched();
    let event: Value = serde_json::from_str(&restore.message("memory-lost")).expect("JSON");
    assert_eq!((&event["start"], &event["bytes"]), (&(0x4000_0000 + block).into(), &PAGE.into()));
    restore.type_line("hello");
    let pager: Value = serde_json::from_str(&restore.message("\"pager\"")).expect("JSON");
    // A checksum covers 128 pages: streaming may not have come to the last of them.
    assert!((1..=128).contains(&number(&pager["pages"]["lost"])), "{pager}");
    assert_eq!(restore.end().0, Some(1));

    // A snapshot needs all of memory: it is not written, and the guest runs on.
    let to = Snapshot::new(&directory, "to");
    let restore = Squib::restore(&snapshot).option("--backend", "file").arg("--no-stream");
    let restore = restore.option("--snapshot-on", "got").option("--then", "continue");
    let mut restore = restore.option("--state-out", &to.state).option("--memory-out", &to.memory).watched();
    restore.type_line("hello");
    let message = restore.message("was not written");
    assert!(message.contains("the guest runs on") && message.contains("first.mem"), "{message}");
    let error = restore.message("squib: error: ");
    assert!(error.contains("ended without its snapshot") && error.contains("is lost"), "{error}");
    let (code, console) = restore.end();
    assert!(code == Some(1) && console.contains("got hello"), "{console}");
    assert!(!to.state.exists() && !to.memory.exists());
}

/// What a restore with a terminal for standard error, and for nothing else, writes to it.
fn on_a_terminal(snapshot: &Snapshot, options: &[&str]) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::io::Read;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("granted");
    unlockpt(&terminal).expect("unlocked");
    let name = ptsname(&terminal, Vec::new()).expect("its name").into_string().expect("UTF-8");
    let stderr = fs::File::options().read(true).write(true).open(name).expect("the other end");
    let mut restore = std::process::Command::new(squib_tests::program());
    restore.arg("restore").arg("--state").arg(&snapshot.state).arg("--memory-file").arg(&snapshot.memory);
    restore.args(["--backend", "file", "--timeout", "200"]).args(options).env("TERM", "xterm").stderr(stderr);
    restore.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut child = restore.spawn().expect("the program starts");
    // Ours is the last hold on the other end but the child's.
    drop(restore);
    let (mut drawn, mut from) = (Vec::new(), fs::File::from(terminal));
    let mut part = [0; 4096];
    // When the last hold is gone, reading fails on Linux and ends elsewhere.
    while let Ok(length @ 1..) = from.read(&mut part) {
        drawn.extend(&part[..length]);
    }
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    String::from_utf8_lossy(&drawn).into_owned()
}

/// Standard error is a terminal, standard output is not: a bar shows how much has come, and is gone at the end. There is none where
/// nothing streams, and none between lines of JSON.
#[test]
fn a_bar_is_drawn_while_memory_streams_in() {
    let directory = directory();
    let (snapshot, _) = frozen(&directory, 1);
    let drawn = on_a_terminal(&snapshot, &[]);
    assert!(drawn.contains("streaming ") && drawn.contains(" of 256.00 MiB"), "{drawn:?}");
    let (_, after) = drawn.rsplit_once("of 256.00 MiB").expect("drawn");
    assert!(after.contains("\u{1b}[2K") || after.contains("\u{1b}[K"), "the line is cleared: {after:?}");
    assert_eq!(on_a_terminal(&snapshot, &["--no-stream"]), "");
    let lines = on_a_terminal(&snapshot, &["--json"]);
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line.trim_end()).is_ok()), "{lines:?}");
}

/// What one run needed is recorded and brought first by the next. A file that is damaged, or of another snapshot, is told and left alone.
#[test]
fn a_working_set_is_recorded_and_used_and_never_fatal() {
    let directory = directory();
    let (snapshot, before) = frozen(&directory, 1);
    let file = directory.path().join("first.state.working-set");
    let recorded = lazily(&snapshot).option("--working-set", "record").outcome().expect(0);
    counts_on(&before, &recorded);
    let (pager, event) = (recorded.event("pager"), recorded.event("working-set"));
    assert_eq!(number(&event["pages"]), number(&pager["demanded"]), "every page that was needed, and no other");
    assert_eq!(number(&pager["prefetch"]["pages"]) + number(&pager["around"]), 0, "{pager}");

    let state = squib_snapshot::StateFile::open(&snapshot.state).expect("the state");
    let set = squib_snapshot::WorkingSet::open(&file, state.identity(), 256 << 20).expect("a working set");
    assert_eq!(set.pages(), number(&event["pages"]));
    let pc = set.ranges().next().expect("the first page");
    assert_eq!(pc.end % PAGE, 0, "{pc:?}");

    let restore = || lazily(&snapshot).outcome().expect(0);
    let used = restore();
    counts_on(&before, &used);
    assert!(!used.stderr.contains("working-set"), "nothing is to be said of it: {used:?}");
    let bytes = fs::read(&file).expect("the working set");
    let mut damaged = bytes.clone();
    damaged[60] ^= 1;
    let mut foreign =
        squib_snapshot::WorkingSet::new(squib_snapshot::SnapshotId([1; 16]), 256 << 20, PAGE as u32, [1, 2]);
    foreign.save(&file).expect("saved");
    foreign = squib_snapshot::WorkingSet::new(state.identity(), 512 << 20, PAGE as u32, [1, 2]);
    let other_size = directory.path().join("other");
    foreign.save(&other_size).expect("saved");
    for (content, words) in [
        (fs::read(&file).expect("read"), "belongs to snapshot 01010101"),
        (fs::read(&other_size).expect("read"), "536870912 bytes of RAM"),
        (damaged, "checksum is wrong"),
        (bytes[..100].to_vec(), "bytes long"),
        (b"not a working set".to_vec(), "SQUIBWSS"),
        (Vec::new(), "too short"),
    ] {
        fs::write(&file, content).expect("written");
        let after = restore();
        counts_on(&before, &after);
        let reason = after.event("working-set-ignored")["reason"].to_string();
        assert!(reason.contains(words) && reason.contains("first.state.working-set"), "{reason}");
    }
    // A person is told in one line.
    let told = Squib::restore(&snapshot).option("--backend", "file").outcome().expect(0).stderr;
    assert!(told.lines().count() == 1 && told.contains("it is ignored (record it again"), "{told}");
    // And it can be put elsewhere, or left alone.
    let elsewhere = directory.path().join("elsewhere");
    let record = lazily(&snapshot).option("--working-set", "record").option("--working-set-file", &elsewhere);
    record.outcome().expect(0);
    let after = lazily(&snapshot).option("--working-set-file", &elsewhere).outcome().expect(0);
    assert!(!after.stderr.contains("ignored"), "{after:?}");
    let after = lazily(&snapshot).option("--working-set", "ignore").outcome().expect(0);
    assert!(!after.stderr.contains("ignored"), "{after:?}");
    // Where it cannot be written is known before the run, not after it.
    for (name, words) in [("none/set", "there is no directory"), ("", "it is a directory")] {
        let record = lazily(&snapshot).option("--working-set", "record");
        let record = record.option("--working-set-file", directory.path().join(name));
        let refused = record.outcome().expect_error(&["working set cannot be written", words]);
        assert!(refused.console.is_empty(), "{refused:?}");
    }
    let refused = Squib::restore(&snapshot).option("--working-set", "record").outcome().expect(2);
    assert!(refused.stderr.contains("--backend file or uffd"), "{refused:?}");
}

/// Under the deterministic clock the guest's run is the same to the bit, however its memory arrives: to an exact moment, with registers
/// and RAM compared there, and on to its end.
#[test]
fn how_memory_arrives_changes_nothing() {
    let directory = directory();
    let image = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare/replay.img");
    let middle = Snapshot::new(&directory, "middle");
    let run = Squib::new("run").option("--kernel", image).option("--memory", "32").option("--clock", "deterministic");
    run.arg("--json")
        .option("--snapshot-after-instructions", "200000")
        .option("--state", &middle.state)
        .option("--memory-file", &middle.memory)
        .outcome()
        .expect(0);
    let socket = directory.path().join("pages.sock").display().to_string();
    let mut server = std::process::Command::new(squib_tests::program());
    server.arg("page-server").arg("--memory-file").arg(&middle.memory).arg("--state").arg(&middle.state);
    let server =
        Server(server.arg("--listen").arg(&socket).stderr(std::process::Stdio::null()).spawn().expect("a server"));
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let rest = |options: &[&str]| {
        let end = Snapshot::new(&directory, "end");
        let mut restore = Squib::restore(&middle).option("--clock", "deterministic").arg("--json");
        for option in options {
            restore = restore.arg(option);
        }
        let outcome = restore
            .option("--snapshot-after-instructions", "300000")
            .option("--state-out", &end.state)
            .option("--memory-out", &end.memory)
            .option("--then", "continue")
            .outcome()
            .expect(0);
        let state = squib_snapshot::load(&end.state).expect("the state").state;
        let instructions = outcome.event("end")["instructions"].clone();
        (outcome.console, instructions, state, fs::read(&end.memory).expect("the memory"))
    };
    let copied = rest(&["--backend", "copy"]);
    let on_demand = ["--no-stream", "--fault-around", "1"];
    let (file, uffd) = (["--backend", "file"], ["--backend", "uffd", "--backend-path", &socket]);
    for options in
        [&["--backend", "map"][..], &file, &[&file[..], &on_demand].concat(), &uffd, &[&uffd[..], &on_demand].concat()]
    {
        let lazy = rest(options);
        assert_eq!((&lazy.0, &lazy.1, &lazy.2), (&copied.0, &copied.1, &copied.2), "{options:?}");
        assert!(lazy.3 == copied.3, "RAM differs: {options:?}");
    }
    drop(server);
}

/// A page server, ended when dropped.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
