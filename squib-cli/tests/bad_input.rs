//! What is wrong is said in one plain line that names it, at once and not after the guest has run, with an exit code that is not
//! zero; nothing is replaced, and nothing is left behind. The guest is a branch to itself: everything here happens around it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

mod common;
use common::spinning_kernel;

/// A directory with a kernel that spins, a disk, and what is no file: a directory, a pipe, a socket, a link to itself.
struct Fixture {
    directory: tempfile::TempDir,
    _socket: UnixListener,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        fs::write(file("kernel"), spinning_kernel()).expect("a file");
        fs::write(file("empty"), []).expect("a file");
        fs::write(file("odd"), [1; 700]).expect("a file");
        fs::write(file("disk"), [7; 4096]).expect("a file");
        fs::create_dir(file("dir")).expect("a directory");
        std::os::unix::fs::symlink("loop", file("loop")).expect("a link");
        assert!(Command::new("mkfifo").arg(file("pipe")).status().expect("mkfifo").success());
        let socket = UnixListener::bind(file("socket")).expect("a socket");
        Fixture { directory, _socket: socket }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squib"));
        command.args(line.split_whitespace()).current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Runs a line of arguments that fails with `code` and says all of `words` in one line of standard error.
    #[track_caller]
    fn fails(&self, line: &str, code: i32, words: &[&str]) {
        let before = self.names();
        let Output { status, stderr, .. } = self.command(line).output().expect("the program starts");
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(code), "{line}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{line}: '{word}' is missing in: {stderr}");
        }
        assert!(code == 2 || stderr.lines().count() == 1, "{line}: {stderr}");
        assert_eq!(self.names(), before, "{line} left something behind");
    }

    fn names(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.path()).expect("listed");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        names.sort();
        names
    }
}

#[test]
fn inputs_that_are_no_files() {
    let fixture = Fixture::new();
    let not_regular = ["dir", "pipe", "/dev/zero", "/dev/null"];
    for name in not_regular {
        fixture.fails(&format!("run --kernel {name}"), 1, &["cannot read the kernel", name, "not a regular file"]);
        let initrd = ["cannot read the initial RAM disk", name, "not a regular file"];
        fixture.fails(&format!("run --kernel kernel --initrd {name}"), 1, &initrd);
        let disk = ["cannot open the disk", name, "not a regular file"];
        fixture.fails(&format!("run --kernel kernel --disk {name},ro"), 1, &disk);
        for command in [
            format!("describe {name}"),
            format!("verify {name} disk"),
            format!("restore --state {name} --memory-file disk"),
            format!("page-server --memory-file {name} --listen new-socket"),
        ] {
            fixture.fails(&command, 1, &[name, "not a regular file"]);
        }
    }
    fixture.fails("run --kernel socket", 1, &["cannot read the kernel socket"]);
    fixture.fails("run --kernel loop", 1, &["cannot read the kernel loop"]);
    fixture.fails("run --kernel kernel --disk dir", 1, &["cannot open the disk dir"]);
    fixture.fails("restore --chain pipe", 1, &["pipe", "directory"]);
    fixture.fails("recover disk", 1, &["disk is not a directory"]);
}

#[test]
fn inputs_that_are_something_else() {
    let fixture = Fixture::new();
    fs::File::create(fixture.directory.path().join("huge")).expect("a file").set_len(1 << 40).expect("a sparse file");
    fixture.fails("run --kernel empty", 1, &["cannot boot empty", "not an arm64 kernel"]);
    fixture.fails("run --kernel huge", 1, &["huge", "larger than 512 MiB"]);
    fixture.fails("run --kernel kernel --initrd empty", 1, &["initial RAM disk empty is empty"]);
    fixture.fails("run --kernel kernel --initrd huge", 1, &["huge", "larger than"]);
    fixture.fails("run --kernel kernel --memory 2", 1, &["at least 3 MiB of RAM"]);
    fixture.fails("run --kernel kernel --disk odd", 1, &["odd is 700 bytes long", "512-byte sectors"]);
    fixture.fails("run --kernel kernel --disk disk --disk disk", 1, &["disk is in use already"]);
    for state in ["empty", "odd", "huge"] {
        let what = [state, "the file is damaged or no state file"];
        fixture.fails(&format!("restore --state {state} --memory-file disk"), 1, &what);
        fixture.fails(&format!("describe {state}"), 1, &what);
        let path = format!("restore --state {state} --backend uffd --backend-path socket");
        fixture.fails(&path, 1, &what);
        fixture.fails(&format!("restore --state {state} --memory-file disk --backend file"), 1, &what);
    }
    fixture.fails("page-server --memory-file empty --listen new-socket", 1, &["empty is not a memory file"]);
}

