//! The net below the accessor: a touch of absent RAM that nobody announced is an exception, and brings its page like any other fault.
//!
//! It is not how device code reaches memory: the accessor is. It is there for what was missed, and it counts what it catches, so
//! that tests can insist on nothing.

use std::sync::{Arc, Weak};

use super::mach::{FaultHandler, MachPager, Verdict};
use super::resolver::Pager;
use crate::error::Result;

/// Threads that answer: one fault may wait for a slow page while another is answered.
const THREADS: usize = 2;

/// Decides about exceptions: an address in the guest view is ours.
struct Net {
    pager: Weak<Pager>,
    /// Host address and length of the guest view.
    view: u64,
    len: u64,
}

impl FaultHandler for Net {
    fn handle(&self, address: u64) -> Verdict {
        let offset = address.wrapping_sub(self.view);
        if offset >= self.len {
            return Verdict::NotOurs;
        }
        match self.pager.upgrade() {
            Some(pager) if pager.exception(offset) => Verdict::Resolved,
            Some(_) => Verdict::Failed,
            None => Verdict::NotOurs,
        }
    }
}

/// Starts catching exceptions on `pager`'s RAM, of threads that register.
pub fn spread(pager: &Arc<Pager>) -> Result<MachPager> {
    let ram = pager.ram();
    let net = Net { pager: Arc::downgrade(pager), view: ram.guest_view() as u64, len: ram.size() };
    MachPager::new(Arc::new(net), THREADS)
}
