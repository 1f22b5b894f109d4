//! The net's threads between a request and its reply: the thread that waits for them may have been stopped while it held any lock of the
//! program, the allocator's included. So they may allocate nothing, and wait for nothing that others hold.
//!
//! Every allocation of this process passes [`Watched`], which notes those of the net's threads with the place they came from. The
//! stand-in for the kernel and the framework is a library in this process and may allocate where those would not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use squib_host::pager::{FaultHandler, FileSource, LazyMemory, MachPager, Verdict};

#[path = "common/saved.rs"]
#[allow(dead_code)] // Other tests use the rest.
mod saved;

use saved::{PAGE, Saved};

/// Names of the threads that answer begin so.
const SERVER: &[u8] = b"squib-pager-";
/// Longer than anything here takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const CHILD: &str = "SQUIB_NET_CHILD";
/// Exit code of the child if nothing was allocated.
const QUIET: i32 = 42;

struct Watched;

static WATCHING: AtomicBool = AtomicBool::new(false);
static SEEN: AtomicUsize = AtomicUsize::new(0);
/// A thread that holds the allocator holds this: others wait, as in an allocator with one lock.
static HELD: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread is looking at an allocation, or holds the allocator.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

fn on_server_thread() -> bool {
    let mut name = [0u8; 64];
    // SAFETY: writes a NUL-terminated name of at most as many bytes as the array has.
    let result = unsafe { libc::pthread_getname_np(libc::pthread_self(), name.as_mut_ptr().cast(), name.len()) };
    result == 0 && name.starts_with(SERVER)
}

/// Counts an allocation between a request and a reply, if it is the pager's.
fn note(from: &str) {
    if from.contains("mach::server::serve") && !from.contains("squib_sim::") {
        SEEN.fetch_add(1, Ordering::Relaxed);
        eprintln!("a thread of the net allocates:\n{from}");
    }
}

/// Notes an allocation that must not be, and waits while another thread holds the allocator.
fn look() {
    while HELD.load(Ordering::Acquire) && !EXEMPT.get() {
        std::thread::yield_now();
    }
    if !WATCHING.load(Ordering::Relaxed) || EXEMPT.get() || !on_server_thread() {
        return;
    }
    EXEMPT.set(true);
    note(&Backtrace::force_capture().to_string());
    EXEMPT.set(false);
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        look();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        look();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// One machine per process, and one watch: tests take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the net's threads allocated while `work` ran.
fn watched(work: impl FnOnce()) -> usize {
    SEEN.store(0, Ordering::Relaxed);
    WATCHING.store(true, Ordering::Relaxed);
    work();
    WATCHING.store(false, Ordering::Relaxed);
    SEEN.load(Ordering::Relaxed)
}

/// Three blocks of a base, one of them zero, and a diff in pages.
fn saved() -> Saved {
    let mut saved = Saved::new(6 * saved::MIB, 0);
    saved.diff(7, PAGE as u64, 0);
    saved
}

fn lazy(saved: &Saved) -> LazyMemory {
    LazyMemory::new(Arc::new(FileSource::new(saved.chain()))).expect("lazy memory")
}

#[test]
fn no_page_costs_an_allocation_on_the_thread_that_answers() {
    let _turn = turn();
    let saved = saved();
    let lazy = lazy(&saved);
    let touch = || {
        let toucher = lazy.toucher().expect("registered");
        for at in (0..saved.ram.len()).step_by(PAGE) {
            assert_eq!(toucher.touch(at as u64).expect("inside"), saved.ram[at]);
        }
    };
    // The last page, with which the source is let go, comes in this, too.
    let allocations = watched(|| std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(touch)))));
    assert_eq!(allocations, 0);
    let stats = lazy.stats();
    assert_eq!((stats.pages_missing, stats.faults_host), (0, 0));
    assert_eq!(stats.pages_demanded, stats.pages_total, "every page came by an exception: {stats:?}");
}

