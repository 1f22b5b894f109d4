//! Watching a pager from outside.

use std::sync::Arc;

use super::state::PageStates;
use super::stats::{Counters, PagerStats};

/// A view of a machine's pager. It stays good when the machine is gone, and keeps nothing of it but the counters.
#[derive(Clone, Debug)]
pub struct Monitor {
    counters: Arc<Counters>,
    states: Arc<PageStates>,
}

impl Monitor {
    pub(super) fn new(counters: Arc<Counters>, states: Arc<PageStates>) -> Monitor {
        Monitor { counters, states }
    }

    /// What was done so far.
    pub fn stats(&self) -> PagerStats {
        self.counters.stats(self.states.count(), self.states.missing())
    }
}
