//! Every allocation of the process, looked at; and an allocator that a thread can hold.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// Names of the threads that answer begin so.
const SERVER: &[u8] = b"squib-pager-";
/// Longer than anything here takes, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

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

/// Who is at work on a thread of the net.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The stand-in for the kernel and the framework, which may allocate where those would not.
    StandIn,
    /// The pager, between a request and a reply.
    Answer,
    /// Neither: the thread begins or ends.
    Other,
}

/// Calls that led to allocations of the stand-in, by [`route`]: it makes the same ones over and over, and naming calls takes its time.
static STAND_IN: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

unsafe extern "C" {
    fn _Unwind_Backtrace(each: extern "C" fn(*mut c_void, *mut c_void) -> i32, data: *mut c_void) -> i32;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
}

/// A number for the calls that led here.
fn route() -> u64 {
    extern "C" fn add(frame: *mut c_void, sum: *mut c_void) -> i32 {
        // SAFETY: a frame of the walk that called this, and the sum that was given to it, which nobody else uses meanwhile.
        unsafe {
            let sum = sum.cast::<u64>();
            *sum = (sum.read().rotate_left(5) ^ _Unwind_GetIP(frame) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        0
    }
    let mut sum = 1u64;
    // SAFETY: walks this thread's own stack, whose frames all have unwind tables, and passes a place for the sum.
    unsafe { _Unwind_Backtrace(add, (&raw mut sum).cast()) };
    sum.max(1)
}

/// Who is at work. What it does to find out is not noted.
fn at_work() -> Work {
    let route = route();
    let known = &STAND_IN[route as usize % STAND_IN.len()];
    if known.load(Ordering::Relaxed) == route {
        return Work::StandIn;
    }
    let from = Backtrace::force_capture().to_string();
    if from.contains("squib_sim::") {
        known.store(route, Ordering::Relaxed);
        return Work::StandIn;
    }
    if !from.contains("mach::server::serve") {
        return Work::Other;
    }
    if WATCHING.load(Ordering::Relaxed) {
        SEEN.fetch_add(1, Ordering::Relaxed);
        eprintln!("a thread of the net allocates:\n{from}");
    }
    Work::Answer
}

/// Does something that may allocate, unseen.
fn exempt<T>(work: impl FnOnce() -> T) -> T {
    let before = EXEMPT.replace(true);
    let result = work();
    EXEMPT.set(before);
    result
}

/// Notes an allocation that must not be, and waits while another thread holds the allocator.
fn look() {
    if EXEMPT.get() {
        return;
    }
    let held = HELD.load(Ordering::Acquire);
    let work = match (held || WATCHING.load(Ordering::Relaxed)) && on_server_thread() {
        true => exempt(at_work),
        false => Work::Other,
    };
    while work != Work::StandIn && HELD.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
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
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the net's threads have allocated since the last watch began.
pub fn seen() -> usize {
    SEEN.load(Ordering::Relaxed)
}

/// The calling thread holds the allocator as long as this lives: every other thread that allocates waits for it, but for the stand-in on
/// threads of the net.
pub struct Held;

impl Held {
    pub fn hold() -> Held {
        EXEMPT.set(true);
        HELD.store(true, Ordering::Release);
        Held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.store(false, Ordering::Release);
        EXEMPT.set(false);
    }
}

/// What the net's threads allocated while `work` ran.
pub fn watched(work: impl FnOnce()) -> usize {
    SEEN.store(0, Ordering::Relaxed);
    WATCHING.store(true, Ordering::Relaxed);
    work();
    WATCHING.store(false, Ordering::Relaxed);
    SEEN.load(Ordering::Relaxed)
}

/// Runs `work` on a thread of its own, and fails if it hangs.
pub fn in_time(what: &str, work: impl FnOnce() + Send) {
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
