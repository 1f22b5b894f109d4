//! The pager's port and the threads that receive from it.
//!
//! Each thread repeats one call: send the last reply, receive the next request. Between two calls it decides, by the address alone. It
//! takes no lock that a faulting thread could hold, allocates nothing, prints nothing: the faulting thread may have been in the middle
//! of anything.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::guard::{self, Registration};
use super::message::{self, Buffer, Exception, HEADER, Incoming, ReplyPort};
use super::sys::*;
use crate::error::{Error, Result};

/// What becomes of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The access is possible now; the thread executes its instruction again.
    Resolved,
    /// The address is none of the handler's. The fault goes its usual way (`KERN_FAILURE`).
    NotOurs,
    /// The page is the handler's, but cannot be had. The fault goes its usual way (`KERN_MEMORY_ERROR`), which ends the process unless
    /// somebody catches it.
    Failed,
}

/// Decides about faults of registered threads.
pub trait FaultHandler: Send + Sync {
    /// Makes `address` accessible, if it can. Called by several threads at once, for the same address too, and for addresses that
    /// somebody else just made accessible: those are `Resolved`.
    ///
    /// The faulting thread stands still meanwhile and may hold any lock of the program. So an implementation must not wait for what
    /// such a thread holds (not even standard error), must not touch absent memory itself, and must come to an end: [`MachPager`] is
    /// dropped only when all calls have returned. A panic is a `Failed`.
    fn handle(&self, address: u64) -> Verdict;
}

/// A server of memory faults: a port, and threads that answer what arrives on it.
///
/// Dropping it ends the threads, in this order: faults that already wait are still answered by the handler; then the port is destroyed, and
/// a fault that comes too late, like any later one of a thread that is still registered, goes its usual way. No thread is left waiting.
///
/// It belongs to the process that made it. In a forked child nothing serves the parent's port: there [`MachPager::register_current_thread`]
/// is refused, faults go their usual way, and dropping does nothing.
pub struct MachPager {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    port: Port,
    handler: Arc<dyn FaultHandler>,
    stopping: AtomicBool,
}

impl MachPager {
    /// Opens a port and starts `threads` threads (at least one) that answer faults by asking `handler`.
    pub fn new(handler: Arc<dyn FaultHandler>, threads: usize) -> Result<MachPager> {
        let port = Port::new()?;
        let shared = Arc::new(Shared { port, handler, stopping: AtomicBool::new(false) });
        let mut pager = MachPager { shared, threads: Vec::new() };
        for index in 0..threads.max(1) {
            let shared = pager.shared.clone();
            // Allocated here, so that serving allocates nothing.
            let buffer = Box::<Buffer>::default();
            let thread = std::thread::Builder::new()
                .name(format!("squib-pager-{index}"))
                .spawn(move || serve(&shared, buffer))
                .map_err(|source| Error::System { action: "start a thread of the pager".into(), source })?;
            pager.threads.push(thread);
        }
        Ok(pager)
    }

    /// From now on faults of the calling thread come here, until the registration is dropped. Registrations of one thread nest: the last
    /// one holds, and with its end the one before holds again.
    pub fn register_current_thread(&self) -> Result<Registration> {
        if self.shared.port.is_inherited() {
            return Err(Error::State(format!(
                "the pager belongs to process {}: a forked child has to make its own",
                self.shared.port.pid
            )));
        }
        guard::register(self.shared.port.name)
    }

    /// The port, for tests that send to it by hand.
    #[cfg(test)]
    pub fn port(&self) -> mach_port_t {
        self.shared.port.name
    }
}

impl fmt::Debug for MachPager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachPager").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Drop for MachPager {
    fn drop(&mut self) {
        if self.shared.port.is_inherited() {
            // The threads are the parent's; there is nobody to join.
            std::mem::forget(std::mem::take(&mut self.threads));
            return;
        }
        self.shared.stopping.store(true, Ordering::Release);
        let mut buffer = Box::<Buffer>::default();
        for _ in &self.threads {
            // Waits while the queue is full. A failure means that the port is gone, and then the threads end anyway.
            let size = buffer.stop(self.shared.port.name);
            // SAFETY: sends a message of `size` bytes from our own buffer.
            unsafe { mach_msg(buffer.as_mut_ptr(), MACH_SEND_MSG, size as u32, 0, MACH_PORT_NULL, 0, MACH_PORT_NULL) };
        }
        for thread in self.threads.drain(..) {
            // A thread of the pager does not panic: the handler's panics are caught.
            let _ = thread.join();
        }
        self.shared.port.close();
    }
}

/// A receive right and a send right to it.
struct Port {
    name: mach_port_t,
    pid: u32,
    open: AtomicBool,
}

impl Port {
    fn new() -> Result<Port> {
        let mut name = MACH_PORT_NULL;
        // SAFETY: the result goes to a local.
        let result = unsafe { mach_port_allocate(mach_task_self(), MACH_PORT_RIGHT_RECEIVE, &mut name) };
        mach_result("open a port for memory faults", result)?;
        let port = Port { name, pid: std::process::id(), open: AtomicBool::new(true) };
        // Setting an exception port takes a send right.
        let result = mach_port_insert_right(mach_task_self(), name, name, MACH_MSG_TYPE_MAKE_SEND);
        mach_result("make a send right to the pager's port", result)?;
        Ok(port)
    }

