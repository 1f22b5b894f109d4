//! The clock that `vtimer_offset` is defined against, the guest's counter made from it, and wall time.
//!
//! A guest reads `CNTVCT = mach_absolute_time() - vtimer_offset` (Apple's header). Whether its counter ticks at the rate of
//! `mach_absolute_time` depends on chip, system and SDK, so the guest's rate is measured ([`crate::hv::probe`]) and everything here
//! is in ticks of the guest's counter. Time that passes while the machine stands
//! still is taken out by moving the offset, one offset for all vCPUs, so guest time never jumps: not over a pause, not over
//! a restore. `mach_absolute_time` stands still while the host sleeps, and guest time with it; wall time goes on.
//!
//! Wall time is read here and nowhere else (`clippy.toml` sees to it): what squib waits for is limited by [`std::time::Instant`], which stands still
//! in sleep too, so that no limit expires there; and a test can let the stand-in's host sleep (`squib_sim::control::sleep`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::ClockMode;

/// The wall-clock date a deterministic machine starts at: 2024-01-01 00:00:00 UTC.
const DETERMINISTIC_EPOCH: u64 = 1_704_067_200;

#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
mod kernel {
    pub use squib_sim::mach::{mach_absolute_time, wall_time};

    pub fn timebase() -> (u32, u32) {
        let mut info = squib_sim::mach::MachTimebaseInfo::default();
        squib_sim::mach::mach_timebase_info(&mut info);
        (info.numer, info.denom)
    }
}

#[cfg(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim")))]
mod kernel {
    use mach2::mach_time::{mach_timebase_info, mach_timebase_info_data_t};

    #[expect(clippy::disallowed_methods, reason = "this is the place for it")]
    pub fn wall_time() -> std::time::Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }

    pub fn mach_absolute_time() -> u64 {
        // SAFETY: reads a counter; no arguments, no failure.
        unsafe { mach2::mach_time::mach_absolute_time() }
    }

    pub fn timebase() -> (u32, u32) {
        let mut info = mach_timebase_info_data_t { numer: 0, denom: 0 };
        // SAFETY: `info` is a valid place for the result.
        unsafe { mach_timebase_info(&mut info) };
        (info.numer, info.denom)
    }
}

/// Frequency of the guest's counter, and of the ticks that [`host_counter`] makes of `mach_absolute_time`; 0 while unknown.
/// One per process, as the virtual machine is.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);
static TICKS: AtomicU64 = AtomicU64::new(0);

/// `mach_absolute_time` ticks per second.
fn mach_frequency() -> u64 {
    let (numer, denom) = kernel::timebase();
    if numer == 0 { 24_000_000 } else { 1_000_000_000 * u64::from(denom) / u64::from(numer) }
}

fn or_mach(frequency: &AtomicU64) -> u64 {
    match frequency.load(Ordering::Relaxed) {
        0 => mach_frequency(),
        known => known,
    }
}

/// Ticks per second of the guest's counter, as CNTFRQ_EL0 tells the guest.
pub fn counter_frequency() -> u64 {
    or_mach(&FREQUENCY)
}

/// Sets the measured frequency. Deterministic time is counted in instructions, whatever the guest calls them.
pub fn set_counter_frequency(frequency: u64, clock: ClockMode) {
    FREQUENCY.store(frequency, Ordering::Relaxed);
    TICKS.store(if clock == ClockMode::Deterministic { 0 } else { frequency }, Ordering::Relaxed);
}

fn scale(mach_ticks: u64, ticks: u64, mach: u64) -> u64 {
    (u128::from(mach_ticks) * u128::from(ticks) / u128::from(mach)) as u64
}

/// The counter without any offset, in the guest's ticks.
pub fn host_counter() -> u64 {
    scale(kernel::mach_absolute_time(), or_mach(&TICKS), mach_frequency())
}

/// A value that no guest has read past: where the guest's counter is the finer one, `mach_absolute_time` is behind it by up to
/// one of its own ticks.
pub fn host_counter_bound() -> u64 {
    let (ticks, mach) = (or_mach(&TICKS), mach_frequency());
    let now = kernel::mach_absolute_time();
    if ticks == mach { now } else { scale(now.saturating_add(1), ticks, mach) }
}

/// Time since 1970 by the host's clock.
pub fn wall_time() -> Duration {
    kernel::wall_time()
}

/// Where wall time comes from.
#[derive(Clone, Copy, Debug)]
pub struct WallClock(pub ClockMode);

/// The counter is read between two readings of wall time; so close together they tell its time. Further apart, the host has done something
/// else meanwhile, or slept, or its clock was set: then it is tried again, so often, and the closest two count.
const CLOSE: Duration = Duration::from_micros(20);
const TRIES: u32 = 8;

impl WallClock {
    /// Time since 1970, for the guest whose counter reads `guest_counter`.
    pub fn time(self, guest_counter: u64) -> Duration {
        match self.0 {
            ClockMode::Host => wall_time(),
            ClockMode::Deterministic => {
                let (frequency, epoch) = (counter_frequency(), Duration::from_secs(DETERMINISTIC_EPOCH));
                let nanos = scale(guest_counter % frequency, 1_000_000_000, frequency);
                epoch + Duration::from_secs(guest_counter / frequency) + Duration::from_nanos(nanos)
            }
        }
    }

    /// Time since 1970, and the guest's counter at that moment.
    pub fn with_counter(self, guest_counter: impl Fn() -> u64) -> (Duration, u64) {
        let sample = || {
            let before = self.time(guest_counter());
            let counter = guest_counter();
            let apart = self.time(counter).abs_diff(before);
            (apart, before + apart / 2, counter)
        };
        let mut closest = sample();
        for _ in 1..TRIES {
            if closest.0 <= CLOSE {
                break;
            }
            closest = closest.min(sample());
        }
        (closest.1, closest.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_convert_without_truncated_factors() {
        assert_eq!(scale(24_000_000, 1_000_000_000, 24_000_000), 1_000_000_000);
        assert_eq!(scale(u64::MAX, 24_000_000, 24_000_000), u64::MAX);
        assert_eq!(scale(1, 1_000_000_000, 24_000_000), 41);
        let counter = host_counter();
        assert!(host_counter_bound() >= counter);
    }

    #[test]
    fn deterministic_wall_time_follows_the_counter_only() {
        let clock = WallClock(ClockMode::Deterministic);
        assert_eq!(clock.time(0), Duration::from_secs(DETERMINISTIC_EPOCH));
        let (seconds, half) = (3 * counter_frequency(), counter_frequency() / 2);
        assert_eq!(clock.time(seconds + half).as_millis(), u128::from(DETERMINISTIC_EPOCH + 3) * 1000 + 500);
        assert_eq!(clock.with_counter(|| seconds), (Duration::from_secs(DETERMINISTIC_EPOCH + 3), seconds));
        assert!(WallClock(ClockMode::Host).time(0).as_secs() > DETERMINISTIC_EPOCH);
    }

    /// What interrupts the first two tries makes the two readings of wall time differ.
    #[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
    #[test]
    fn a_sleep_between_the_clocks_is_noticed() {
        let (clock, reads) = (WallClock(ClockMode::Host), AtomicU64::new(0));
        let begun = wall_time();
        let (time, counter) = clock.with_counter(|| {
            let read = reads.fetch_add(1, Ordering::Relaxed);
            if read < 4 && read % 2 == 1 {
                squib_sim::control::sleep(Duration::from_secs(3600));
            }
            read
        });
        assert!(counter >= 5, "the third try, or a later one: {counter}");
        assert!(time >= begun + Duration::from_secs(7200) && time <= wall_time());
    }
}
