//! Pages from files.

use std::io;
use std::sync::{Arc, Mutex};

use squib_host::pager::{FileSource, LazyMemory};

use crate::saved::{self, PAGE, Saved};
use crate::watch::{in_time, turn, watched};
use crate::{touch_all, touched_all};

/// A base of which one block is zero and the last one short, a diff in pages and one in smaller ones. Checksums of blocks of `block_size` bytes.
fn saved(block_size: u64) -> Saved {
    let mut saved = Saved::new(6 * saved::MIB + 3 * PAGE, block_size);
    saved.diff(7, PAGE as u64, block_size);
    saved.diff(8, 4096, block_size);
    saved
}

pub fn lazy(saved: &Saved) -> LazyMemory {
    LazyMemory::new(Arc::new(FileSource::new(saved.chain()))).expect("lazy memory")
}

#[test]
fn no_page_costs_an_allocation_on_the_thread_that_answers() {
    let _turn = turn();
    for block_size in [0, 4096] {
        let saved = saved(block_size);
        let lazy = lazy(&saved);
        // The last page, with which the source is let go, comes in this, too.
        assert_eq!(watched(|| touch_all(&lazy, &saved)), 0);
        touched_all(&lazy);
    }
}

/// A subscriber that takes its time: whoever logs waits for who is logging.
struct Slow(&'static Mutex<()>);

impl tracing::Subscriber for Slow {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        drop(self.0.lock());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// A thread is stopped by faults, the one on the last page among them, in the middle of a print and of a log line.
#[test]
fn faults_inside_a_print_or_a_log_line_are_answered() {
    static LOGGING: Mutex<()> = Mutex::new(());
    let _turn = turn();
    tracing::subscriber::set_global_default(Slow(&LOGGING)).expect("the only subscriber");
    let saved = saved(0);
    let lazy = lazy(&saved);
    in_time("a fault inside a log line was never answered\n", || {
        let toucher = lazy.toucher().expect("registered");
        let _logging = LOGGING.lock();
        let _printing = (io::stdout().lock(), io::stderr().lock());
        for at in (0..saved.ram.len()).step_by(PAGE) {
            assert_eq!(toucher.touch(at as u64).expect("inside"), saved.ram[at]);
        }
        assert_eq!(lazy.stats().pages_missing, 0);
    });
}