#[test]
fn numbers_and_texts_out_of_range() {
    let fixture = Fixture::new();
    for memory in ["0", "-1", "1.5", "1G", "18446744073709551616"] {
        fixture.fails(&format!("run --kernel kernel --memory={memory}"), 2, &["--memory", "a whole number of MiB"]);
    }
    fixture.fails("run --kernel kernel --memory 67108864", 1, &["choose between 1 and"]);
    for cpus in ["0", "33", "-1", "x"] {
        fixture.fails(&format!("run --kernel kernel --cpus={cpus}"), 2, &["--cpus"]);
        fixture.fails(&format!("demo --cpus={cpus}"), 2, &["--cpus"]);
    }
    fixture.fails("run --kernel kernel --clock deterministic --cpus 2", 1, &["one vCPU"]);
    let cmdline = "x".repeat(2048);
    fixture.fails(&format!("run --kernel kernel --cmdline {cmdline}"), 1, &["2048 bytes", "2047 at most"]);
    let mut command = fixture.command("run --kernel kernel --cmdline");
    let output = command.arg(std::ffi::OsStr::from_bytes(b"\xff")).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn as_many_disks_as_there_are_slots() {
    let fixture = Fixture::new();
    let run =
        |count: usize| format!("run --kernel kernel --memory 16 --timeout 0.1{}", " --disk disk,ro".repeat(count));
    let output = fixture.command(&run(31)).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(124), "{}", String::from_utf8_lossy(&output.stderr));
    fixture.fails(&run(32), 1, &["32 disks: at most 31 fit"]);
}

#[test]
fn a_restore_without_its_disk_is_told_how_to_name_another() {
    let fixture = Fixture::new();
    let run = "run --kernel kernel --memory 16 --disk disk --clock deterministic --snapshot-after-instructions 9";
    let files = "--state vm.state --memory-file vm.mem";
    let output = fixture.command(&format!("{run} {files}")).output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = |name: &str| fixture.directory.path().join(name);
    fs::rename(file("disk"), file("copy")).expect("renamed");
    fixture.fails(&format!("restore {files}"), 1, &["/disk, which is not there", "--disk"]);
    let there = fixture.command(&format!("restore {files} --disk copy --timeout 0.1")).output().expect("it starts");
    assert_eq!(there.status.code(), Some(124), "{}", String::from_utf8_lossy(&there.stderr));
}

/// Said before the guest runs: none of these texts ever comes.
#[test]
fn places_where_no_snapshot_can_go() {
    let fixture = Fixture::new();
    let long = "n".repeat(255);
    for (name, words) in [
        ("missing/vm", vec!["missing/vm", "No such file or directory"]),
        ("empty/vm", vec!["empty/vm", "Not a directory"]),
        ("dir", vec!["dir", "is a directory"]),
        ("pipe", vec!["pipe", "a device, a pipe or a socket"]),
        ("socket", vec!["socket", "a device, a pipe or a socket"]),
        ("kernel", vec!["kernel is a disk, the kernel or", "another name"]),
        ("./disk", vec!["./disk is a disk, the kernel or", "another name"]),
        ("new", vec!["two different files"]),
        (&long, vec![&long, "name too long"]),
    ] {
        let run = "run --kernel kernel --memory 16 --disk disk --snapshot-on x";
        fixture.fails(&format!("{run} --state {name} --memory-file new"), 1, &words);
        fixture.fails(&format!("{run} --state new --memory-file {name}"), 1, &words);
    }
    let chain = "run --kernel kernel --memory 16 --track-dirty-pages --snapshot-every 9 --chain";
    for name in ["empty", "pipe", "empty/chain"] {
        fixture.fails(&format!("{chain} {name}"), 1, &[name]);
    }
    assert_eq!(fs::read(fixture.directory.path().join("disk")).expect("the disk"), [7; 4096]);
    assert_eq!(fs::read(fixture.directory.path().join("kernel")).expect("the kernel"), spinning_kernel());
}

