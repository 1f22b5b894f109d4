//! A full snapshot and the diffs on top of it, read as one memory.
//!
//! Every diff names the snapshot it continues, so an order that is wrong, a link that is missing and a link of another
//! chain are all refused with the reason. A page is read from the newest link that holds it, and
//! [`Chain::read_checked`] never returns a byte that it has not compared with its checksum.

use std::io;
use std::path::Path;

use crate::checked::CheckedBlocks;
use crate::error::{Result, SnapshotError};
use crate::fs::{read_exact_at, will_need};
use crate::links;
use crate::memory::PageReader;
use crate::page_sums::{PageSums, Unreadable, read_through};
use crate::pair::Pair;
use crate::state_file::StateFile;
use crate::verify::VerifyReport;

/// An open chain. A single full pair is a chain without diffs.
///
/// ```
/// # use squib_snapshot::*;
/// # let dir = tempfile::tempdir()?;
/// # let p = |n: &str| dir.path().join(n);
/// # let mut state = MicrovmState { vcpu_states: vec![VcpuState::new(0)], gic_state: GicState::from_bytes(vec![1]), ..Default::default() };
/// # state.vm_info.track_dirty_pages = true;
/// # let machine = MachineRecord::default();
/// # let (base_state, base_mem, diff_state, diff_mem) = (p("0.snap"), p("0.mem"), p("1.snap"), p("1.mem"));
/// let mut ram = vec![1; 65536];
/// let dirty = DirtyBitmap::new(0, 65536, 16384)?;
/// # let request = |state_path, memory_path, memory| PairRequest { state_path, memory_path, state: &state, machine: &machine,
/// #     memory, ram_start: 0, ram_size: 65536, contents: Contents::Full, block_size: 0 };
/// # macro_rules! request { ($s:expr, $m:expr, $r:expr) => { PairRequest { state_path: $s, memory_path: $m, state: &state,
/// #     machine: &machine, memory: $r, ram_start: 0, ram_size: 65536, contents: Contents::Full, block_size: 0 } } }
/// let base = save_pair(&request!(&base_state, &base_mem, &ram))?;
/// ram[20_000] = 2;
/// dirty.set_dirty(20_000);
/// save_diff(&request!(&diff_state, &diff_mem, &ram), base.identity, &dirty)?;
///
/// let chain = Chain::open((&base_state, &base_mem), &[(&diff_state, &diff_mem)])?;
/// let mut back = vec![0; 65536];
/// chain.read_checked(0, &mut back)?;
/// assert_eq!(back, ram);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Chain {
    /// Base first.
    links: Vec<Pair>,
    ram_size: u64,
    checked: CheckedBlocks,
    pages: PageSums,
}

impl Chain {
    /// Opens `(state, memory)` of the base and of each diff, oldest first.
    ///
    /// # Errors
    /// Those of [`Pair::open`]; [`SnapshotError::BrokenChain`] if the links are not one chain in this order.
    pub fn open<P: AsRef<Path>, Q: AsRef<Path>>(base: (P, P), diffs: &[(Q, Q)]) -> Result<Self> {
        let base = Pair::open(base.0.as_ref(), base.1.as_ref())?;
        let diffs = diffs.iter().map(|(s, m)| Pair::open(s.as_ref(), m.as_ref())).collect::<Result<_>>()?;
        Self::from_pairs(base, diffs)
    }

    /// Makes a chain of pairs that are open already, oldest diff first.
    ///
    /// # Errors
    /// [`SnapshotError::BrokenChain`] if they are not one chain in this order; [`SnapshotError::MemoryIo`].
    pub fn from_pairs(base: Pair, diffs: Vec<Pair>) -> Result<Self> {
        let ram_size = base.ram_size()?;
        let mut links = vec![base];
        links.extend(diffs);
        links::check(&links, ram_size)?;
        Ok(Self { links, ram_size, checked: CheckedBlocks::default(), pages: PageSums::new(ram_size) })
    }

    /// The links, base first.
    #[must_use]
    pub fn links(&self) -> &[Pair] {
        &self.links
    }

    /// State of the newest link: the machine this chain restores.
    #[must_use]
    pub fn state_file(&self) -> &StateFile {
        self.newest().state_file()
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.ram_size
    }

    fn newest(&self) -> &Pair {
        // A chain has at least its base.
        &self.links[self.links.len() - 1]
    }

    /// The newest link that holds the byte at `offset`, and the end (at most `limit`) of the stretch for which that is so.
    #[must_use]
    pub fn locate(&self, offset: u64, limit: u64) -> (usize, u64) {
        links::locate(&self.links, offset, limit.min(self.ram_size))
    }

    /// Whether RAM at `[offset, offset + len)` is known to be zero without reading any file.
    #[must_use]
    pub fn is_known_zero(&self, offset: u64, len: u64) -> bool {
        let end = offset.checked_add(len).filter(|end| *end <= self.ram_size);
        end.is_some_and(|end| links::known_zero(&self.links, self.ram_size, offset, end) == end)
    }

