//! Mach time: the clock guests' counters are offset from, and those that go on while the host sleeps.

use std::time::Duration;

use super::types::{KERN_SUCCESS, kern_return_t};
use crate::clock::{self, Clock, MACH_FREQUENCY};

/// The ratio of [`mach_absolute_time`] ticks to nanoseconds, as `mach_timebase_info_data_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachTimebaseInfo {
    /// Ticks times this ...
    pub numer: u32,
    /// ... divided by this are nanoseconds.
    pub denom: u32,
}

/// The clock guests' counters are offset from: 24 MHz ticks, or executed instructions in deterministic mode.
pub fn mach_absolute_time() -> u64 {
    Clock::current().mach_absolute_time()
}

/// `mach_absolute_time` and the time that the host slept. In deterministic mode there is no difference.
pub fn mach_continuous_time() -> u64 {
    Clock::current().mach_continuous_time()
}

/// Time since 1970, of a host that [`crate::control::sleep`] may have put to sleep: what [`SystemTime`](std::time::SystemTime) says, and the
/// length of those sleeps.
pub fn wall_time() -> Duration {
    clock::wall_time()
}

/// Fills in the tick-to-nanosecond ratio: 125/3, as on Apple silicon.
pub fn mach_timebase_info(info: &mut MachTimebaseInfo) -> kern_return_t {
    const GCD: u64 = 8_000_000;
    *info = MachTimebaseInfo { numer: (1_000_000_000 / GCD) as u32, denom: (MACH_FREQUENCY / GCD) as u32 };
    KERN_SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timebase_is_that_of_apple_silicon() {
        let mut info = MachTimebaseInfo::default();
        assert_eq!(mach_timebase_info(&mut info), KERN_SUCCESS);
        assert_eq!(info, MachTimebaseInfo { numer: 125, denom: 3 });
        let first = mach_absolute_time();
        assert!(mach_absolute_time() >= first);
    }
}
