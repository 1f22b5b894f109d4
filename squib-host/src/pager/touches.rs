//! The order of first touches: what a working set is made of.
//!
//! Recording takes no lock and allocates nothing, since faulting threads do it: there is room for every page from the start.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::FromZeros;

/// Pages in the order in which somebody needed them.
#[derive(Debug)]
pub struct Touches {
    /// Number of a page plus one; zero where none has been noted yet.
    order: Vec<AtomicU32>,
    next: AtomicU64,
}

impl Touches {
    /// None yet, of `pages` pages. Without the memory for it nothing is recorded.
    pub fn new(pages: u64) -> Touches {
        // Zeroed memory from the system, untouched: a RAM of any size is ready in the same time.
        let order = AtomicU32::new_vec_zeroed(pages as usize).unwrap_or_default();
        Touches { order, next: AtomicU64::new(0) }
    }

    /// A page was needed. Its owner says so, once.
    pub fn note(&self, page: u64) {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        if let (Some(slot), Ok(page)) = (self.order.get(place as usize), u32::try_from(page + 1)) {
            slot.store(page, Ordering::Relaxed);
        }
    }

    /// The pages so far.
    pub fn pages(&self) -> Vec<u64> {
        let noted = self.next.load(Ordering::Relaxed).min(self.order.len() as u64) as usize;
        let pages = self.order[..noted].iter().map(|slot| slot.load(Ordering::Relaxed));
        // A thread may have taken a place and not filled it yet.
        pages.filter(|&page| page > 0).map(|page| u64::from(page) - 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_in_order_and_no_more_than_there_are() {
        let touches = Touches::new(3);
        assert!(touches.pages().is_empty());
        for page in [2, 0, 1, 2] {
            touches.note(page);
        }
        assert_eq!(touches.pages(), [2, 0, 1]);
    }
}
