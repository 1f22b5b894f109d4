//! A page that another thread is reading. That one may allocate for it, so it may wait for whoever holds the allocator: nobody who answers
//! that thread may wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use squib_host::pager::{LazyMemory, Origin, PageSource, SourceError, Unexplained};

use crate::saved::{PAGE, noise};
use crate::watch::{Held, in_time, turn};

/// A source that reads once the allocator is held, and allocates to read.
#[derive(Debug)]
struct Unlucky {
    bytes: Vec<u8>,
    reading: AtomicBool,
    held: AtomicBool,
    reads: AtomicUsize,
    damaged: bool,
}

impl PageSource for Unlucky {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.reading.store(true, Ordering::SeqCst);
        while !self.held.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let copy = self.bytes[offset as usize..][..buf.len()].to_vec();
        if self.damaged {
            return Err(SourceError::Damaged("it is not".into()));
        }
        buf.copy_from_slice(&copy);
        Ok(Origin::Server)
    }

    fn read_quietly(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, Unexplained> {
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(Origin::Server)
    }
}

#[test]
fn a_page_that_somebody_else_reads_is_not_waited_for() {
    let _turn = turn();
    for damaged in [false, true] {
        let bytes = noise(3, 8 * PAGE);
        let word = |page: usize| u64::from_le_bytes(bytes[page * PAGE..][..8].try_into().expect("eight bytes"));
        let (reading, held, reads) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
        let source = Arc::new(Unlucky { bytes: bytes.clone(), reading, held, reads, damaged });
        let lazy = LazyMemory::new(Arc::clone(&source) as Arc<dyn PageSource>).expect("lazy memory");
        in_time("a page is waited for that another thread reads, which waits for the allocator\n", || {
            let toucher = lazy.toucher().expect("registered");
            toucher.touch(0).expect("inside");
            thread::scope(|scope| {
                // Announced: read by this thread, in the ordinary way.
                let reader = scope.spawn(|| lazy.toucher().expect("registered").read(5 * PAGE as u64));
                while !source.reading.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                let held = Held::hold();
                source.held.store(true, Ordering::SeqCst);
                let byte = toucher.touch(5 * PAGE as u64);
                drop(held);
                assert_eq!(byte.expect("inside"), bytes[5 * PAGE]);
                // What it read, or failed to read, is of no account any more.
                assert_eq!(reader.join().expect("the thread").expect("read"), word(5));
            });
            let stats = lazy.stats();
            assert_eq!((stats.pages_server, stats.pages_demanded, stats.pages_lost), (2, 2, 0), "{stats:?}");
            assert_eq!(source.reads.load(Ordering::SeqCst), 1);
        });
    }
}
