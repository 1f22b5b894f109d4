//! The clock that `vtimer_offset` is defined against, the guest's counter made from it, and wall time.
//!
//! A guest reads `CNTVCT = mach_absolute_time() - vtimer_offset` (Apple's header). Time that passes while the machine stands
//! still is taken out by moving the offset, one offset for all vCPUs, so guest time never jumps: not over a pause, not over
//! a restore.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::ClockMode;

/// The wall-clock date a deterministic machine starts at: 2024-01-01 00:00:00 UTC.
const DETERMINISTIC_EPOCH: u64 = 1_704_067_200;

#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
mod kernel {
    pub fn mach_absolute_time() -> u64 {
        squib_sim::mach::mach_absolute_time()
    }

    pub fn timebase() -> (u32, u32) {
        let mut info = squib_sim::mach::MachTimebaseInfo::default();
        squib_sim::mach::mach_timebase_info(&mut info);
        (info.numer, info.denom)
    }
}

#[cfg(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim")))]
mod kernel {
    use mach2::mach_time::{mach_timebase_info, mach_timebase_info_data_t};

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

pub use kernel::mach_absolute_time;

/// Ticks per second of the guest's counter.
pub fn counter_frequency() -> u64 {
    let (numer, denom) = kernel::timebase();
    if numer == 0 { 24_000_000 } else { 1_000_000_000 * u64::from(denom) / u64::from(numer) }
}

/// Where wall-clock seconds come from.
#[derive(Clone, Copy, Debug)]
pub struct WallClock(pub ClockMode);

impl WallClock {
    /// Seconds since 1970, for the guest whose counter reads `guest_counter`.
    pub fn seconds(self, guest_counter: u64) -> u64 {
        match self.0 {
            ClockMode::Host => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            ClockMode::Deterministic => DETERMINISTIC_EPOCH + guest_counter / counter_frequency(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deterministic_wall_time_follows_the_counter_only() {
        let clock = WallClock(ClockMode::Deterministic);
        assert_eq!(clock.seconds(0), DETERMINISTIC_EPOCH);
        assert_eq!(clock.seconds(3 * counter_frequency() + 1), DETERMINISTIC_EPOCH + 3);
        assert!(WallClock(ClockMode::Host).seconds(0) > DETERMINISTIC_EPOCH);
    }
}