#[test]
fn sockets() {
    let fixture = Fixture::new();
    let serve = "page-server --memory-file disk --listen";
    for name in ["empty", "dir", "pipe", "loop"] {
        fixture.fails(&format!("{serve} {name}"), 1, &[name, "is not a socket"]);
    }
    fixture.fails(&format!("{serve} socket"), 1, &["another server listens at socket"]);
    fixture.fails(&format!("{serve} missing/s"), 1, &["missing/s", "No such file or directory"]);
    fixture.fails(&format!("{serve} {}", "s".repeat(150)), 1, &["too long for the name of a socket"]);
}

/// The rest of the output has nowhere to go, and that is no panic.
#[test]
fn outputs_that_take_nothing() {
    let fixture = Fixture::new();
    let gone = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    let run = "run --kernel kernel --memory 16 --timeout 0.2 --json";
    let status = fixture.command(run).stderr(gone()).stdout(gone()).status().expect("the program starts");
    assert_eq!(status.code(), Some(124));
    let status = fixture.command("run --kernel missing").stderr(gone()).status().expect("the program starts");
    assert_eq!(status.code(), Some(1));
    let status = fixture.command("recover dir").stdout(gone()).status().expect("the program starts");
    assert_eq!(status.code(), Some(0), "a reader that has seen enough is no error");
    if cfg!(target_os = "linux") {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has one");
        let output = fixture.command("recover dir").stdout(full).output().expect("the program starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("cannot write to standard output"), "{stderr}");
    }
}

/// Starts a guest, sends a signal when `event` is reported, and returns the exit code and the last line of standard error.
fn interrupted(fixture: &Fixture, line: &str, event: &str, signal: &str) -> (Option<i32>, String) {
    let mut child = fixture.command(line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("a line"));
    lines.find(|line| line.contains(event)).expect("the event");
    let kill = Command::new("kill").arg(signal).arg(child.id().to_string()).status().expect("kill");
    assert!(kill.success());
    let last = lines.last().unwrap_or_default();
    (child.wait().expect("it ends").code(), last)
}

#[test]
fn a_signal_ends_the_run_in_order() {
    let fixture = Fixture::new();
    let run = "run --kernel kernel --memory 16 --json";
    for (signal, code) in [("-TERM", 143), ("-INT", 130), ("-HUP", 129)] {
        let (status, last) = interrupted(&fixture, run, "running", signal);
        assert_eq!(status, Some(code), "{last}");
        assert!(last.contains(r#""reason":"signal""#), "{last}");
    }
    // While a chain grows: the link that was being written is complete, and no temporary file is left.
    let chain = "--track-dirty-pages --snapshot-every 0.02 --chain chain";
    let (status, last) = interrupted(&fixture, &format!("{run} {chain}"), "snapshot", "-TERM");
    assert_eq!(status, Some(143), "{last}");
    let chain = fixture.directory.path().join("chain");
    for entry in fs::read_dir(&chain).expect("listed") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        assert!(name == "chain.lock" || name.ends_with(".state") || name.ends_with(".mem"), "{name} is left");
    }
    let output = fixture.command("restore --chain chain --timeout 0.1").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(124), "it goes on: {}", String::from_utf8_lossy(&output.stderr));
}
