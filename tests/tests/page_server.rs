//! A real guest whose memory comes from a page server: it runs the same, and when the server dies under it, it stands still
//! until the server is back.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use squib_tests::{Snapshot, Squib, Watched, all_to, counted, program};

const PATIENCE: Duration = Duration::from_secs(240);

/// Counts to 20, and before 13 reads a file that it has not touched since it was frozen, at 5.
fn frozen(directory: &tempfile::TempDir) -> (Snapshot, String) {
    let snapshot = Snapshot::new(directory, "served");
    let work = "for i in $(seq 1 12); do echo count $i; sleep 0.2; done; md5sum /bin/busybox; \
                for i in $(seq 13 20); do echo count $i; done";
    let run = Squib::run("bookworm-cloud", work).option("--cpus", "2").snapshot_on("count 5", &snapshot);
    let console = run.outcome().expect(0).console;
    assert_eq!(counted(&console), all_to(5));
    (snapshot, console)
}

/// A page server in a process of its own, killed when dropped.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(snapshot: &Snapshot, socket: &Path) -> Server {
        Server::serving(&snapshot.memory, Some(&snapshot.state), socket)
    }

    fn serving(memory: &Path, state: Option<&Path>, socket: &Path) -> Server {
        let mut command = Command::new(program());
        command.arg("page-server").arg("--memory-file").arg(memory);
        if let Some(state) = state {
            command.arg("--state").arg(state);
        }
        let child = command.arg("--listen").arg(socket).stderr(Stdio::null()).spawn().expect("the server starts");
        let server = Server { child, socket: socket.to_owned() };
        let started = Instant::now();
        while UnixStream::connect(socket).is_err() {
            assert!(started.elapsed() < PATIENCE, "the server listens");
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// At once, without a chance to clean up.
    fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
        assert!(self.socket.exists(), "its socket is left behind");
        std::mem::forget(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a restore from the page server at `socket`.
fn start(snapshot: &Snapshot, socket: &Path, options: &[&str]) -> Watched {
    let restore = Squib::new("restore").option("--state", &snapshot.state).option("--backend", "uffd");
    let restore = restore.option("--backend-path", socket).timeout(200);
    options.iter().fold(restore, |restore, option| restore.arg(option)).watched()
}

fn socket(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("pages.sock")
}

#[test]
fn a_guest_goes_on_from_a_page_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let (snapshot, before) = frozen(&directory);
    let _server = Server::start(&snapshot, &socket(&directory));
    // Streaming, with the memory file out of the way; and only what is needed.
    let from = |options: &[&str]| {
        let mut restore = Squib::new("restore").option("--state", &snapshot.state).option("--backend", "uffd");
        for option in options {
            restore = restore.arg(option);
        }
        restore.option("--backend-path", socket(&directory)).arg("--json").arg("--stats").outcome().expect(0)
    };
    for options in [&[][..], &["--no-stream"]] {
        let after = from(options);
        assert_eq!(counted(&(before.clone() + &after.console)), all_to(20), "{after:?}");
        let pager = after.event("pager");
        assert!(pager["origin"]["server"].as_u64().expect("a number") > 0, "{pager}");
        assert_eq!(pager["origin"]["file"], 0, "{pager}");
    }
}

#[test]
fn a_guest_stands_still_while_its_server_is_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let (snapshot, before) = frozen(&directory);
    let server = Server::start(&snapshot, &socket(&directory));
    let mut restore = start(&snapshot, &socket(&directory), &["--no-stream"]);
    restore.console("count 6");
    server.kill();
    let message = restore.message("stands still");
    assert!(message.contains("page server") && message.contains("guest memory"), "{message}");
    let server = Server::start(&snapshot, &socket(&directory));
    restore.message("the page server is back");
    let (code, after) = restore.end();
    assert_eq!((code, counted(&(before + &after))), (Some(0), all_to(20)), "{after}");
    server.kill();
    assert!(after.contains("/bin/busybox"), "{after}");
    stays_away(&snapshot, &directory);
}

/// Away for longer than it may be: an error, and no zeroes.
fn stays_away(snapshot: &Snapshot, directory: &tempfile::TempDir) {
    let server = Server::start(snapshot, &socket(directory));
    let mut restore = start(snapshot, &socket(directory), &["--no-stream", "--backend-timeout", "1"]);
    restore.console("count 6");
    server.kill();
    let error = restore.message("squib: error: ");
    assert!(error.contains("nobody listens") && error.contains("--backend-timeout"), "{error}");
    assert_eq!(restore.end().0, Some(1));
}

/// Stands at `front` for the server at `behind`: HELLO goes there, WELCOME comes back, and then it is gone, socket and all.
fn welcomes_and_goes(front: PathBuf, behind: PathBuf) -> JoinHandle<()> {
    let listener = UnixListener::bind(&front).expect("bound");
    thread::spawn(move || {
        let (client, server) =
            (listener.accept().expect("a client").0, UnixStream::connect(behind).expect("the server"));
        for (mut from, mut to) in [(&client, &server), (&server, &client)] {
            // A frame: 16 bytes, the first four of them the length of the rest.
            let mut header = [0; 16];
            from.read_exact(&mut header).expect("a header");
            let mut body = vec![0; u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize];
            from.read_exact(&mut body).expect("a body");
            to.write_all(&[&header[..], &body].concat()).expect("passed on");
        }
        fs::remove_file(front).expect("removed");
    })
}

/// Away before the first page, when devices, vCPUs and the prefetcher all ask: nothing of the restore is lost.
#[test]
fn a_server_that_goes_before_the_first_page_is_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let (snapshot, before) = frozen(&directory);
    let behind = directory.path().join("behind.sock");
    let server = Server::start(&snapshot, &behind);
    for options in [&["--no-stream"][..], &[]] {
        let relay = welcomes_and_goes(socket(&directory), behind.clone());
        let restore = start(&snapshot, &socket(&directory), options);
        relay.join().expect("it welcomed");
        let message = restore.message("stands still");
        assert!(message.contains("no such socket"), "{message}");
        let back = Server::start(&snapshot, &socket(&directory));
        restore.message("the page server is back");
        let (code, after) = restore.end();
        assert_eq!((code, counted(&(before.clone() + &after))), (Some(0), all_to(20)), "{options:?}: {after}");
        back.kill();
        fs::remove_file(socket(&directory)).expect("removed");
    }
    drop(server);
}

