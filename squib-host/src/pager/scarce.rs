//! Where mappings are scarce: Linux has a limit on those of a process, and every lone page that is opened costs two. A block that is open
//! throughout costs none, so blocks are opened whole.
//!
//! A block takes two steps, so that nobody who owns a page waits for another one or for a source. First the bytes of all its pages are
//! brought, one page at a time, none of which is kept. Then all that are out of reach are taken, in ascending order, and if one
//! of them has an owner all are let go again and it begins anew. Two threads that open the same block do not keep each other from
//! it: the one that has its first page gets on.

use std::ops::Range;

use super::resolver::{OpenError, Pager, Refusal};
use super::state::{Claim, FILLED, OPENING, PRESENT};
use crate::error::{Error, Result};

/// Pages of a block: 2 MiB.
const BLOCK: u64 = 128;

impl Pager {
    /// Puts the block of `page` within reach, and tells how many pages that were. Even a whole block may need one mapping more than
    /// there are: then the nearest block that gives some back is opened first. `bring` has the bytes of a page brought,
    /// unless they are here.
    pub(super) fn open_scarce<E>(&self, page: u64, bring: impl Fn(u64) -> Result<(), E>) -> Result<u64, OpenError<E>> {
        let scarce = match self.open_block(page, &bring) {
            Err(OpenError::Refused(refusal)) if refusal.is_scarcity() => refusal,
            result => return result,
        };
        let (here, blocks) = (page / BLOCK, self.states().count().div_ceil(BLOCK));
        let split = |&block: &u64| {
            let (first, end) = (block * BLOCK, ((block + 1) * BLOCK).min(self.states().count()));
            self.states().stretch(first, end).1 < end
        };
        for block in (0..here).rev().chain(here + 1..blocks).filter(split) {
            if let Ok(opened) = self.open_block(block * BLOCK, &bring) {
                self.counters().around(opened);
                return self.open_block(page, &bring);
            }
        }
        Err(scarce.into())
    }

    /// Puts the blocks of `pages` within reach, which are all here, and tells how many pages that were. One with a page that is lost
    /// stays as it is, and the others are opened all the same.
    pub(super) fn open_blocks(&self, pages: Range<u64>) -> Result<u64> {
        let open = |block: u64| self.open_scarce(block * BLOCK, |page| self.bring_bytes(page)).map_err(Error::from);
        let (mut count, mut error) = (0, None);
        for opened in (pages.start / BLOCK..pages.end.div_ceil(BLOCK)).map(open) {
            match opened {
                Ok(opened) => count += opened,
                Err(why) => error = error.or(Some(why)),
            }
        }
        error.map_or(Ok(count), Err)
    }

    /// Puts a whole block within reach, bringing what is absent of it, and tells how many pages that were.
    fn open_block<E>(&self, page: u64, bring: &impl Fn(u64) -> Result<(), E>) -> Result<u64, OpenError<E>> {
        let start = page - page % BLOCK;
        let pages = start..(start + BLOCK).min(self.states().count());
        let owned = loop {
            pages.clone().try_for_each(bring).map_err(OpenError::Neighbour)?;
            if let Some(owned) = self.own_block(start, pages.end) {
                break owned;
            }
        };
        let owned = &owned[..(pages.end - start) as usize];
        let (offset, len) = self.bytes(&pages);
        let opened = self.ram().open(offset, len);
        let opened = opened.map_err(|error| Refusal::Protect(error.raw_os_error().unwrap_or(0)));
        Ok(self.finish_block(start, owned, opened)?)
    }

    /// Takes all pages of `[start, end)` that are out of reach: which they are. `None`, and nothing is taken, if one has an owner or no
    /// bytes.
    fn own_block(&self, start: u64, end: u64) -> Option<[bool; BLOCK as usize]> {
        let mut owned = [false; BLOCK as usize];
        for page in start..end {
            let here = &mut owned[(page - start) as usize];
            *here = self.states().claim_from(page, FILLED, OPENING);
            if !*here && self.states().get(page) != PRESENT {
                (start..page).filter(|before| owned[(before - start) as usize]).for_each(|before| {
                    self.states().release(before, FILLED);
                });
                return None;
            }
        }
        Some(owned)
    }

    /// Gives the pages of a block that are ours their new state, whether or not the block could be opened.
    fn finish_block(&self, start: u64, owned: &[bool], mut result: Result<(), Refusal>) -> Result<u64, Refusal> {
        let (mut at, mut count) = (start, 0);
        for run in owned.chunk_by(|a, b| a == b) {
            let pages = at..at + run.len() as u64;
            at = pages.end;
            match &result {
                _ if !run[0] => {}
                Ok(()) => {
                    count += run.len() as u64;
                    result = self.publish(pages);
                }
                Err(_) => pages.for_each(|page| self.states().release(page, FILLED)),
            }
        }
        result.map(|()| count)
    }

    /// Has the bytes of a page here, for those who may own none meanwhile.
    pub(super) fn bring_bytes(&self, page: u64) -> Result<()> {
        while !self.is_here(page) {
            match self.states().claim(page) {
                Claim::Fill if !self.fill(page)? => {}
                Claim::Fill | Claim::Open => {
                    self.states().release(page, FILLED);
                    return Ok(());
                }
                Claim::Busy => self.states().wait(page),
                Claim::Present => return Ok(()),
                Claim::Poisoned => return Err(self.lost(page)),
            }
        }
        Ok(())
    }

    /// Whether a page can be opened, or is open. It is not taken to find out: others may be about to own its block.
    pub(super) fn is_here(&self, page: u64) -> bool {
        matches!(self.states().get(page), FILLED | PRESENT)
    }
}
