//! A real guest whose memory comes from a page server: it runs the same, and when the server dies under it, it stands still
//! until the server is back.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use squib_tests::{Snapshot, Squib, all_to, counted, program};

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
        let mut command = Command::new(program());
        command.arg("page-server").arg("--memory-file").arg(&snapshot.memory).arg("--state").arg(&snapshot.state);
        let child = command.arg("--listen").arg(socket).stderr(Stdio::null()).spawn().expect("the server starts");
        let server = Server { child, socket: socket.to_owned() };
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
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

/// A restore that is watched while it runs.
struct Restore {
    child: Child,
    console: Receiver<String>,
    messages: Receiver<String>,
    seen: String,
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(line.trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    lines
}

impl Restore {
    fn start(snapshot: &Snapshot, socket: &Path, options: &[&str]) -> Restore {
        let mut command = Command::new(program());
        command.arg("restore").arg("--state").arg(&snapshot.state).args(["--backend", "uffd", "--no-stream"]);
        command.arg("--backend-path").arg(socket).args(["--timeout", "200"]).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let console = lines(child.stdout.take().expect("piped"));
        let messages = lines(child.stderr.take().expect("piped"));
        Restore { child, console, messages, seen: String::new() }
    }

    /// Waits for a line of the console.
    fn console(&mut self, text: &str) {
        loop {
            let line = self.console.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no '{text}': {}", self.seen));
            self.seen += &(line.clone() + "\n");
            if line.contains(text) {
                return;
            }
        }
    }

    /// Waits for a message that holds `text`.
    fn message(&self, text: &str) -> String {
        let mut before = Vec::new();
        loop {
            match self.messages.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => before.push(line),
                Err(_) => panic!("no '{text}' in {before:?}; console: {}", self.seen),
            }
        }
    }

    /// The exit code and all of the console.
    fn end(mut self) -> (Option<i32>, String) {
        while let Ok(line) = self.console.recv_timeout(PATIENCE) {
            self.seen += &(line + "\n");
        }
        (self.child.wait().expect("it ends").code(), self.seen)
    }
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
    let mut restore = Restore::start(&snapshot, &socket(&directory), &[]);
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
    let mut restore = Restore::start(snapshot, &socket(directory), &["--backend-timeout", "1"]);
    restore.console("count 6");
    server.kill();
    let error = restore.message("squib: error: ");
    assert!(error.contains("nobody listens") && error.contains("--backend-timeout"), "{error}");
    assert_eq!(restore.end().0, Some(1));
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
