//! Where faults come in: the handler of SIGSEGV and SIGBUS, and the handlers that were there before it.
//!
//! The handler asks the thread's exception port, then the task's, and then lets signals have their way, as a Mach does: the
//! handler that was installed before runs, or the default action ends the process with the right signal and a core that shows
//! the fault. Rust's report of a stack overflow is such a handler.
//!
//! The whole handler is async-signal-safe: atomics, bare system calls, no lock, no allocation, little stack (it may run on an
//! alternate one). All signals are blocked meanwhile, since a thread that waits in a Mach's kernel runs no signal handler either.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::exception::ExceptionPorts;
use super::fault::{self, Exception};
use super::kernel::{Kernel, Name};
use super::thread;
use super::types::*;

const SIGNALS: [i32; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// EXC_BAD_ACCESS for a misaligned access (`mach/arm/exception.h`).
const EXC_ARM_DA_ALIGN: i64 = 0x101;
/// `si_code` of an access the mapping does not allow, with SIGSEGV.
const SEGV_ACCERR: i32 = 2;
/// `si_code` of a misaligned access, with SIGBUS.
const BUS_ADRALN: i32 = 1;

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);

/// The actions a signal had before ours, oldest first. They are looked at by the handler, so they stay where they are.
struct Previous {
    actions: [AtomicPtr<libc::sigaction>; 8],
    count: AtomicUsize,
}

impl Previous {
    const fn new() -> Previous {
        Previous { actions: [const { AtomicPtr::new(ptr::null_mut()) }; 8], count: AtomicUsize::new(0) }
    }

    /// Takes note of an action that ours replaces. One that is installed over ours again and again counts once. `false` if there is
    /// no more room.
    fn push(&self, action: libc::sigaction) -> bool {
        let mut count = self.count.load(Ordering::Relaxed);
        if self.get(0).is_some_and(|last| last.sa_sigaction == action.sa_sigaction) {
            count -= 1;
        }
        let Some(place) = self.actions.get(count) else { return false };
        place.store(Box::into_raw(Box::new(action)), Ordering::Release);
        self.count.store(count + 1, Ordering::Release);
        true
    }

    /// The action `depth` steps before ours.
    fn get(&self, depth: usize) -> Option<libc::sigaction> {
        let index = self.count.load(Ordering::Acquire).checked_sub(depth + 1)?;
        // SAFETY: null or a box that is never freed and never changed.
        unsafe { self.actions.get(index)?.load(Ordering::Acquire).as_ref() }.copied()
    }
}

static PREVIOUS: [Previous; 2] = [Previous::new(), Previous::new()];

fn previous(signal: i32) -> &'static Previous {
    &PREVIOUS[usize::from(signal == libc::SIGBUS)]
}

thread_local! {
    /// The fault that is being passed on: its siginfo and context, and how many handlers saw it. A handler that was installed
    /// after ours and calls us as its predecessor comes in with the same pointers.
    static PASSING: Cell<(usize, usize, usize)> = const { Cell::new((0, 0, 0)) };
}

/// Makes our handler the first one called, in front of whatever is installed now. `false` if this happened too often.
pub fn install() -> bool {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    SIGNALS.into_iter().all(install_for)
}

