//! The part of a vCPU that other threads may touch: exit requests, interrupt lines, translation flushes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Reasons for a running vCPU to look up from its work.
pub mod attention {
    /// Leave the run loop.
    pub const EXIT: u32 = 1 << 0;
    /// The GIC's IRQ line.
    pub const IRQ: u32 = 1 << 1;
    /// The GIC's FIQ line.
    pub const FIQ: u32 = 1 << 2;
    /// Forget every cached translation.
    pub const FLUSH: u32 = 1 << 3;
}

/// What one vCPU shows to the other threads.
pub struct VcpuShared {
    /// The vCPU's slot.
    pub index: usize,
    attention: AtomicU32,
    in_guest: AtomicBool,
}

impl VcpuShared {
    /// A vCPU that is not running and has nothing pending.
    pub fn new(index: usize) -> Arc<VcpuShared> {
        Arc::new(VcpuShared { index, attention: AtomicU32::new(0), in_guest: AtomicBool::new(false) })
    }

    /// Makes the vCPU leave the run loop; if it is not running, the next run ends at once.
    pub fn request_exit(&self) {
        self.attention.fetch_or(attention::EXIT, Ordering::SeqCst);
    }

    /// Sets the level of the GIC's IRQ line.
    pub fn set_irq(&self, level: bool) {
        self.set(attention::IRQ, level);
    }

    /// Sets the level of the GIC's FIQ line.
    pub fn set_fiq(&self, level: bool) {
        self.set(attention::FIQ, level);
    }

    fn set(&self, bit: u32, level: bool) {
        if level {
            self.attention.fetch_or(bit, Ordering::SeqCst);
        } else {
            self.attention.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Asks the vCPU to forget its cached translations before it makes another guest access.
    pub fn request_tlb_flush(&self) {
        self.attention.fetch_or(attention::FLUSH, Ordering::SeqCst);
    }

    /// Returns when the vCPU uses no translation from before [`VcpuShared::request_tlb_flush`]: at once if it does not run.
    pub fn wait_tlb_flush(&self) {
        while self.in_guest.load(Ordering::SeqCst) && self.attention.load(Ordering::SeqCst) & attention::FLUSH != 0 {
            std::thread::yield_now();
        }
    }
}
