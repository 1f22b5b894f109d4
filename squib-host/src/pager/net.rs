//! The net below the accessor: a touch of absent RAM that nobody announced is an exception, and brings its page like any other fault.
//!
//! It is not how device code reaches memory: the accessor is. It is there for what was missed, and it counts what it catches, so
//! that tests can insist on nothing.
//!
//! The threads that answer are [quiet](super::quiet). What has to be said or let go in consequence is done by one more thread, the
//! herald: it sleeps on a word until they leave it something.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use super::mach::{FaultHandler, MachPager, Registration, Verdict};
use super::quiet::Caught;
use super::resolver::Pager;
use super::wait;
use crate::error::{Error, Result};

/// Threads that answer: one fault may wait for a slow page while another is answered.
pub(super) const THREADS: usize = 2;

/// Catches exceptions on a pager's RAM, of threads that register. It keeps the pager, which the threads that answer could otherwise find
/// themselves the last to let go of.
#[derive(Debug)]
pub struct Net {
    // Dropped in this order: the threads that answer, then the one that speaks for them.
    server: MachPager,
    _herald: Herald,
}

impl Net {
    /// Spreads it under `pager`'s RAM.
    pub fn spread(pager: &Arc<Pager>) -> Result<Net> {
        let (view, len) = (pager.ram().guest_view() as u64, pager.ram().size());
        let herald = Herald::start(Arc::downgrade(pager))?;
        let handler = Handler { pager: Arc::clone(pager), view, len, news: Arc::clone(&herald.news) };
        let handler = Arc::new(handler);
        Ok(Net { server: MachPager::new(handler, THREADS)?, _herald: herald })
    }

    /// See [`MachPager::register_current_thread`].
    pub fn register_current_thread(&self) -> Result<Registration> {
        self.server.register_current_thread()
    }
}

/// Decides about exceptions: an address in the guest view is ours.
struct Handler {
    pager: Arc<Pager>,
    /// Host address and length of the guest view.
    view: u64,
    len: u64,
    news: Arc<News>,
}

impl FaultHandler for Handler {
    fn handle(&self, address: u64) -> Verdict {
        let offset = address.wrapping_sub(self.view);
        if offset >= self.len {
            return Verdict::NotOurs;
        }
        match self.pager.exception(offset) {
            Caught::Resolved => {
                if self.pager.is_done() {
                    self.news.post(DONE);
                }
                Verdict::Resolved
            }
            Caught::Failed => {
                self.news.offset.store(offset, Ordering::Relaxed);
                self.news.post(FAILED);
                Verdict::Failed
            }
        }
    }
}

/// Nothing is missing any more.
const DONE: u32 = 1;
/// The page at [`News::offset`] could not be had.
const FAILED: u32 = 2;
/// The net is taken in.
const END: u32 = 4;

/// What the herald is to do.
#[derive(Debug, Default)]
struct News {
    word: AtomicU32,
    /// Of several that failed, the last.
    offset: AtomicU64,
}

impl News {
    fn post(&self, what: u32) {
        if self.word.fetch_or(what, Ordering::Release) & what == 0 {
            wait::wake_all(&self.word);
        }
    }

    /// Sleeps until there is something.
    fn take(&self) -> u32 {
        loop {
            match self.word.swap(0, Ordering::Acquire) {
                0 => wait::wait(&self.word, 0),
                what => return what,
            }
        }
    }
}

/// The thread that speaks for those that must not.
#[derive(Debug)]
struct Herald {
    news: Arc<News>,
    pid: u32,
    thread: Option<JoinHandle<()>>,
}

impl Herald {
    fn start(pager: Weak<Pager>) -> Result<Herald> {
        let news = Arc::new(News::default());
        let shared = Arc::clone(&news);
        let spawned = std::thread::Builder::new().name("squib-herald".into()).spawn(move || {
            loop {
                let what = shared.take();
                if what & END != 0 {
                    return;
                }
                let Some(pager) = pager.upgrade() else { continue };
                if what & FAILED != 0 {
                    // Finds out what is wrong, and tells the machine. If nothing is any more, all the better.
                    let _ = pager.make_present(shared.offset.load(Ordering::Relaxed), 1);
                }
                pager.settle();
            }
        });
        let thread =
            spawned.map_err(|source| Error::System { action: "start a thread of the pager".into(), source })?;
        Ok(Herald { news, pid: std::process::id(), thread: Some(thread) })
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.pid != std::process::id() {
            // A forked child has no such thread to wait for.
            std::mem::forget(thread);
            return;
        }
        self.news.post(END);
        if thread.thread().id() == std::thread::current().id() {
            // It told a machine that was just being dropped, and is the last to let it go.
            return;
        }
        // If it panicked, it has said so already.
        let _ = thread.join();
    }
}
