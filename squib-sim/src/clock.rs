//! Time: one source for the guest's counter and for `mach_absolute_time`, so that offsets between them mean something.
//!
//! In host mode both follow the host's clock of awake time: it stands still while the host sleeps, and so do they, as Apple has it. In
//! deterministic mode both are the number of instructions that guests have executed since the virtual machine was created: nothing outside
//! the guest moves them.
//!
//! The clocks that go on in sleep, wall time and `mach_continuous_time`, are here too, since a sleep is nothing but a difference
//! between the two kinds: `control::sleep` makes one for tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// The system's clock that stands still while the host sleeps, and the one that goes on: clock_gettime(2), (3) on macOS.
#[cfg(not(target_os = "macos"))]
const CLOCKS: (libc::clockid_t, libc::clockid_t) = (libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME);
#[cfg(target_os = "macos")]
const CLOCKS: (libc::clockid_t, libc::clockid_t) = (libc::CLOCK_UPTIME_RAW, libc::CLOCK_MONOTONIC_RAW);

/// How long [`sleep`] has let the host sleep, in nanoseconds.
static SLEPT: AtomicU64 = AtomicU64::new(0);

/// The host sleeps for `time` and wakes up, at once: what goes on in sleep is later by `time`, nothing else has changed.
pub(crate) fn sleep(time: Duration) {
    SLEPT.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
}

fn slept() -> Duration {
    Duration::from_nanos(SLEPT.load(Ordering::SeqCst))
}

/// Nanoseconds of a clock of the host.
fn nanos(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result; the clocks of `CLOCKS` exist, so the call does not fail.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Nanoseconds that the host was awake.
fn awake_nanos() -> u64 {
    nanos(CLOCKS.0)
}

/// Time since 1970.
#[expect(clippy::disallowed_methods, reason = "this is the place for it")]
pub fn wall_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + slept()
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
            ClockMode::Host => scale(awake_nanos(), self.frequency, 1_000_000_000),
            ClockMode::Deterministic => self.instructions.load(Ordering::Relaxed),
        }
    }

    /// `mach_absolute_time()`: 24 MHz ticks, or the counter itself in deterministic mode.
    pub fn mach_absolute_time(&self) -> u64 {
        match self.mode {
            ClockMode::Host => scale(awake_nanos(), MACH_FREQUENCY, 1_000_000_000),
            ClockMode::Deterministic => self.instructions.load(Ordering::Relaxed),
        }
    }

    /// `mach_continuous_time()`: the same, and goes on while the host sleeps.
    pub fn mach_continuous_time(&self) -> u64 {
        match self.mode {
            ClockMode::Host => scale(nanos(CLOCKS.1) + slept().as_nanos() as u64, MACH_FREQUENCY, 1_000_000_000),
            ClockMode::Deterministic => self.mach_absolute_time(),
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

    #[test]
    fn in_a_sleep_wall_time_and_continuous_time_go_on_and_nothing_else_does() {
        const HOUR: Duration = Duration::from_secs(3600);
        let clock = Clock::new(&Config::default());
        let read = || (wall_time(), clock.mach_continuous_time(), clock.mach_absolute_time(), clock.counter());
        let before = read();
        sleep(HOUR);
        let after = read();
        let hour = 3600 * MACH_FREQUENCY;
        assert!(after.0 >= before.0 + HOUR && after.1 >= before.1 + hour);
        assert!(after.2 - before.2 < hour && after.3 - before.3 < hour);
        let deterministic = Clock::new(&Config { clock: ClockMode::Deterministic, ..Config::default() });
        assert_eq!(deterministic.mach_continuous_time(), 0);
    }
}
