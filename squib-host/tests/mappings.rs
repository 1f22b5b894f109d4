//! The system's own limit on the mappings of a process (Linux), in a process of its own: nothing else could be mapped in it meanwhile.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use squib_host::pager::{LazyMemory, Origin, PageSource, SourceError, Unexplained};

const PAGE: u64 = 16 << 10;

/// RAM that is all zero, and known to be.
#[derive(Debug)]
struct Zeroes(u64);

impl PageSource for Zeroes {
    fn size(&self) -> u64 {
        self.0
    }

    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError> {
        buf.fill(0);
        Ok(Origin::Zero)
    }

    fn read_quietly(&self, _offset: u64, buf: &mut [u8]) -> Result<Origin, Unexplained> {
        buf.fill(0);
        Ok(Origin::Zero)
    }

    fn known_zero(&self, _offset: u64, len: u64) -> u64 {
        len
    }
}

/// Touching every second page takes two mappings each, until there are no more. From then on blocks are opened whole, and nothing is
/// lost.
#[test]
fn the_limit_is_reached_and_is_no_end() {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let pages = limit.trim().parse::<u64>().unwrap() + 1024;
    let lazy = LazyMemory::new(Arc::new(Zeroes(pages * PAGE))).unwrap();
    let toucher = lazy.toucher().unwrap();
    for page in (0..pages).step_by(2) {
        assert_eq!(toucher.read(page * PAGE).unwrap(), 0, "page {page}");
    }
    let stats = lazy.stats();
    assert_eq!(stats.pages_demanded + stats.pages_around, pages - stats.pages_missing, "{stats:?}");
    assert!(stats.pages_around > 0, "the limit was reached: {stats:?}");
}
