//! What ends a process, tried in child processes: each test runs itself again with [`CHILD`] set.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicPtr, Ordering};

use super::super::sys::*;
use super::*;

const CHILD: &str = "SQUIB_MACH_CHILD";
/// Exit code of the handler below.
const CAUGHT: i32 = 42;

/// Runs `body` in a child process and tells how that ended. In the child, this does not return.
fn in_child(test: &str, body: fn()) -> Output {
    if std::env::var_os(CHILD).is_some() {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads a local. No core files from deaths that are wanted.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
        body();
        std::process::exit(0);
    }
    let name = format!("{}::{test}", module_path!().split_once("::").expect("inside a crate").1);
    let exe = std::env::current_exe().expect("the test program");
    let output = Command::new(exe).args(["--exact", &name, "--nocapture"]).env(CHILD, "1").output();
    let output = output.expect("the test program starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("running 1 test"), "{name} is not a test: {text}");
    output
}

/// Whether it died by a memory fault: SIGSEGV, or on a Mac SIGBUS for a page that is there but protected.
fn faulted(output: &Output) -> bool {
    matches!(output.status.signal(), Some(libc::SIGSEGV | libc::SIGBUS))
}

/// A page without access that no pager knows.
fn foreign_page() -> *mut u8 {
    let arena = Arena::new(1);
    let page = arena.at(0);
    std::mem::forget(arena);
    page
}

fn touch(page: *mut u8) -> u8 {
    // SAFETY: mapped for the life of the process. That it may fault is what is tested.
    unsafe { page.read_volatile() }
}

static EXPECTED: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn exit_if_expected(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo; `_exit` is async-signal-safe.
    unsafe {
        let expected = (*info).si_addr().cast() == EXPECTED.load(Ordering::Relaxed);
        libc::_exit(if expected { CAUGHT } else { 1 });
    }
}

/// Makes the page of the fault accessible, as a last resort.
extern "C" fn open_page(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo; mprotect is a bare system call.
    unsafe {
        let page = ((*info).si_addr() as usize & !(PAGE - 1)) as *mut libc::c_void;
        libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE);
    }
}

fn install(handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void)) {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: zero is a value of every field; the handlers are async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    }
}

fn pager_of_one_page() -> (Arc<Arena>, MachPager) {
    let arena = Arena::new(1);
    let pager = MachPager::new(arena.clone(), 1).expect("a pager");
    (arena, pager)
}

#[test]
fn an_unowned_fault_reaches_the_handler_that_was_there_before() {
    let output = in_child("an_unowned_fault_reaches_the_handler_that_was_there_before", || {
        install(exit_if_expected);
        let (arena, pager) = pager_of_one_page();
        let _registered = pager.register_current_thread().expect("registered");
        assert_eq!(arena.read(0), Arena::byte(0));
        EXPECTED.store(foreign_page(), Ordering::Relaxed);
        touch(EXPECTED.load(Ordering::Relaxed));
    });
    assert_eq!(output.status.code(), Some(CAUGHT));
}

#[test]
fn a_handler_installed_later_comes_second_again_with_the_next_registration() {
    let output = in_child("a_handler_installed_later_comes_second_again_with_the_next_registration", || {
        let (arena, pager) = pager_of_one_page();
        let _registered = pager.register_current_thread().expect("registered");
        install(exit_if_expected);
        let _again = pager.register_current_thread().expect("registered");
        assert_eq!(arena.read(0), Arena::byte(0));
        EXPECTED.store(foreign_page(), Ordering::Relaxed);
        touch(EXPECTED.load(Ordering::Relaxed));
    });
    assert_eq!(output.status.code(), Some(CAUGHT));
}

#[test]
fn an_unowned_fault_without_a_handler_kills() {
    let output = in_child("an_unowned_fault_without_a_handler_kills", || {
        let (_arena, pager) = pager_of_one_page();
        let _registered = pager.register_current_thread().expect("registered");
        touch(foreign_page());
    });
    assert!(faulted(&output), "{:?}", output.status);
}

#[test]
fn a_thread_that_did_not_register_is_not_served() {
    let output = in_child("a_thread_that_did_not_register_is_not_served", || {
        let (arena, pager) = pager_of_one_page();
        drop(pager.register_current_thread().expect("registered"));
        arena.read(0);
    });
    assert!(faulted(&output), "{:?}", output.status);
}