    /// Says that RAM at `[offset, offset + len)` will be read soon, checked: the system may read the blocks it lies in ahead. Returns at
    /// once, and nothing depends on it.
    pub fn read_ahead(&self, offset: u64, len: u64) {
        let block = self.links[0].state_file().record().map_or(1, |record| record.memory.sums.block_size());
        let end =
            offset.saturating_add(len).checked_next_multiple_of(block).unwrap_or(self.ram_size).min(self.ram_size);
        let mut at = offset / block * block;
        while at < end {
            let (link, stop) = self.locate(at, end);
            will_need(self.links[link].memory_file(), at, stop - at);
            at = stop;
        }
    }

    /// Fills `buf` with RAM at `offset` as the files have it, unchecked.
    ///
    /// # Errors
    /// [`SnapshotError::MemoryIo`].
    pub fn read_unchecked(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_with(offset, buf, |link, at, part| {
            let pair = &self.links[link];
            read_exact_at(pair.memory_file(), part, at).map_err(|e| pair.memory_error(e))
        })
    }

    /// Fills `buf` with RAM at `offset`, every byte of it compared with its checksum first.
    ///
    /// The first read from a block (2 MiB unless the saver chose otherwise, see
    /// [`PairRequest::block_size`](crate::PairRequest::block_size)) reads and checks all of it. Later ones read and check only the 16
    /// KiB pages they need, so a lazy restore that fetches pages in any order reads every byte of the file about once ahead and
    /// each page once more. For that 8 bytes for each page of RAM that was read are kept, and up to 36 MiB for blocks of which less than a page, or more,
    /// was read at a time. Blocks known to
    /// be zero ([`Self::is_known_zero`]) cost no read. Links of version 5.0 have no checksums and are read as they are. Several
    /// threads may read at once.
    ///
    /// # Errors
    /// [`SnapshotError::MemoryDamaged`], [`SnapshotError::MemoryIo`].
    pub fn read_checked(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.pages.read(&self.links, self.ram_size, offset, buf) == Ok(true) {
            return Ok(());
        }
        self.read_with(offset, buf, |link, at, part| self.read_link_checked(link, at, part))
    }

    /// As [`Self::read_checked`], but allocates nothing and takes no lock. Made for single pages (`offset` a multiple of 16 KiB, `buf` as long
    /// as the page), whose checksums are kept as there. Of anything else, a page that comes from several links or from checksum blocks smaller
    /// than a page, or that is not a page, the whole blocks are read and checked each time.
    ///
    /// # Errors
    /// [`Unreadable`]; what is wrong, [`Self::read_checked`] tells.
    pub fn read_page_checked(&self, offset: u64, buf: &mut [u8]) -> std::result::Result<(), Unreadable> {
        match self.pages.read(&self.links, self.ram_size, offset, buf)? {
            true => Ok(()),
            false => read_through(&self.links, self.ram_size, offset, buf),
        }
    }

    fn read_with(
        &self,
        offset: u64,
        buf: &mut [u8],
        mut read: impl FnMut(usize, u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.ram_size);
        let Some(end) = end else {
            let e = io::Error::new(io::ErrorKind::UnexpectedEof, "read past end of memory");
            return Err(self.newest().memory_error(e));
        };
        let mut at = offset;
        let mut rest = buf;
        while at < end {
            let (link, stop) = self.locate(at, end);
            let (part, tail) = rest.split_at_mut((stop - at) as usize);
            read(link, at, part)?;
            rest = tail;
            at = stop;
        }
        Ok(())
    }

    fn read_link_checked(&self, link: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        let pair = &self.links[link];
        let Some(record) = pair.state_file().record() else {
            return read_exact_at(pair.memory_file(), buf, offset).map_err(|e| pair.memory_error(e));
        };
        let sums = &record.memory.sums;
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let block = at / sums.block_size();
            let stop = sums.block_range(block, self.ram_size).end.min(at + rest.len() as u64);
            let (part, tail) = rest.split_at_mut((stop - at) as usize);
            if sums.get(block).is_none() && !record.memory.is_diff() {
                part.fill(0); // Zero when it was saved: nothing to read.
            } else {
                let range = sums.block_range(block, self.ram_size);
                let known = || self.pages.known_block(&self.links, link, range);
                self.checked.read((link, pair), &record.memory, at, part, known)?;
            }
            rest = tail;
            at = stop;
        }
        Ok(())
    }

    /// Checks every link.
    ///
    /// # Errors
    /// Those of [`Pair::verify_report`].
    pub fn verify_report(&self) -> Result<Vec<VerifyReport>> {
        self.links.iter().map(Pair::verify_report).collect()
    }
}

/// Checked reads, for everything that takes a source of pages.
impl PageReader for Chain {
    fn read_at(&self, offset_from_ram_start: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_checked(offset_from_ram_start, buf).map_err(|e| match e {
            SnapshotError::MemoryIo(e) => e,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        })
    }

    fn is_known_zero(&self, offset_from_ram_start: u64, len: u64) -> bool {
        Chain::is_known_zero(self, offset_from_ram_start, len)
    }
}
