//! Reading RAM that is partly absent, for a snapshot: what is here through the fill view, the rest from the source. Nothing arrives
//! by it, and no absent page passes for a zero one.

use std::io;

use super::resolver::Pager;
use super::source::SourceError;
use super::state::{FILLED, FILLING, OPENING, PRESENT, READING};
use crate::error::Error;
use crate::memory::GRANULE;

impl Pager {
    /// The end, at most `limit`, of the stretch from `page` on in which bytes are here, or are not, like those of `page`.
    fn here(&self, page: u64, limit: u64) -> (bool, u64) {
        let here = |page| {
            if matches!(self.states().get(page), READING | FILLING) {
                self.states().wait(page);
            }
            matches!(self.states().get(page), FILLED | OPENING | PRESENT)
        };
        let first = here(page);
        let end = (page + 1..limit).find(|&next| here(next) != first);
        (first, end.unwrap_or(limit))
    }

    /// Splits a range of bytes into stretches that are here and stretches that only the source has, and hands over each: offset,
    /// length, whether it is here.
    fn stretches<E>(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(u64, u64, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, stop) = (offset, offset + len);
        let limit = stop.div_ceil(GRANULE);
        while at < stop {
            let (here, end) = self.here(at / GRANULE, limit);
            let end = (end * GRANULE).min(stop);
            each(at, end - at, here)?;
            at = end;
        }
        Ok(())
    }

    /// Reads RAM as the guest would see it, without bringing anything in.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let inside = offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.ram().size());
        if !inside {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read past the end of RAM"));
        }
        self.stretches(offset, buf.len() as u64, |at, len, here| {
            let part = &mut buf[(at - offset) as usize..][..len as usize];
            if here { self.ram().read_fill(at, part) } else { self.read_source(at, part) }
        })
    }

    /// Sources are read in whole pages.
    fn read_source(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let Some(source) = self.source() else { return Err(io::Error::other("the source of absent pages is closed")) };
        let start = offset - offset % GRANULE;
        let len = buf.len() as u64;
        // The error itself goes along: whoever saves can tell a source that is away from one that is damaged.
        let failed = |e: SourceError| {
            let (start, reason) = (self.ram().base() + offset, e.to_string());
            io::Error::other(match e {
                SourceError::Damaged(_) => Error::PageLost { start, len, reason },
                _ => Error::PageUnavailable { start, len, reason },
            })
        };
        let end = (offset + buf.len() as u64).next_multiple_of(GRANULE).min(self.ram().size());
        if start == offset && end == offset + buf.len() as u64 {
            return source.read(offset, buf).map(drop).map_err(failed);
        }
        let mut whole = vec![0; (end - start) as usize];
        source.read(start, &mut whole).map_err(failed)?;
        buf.copy_from_slice(&whole[(offset - start) as usize..][..buf.len()]);
        Ok(())
    }

    /// Whether a range is known to be zero, without I/O.
    pub fn is_known_zero(&self, offset: u64, len: u64) -> bool {
        let source = self.source();
        let zero = |at, len, here| {
            let known = match here {
                true => self.ram().is_hole(at, len),
                false => source.as_ref().is_some_and(|source| source.known_zero(at, len) == len),
            };
            if known { Ok(()) } else { Err(()) }
        };
        self.stretches(offset, len, zero).is_ok()
    }
}
