//! How the net's threads bring a page: without a lock that anybody else's work can hold up, without an allocation, without a word to
//! anybody before the reply. The thread that waits may have been stopped anywhere: in the allocator, in a print, in a log line.
//!
//! A page that can be had so is brought like any other. One that cannot is left as it is, the fault fails at once, and somebody
//! with more freedom (the herald, see [`net`](super::net)) brings it again, to find out what is wrong and say so. Only a
//! source that cannot read quietly at all (a page server's: what it receives takes memory) is read as usual.

use std::time::Instant;

use super::resolver::{Demand, Pager};
use super::source::{PageSource, Quiet};
use super::state::{ABSENT, Claim};
use super::stats::Cause;
use crate::memory::GRANULE;

/// What became of a fault that an exception told us of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// The page is there.
    Resolved,
    /// It cannot be had. [`Pager::make_present`] tells why, and tells the machine.
    Failed,
}

impl Pager {
    /// A touch of the guest view at `offset` by code of ours that nobody had announced.
    pub fn exception(&self, offset: u64) -> Caught {
        let page = offset / GRANULE;
        let begun = Instant::now();
        let mut was_absent = false;
        loop {
            match self.states().claim(page) {
                claim @ (Claim::Fill | Claim::Open) => {
                    was_absent = true;
                    let _demand = Demand::new(self);
                    if claim == Claim::Fill && self.fill_quietly(page).is_none() {
                        return Caught::Failed;
                    }
                    if self.reach(page, claim).is_err() {
                        return Caught::Failed;
                    }
                }
                Claim::Busy => {
                    was_absent = true;
                    self.states().wait(page);
                }
                Claim::Present => {
                    if was_absent {
                        self.counters().fault(Cause::Exception, begun.elapsed());
                    }
                    return Caught::Resolved;
                }
                Claim::Poisoned => return Caught::Failed,
            }
        }
    }

    /// Brings the bytes of a page that is ours. `None`: it is nobody's again, absent or poisoned.
    fn fill_quietly(&self, page: u64) -> Option<()> {
        let failed = |error| drop(self.give_up(page, error));
        let read = |source: &dyn PageSource, offset: u64, buf: &mut [u8]| match source.read_quietly(offset, buf) {
            Quiet::Done(origin) => Ok(origin),
            Quiet::Failed => Err(None),
            Quiet::Unable => source.read(offset, buf).map_err(Some),
        };
        match self.fill_by(page, read) {
            Ok(()) => Some(()),
            Err(Some(error)) => {
                failed(error);
                None
            }
            Err(None) => {
                self.states().release(page, ABSENT);
                None
            }
        }
    }
}
