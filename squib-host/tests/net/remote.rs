//! Pages from a page server.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use squib_host::pager::{Images, LazyMemory, PageServer, PageSource, RemoteConfig, RemoteSource};
use squib_snapshot::ChainStates;

use crate::peer::{self, Fault};
use crate::saved::{MIB, PAGE, Saved};
use crate::watch::{Held, PATIENCE, in_time, turn, watched};
use crate::{touch_all, touched_all};

/// Has the test program serve the snapshot in this directory, instead of testing.
const SERVES: &str = "SQUIB_NET_SERVES";

pub fn states(saved: &Saved) -> ChainStates {
    let diffs: Vec<_> = saved.links[1..].iter().map(|(state, ..)| state).collect();
    ChainStates::open(&saved.links[0].0, &diffs).expect("a chain")
}

/// Gives up a request soon, a page that somebody has asked for as soon, and one that was touched unasked only when a test hangs.
fn patient(path: &Path) -> RemoteConfig {
    let (answer_timeout, patience) = (Duration::from_millis(200), Duration::from_millis(200));
    RemoteConfig { answer_timeout, patience, exception_patience: PATIENCE, ..RemoteConfig::new(path) }
}

pub fn lazy(saved: &Saved, config: RemoteConfig) -> LazyMemory {
    let source = RemoteSource::connect(config, states(saved)).expect("connected");
    LazyMemory::new(Arc::new(source)).expect("lazy memory")
}

/// A page server in a process of its own: one that no thread of this process can hold up. Ended without notice when dropped.
struct Process(Child);

impl Process {
    /// Starts this test program again, for the test `name`, which then only calls [`serve`].
    fn start(name: &str, saved: &Saved) -> Process {
        let mut command = Command::new(std::env::current_exe().expect("the test program"));
        command.args(["--exact", name, "--nocapture"]).env(SERVES, saved.directory.path());
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the test program starts again");
        Process(child)
    }

