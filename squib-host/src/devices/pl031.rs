//! PL031 real-time clock (ARM DDI 0224): wall time for the guest, without the alarm interrupt (the device tree gives it none).
//!
//! The counter is the host's wall clock plus an offset the guest may set. Only the offset is saved: a guest restored later reads
//! the later time here, while its own monotonic clock goes on where it stopped.

use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::{Device, blob, primecell_id};
use crate::error::Result;

const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const ID: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
const VERSION: u16 = 1;

/// Seconds since 1970.
pub type WallSeconds = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// Guest time minus wall time, seconds, modulo 2^32.
    offset: u32,
    load: u32,
    matching: u32,
    mask: u32,
}

/// The clock.
pub struct Pl031 {
    state: Mutex<State>,
    wall: WallSeconds,
}

impl std::fmt::Debug for Pl031 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pl031").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Pl031 {
    /// A clock that shows wall time.
    pub fn new(wall: WallSeconds) -> Pl031 {
        Pl031 { state: Mutex::default(), wall }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Device for Pl031 {
    fn kind(&self) -> &'static str {
        "pl031"
    }

    fn read(&self, offset: u64, _size: u8) -> u64 {
        let state = self.lock();
        let value = match offset {
            DR => ((self.wall)() as u32).wrapping_add(state.offset),
            MR => state.matching,
            LR => state.load,
            CR => 1,
            IMSC => state.mask,
            _ => return primecell_id(&ID, offset).unwrap_or(0),
        };
        u64::from(value)
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let value = value as u32;
        let mut state = self.lock();
        match offset {
            MR => state.matching = value,
            LR => {
                state.load = value;
                state.offset = value.wrapping_sub((self.wall)() as u32);
            }
            IMSC => state.mask = value & 1,
            _ => {}
        }
    }

    fn save(&self) -> Result<Vec<u8>> {
        blob::encode(self.kind(), VERSION, &*self.lock())
    }

    fn restore(&self, blob: &[u8]) -> Result<()> {
        *self.lock() = blob::decode("pl031", VERSION, blob)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_time_set_by_the_guest_goes_on_with_the_wall_clock_over_a_restore() {
        let now = Arc::new(AtomicU64::new(1_700_000_000));
        let wall = |now: &Arc<AtomicU64>| -> WallSeconds {
            let now = now.clone();
            Arc::new(move || now.load(Ordering::Relaxed))
        };
        let first = Pl031::new(wall(&now));
        assert_eq!(first.read(DR, 4), 1_700_000_000);
        first.write(LR, 4, 1000);
        now.fetch_add(5, Ordering::Relaxed);
        assert_eq!(first.read(DR, 4), 1005);
        let second = Pl031::new(wall(&now));
        second.restore(&first.save().unwrap()).unwrap();
        now.fetch_add(3600, Ordering::Relaxed);
        assert_eq!(second.read(DR, 4), 4605);
        assert_eq!(second.read(0xfe0, 4), 0x31);
        assert_eq!(second.read(CR, 4), 1);
    }
}
