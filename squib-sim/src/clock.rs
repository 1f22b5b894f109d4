//! Time: one source for the guest's counter and for `mach_absolute_time`, so that offsets between them mean something.
//!
//! In host mode both follow the host's monotonic clock. In deterministic mode both are the number of instructions that
//! guests have executed since the virtual machine was created: nothing outside the guest moves them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::{self, ClockMode, Config};

/// `mach_absolute_time` ticks per second.
pub const MACH_FREQUENCY: u64 = 24_000_000;

/// The clock of the process's virtual machine, once there has been one.
static INSTALLED: Mutex<Option<Clock>> = Mutex::new(None);

/// The clock of a virtual machine.
#[derive(Clone, Debug)]
pub struct Clock {
    mode: ClockMode,
    frequency: u64,
    /// Instructions executed, the time of deterministic mode.
    instructions: Arc<AtomicU64>,
}

/// `value * numerator / denominator` without overflow on the way.
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    (u128::from(value) * u128::from(numerator) / u128::from(denominator)) as u64
}

/// Nanoseconds of the host's monotonic clock.
fn host_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result; CLOCK_MONOTONIC exists everywhere, so the call does not fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Clock {
    /// The clock a configuration asks for.
    pub fn new(config: &Config) -> Clock {
        Clock { mode: config.clock, frequency: config.counter_frequency(), instructions: Arc::default() }
    }

    /// The clock of the virtual machine, or the one a virtual machine would get now.
    pub fn current() -> Clock {
        let installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        // A wrong SQUIB_SIM is reported where it can be refused: by `hv_vm_create`.
        installed.unwrap_or_else(|| Clock::new(&config::current().unwrap_or_default()))
    }

    /// Makes this the process's clock, with deterministic time at zero: every virtual machine starts from the same instant.
    pub fn install(&self) {
        self.instructions.store(0, Ordering::Relaxed);
        *INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(self.clone());
    }

    /// Whether time is the number of executed instructions.
    pub fn is_deterministic(&self) -> bool {
        self.mode == ClockMode::Deterministic
    }

    /// The guest counter's frequency in Hz: what CNTFRQ_EL0 reads.
    pub fn frequency(&self) -> u64 {
        self.frequency
    }

    /// The physical counter, without any vCPU's offset.
    #[inline]
    pub fn counter(&self) -> u64 {
        match self.mode {
            ClockMode::Host => scale(host_nanos(), self.frequency, 1_000_000_000),
            ClockMode::Deterministic => self.instructions.load(Ordering::Relaxed),
        }
    }

    /// `mach_absolute_time()`: 24 MHz ticks, or the counter itself in deterministic mode.
    pub fn mach_absolute_time(&self) -> u64 {
        match self.mode {
            ClockMode::Host => scale(host_nanos(), MACH_FREQUENCY, 1_000_000_000),
            ClockMode::Deterministic => self.instructions.load(Ordering::Relaxed),
        }
    }

    /// Deterministic mode: `instructions` more have been executed, or a sleeping guest's time is moved forward.
    #[inline]
    pub fn advance(&self, instructions: u64) {
        self.instructions.fetch_add(instructions, Ordering::Relaxed);
    }

    /// How long the host must wait until `ticks` more counter ticks have passed (rounded up).
    pub fn duration(&self, ticks: u64) -> Duration {
        let nanos = u128::from(ticks) * 1_000_000_000;
        Duration::from_nanos(u64::try_from(nanos.div_ceil(u128::from(self.frequency))).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CounterFrequency;

    #[test]
    fn ticks_convert_without_truncated_factors() {
        let clock = Clock::new(&Config::default());
        assert_eq!(clock.duration(24_000_000), Duration::from_secs(1));
        assert_eq!(clock.duration(1), Duration::from_nanos(42));
        assert_eq!(clock.duration(u64::MAX).as_secs(), u64::MAX / 1_000_000_000);
        let fast = Clock::new(&Config { counter: CounterFrequency::Ghz1, ..Config::default() });
        assert_eq!(fast.duration(3), Duration::from_nanos(3));
    }

    #[test]
    fn the_counter_may_run_faster_than_mach_time() {
        let fast = Clock::new(&Config { counter: CounterFrequency::Ghz1, ..Config::default() });
        let before = fast.mach_absolute_time();
        let counter = fast.counter();
        let after = fast.mach_absolute_time();
        assert!((before..=after).contains(&scale(counter, MACH_FREQUENCY, 1_000_000_000)));
    }
}
