//! How the net's threads bring a page. The thread that waits for it may have been stopped anywhere: in the allocator, in a print, in a log
//! line, with any lock of the program in its hands. So between the request and the reply they allocate and free nothing, say nothing to
//! anybody, and wait for no lock and no page that such a thread can hold up:
//!
//! | what is on the way | why it is no obstacle |
//! |---|---|
//! | the page's word | a page that another thread reads is taken away from it; waited for are only owners who do not allocate (`state`) |
//! | whole blocks where mappings are scarce | opened without a lock, by the same rule (`scarce`) |
//! | [`PageSource::read_quietly`] | files: `pread` and checksums on the stack; a page server: connections of its own (`remote/line`) |
//! | the pager's source | an atomic slot, held while an `Arc` is cloned; this clone is never the last one, since a page is missing |
//! | the pager itself | the net keeps it |
//! | putting the bytes into place, `mprotect`, `hv_vm_map` | system calls; their errors are numbers until somebody else tells them |
//! | counters, latencies, the order of touches | atomics, with all their room from the start |
//!
//! A page that can be had so is brought like any other. One that cannot is left as it is, the fault fails at once, and somebody
//! with more freedom (the herald, see [`net`](super::net)) brings it again, to find out what is wrong and say so.

use std::time::Instant;

use super::resolver::{Demand, Pager};
use super::source::{Origin, Unexplained};
use super::state::{ABSENT, Claim, FILLED};
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
            match self.states().claim_at_once(page) {
                claim @ (Claim::Fill | Claim::Open) => {
                    was_absent = true;
                    let _demand = Demand::new(self);
                    if claim == Claim::Fill && self.fill_quietly(page).is_err() {
                        return Caught::Failed;
                    }
                    if self.reach(page, claim, |neighbour| self.bring_quietly(neighbour)).is_err() {
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

    /// Brings the bytes of a page that is FILLING. After an error it is nobody's again, and absent.
    fn fill_quietly(&self, page: u64) -> Result<(), Unexplained> {
        let result = self.read_in(page);
        if result.is_err() {
            self.states().release(page, ABSENT);
        }
        result
    }

    fn read_in(&self, page: u64) -> Result<(), Unexplained> {
        let offset = page * GRANULE;
        let source = self.source().ok_or(Unexplained)?;
        let mut bytes = [0; GRANULE as usize];
        let bytes = &mut bytes[..self.length(page) as usize];
        let origin = match source.known_zero(offset, GRANULE) {
            GRANULE => Origin::Zero,
            _ => source.read_quietly(offset, bytes)?,
        };
        if origin != Origin::Zero {
            self.ram().write_fill(offset, bytes).map_err(|_| Unexplained)?;
        }
        self.counters().filled(origin, 1, bytes.len() as u64);
        Ok(())
    }

    /// As [`Pager::bring_bytes`].
    fn bring_quietly(&self, page: u64) -> Result<(), Unexplained> {
        while !self.is_here(page) {
            match self.states().claim_at_once(page) {
                claim @ (Claim::Fill | Claim::Open) => {
                    if claim == Claim::Fill {
                        self.fill_quietly(page)?;
                    }
                    self.states().release(page, FILLED);
                    return Ok(());
                }
                Claim::Busy => self.states().wait(page),
                Claim::Present => return Ok(()),
                Claim::Poisoned => return Err(Unexplained),
            }
        }
        Ok(())
    }
}