/// A page that is damaged ends the process, unless it catches the signal; by then nothing has been allocated.
#[test]
fn no_failure_costs_an_allocation_before_the_reply() {
    extern "C" fn tell(_signal: i32) {
        let code = if SEEN.load(Ordering::Relaxed) == 0 { QUIET } else { 1 };
        // SAFETY: async-signal-safe.
        unsafe { libc::_exit(code) };
    }
    if std::env::var_os(CHILD).is_none() {
        let exe = std::env::current_exe().expect("the test program");
        let mut command = Command::new(exe);
        command.args(["--exact", "no_failure_costs_an_allocation_before_the_reply", "--nocapture"]);
        let output = command.env(CHILD, "1").output().expect("the test program starts again");
        let told = (output.status.code(), output.status.signal());
        assert_eq!(told, (Some(QUIET), None), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the handler only calls `_exit`.
        unsafe { libc::signal(signal, tell as extern "C" fn(i32) as libc::sighandler_t) };
    }
    let saved = Saved::new(6 * saved::MIB, 0);
    let memory = File::options().write(true).open(&saved.links[0].1).expect("the memory file");
    memory.write_all_at(&[!saved.ram[5 * PAGE]], 5 * PAGE as u64).expect("damage");
    let lazy = lazy(&saved);
    let toucher = lazy.toucher().expect("registered");
    watched(|| drop(toucher.touch(5 * PAGE as u64)));
    panic!("a damaged page was read");
}

/// Pages that cannot be accessed until the handler opens them; nothing is read and nothing mapped at stage 2.
struct Closed {
    at: *mut u8,
    pages: usize,
}

// SAFETY: an address, of a mapping that lives as long as the process and is only read volatilely.
unsafe impl Send for Closed {}
// SAFETY: as above.
unsafe impl Sync for Closed {}

impl Closed {
    fn new(pages: usize) -> Arc<Closed> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), pages * PAGE, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Arc::new(Closed { at: at.cast(), pages })
    }

    fn touch(&self, page: usize) -> u8 {
        // SAFETY: inside the mapping; that it faults is what is tested.
        unsafe { self.at.add(page * PAGE).read_volatile() }
    }
}

impl FaultHandler for Closed {
    fn handle(&self, address: u64) -> Verdict {
        let offset = (address as usize).wrapping_sub(self.at as usize);
        if offset >= self.pages * PAGE {
            return Verdict::NotOurs;
        }
        // SAFETY: a page of our own mapping.
        let result = unsafe {
            libc::mprotect(self.at.add(offset / PAGE * PAGE).cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE)
        };
        if result == 0 { Verdict::Resolved } else { Verdict::Failed }
    }
}

/// Runs `work` on a thread of its own, and fails if it hangs.
fn in_time(what: &str, work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let (done, end) = mpsc::channel();
        scope.spawn(move || {
            work();
            done.send(()).expect("somebody waits");
        });
        if end.recv_timeout(PATIENCE).is_err() {
            // The thread cannot be ended; the process can. It may hold what a print needs.
            // SAFETY: writes from a string; both calls are async-signal-safe.
            unsafe {
                libc::write(2, what.as_ptr().cast(), what.len());
                libc::abort();
            }
        }
    });
}

/// A thread is stopped by a fault in the middle of the allocator, whose lock it holds. Whoever allocates now waits for it.
#[test]
fn a_fault_inside_the_allocator_is_answered() {
    let _turn = turn();
    let closed = Closed::new(8);
    let pager = MachPager::new(Arc::clone(&closed) as Arc<dyn FaultHandler>, 1).expect("a pager");
    in_time("a fault inside the allocator was never answered\n", || {
        let _registered = pager.register_current_thread().expect("registered");
        // After this the pager's thread has started: from now on it only answers.
        closed.touch(0);
        EXEMPT.set(true);
        HELD.store(true, Ordering::Release);
        let sum = (1..8).map(|page| closed.touch(page)).sum::<u8>();
        HELD.store(false, Ordering::Release);
        EXEMPT.set(false);
        assert_eq!(sum, 0);
    });
}

/// A subscriber that takes its time: whoever logs waits for who is logging.
struct Slow(&'static Mutex<()>);

impl tracing::Subscriber for Slow {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        drop(self.0.lock());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// A thread is stopped by faults, the one on the last page among them, in the middle of a print and of a log line.
#[test]
fn faults_inside_a_print_or_a_log_line_are_answered() {
    static LOGGING: Mutex<()> = Mutex::new(());
    let _turn = turn();
    tracing::subscriber::set_global_default(Slow(&LOGGING)).expect("the only subscriber");
    let saved = saved();
    let lazy = lazy(&saved);
    in_time("a fault inside a log line was never answered\n", || {
        let toucher = lazy.toucher().expect("registered");
        let _logging = LOGGING.lock();
        let _printing = (io::stdout().lock(), io::stderr().lock());
        for at in (0..saved.ram.len()).step_by(PAGE) {
            assert_eq!(toucher.touch(at as u64).expect("inside"), saved.ram[at]);
        }
        assert_eq!(lazy.stats().pages_missing, 0);
    });
}
