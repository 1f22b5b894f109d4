//! One fault on its way through the Mach kernel: the request is written, the thread waits, the reply is judged.
//!
//! Everything here runs inside the signal handler of the faulting thread, except [`Fault::receive`], [`Fault::answer`] and
//! [`Fault::lose`], which the receiver's side calls. No locks, no allocation: a fixed table of places, each owned by whoever
//! moved its phase, and one futex word.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

use super::futex;
use super::kernel::{Kernel, Name, Place};
use super::state;
use super::types::*;

/// Request of `mach_exception_raise_state`: 64 bytes and the state.
const REQUEST_ID: mach_msg_id_t = 2406;
const REQUEST_STATE: usize = 64;
/// Bytes of a request.
pub const REQUEST: usize = REQUEST_STATE + state::BYTES;
/// Its reply: 44 bytes and the state.
const REPLY_ID: mach_msg_id_t = REQUEST_ID + 100;
const REPLY_STATE: usize = 44;
const REPLY: usize = REPLY_STATE + state::BYTES;
/// A reply that carries nothing but an error: `mig_reply_error_t`.
const ERROR_REPLY: u32 = 36;
/// Little-endian integers, ASCII, IEEE floating point.
const NDR: [u8; 8] = [0, 0, 0, 0, 1, 0, 0, 0];

/// Nobody uses the place.
const FREE: u32 = 0;
/// The faulting thread writes the request.
const CLAIMED: u32 = 1;
/// The request is in a port's queue.
const QUEUED: u32 = 2;
/// Somebody received it and holds the send-once right to answer.
const RECEIVED: u32 = 3;
/// Somebody writes the reply.
const ANSWERING: u32 = 4;
/// The reply is there.
const ANSWERED: u32 = 5;
/// The request or the right to answer it was destroyed.
const LOST: u32 = 6;
const PHASE: u32 = 7;

/// A place for one fault.
#[derive(Default)]
pub struct Fault {
    /// Generation (31:3) and phase (2:0); what the faulting thread waits on.
    word: AtomicU32,
    /// Next in the stack of a port's incoming faults: index + 1, or 0.
    pub next: AtomicU32,
    request: Cell<REQUEST>,
    reply: Cell<REPLY>,
    /// Size of the reply as sent, which may be more than is kept of it.
    reply_size: AtomicU32,
}

struct Cell<const N: usize>(UnsafeCell<[u8; N]>);

impl<const N: usize> Default for Cell<N> {
    fn default() -> Cell<N> {
        Cell(UnsafeCell::new([0; N]))
    }
}

// SAFETY: the bytes are only touched by the thread that moved the fault's phase to one that gives it that right: CLAIMED for
// the request, ANSWERING for the reply. Reading comes after the next phase was seen, with acquire ordering.
unsafe impl<const N: usize> Sync for Cell<N> {}

impl<const N: usize> Cell<N> {
    /// # Safety
    /// The caller owns the bytes by the fault's phase, and holds no other reference to them.
    #[allow(clippy::mut_from_ref, reason = "a cell: who may use it is the caller's promise")]
    unsafe fn get(&self) -> &mut [u8; N] {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.0.get() }
    }
}

/// What happened, for the message.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    pub exception: exception_type_t,
    pub code: [i64; 2],
}

impl Fault {
    fn phase(&self) -> u32 {
        self.word.load(Ordering::Acquire) & PHASE
    }

    /// Moves from one phase to another, if `place` still names this use of it.
    fn advance(&self, place: Place, from: u32, to: u32) -> bool {
        let word = self.word.load(Ordering::Acquire);
        word & PHASE == from
            && (word >> 3) as u16 == place.generation
            && self.word.compare_exchange(word, word & !PHASE | to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn end(&self, to: u32) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !PHASE | to, Ordering::Release);
        futex::wake(&self.word, 1);
    }

    /// The receiver's copy of the request, if it is still there to be received: moves on to waiting for the reply.
    pub fn receive(&self) -> Option<([u8; REQUEST], Place)> {
        let word = self.word.load(Ordering::Acquire);
        // SAFETY: the faulting thread is done with the request once it is queued, and the queue gives it to one receiver.
        let request = (word & PHASE == QUEUED).then(|| unsafe { *self.request.get() })?;
        self.word.store(word & !PHASE | RECEIVED, Ordering::Release);
        Some((request, Place { index: 0, generation: (word >> 3) as u16 }))
    }

    /// Takes a reply. `false` if there is nobody (any more) to take it.
    pub fn answer(&self, place: Place, reply: &[u8]) -> bool {
        if !self.advance(place, RECEIVED, ANSWERING) {
            return false;
        }
        let kept = reply.len().min(REPLY);
        // SAFETY: ANSWERING belongs to the thread that set it.
        let place = unsafe { self.reply.get() };
        place[..kept].copy_from_slice(&reply[..kept]);
        self.reply_size.store(reply.len() as u32, Ordering::Relaxed);
        self.end(ANSWERED);
        true
    }

