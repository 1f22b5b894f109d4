//! Watching a pager from outside.

use std::sync::Arc;

use super::state::PageStates;
use super::stats::{Counters, PagerStats};
use super::touches::Touches;

/// A view of a machine's pager. It stays good when the machine is gone, and keeps nothing of it but the counters.
#[derive(Clone, Debug)]
pub struct Monitor {
    counters: Arc<Counters>,
    states: Arc<PageStates>,
    touches: Arc<Touches>,
}

impl Monitor {
    pub(super) fn new(counters: Arc<Counters>, states: Arc<PageStates>, touches: Arc<Touches>) -> Monitor {
        Monitor { counters, states, touches }
    }

    /// What was done so far.
    pub fn stats(&self) -> PagerStats {
        self.counters.stats(self.states.count(), self.states.missing())
    }

    /// The pages (of 16 KiB, counted from the start of RAM) that somebody has needed so far, in that order. What came with a
    /// neighbour, or was not needed before streaming was over, is not among them.
    pub fn touched(&self) -> Vec<u64> {
        self.touches.pages()
    }
}