    /// As [`Process::start`], and waits until it serves.
    fn serving(name: &str, saved: &Saved) -> Process {
        let (process, begun) = (Process::start(name, saved), Instant::now());
        while RemoteSource::connect(patient(&saved.file("socket")), states(saved)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the page server does not start");
            thread::sleep(Duration::from_millis(5));
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }
}

/// In a process that was started to serve: serves until it is killed, or its parent ends. In others it does nothing.
fn serve() {
    let Some(directory) = std::env::var_os(SERVES) else { return };
    let file = |name: &str| Path::new(&directory).join(name);
    let links: Vec<_> = (0..)
        .map(|n| (file(&format!("{n}.state")), file(&format!("{n}.mem"))))
        .take_while(|(state, _)| state.exists())
        .collect();
    let chain = squib_snapshot::Chain::open(links[0].clone(), &links[1..]).expect("a chain");
    let server = PageServer::bind(Images::chain(&chain).expect("images"), file("socket")).expect("bound");
    thread::spawn(move || server.serve(false).expect("served"));
    // Nothing comes by it, but its end does.
    std::io::stdin().read_to_end(&mut Vec::new()).expect("waited");
    std::process::exit(0);
}

#[test]
fn no_page_of_a_page_server_costs_an_allocation() {
    let _turn = turn();
    for (block_size, page) in [(0, 16384), (0, 4096), (4096, 16384), (32768, 65536)] {
        // A block is zero, the last one is shorter than the others.
        let mut saved = Saved::new(6 * MIB + 3 * PAGE, block_size);
        saved.diff(7, page, block_size);
        saved.diff(8, page, 0);
        let server = PageServer::bind(Images::chain(&saved.chain()).expect("images"), saved.file("socket"));
        let server = server.expect("bound");
        let stop = server.stop_handle().expect("a handle");
        thread::scope(|scope| {
            scope.spawn(|| server.serve(false).expect("served"));
            let lazy = lazy(&saved, RemoteConfig::new(saved.file("socket")));
            // The last page, with which the source is let go, comes in this, too.
            assert_eq!(watched(|| touch_all(&lazy, &saved)), 0);
            touched_all(&lazy);
            let stats = lazy.stats();
            assert!(stats.pages_server > 100 && stats.pages_zero >= 64, "{stats:?}");
            stop.stop();
        });
    }
}

/// The net's threads ask for a block's checksums once, and use those that the ordinary client has.
#[test]
fn a_page_costs_a_page_and_the_checksums_of_its_block_once() {
    let _turn = turn();
    let saved = Saved::new(6 * MIB, 0);
    let server = peer::Server::start(&saved.file("socket"), saved.ram.clone(), saved.identities()[0], Fault::None);
    let source = RemoteSource::connect(patient(&saved.file("socket")), states(&saved)).expect("connected");
    let mut page = vec![0; PAGE];
    let mut cost = |at: usize| {
        let before = server.requests.load(Ordering::SeqCst);
        source.read_quietly(at as u64, &mut page).expect("read");
        assert!(page == saved.ram[at..at + PAGE]);
        server.requests.load(Ordering::SeqCst) - before
    };
    assert_eq!([cost(0), cost(PAGE), cost(7 * PAGE), cost(3 * MIB)], [2, 1, 1, 0]);
    source.read(5 * MIB as u64, &mut [0]).expect("read");
    assert_eq!([cost(5 * MIB + PAGE), cost(5 * MIB)], [1, 1], "known to the ordinary client");
    assert_eq!(server.hellos.load(Ordering::SeqCst), 2, "one line is enough for one thread");
    for (offset, len) in [(PAGE, PAGE - 1), (1, PAGE), (6 * MIB, PAGE), (usize::MAX - PAGE + 1, PAGE)] {
        source.read_quietly(offset as u64, &mut vec![0; len]).expect_err("not a page");
    }
}

/// The line is not there yet when the allocator is taken: connecting allocates nothing either.
#[test]
fn a_fault_inside_the_allocator_is_answered_by_a_page_server() {
    serve();
    let _turn = turn();
    let mut saved = Saved::new(6 * MIB, 0);
    saved.diff(7, 4096, 0);
    let _server = Process::serving("remote::a_fault_inside_the_allocator_is_answered_by_a_page_server", &saved);
    let lazy = lazy(&saved, RemoteConfig::new(saved.file("socket")));
    in_time("a fault inside the allocator was never answered by the page server\n", || {
        let toucher = lazy.toucher().expect("registered");
        // A page of zeros, known without asking: after this a thread of the net has started, and from now on it only answers.
        assert_eq!(toucher.touch(3 * MIB as u64).expect("inside"), 0);
        let held = Held::hold();
        let right = (0..saved.ram.len()).step_by(PAGE).all(|at| toucher.touch(at as u64).ok() == Some(saved.ram[at]));
        drop(held);
        assert!(right);
    });
}

#[test]
fn exceptions_wait_for_a_server_that_is_killed_and_started_again() {
    const NAME: &str = "remote::exceptions_wait_for_a_server_that_is_killed_and_started_again";
    serve();
    let _turn = turn();
    let saved = Saved::new(6 * MIB, 0);
    let server = Process::serving(NAME, &saved);
    let lazy = lazy(&saved, patient(&saved.file("socket")));
    let touch = |page: usize| {
        let toucher = lazy.toucher().expect("registered");
        assert_eq!(toucher.touch((page * PAGE) as u64).expect("inside"), saved.ram[page * PAGE]);
    };
    touch(0);
    drop(server);
    let (touched, touch) = (AtomicUsize::new(0), &touch);
    let allocations = watched(|| {
        in_time("exceptions are not answered after the server has come back\n", || {
            thread::scope(|scope| {
                // More than there are threads to answer, some on the same page.
                for page in [1, 2, 2, 3, 300] {
                    let touched = &touched;
                    scope.spawn(move || {
                        touch(page);
                        touched.fetch_add(1, Ordering::SeqCst);
                    });
                }
                thread::sleep(Duration::from_millis(100));
                assert_eq!(touched.load(Ordering::SeqCst), 0, "nobody serves");
                let _server = Process::start(NAME, &saved);
                while touched.load(Ordering::SeqCst) < 5 {
                    thread::sleep(Duration::from_millis(5));
                }
            });
        });
    });
    assert_eq!(allocations, 0);
}

/// Whatever is wrong with a server, nothing of it is taken for memory, nothing is allocated, and when it mends its ways the fault is answered.
#[test]
fn a_server_that_lies_fails_or_stalls_is_asked_until_it_does_not() {
    use Fault::*;
    let _turn = turn();
    let saved = Saved::new(6 * MIB, 0);
    // Checksums are asked for once: what is wrong with them comes first.
    let answers = [
        ShortSums,
        LiesWell,
        Lies,
        LiesZero,
        BadTransport,
        Short,
        Long,
        Oversized,
        WrongId,
        WrongKind,
        ClosesAtRead,
        ClosesInAnswer,
        Silent,
        Stalls,
        Io,
    ];
    let hellos = [ClosesAtHello, SilentAtHello, Garbage, Version, OtherSnapshot, OtherSize, OtherPage, Refuses];
    let serve = |fault| peer::Server::start(&saved.file("socket"), saved.ram.clone(), saved.identities()[0], fault);
    let mut server = serve(Fault::None);
    let lazy = lazy(&saved, patient(&saved.file("socket")));
    for (page, fault) in answers.into_iter().chain(hellos).enumerate() {
        if hellos.contains(&fault) {
            // The connections are there; they have to be made anew.
            drop(server);
            server = serve(fault);
        }
        server.set(fault);
        let count = match hellos.contains(&fault) {
            true => &server.hellos,
            false => &server.requests,
        };
        let enough = count.load(Ordering::SeqCst) + 3;
        let allocations = watched(|| {
            in_time("a server that has mended its ways is not asked again\n", || {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        let toucher = lazy.toucher().expect("registered");
                        assert_eq!(
                            toucher.touch((page * PAGE) as u64).expect("inside"),
                            saved.ram[page * PAGE],
                            "{fault:?}"
                        );
                    });
                    while count.load(Ordering::SeqCst) < enough {
                        thread::sleep(Duration::from_millis(1));
                    }
                    server.set(Fault::None);
                });
            });
        });
        assert_eq!(allocations, 0, "{fault:?}");
    }
}

impl Saved {
    fn identities(&self) -> Vec<[u8; 16]> {
        self.links.iter().map(|(.., id)| id.0).collect()
    }
}