    /// The right to answer was given up.
    pub fn lose(&self, place: Place) -> bool {
        let lost = self.advance(place, RECEIVED, ANSWERING);
        if lost {
            self.end(LOST);
        }
        lost
    }

    /// The request was destroyed in the queue.
    pub fn lose_queued(&self) {
        if self.phase() == QUEUED {
            self.end(LOST);
        }
    }

    fn wait(&self) {
        loop {
            let word = self.word.load(Ordering::Acquire);
            if matches!(word & PHASE, ANSWERED | LOST) {
                return;
            }
            futex::wait(&self.word, word, None);
        }
    }

    /// Back to the table, under a new generation.
    fn release(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store((word & !PHASE).wrapping_add(PHASE + 1) | FREE, Ordering::Release);
    }

    fn write_request(&self, exception: Exception, context: &libc::mcontext_t) {
        // SAFETY: the place is CLAIMED by this thread.
        let request = unsafe { self.request.get() };
        let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0; 24]);
        put(4, &(REQUEST as u32).to_ne_bytes());
        put(20, &REQUEST_ID.to_ne_bytes());
        put(24, &NDR);
        put(32, &exception.exception.to_ne_bytes());
        put(36, &2u32.to_ne_bytes());
        put(40, &exception.code[0].to_ne_bytes());
        put(48, &exception.code[1].to_ne_bytes());
        put(56, &ARM_THREAD_STATE64.to_ne_bytes());
        put(60, &ARM_THREAD_STATE64_COUNT.to_ne_bytes());
        if let Some(place) = request[REQUEST_STATE..].first_chunk_mut() {
            state::save(context, place);
        }
    }

    /// The stub a Mach kernel runs over a reply: the server's verdict if the reply is well-formed, an error of MIG's if not. A
    /// success sets the thread's state.
    fn judge(&self, context: &mut libc::mcontext_t) -> kern_return_t {
        if self.phase() == LOST {
            return MIG_SERVER_DIED;
        }
        // SAFETY: ANSWERED: the answering thread is done with the reply, and this thread reads it alone.
        let (request, reply) = unsafe { (self.request.get(), self.reply.get()) };
        let size = self.reply_size.load(Ordering::Relaxed);
        let word = |at: usize| reply[at..at + 4].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let code = word(32) as kern_return_t;
        if word(20) as mach_msg_id_t != REPLY_ID {
            return MIG_REPLY_MISMATCH;
        }
        if word(0) & MACH_MSGH_BITS_COMPLEX != 0 || size < ERROR_REPLY {
            return MIG_TYPE_ERROR;
        }
        if size == ERROR_REPLY && code != KERN_SUCCESS {
            return code;
        }
        let count = word(40);
        if size < REPLY_STATE as u32 || count > THREAD_STATE_MAX || size != REPLY_STATE as u32 + 4 * count {
            return MIG_TYPE_ERROR;
        }
        if code != KERN_SUCCESS {
            return code;
        }
        // thread_set_state's own checks.
        if word(36) as thread_state_flavor_t != ARM_THREAD_STATE64 || count < ARM_THREAD_STATE64_COUNT {
            return KERN_INVALID_ARGUMENT;
        }
        let (old, new) = (&request[REQUEST_STATE..], &reply[REPLY_STATE..]);
        if old != new
            && let Some(new) = new.first_chunk()
        {
            state::restore(new, context);
        }
        KERN_SUCCESS
    }
}

/// Sends an exception to `port` and waits for the verdict: `KERN_SUCCESS` means that the thread goes on.
pub fn raise(kernel: &Kernel, port: Place, exception: Exception, context: &mut libc::mcontext_t) -> kern_return_t {
    let (index, fault) = claim(kernel);
    fault.write_request(exception, context);
    let word = fault.word.load(Ordering::Relaxed);
    fault.word.store(word & !PHASE | QUEUED, Ordering::Release);
    let verdict = match kernel.ports[port.index].push(kernel, port.generation, index) {
        true => {
            fault.wait();
            fault.judge(context)
        }
        false => MACH_SEND_INVALID_DEST,
    };
    fault.release();
    verdict
}

fn claim(kernel: &Kernel) -> (usize, &Fault) {
    loop {
        for (index, fault) in kernel.faults.iter().enumerate() {
            let word = fault.word.load(Ordering::Relaxed);
            let claimed = word & PHASE == FREE
                && fault.word.compare_exchange(word, word | CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            if claimed {
                return (index, fault);
            }
        }
        // SAFETY: no arguments; a bare system call.
        unsafe { libc::sched_yield() };
    }
}

/// The fault a reply port names.
pub fn named(kernel: &Kernel, place: Place) -> Option<&Fault> {
    kernel.faults.get(place.index)
}

/// The name under which the receiver of a request holds the right to answer it.
pub fn reply_name(index: usize, place: Place) -> mach_port_name_t {
    Name::Fault(Place { index, ..place }).number()
}