    /// Whether this is a forked child's copy. Names are the parent's then, and mean nothing or something else here.
    fn is_inherited(&self) -> bool {
        self.pid != std::process::id()
    }

    /// Destroys both rights. Whoever waits for an answer gets a failure from the kernel.
    fn close(&self) {
        if self.open.swap(false, Ordering::AcqRel) && !self.is_inherited() {
            // Both rights are ours, and nobody uses the name after this: the threads are joined.
            mach_port_destruct(mach_task_self(), self.name, -1, 0);
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.close();
    }
}

/// A result of the Mach kernel as one of ours.
pub fn mach_result(action: &'static str, code: kern_return_t) -> Result<()> {
    match code {
        KERN_SUCCESS => Ok(()),
        code => Err(Error::Mach { action, code }),
    }
}

/// Receives, decides, replies, until told to stop or until the port is gone.
fn serve(shared: &Shared, mut buffer: Box<Buffer>) {
    block_signals();
    let port = shared.port.name;
    let mut reply: Option<(ReplyPort, usize)> = None;
    loop {
        let (option, size) = match reply {
            Some((_, size)) => (MACH_SEND_MSG | MACH_RCV_MSG, size),
            None => (MACH_RCV_MSG, 0),
        };
        // SAFETY: the buffer is ours, has `message::BUFFER` bytes, and holds a message of `size` bytes if one is to be sent.
        let result = unsafe {
            mach_msg(buffer.as_mut_ptr(), option, size as u32, message::BUFFER as u32, port, 0, MACH_PORT_NULL)
        };
        match (result, reply.take()) {
            (MACH_MSG_SUCCESS, _) => {}
            (MACH_RCV_INVALID_NAME | MACH_RCV_PORT_CHANGED | MACH_RCV_PORT_DIED, _) => return,
            (error, Some((to, _))) if is_send_error(error) => {
                // Nobody waits any more: what is left of the right to answer goes, too.
                // The right was ours, and a failed send did not take it.
                mach_port_deallocate(mach_task_self(), to.name);
                continue;
            }
            // Interrupted, or a message that is too large to be an exception and was destroyed.
            _ => continue,
        }
        match buffer.read() {
            Incoming::Stop if shared.stopping.load(Ordering::Acquire) => return,
            Incoming::Exception(exception) => {
                let verdict = decide(shared, exception);
                let to = buffer.take_reply_port();
                reply = to.is_valid().then(|| (to, buffer.reply(to, verdict)));
            }
            Incoming::Stop => reply = refuse(&mut buffer, MIG_BAD_ID),
            Incoming::Foreign(error) => reply = refuse(&mut buffer, error),
        }
    }
}

/// The answer to a message that is none of ours, which also gives up what came with it.
fn refuse(buffer: &mut Buffer, error: kern_return_t) -> Option<(ReplyPort, usize)> {
    let to = buffer.take_reply_port();
    if buffer.is_complex() {
        // SAFETY: the buffer holds a message as received, but for the right to reply, which was taken out.
        unsafe { mach_msg_destroy(buffer.as_mut_ptr()) };
    }
    to.is_valid().then(|| (to, buffer.refuse(to, error)))
}

fn is_send_error(result: mach_msg_return_t) -> bool {
    // MACH_SEND_* are 0x1000_0001 and up, MACH_RCV_* 0x1000_4001 and up.
    (0x1000_0001..0x1000_4000).contains(&result)
}

fn decide(shared: &Shared, exception: Exception) -> kern_return_t {
    // Only these two can be mended by making a page accessible; a misaligned access, say, would come back for ever.
    let about_memory = [KERN_INVALID_ADDRESS, KERN_PROTECTION_FAILURE].map(i64::from).contains(&exception.reason);
    if exception.exception != EXC_BAD_ACCESS as exception_type_t || !about_memory {
        return KERN_FAILURE;
    }
    let verdict = catch_unwind(AssertUnwindSafe(|| shared.handler.handle(untagged(exception.address))));
    match verdict {
        Ok(Verdict::Resolved) => KERN_SUCCESS,
        Ok(Verdict::NotOurs) => KERN_FAILURE,
        Ok(Verdict::Failed) | Err(_) => KERN_MEMORY_ERROR,
    }
}

/// Without a pointer's tag: the processor ignores the top byte (TBI), and the kernel reports it as it was.
fn untagged(address: u64) -> u64 {
    address & 0x00ff_ffff_ffff_ffff
}

/// Keeps signal handlers of the program off this thread: they could touch absent memory, and nobody would answer. Faults keep their
/// signals, so that a mistake in here is a crash and not a silent end.
fn block_signals() {
    // SAFETY: a set on the stack, filled before use; the calls have no other requirement.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT] {
            libc::sigdelset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

const _: () = assert!(HEADER == 24, "mach_msg_header_t of mach/message.h");
