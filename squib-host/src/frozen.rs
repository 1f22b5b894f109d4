//! Pages of RAM as they were at a moment, copied aside so that the guest can go on while they are written to disk.

use std::io;

use squib_snapshot::{PageReader, PageSet};

use crate::memory::GuestRam;

/// The copies.
#[derive(Debug)]
pub struct FrozenPages {
    bytes: Vec<u8>,
    /// Ascending, not touching.
    runs: Vec<Run>,
}

#[derive(Debug)]
struct Run {
    /// Offset in RAM.
    offset: u64,
    /// Where in `bytes`.
    at: usize,
    len: usize,
}

impl FrozenPages {
    /// Copies `pages` into `buffer`, which grows if it must: a buffer that was used before costs no new memory.
    pub fn copy(ram: &GuestRam, pages: &PageSet, mut buffer: Vec<u8>) -> io::Result<FrozenPages> {
        let (mut runs, mut end) = (Vec::new(), 0);
        for (first, count) in pages.runs() {
            let offset = first * pages.page_size();
            let len = (count * pages.page_size()).min(ram.size() - offset) as usize;
            runs.push(Run { offset, at: end, len });
            end += len;
        }
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        for run in &runs {
            ram.read_fill(run.offset, &mut buffer[run.at..run.at + run.len])?;
        }
        Ok(FrozenPages { bytes: buffer, runs })
    }

    /// The buffer, for the next time.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl PageReader for FrozenPages {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let missing = || io::Error::other(format!("the page at offset {offset:#x} of RAM was not kept"));
        buf.copy_from_slice(self.slice_at(offset, buf.len()).ok_or_else(missing)?);
        Ok(())
    }

    fn slice_at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let run = &self.runs[self.runs.partition_point(|run| run.offset <= offset).checked_sub(1)?];
        let start = usize::try_from(offset - run.offset).ok()?;
        let end = start.checked_add(len).filter(|end| *end <= run.len)?;
        self.bytes.get(run.at + start..run.at + end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GRANULE;

    #[test]
    fn what_was_kept_is_found_and_nothing_else() {
        let ram = GuestRam::new(0x4000_0000, 8 * GRANULE, false).unwrap();
        for page in 0..8 {
            ram.write_fill(page * GRANULE, &vec![page as u8 + 1; GRANULE as usize]).unwrap();
        }
        let pages = PageSet::from_pages(GRANULE, 8, [1, 2, 7]);
        let used = vec![0xff; 5 * GRANULE as usize];
        let frozen = FrozenPages::copy(&ram, &pages, used).unwrap();
        ram.write_fill(0, &vec![0; 8 * GRANULE as usize]).unwrap();
        let two = frozen.slice_at(GRANULE, 2 * GRANULE as usize).unwrap();
        assert!(two[..GRANULE as usize].iter().all(|b| *b == 2) && two[GRANULE as usize..].iter().all(|b| *b == 3));
        assert_eq!(frozen.slice_at(7 * GRANULE + 5, 3), Some(&[8; 3][..]));
        assert_eq!(frozen.slice_at(2 * GRANULE + 1, GRANULE as usize), None, "past the end of a run");
        assert_eq!(frozen.slice_at(0, 1), None);
        assert!(frozen.read_at(5 * GRANULE, &mut [0]).is_err());
        assert_eq!(frozen.into_buffer().len(), 5 * GRANULE as usize);
    }
}
