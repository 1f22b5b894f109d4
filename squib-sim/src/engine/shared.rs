//! The part of a vCPU that other threads reach: interrupt lines, exit requests, and the mailbox through which TLB and
//! instruction-cache maintenance is broadcast.
//!
//! Guarantees: a request to exit is latched until a run answers it; a wake-up is never lost between the check and the sleep;
//! once [`broadcast`] has waited, no vCPU executes on anything the request has made stale; two vCPUs that wait for each
//! other both get on, because each serves its own mailbox meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::mmu::spaces::Spaces;

/// Bits of [`VcpuShared::pending`].
pub mod pending {
    /// `hv_vcpus_exit` was called.
    pub const EXIT: u32 = 1;
    /// The mailbox is not empty.
    pub const REQUEST: u32 = 2;
    /// The IRQ line of the GIC CPU interface.
    pub const IRQ: u32 = 4;
    /// The FIQ line of the GIC CPU interface.
    pub const FIQ: u32 = 8;
    /// IRQ set by `hv_vcpu_set_pending_interrupt`: lasts until run returns.
    pub const IRQ_ONCE: u32 = 16;
    /// FIQ set by `hv_vcpu_set_pending_interrupt`: lasts until run returns.
    pub const FIQ_ONCE: u32 = 32;
    /// Any interrupt, masked or not: what ends WFI.
    pub const WAKE: u32 = IRQ | FIQ | IRQ_ONCE | FIQ_ONCE;
}

/// Maintenance that a vCPU must do before it executes another block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Forget all stage-1 translations.
    TlbAll,
    /// Forget the translations of the page at this address (any ASID).
    TlbVa(u64),
    /// Forget the translations of this ASID.
    TlbAsid(u16),
    /// Forget code decoded from the 4 KiB page at this IPA.
    Code(u64),
    /// Forget all decoded code.
    CodeAll,
    /// Stage 2 changed for `ipa .. ipa + len`; `contents` when the memory behind it did too (map, unmap).
    Stage2 {
        /// First address.
        ipa: u64,
        /// Bytes.
        len: u64,
        /// The memory itself changed, not only the permissions.
        contents: bool,
    },
}

/// More requests than this at once are answered by forgetting everything.
const MAILBOX_LIMIT: usize = 256;

#[derive(Default)]
struct Mailbox {
    requests: Vec<Request>,
    overflow: bool,
}

/// See the module's description.
pub struct VcpuShared {
    /// Position in the machine's registry; the GIC's vCPU number.
    pub index: usize,
    /// What interrupts execution: see [`pending`].
    pub pending: AtomicU32,
    /// Executing guest code, that is, neither parked nor out of run.
    running: AtomicBool,
    /// Out of run with an exception for the host.
    away: AtomicBool,
    mailbox: Mutex<Mailbox>,
    /// The address spaces its TLBs may hold.
    pub(crate) spaces: Arc<Spaces>,
    posted: AtomicU64,
    done: AtomicU64,
    parked: AtomicBool,
    park: Mutex<()>,
    wake: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VcpuShared {
    /// A vCPU that is not running, with nothing pending.
    pub fn new(index: usize) -> Arc<VcpuShared> {
        Arc::new(VcpuShared {
            index,
            pending: AtomicU32::new(0),
            running: AtomicBool::new(false),
            away: AtomicBool::new(false),
            mailbox: Mutex::default(),
            spaces: Spaces::new(),
            posted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            park: Mutex::default(),
            wake: Condvar::new(),
        })
    }

    /// Makes the current run, or else the next one, return `Canceled`.
    pub fn request_exit(&self) {
        self.raise(pending::EXIT);
    }

    /// Drives the IRQ line.
    pub fn set_irq(&self, level: bool) {
        self.set_line(pending::IRQ, level);
    }

    /// Drives the FIQ line.
    pub fn set_fiq(&self, level: bool) {
        self.set_line(pending::FIQ, level);
    }

    fn set_line(&self, bit: u32, level: bool) {
        if level {
            if self.pending.load(SeqCst) & bit == 0 {
                self.raise(bit);
            }
        } else {
            self.pending.fetch_and(!bit, SeqCst);
        }
    }

    fn raise(&self, bit: u32) {
        self.pending.fetch_or(bit, SeqCst);
        self.unpark();
    }

    /// Makes a parked vCPU look up.
    pub fn unpark(&self) {
        if self.parked.load(SeqCst) {
            drop(lock(&self.park));
            self.wake.notify_all();
        }
    }

    /// Sleeps until one of `wake_mask` is pending or the time is up. Counts as not running.
    pub(crate) fn park(&self, wake_mask: u32, timeout: Option<Duration>) {
        self.running.store(false, SeqCst);
        let guard = lock(&self.park);
        self.parked.store(true, SeqCst);
        let quiet = |_: &mut ()| self.pending.load(SeqCst) & wake_mask == 0;
        match timeout {
            Some(timeout) => drop(self.wake.wait_timeout_while(guard, timeout, quiet)),
            None => drop(self.wake.wait_while(guard, quiet)),
        }
        self.parked.store(false, SeqCst);
        self.running.store(true, SeqCst);
    }

    /// Marks the vCPU as executing; its owner must serve the mailbox before the first instruction.
    pub(crate) fn set_running(&self, running: bool) {
        self.running.store(running, SeqCst);
    }

    /// Executing guest code, woken to do so, or out of run for a moment, the host doing something for the guest.
    pub(crate) fn is_busy(&self) -> bool {
        self.running.load(SeqCst) || self.away.load(SeqCst) || self.pending.load(SeqCst) & pending::WAKE != 0
    }

    /// Notes that the vCPU has left run with an exception, to come back.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, SeqCst);
    }