fn install_for(signal: i32) -> bool {
    // SAFETY: zero is a value of every field, null pointers of C included.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = on_fault as Handler as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let mut now = ours;
    // SAFETY: fills a set of our own; reads the present action into a local.
    unsafe {
        libc::sigfillset(&mut ours.sa_mask);
        libc::sigaction(signal, ptr::null(), &mut now);
    }
    if now.sa_sigaction == ours.sa_sigaction {
        return true;
    }
    // Known before it is replaced, so that a fault of another thread finds it at any moment.
    if !previous(signal).push(now) {
        return false;
    }
    // SAFETY: the handler is async-signal-safe, see the head of this file.
    unsafe { libc::sigaction(signal, &ours, ptr::null_mut()) == 0 }
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: errno is this thread's; the interrupted code must find it as it left it.
    let errno = unsafe { *libc::__errno_location() };
    let passing = PASSING.get();
    let depth = if (passing.0, passing.1) == (info as usize, context as usize) { passing.2 } else { 0 };
    // SAFETY: the kernel passes a valid siginfo and, for a handler with SA_SIGINFO, a ucontext that only this handler uses.
    let (sent, code, address) = unsafe { ((*info).si_code <= 0, (*info).si_code, (*info).si_addr() as i64) };
    let exception = Exception { exception: EXC_BAD_ACCESS as i32, code: [reason(signal, code), address] };
    // A signal somebody sent is no fault.
    let resolved = depth == 0 && !sent && {
        // SAFETY: see above. Only the registers are borrowed: the C library's ucontext is larger than the kernel's.
        resolve(exception, unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext })
    };
    if !resolved {
        PASSING.set((info as usize, context as usize, depth + 1));
        // SAFETY: the arguments are those the kernel passed.
        unsafe { pass_on(signal, sent, depth, info, context) };
        PASSING.set(passing);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// `code[0]` of EXC_BAD_ACCESS: what the virtual memory system would have said.
fn reason(signal: i32, code: i32) -> i64 {
    match (signal, code) {
        (libc::SIGSEGV, SEGV_ACCERR) => KERN_PROTECTION_FAILURE.into(),
        (libc::SIGSEGV, _) => KERN_INVALID_ADDRESS.into(),
        (_, BUS_ADRALN) => EXC_ARM_DA_ALIGN,
        _ => KERN_MEMORY_ERROR.into(),
    }
}

/// Asks the exception ports, the thread's first.
fn resolve(exception: Exception, context: &mut libc::mcontext_t) -> bool {
    let Some(kernel) = Kernel::if_running() else { return false };
    let mut ask = |ports: &ExceptionPorts| match Name::parse(ports.action(exception.exception).port) {
        Some(Name::Port(port)) => fault::raise(kernel, port, exception, context) == KERN_SUCCESS,
        _ => false,
    };
    thread::own_ports(kernel).is_some_and(&mut ask) || ask(&kernel.task)
}

/// Does what would happen without us.
///
/// # Safety
/// `info` and `context` are the arguments of the signal handler this runs in.
unsafe fn pass_on(signal: i32, sent: bool, depth: usize, info: *mut libc::siginfo_t, context: *mut c_void) {
    let action = previous(signal).get(depth);
    match action.map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        // A fault cannot be ignored.
        libc::SIG_IGN if sent => {}
        libc::SIG_DFL | libc::SIG_IGN => default_action(signal, sent),
        handler => {
            let Some(action) = action else { return };
            // SAFETY: the caller's promise; the mask is what the kernel would have set for that handler.
            unsafe {
                set_mask(signal, &action, context.cast());
                if action.sa_flags & libc::SA_SIGINFO != 0 {
                    std::mem::transmute::<usize, Handler>(handler)(signal, info, context);
                } else {
                    std::mem::transmute::<usize, extern "C" fn(i32)>(handler)(signal);
                }
            }
        }
    }
}

/// Takes the handlers away. A fault then happens again, and ends the process where it happened; a signal that was sent is sent again.
fn default_action(signal: i32, sent: bool) {
    // SAFETY: both calls are async-signal-safe. The signal is blocked until the handler returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if sent {
            libc::raise(signal);
        }
    }
}

/// Blocks what a handler asked to have blocked: the interrupted thread's set, its own, and the signal itself.
///
/// # Safety
/// `context` is the one the signal handler got.
unsafe fn set_mask(signal: i32, action: &libc::sigaction, context: *const libc::ucontext_t) {
    // SAFETY: the caller's promise; all calls are async-signal-safe and work on locals.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        // The kernel's set is as long as the real-time signals reach, and shorter than the C library's.
        ptr::copy_nonoverlapping((&raw const (*context).uc_sigmask).cast::<u64>(), (&raw mut mask).cast::<u64>(), 1);
        for other in 1..=libc::SIGRTMAX() {
            if libc::sigismember(&action.sa_mask, other) == 1 {
                libc::sigaddset(&mut mask, other);
            }
        }
        if action.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&mut mask, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, ptr::null_mut());
    }
}