/// What it says is wrong is not believed, and not the end either: another server may have the right bytes.
#[test]
fn a_guest_stands_still_while_its_server_lies() {
    let directory = tempfile::tempdir().expect("a directory");
    let (snapshot, before) = frozen(&directory);
    let lies = directory.path().join("lies.mem");
    fs::copy(&snapshot.memory, &lies).expect("copied");
    let file = fs::File::options().read(true).write(true).open(&lies).expect("the memory file");
    let mut page = vec![0; 16 << 10];
    for at in (0..file.metadata().expect("its length").len()).step_by(page.len()) {
        file.read_exact_at(&mut page, at).expect("read");
        if page.iter().any(|&byte| byte != 0) {
            file.write_all_at(&[page[100] ^ 1], at + 100).expect("altered");
        }
    }
    for options in [&["--no-stream"][..], &[]] {
        let server = Server::serving(&lies, None, &socket(&directory));
        let restore = start(&snapshot, &socket(&directory), options);
        let message = restore.message("stands still");
        assert!(message.contains("are wrong: checksum") && message.contains("pages.sock"), "{message}");
        server.kill();
        let server = Server::start(&snapshot, &socket(&directory));
        let (code, after) = restore.end();
        assert_eq!((code, counted(&(before.clone() + &after))), (Some(0), all_to(20)), "{options:?}: {after}");
        server.kill();
    }
    let server = Server::serving(&lies, None, &socket(&directory));
    let restore = start(&snapshot, &socket(&directory), &["--backend-timeout", "1"]);
    let error = restore.message("squib: error: ");
    assert!(error.contains("are wrong: checksum") && error.contains("--backend-timeout"), "{error}");
    assert_eq!(restore.end().0, Some(1));
    server.kill();
}

/// The rest of RAM is at the server: a snapshot waits for it, and the guest stands exactly where the snapshot is to be.
#[test]
fn a_snapshot_waits_for_a_server_that_is_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let (snapshot, before) = frozen(&directory);
    let middle = Snapshot::new(&directory, "middle");
    let server = Server::start(&snapshot, &socket(&directory));
    let (state, memory) = (middle.state.display().to_string(), middle.memory.display().to_string());
    let options = ["--no-stream", "--snapshot-on", "count 12", "--state-out", &state, "--memory-out", &memory];
    let mut restore = start(&snapshot, &socket(&directory), &options);
    // From here to 12 it does the same again and again.
    restore.console("count 9");
    server.kill();
    restore.message("stands still");
    let _server = Server::start(&snapshot, &socket(&directory));
    let (code, seen) = restore.end();
    assert_eq!((code, counted(&(before.clone() + &seen))), (Some(0), all_to(12)), "{seen}");
    Squib::new("verify").without_timeout().arg(&middle.state).arg(&middle.memory).outcome().expect(0);
    let after = Squib::restore(&middle).option("--backend", "file").outcome().expect(0);
    assert_eq!(counted(&(before + &seen + &after.console)), all_to(20), "{after:?}");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let (snapshot, _) = frozen(&directory);
    let other = Snapshot::new(&directory, "other");
    Squib::run("bookworm-cloud", "echo hello").snapshot_on("hello", &other).outcome().expect(0);
    let restore = |from: &Snapshot| {
        let restore = Squib::new("restore").option("--state", &from.state).option("--backend", "uffd");
        restore.option("--backend-path", socket(&directory)).outcome()
    };
    restore(&snapshot).expect_error(&["no such socket", "pages.sock"]);
    let serve = |snapshot: &Snapshot| {
        let serve = Squib::new("page-server").option("--memory-file", &snapshot.memory).without_timeout();
        serve.option("--listen", socket(&directory))
    };
    let server = Server::start(&snapshot, &socket(&directory));
    // Another snapshot's machine, and another server at the same socket.
    restore(&other).expect_error(&["is served, not "]);
    serve(&other).outcome().expect_error(&["another server listens", "--listen"]);
    // A signal ends it, and nothing is left behind.
    let terminated = Command::new("kill").arg(server.child.id().to_string()).status().expect("kill");
    assert!(terminated.success());
    let mut server = std::mem::ManuallyDrop::new(server);
    assert_eq!(server.child.wait().expect("it ends").code(), Some(0));
    assert!(!socket(&directory).exists());
    // A pair that does not belong together is not served.
    serve(&snapshot).option("--state", &other.state).option("--diff", &other.state).outcome().expect_error(&["other"]);
}
