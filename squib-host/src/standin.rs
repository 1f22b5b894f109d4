//! The few things that only the software stand-in can be asked for: a deterministic clock, and an exact stop.
//!
//! Everything else reaches the stand-in as it reaches the framework. Where the framework itself is linked, asking for these is
//! an error that says so.

use crate::config::ClockMode;
use crate::error::{Error, Result};

#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
mod imp {
    use super::*;
    use squib_sim::config::{self, ClockMode as SimClock};
    use squib_sim::control;
    use std::sync::atomic::{AtomicU64, Ordering};

    pub fn set_clock(clock: ClockMode) -> Result<()> {
        let mut config = config::current().map_err(|e| Error::Config(e.to_string()))?;
        config.clock = match clock {
            ClockMode::Host => SimClock::Host,
            ClockMode::Deterministic => SimClock::Deterministic,
        };
        config::configure(config);
        Ok(())
    }

    static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

    pub fn stop_after_instructions(count: u64) -> Result<()> {
        let limit = control::instructions(0).saturating_add(count);
        LIMIT.store(limit, Ordering::Relaxed);
        control::set_instruction_limit(0, Some(limit));
        Ok(())
    }

    pub fn instructions(vcpus: usize) -> Result<u64> {
        Ok((0..vcpus).map(control::instructions).sum())
    }

    pub fn limit_reached() -> bool {
        let reached = control::instructions(0) >= LIMIT.load(Ordering::Relaxed);
        if reached {
            LIMIT.store(u64::MAX, Ordering::Relaxed);
            control::set_instruction_limit(0, None);
        }
        reached
    }
}

#[cfg(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim")))]
mod imp {
    use super::*;

    pub fn set_clock(clock: ClockMode) -> Result<()> {
        match clock {
            ClockMode::Host => Ok(()),
            ClockMode::Deterministic => Err(Error::StandInOnly("the deterministic clock")),
        }
    }

    pub fn stop_after_instructions(_count: u64) -> Result<()> {
        Err(Error::StandInOnly("stopping after a number of instructions"))
    }

    pub fn instructions(_vcpus: usize) -> Result<u64> {
        Err(Error::StandInOnly("counting instructions"))
    }

    pub fn limit_reached() -> bool {
        false
    }
}

/// Sets what the next virtual machine's counter follows.
pub fn set_clock(clock: ClockMode) -> Result<()> {
    imp::set_clock(clock)
}

/// Ends the next run after `count` more instructions of vCPU 0.
pub fn stop_after_instructions(count: u64) -> Result<()> {
    imp::stop_after_instructions(count)
}

/// Instructions executed so far by `vcpus` vCPUs.
pub fn instructions(vcpus: usize) -> Result<u64> {
    imp::instructions(vcpus)
}

/// Whether vCPU 0 has reached the limit set by [`stop_after_instructions`]; if so, the limit is taken away.
pub fn limit_reached() -> bool {
    imp::limit_reached()
}
