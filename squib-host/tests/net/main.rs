//! The net's threads between a request and its reply: the thread that waits for them may have been stopped while it held any lock of the
//! program, the allocator's included. So they may allocate nothing, and wait for nothing that others hold.
//!
//! Every allocation of this process passes an allocator (`watch`) that notes those of the net's threads with the place they came from, and
//! that a thread can hold. The stand-in for the kernel and the framework is a library in this process and may allocate where those
//! would not.

mod failures;
mod files;
#[path = "../page_server/peer.rs"]
mod peer;
mod readers;
mod remote;
#[path = "../common/saved.rs"]
#[allow(dead_code)] // Other tests use the rest.
mod saved;
mod server;
mod watch;

use squib_host::pager::LazyMemory;

use saved::{PAGE, Saved};

/// Touches every page, by four threads at once, each in an order of its own, and looks at four places of it.
fn touch_all(lazy: &LazyMemory, saved: &Saved) {
    let pages = saved.ram.len().div_ceil(PAGE);
    let touch = |thread: usize| {
        let toucher = lazy.toucher().expect("registered");
        for page in (0..pages).map(|n| (n * 37 + thread * 11) % pages) {
            for at in
                (0..4).map(|part| page * PAGE + part * (PAGE / 4) + page % 4096).filter(|&at| at < saved.ram.len())
            {
                assert_eq!(toucher.touch(at as u64).expect("inside"), saved.ram[at], "byte {at:#x}");
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|thread| drop(scope.spawn(move || touch(thread)))));
}

/// What [`touch_all`] leaves behind.
fn touched_all(lazy: &LazyMemory) {
    let stats = lazy.stats();
    assert_eq!((stats.pages_missing, stats.faults_host), (0, 0));
    assert_eq!(stats.pages_demanded, stats.pages_total, "every page came by an exception: {stats:?}");
}
