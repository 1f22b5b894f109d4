//! What a host may ask of the stand-in beyond Apple's interface: exact stops by instruction count, and to be put to sleep.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The counters of one vCPU slot. They outlive the vCPU, so that a limit can be set before it exists.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Instruction count at which run returns `Canceled`; `u64::MAX` for none.
    pub limit: AtomicU64,
    /// Instructions retired, as of the last time the run loop looked up.
    pub instructions: AtomicU64,
}

impl Counters {
    /// No limit, nothing retired.
    pub fn new() -> Arc<Counters> {
        Arc::new(Counters { limit: AtomicU64::new(u64::MAX), instructions: AtomicU64::new(0) })
    }
}

static COUNTERS: Mutex<BTreeMap<usize, Arc<Counters>>> = Mutex::new(BTreeMap::new());

/// The counters of vCPU slot `vcpu`.
pub(crate) fn counters(vcpu: usize) -> Arc<Counters> {
    let mut counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    counters.entry(vcpu).or_insert_with(Counters::new).clone()
}

/// Makes `hv_vcpu_run` of vCPU `vcpu` return `CANCELED` when it has retired `limit` instructions since it was created: at
/// exactly that count, or at the first one behind it at which the exclusive monitor is clear. `None` takes the limit away.
/// Counts do not include instructions that the host completes (trapped system registers, MMIO). Set it while the vCPU does
/// not run.
pub fn set_instruction_limit(vcpu: usize, limit: Option<u64>) {
    counters(vcpu).limit.store(limit.unwrap_or(u64::MAX), SeqCst);
}

/// How many instructions vCPU `vcpu` has retired since it was created. Exact while it does not run.
pub fn instructions(vcpu: usize) -> u64 {
    counters(vcpu).instructions.load(SeqCst)
}

/// Lets the host sleep for `time`, as a Mac does with its lid closed, guests running or not: for this process wall time
/// ([`crate::mach::wall_time`]) and `mach_continuous_time` are later by `time` from now on; `mach_absolute_time`, the guests' counters, their timers and
/// Rust's [`Instant`](std::time::Instant) have stood still. Whoever only has clocks cannot tell it from a real sleep; it takes no
/// time. Without effect on what follows the deterministic clock.
pub fn sleep(time: Duration) {
    crate::clock::sleep(time);
}