    /// Puts a request into the mailbox and answers the ticket to wait for.
    pub fn post(&self, request: Request) -> u64 {
        let mut mailbox = lock(&self.mailbox);
        if mailbox.requests.len() >= MAILBOX_LIMIT {
            mailbox.overflow = true;
        } else if !mailbox.requests.contains(&request) {
            mailbox.requests.push(request);
        }
        let ticket = self.posted.fetch_add(1, SeqCst) + 1;
        self.pending.fetch_or(pending::REQUEST, SeqCst);
        ticket
    }

    /// Takes all requests; the answer is `true` when some were lost to overflow. [`VcpuShared::served`] must follow.
    pub(crate) fn take_requests(&self) -> (Vec<Request>, bool, u64) {
        let mut mailbox = lock(&self.mailbox);
        self.pending.fetch_and(!pending::REQUEST, SeqCst);
        let ticket = self.posted.load(SeqCst);
        let overflow = std::mem::take(&mut mailbox.overflow);
        (std::mem::take(&mut mailbox.requests), overflow, ticket)
    }

    /// All requests up to `ticket` have been carried out.
    pub(crate) fn served(&self, ticket: u64) {
        self.done.fetch_max(ticket, SeqCst);
    }

    /// The request behind `ticket` can no longer be violated: carried out, or the vCPU will do it before it executes.
    pub fn is_settled(&self, ticket: u64) -> bool {
        self.done.load(SeqCst) >= ticket || !self.running.load(SeqCst)
    }
}

/// A request to another vCPU that DSB must see settled.
pub(crate) struct Awaited {
    vcpu: Arc<VcpuShared>,
    ticket: u64,
    /// The request is about this ASID alone.
    asid: Option<u16>,
}

impl Awaited {
    /// The request can no longer be violated.
    pub(crate) fn is_settled(&self) -> bool {
        self.vcpu.is_settled(self.ticket) || self.asid.is_some_and(|asid| !self.vcpu.spaces.uses(asid))
    }
}

/// Posts `request` to all of `vcpus` but `except` (an index), and notes in `awaited` whom DSB must wait for. With an ASID the
/// request is about its translations in the lower half alone: see [`super::mmu::spaces`].
pub(crate) fn announce(
    vcpus: &[Arc<VcpuShared>],
    request: Request,
    asid: Option<u16>,
    except: usize,
    awaited: &mut Vec<Awaited>,
) {
    fence(SeqCst);
    for vcpu in vcpus.iter().filter(|vcpu| vcpu.index != except) {
        if asid.is_some_and(|asid| !vcpu.spaces.may_hold(asid)) {
            continue;
        }
        let ticket = vcpu.post(request);
        if asid.is_some_and(|asid| !vcpu.spaces.uses(asid)) {
            continue;
        }
        match awaited.iter_mut().find(|awaited| awaited.vcpu.index == vcpu.index) {
            Some(awaited) => {
                awaited.ticket = ticket;
                awaited.asid = awaited.asid.filter(|known| Some(*known) == asid);
            }
            None => awaited.push(Awaited { vcpu: vcpu.clone(), ticket, asid }),
        }
    }
}

/// Posts `request` to all of `vcpus` but `except` (an index). With `wait`, returns when none of them can violate it any
/// more; the caller must not be a running vCPU then, and must hold no lock that guest execution takes.
pub fn broadcast(vcpus: &[Arc<VcpuShared>], request: Request, wait: bool, except: Option<usize>) {
    let others = vcpus.iter().filter(|vcpu| Some(vcpu.index) != except);
    let tickets: Vec<_> = others.map(|vcpu| (vcpu, vcpu.post(request))).collect();
    if wait {
        for (vcpu, ticket) in tickets {
            wait_for(|| vcpu.is_settled(ticket));
        }
    }
}

/// Spins, politely, until `settled`.
pub(crate) fn wait_for(mut settled: impl FnMut() -> bool) {
    let mut spins = 0u32;
    while !settled() {
        spins += 1;
        if spins < 64 {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}