#[test]
fn a_page_that_cannot_be_had_and_a_handler_that_panics_kill_and_do_not_hang() {
    let output = in_child("a_page_that_cannot_be_had_and_a_handler_that_panics_kill_and_do_not_hang", || {
        install(open_page);
        let page = foreign_page();
        let pager = MachPager::new(Arc::new(Decide(|_| panic!("the source is broken"))), 1).expect("a pager");
        {
            let _registered = pager.register_current_thread().expect("registered");
            assert_eq!(touch(page), 0, "the next in line opened it");
            // The thread that panicked is still there for the next one.
            assert_eq!(touch(foreign_page()), 0);
        }
        let pager = MachPager::new(Arc::new(Decide(|_| Verdict::Failed)), 1).expect("a pager");
        let _registered = pager.register_current_thread().expect("registered");
        assert_eq!(touch(foreign_page()), 0);
        // And with nobody behind it, the process ends.
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: back to the default action.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        let _again = pager.register_current_thread().expect("registered");
        touch(foreign_page());
    });
    assert!(faulted(&output), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the source is broken"));
}

#[test]
fn the_tasks_port_is_second_in_line() {
    let output = in_child("the_tasks_port_is_second_in_line", || {
        let (arena, pager) = pager_of_one_page();
        // What a debugger does: it serves everything, for the whole task.
        let anything = |address: u64| {
            protect((address as usize & !(PAGE - 1)) as *mut u8, PAGE, libc::PROT_READ);
            Verdict::Resolved
        };
        let debugger = MachPager::new(Arc::new(Decide(anything)), 1).expect("a pager");
        let behavior = (EXCEPTION_STATE | MACH_EXCEPTION_CODES) as i32;
        let result = task_set_exception_ports(
            mach_task_self(),
            EXC_MASK_BAD_ACCESS,
            debugger.port(),
            behavior,
            ARM_THREAD_STATE64,
        );
        assert_eq!(result, KERN_SUCCESS);
        let registered = pager.register_current_thread().expect("registered");
        assert_eq!(arena.read(0), Arena::byte(0), "the thread's port comes first");
        let asked = arena.asked.load(Ordering::Relaxed);
        assert_eq!(touch(foreign_page()), 0, "then the task's");
        assert_eq!(arena.asked.load(Ordering::Relaxed), asked + 1);
        drop(registered);
        assert_eq!(touch(foreign_page()), 0, "and it serves threads without a port");
        drop(pager);
        std::process::exit(CAUGHT);
    });
    assert_eq!(output.status.code(), Some(CAUGHT), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_stack_overflow_is_still_reported() {
    #[inline(never)]
    fn deeper(depth: usize) -> usize {
        let room = std::hint::black_box([depth; 64]);
        if depth == usize::MAX { 0 } else { deeper(depth + 1) + std::hint::black_box(room)[1] }
    }
    let output = in_child("a_stack_overflow_is_still_reported", || {
        let (arena, pager) = pager_of_one_page();
        let thread = std::thread::spawn(move || {
            let _registered = pager.register_current_thread().expect("registered");
            assert_eq!(arena.read(0), Arena::byte(0));
            deeper(0)
        });
        let _ = thread.join();
    });
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{:?}", output.status);
    assert!(String::from_utf8_lossy(&output.stderr).contains("has overflowed its stack"));
}

#[test]
fn faults_that_wait_or_come_too_late_do_not_hang() {
    let output = in_child("faults_that_wait_or_come_too_late_do_not_hang", || {
        install(open_page);
        for round in 0..20 {
            let arena = Arena::new(16);
            let pager = Mutex::new(Some(MachPager::new(arena.clone(), 1 + round % 3).expect("a pager")));
            let start = std::sync::Barrier::new(9);
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let (arena, pager, start) = (&arena, &pager, &start);
                    scope.spawn(move || {
                        let register = |pager: &MachPager| pager.register_current_thread().expect("registered");
                        let _registered = pager.lock().expect("locked").as_ref().map(register);
                        start.wait();
                        for page in 0..16 {
                            arena.read((page + 2 * thread) % 16 * PAGE);
                        }
                    });
                }
                start.wait();
                let pager = pager.lock().expect("locked").take();
                drop(pager);
            });
        }
        std::process::exit(CAUGHT);
    });
    assert_eq!(output.status.code(), Some(CAUGHT), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Forks, runs `body` in the forked process, and returns its wait status.
fn forked(body: impl FnOnce()) -> i32 {
    // SAFETY: the child only runs `body` and leaves by `_exit`; the C library makes its allocator usable after fork.
    match unsafe { libc::fork() } {
        0 => {
            body();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        child => {
            assert!(child > 0);
            let mut status = 0;
            // SAFETY: our own child; the result goes to a local.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            status
        }
    }
}

#[test]
fn a_forked_child_has_no_ports_and_may_make_its_own() {
    let output = in_child("a_forked_child_has_no_ports_and_may_make_its_own", || {
        let arena = Arena::new(3);
        let pager = MachPager::new(arena.clone(), 2).expect("a pager");
        let registered = pager.register_current_thread().expect("registered");
        assert_eq!(arena.read(0), Arena::byte(0));
        let status = forked(|| {
            arena.read(PAGE);
        });
        assert!(libc::WIFSIGNALED(status), "an absent page kills a forked child, and does not leave it waiting");
        let (inherited, inherited_registration) = (pager, registered);
        let status = forked(|| {
            let refused = inherited.register_current_thread().expect_err("not this process's");
            assert!(refused.to_string().contains("forked child"), "{refused}");
            let own = MachPager::new(arena.clone(), 1).expect("a pager of its own");
            let registered = own.register_current_thread().expect("registered");
            assert_eq!(arena.read(2 * PAGE), Arena::byte(2));
            drop(registered);
            drop(inherited_registration);
            drop(inherited);
        });
        assert_eq!(status, 0, "the forked child went through to its end");
        std::process::exit(CAUGHT);
    });
    assert_eq!(output.status.code(), Some(CAUGHT), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_signal_that_somebody_sent_is_no_fault() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn count(_signal: i32, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
        SEEN.fetch_add(1, Ordering::Relaxed);
    }
    let output = in_child("a_signal_that_somebody_sent_is_no_fault", || {
        install(count);
        let arena = Arena::new(1);
        let pager = MachPager::new(arena.clone(), 1).expect("a pager");
        let _registered = pager.register_current_thread().expect("registered");
        // SAFETY: numbers only.
        unsafe { libc::raise(libc::SIGSEGV) };
        assert_eq!((SEEN.load(Ordering::Relaxed), arena.asked.load(Ordering::Relaxed)), (1, 0));
        std::process::exit(CAUGHT);
    });
    assert_eq!(output.status.code(), Some(CAUGHT), "{}", String::from_utf8_lossy(&output.stderr));
}
