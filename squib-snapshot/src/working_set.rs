//! The working set of a snapshot: the pages that a restored guest needed, in the order in which it first needed them.
//!
//! One run is recorded, and the next lazy restores bring these pages before the rest. The file only hastens a restore: it holds
//! no memory, a restore without it is as right as one with it, and one that is damaged, or of another snapshot, is refused.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::atomic::AtomicWriter;
use crate::digest::checksum;
use crate::error::{Result, SnapshotError, at};
use crate::fs::open_regular;
use crate::identity::SnapshotId;

/// Appended to the name of the state file.
const SUFFIX: &str = ".working-set";
const MAGIC: &[u8; 8] = b"SQUIBWSS";
const LAYOUT: u32 = 1;
const HEADER: usize = 48;
const RUN: usize = 16;
const TRAILER: usize = 8;
/// Runs that a file may hold. What comes after so many is not "first" any more.
const MAX_RUNS: usize = 1 << 19;

/// Pages of RAM in the order in which they were first needed.
///
/// ```
/// use squib_snapshot::{SnapshotId, WorkingSet};
/// # let directory = tempfile::tempdir()?;
/// let path = WorkingSet::path_for(&directory.path().join("vm.state"));
/// let id = SnapshotId::random()?;
/// WorkingSet::new(id, 1 << 20, 16384, [7, 8, 3]).save(&path)?;
/// let set = WorkingSet::open(&path, id, 1 << 20)?;
/// assert_eq!(set.ranges().collect::<Vec<_>>(), [7 * 16384..9 * 16384, 3 * 16384..4 * 16384]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSet {
    identity: SnapshotId,
    ram_size: u64,
    page_size: u32,
    /// First page and number of pages.
    runs: Vec<(u64, u64)>,
}

impl WorkingSet {
    /// Of the snapshot `identity`, whose machine has `ram_size` bytes of RAM. `pages` are numbers of pages of `page_size` bytes (a
    /// power of two); those beyond the end of RAM are left out.
    #[must_use]
    pub fn new(identity: SnapshotId, ram_size: u64, page_size: u32, pages: impl IntoIterator<Item = u64>) -> Self {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let inside = ram_size.div_ceil(u64::from(page_size.max(1)));
        for page in pages.into_iter().filter(|&page| page < inside) {
            let full = runs.len() == MAX_RUNS;
            match runs.last_mut() {
                Some((first, count)) if *first + *count == page => *count += 1,
                _ if full => break,
                _ => runs.push((page, 1)),
            }
        }
        Self { identity, ram_size, page_size, runs }
    }

    /// Where the working set of a snapshot is looked for: beside its state file, `vm.state.working-set`.
    #[must_use]
    pub fn path_for(state: &Path) -> PathBuf {
        let mut name = OsString::from(state);
        name.push(SUFFIX);
        name.into()
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|(_, count)| count).sum()
    }

    /// Bytes of RAM, in the order in which they were needed.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let size = u64::from(self.page_size);
        self.runs.iter().map(move |&(first, count)| first * size..((first + count) * size).min(self.ram_size))
    }

    /// Writes the file, replacing what is there as a whole.
    ///
    /// # Errors
    /// Those of [`AtomicWriter`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut writer = AtomicWriter::open(path)?;
        writer.write_all(&self.to_bytes()).map_err(at("write", path))?;
        writer.commit()
    }

    /// Reads the file at `path` if it is the working set of snapshot `identity`, of `ram_size` bytes of RAM.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if it cannot be read; [`SnapshotError::WorkingSet`] if it is damaged, of another version, or of another
    /// snapshot.
    pub fn open(path: &Path, identity: SnapshotId, ram_size: u64) -> Result<Self> {
        let mut bytes = Vec::new();
        let limit = (HEADER + MAX_RUNS * RUN + TRAILER) as u64;
        open_regular(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(at("read", path))?;
        let set = Self::from_bytes(&bytes).and_then(|set| set.check(identity, ram_size));
        set.map_err(|reason| SnapshotError::WorkingSet { path: path.to_path_buf(), reason })
    }

    fn check(self, identity: SnapshotId, ram_size: u64) -> Result<Self, String> {
        if self.identity != identity {
            return Err(format!("it belongs to snapshot {}, this is {identity}", self.identity));
        }
        if self.ram_size != ram_size {
            return Err(format!("it is for {} bytes of RAM, the machine has {ram_size}", self.ram_size));
        }
        Ok(self)
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(LAYOUT.to_le_bytes());
        bytes.extend(self.page_size.to_le_bytes());
        bytes.extend(self.identity.0);
        bytes.extend(self.ram_size.to_le_bytes());
        bytes.extend((self.runs.len() as u64).to_le_bytes());
        bytes.extend(self.runs.iter().flat_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()]).flatten());
        bytes.extend(checksum(&bytes).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut fields = Fields(bytes);
        if fields.take()? != *MAGIC {
            return Err("it does not begin with SQUIBWSS".into());
        }
        match u32::from_le_bytes(fields.take()?) {
            LAYOUT => {}
            other => return Err(format!("it has layout {other}, this program reads {LAYOUT}")),
        }
        let page_size = u32::from_le_bytes(fields.take()?);
        let identity = SnapshotId(fields.take()?);
        let (ram_size, count) = (fields.number()?, fields.number()?);
        if fields.0.len() as u64 != count.saturating_mul(RUN as u64).saturating_add(TRAILER as u64) {
            return Err(format!("it announces {count} runs of pages and is {} bytes long", bytes.len()));
        }
        let (body, sum) = bytes.split_at(bytes.len() - TRAILER);
        if checksum(body).to_le_bytes() != sum {
            return Err("its checksum is wrong: it is damaged".into());
        }
        let runs = (0..count).map(|_| Ok((fields.number()?, fields.number()?))).collect::<Result<Vec<_>, String>>()?;
        if !page_size.is_power_of_two() {
            return Err(format!("its pages have {page_size} bytes"));
        }
        let inside = ram_size.div_ceil(u64::from(page_size));
        match runs.iter().find(|(first, count)| first.checked_add(*count).is_none_or(|end| end > inside)) {
            Some((first, count)) => Err(format!("it names {count} pages from {first} on; RAM has {inside}")),
            None => Ok(Self { identity, ram_size, page_size, runs }),
        }
    }
}

/// What is left of a file.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (field, rest) = self.0.split_first_chunk().ok_or("it is too short")?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SnapshotId = SnapshotId(*b"0123456789abcdef");
    const PAGE: u32 = 16 << 10;
    const RAM: u64 = 100 * PAGE as u64 - 5;

    fn set() -> WorkingSet {
        WorkingSet::new(ID, RAM, PAGE, [5, 6, 7, 2, 99, 100, 1 << 60, 3])
    }

    #[test]
    fn the_bytes_are_as_documented() {
        let bytes = set().to_bytes();
        assert_eq!(&bytes[..16], b"SQUIBWSS\x01\0\0\0\0\x40\0\0");
        assert_eq!(&bytes[16..32], b"0123456789abcdef");
        assert_eq!(&bytes[32..48], [RAM.to_le_bytes(), 4u64.to_le_bytes()].concat());
        assert_eq!(&bytes[48..64], [5u64.to_le_bytes(), 3u64.to_le_bytes()].concat());
        assert_eq!(&bytes[112..], checksum(&bytes[..112]).to_le_bytes());
        assert_eq!(WorkingSet::from_bytes(&bytes), Ok(set()));
        assert_eq!(set().pages(), 6);
        let page = u64::from(PAGE);
        assert_eq!(
            set().ranges().collect::<Vec<_>>(),
            [5 * page..8 * page, 2 * page..3 * page, 99 * page..RAM, 3 * page..4 * page]
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "a thousand checksums, without the processor's help")]
    fn what_is_damaged_in_any_bit_or_cut_anywhere_is_refused() {
        let good = set().to_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(WorkingSet::from_bytes(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(WorkingSet::from_bytes(&good[..len]).is_err(), "{len} bytes");
        }
        assert!(WorkingSet::from_bytes(&[&good[..], &[0]].concat()).is_err());
        assert!(WorkingSet::from_bytes(&vec![0; 4096]).is_err());
    }

    /// Checksums that fit, content that does not.
    #[test]
    fn a_forged_file_asks_for_nothing_that_is_not_there() {
        let seal = |at: usize, value: &[u8]| {
            let mut bytes = set().to_bytes();
            bytes[at..at + value.len()].copy_from_slice(value);
            let sum = checksum(&bytes[..112]);
            bytes[112..].copy_from_slice(&sum.to_le_bytes());
            WorkingSet::from_bytes(&bytes).unwrap_err()
        };
        assert!(seal(8, &[2]).contains("layout 2"));
        assert!(seal(12, &[0; 4]).contains("0 bytes"));
        assert!(seal(40, &u64::MAX.to_le_bytes()).contains("announces"));
        assert!(seal(48, &98u64.to_le_bytes()).contains("3 pages from 98"));
        assert!(seal(48, &u64::MAX.to_le_bytes()).contains("RAM has 100"));
        assert!(seal(56, &u64::MAX.to_le_bytes()).contains("RAM has 100"));
    }

    #[test]
    fn only_the_snapshot_it_was_recorded_of_may_use_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = WorkingSet::path_for(&directory.path().join("vm.state"));
        assert!(path.ends_with("vm.state.working-set"));
        assert!(
            matches!(WorkingSet::open(&path, ID, RAM), Err(SnapshotError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound)
        );
        set().save(&path).unwrap();
        assert_eq!(WorkingSet::open(&path, ID, RAM).unwrap(), set());
        let other = SnapshotId([7; 16]);
        for (error, words) in [
            (WorkingSet::open(&path, other, RAM), "it belongs to snapshot 30313233343536373839616263646566"),
            (WorkingSet::open(&path, ID, RAM + 1), "bytes of RAM"),
        ] {
            let error = error.unwrap_err();
            assert_eq!(error.path(), Some(path.as_path()));
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(WorkingSet::open(directory.path(), ID, RAM).is_err(), "a directory");
    }

    #[test]
    #[cfg_attr(miri, ignore = "half a million runs")]
    fn a_run_too_many_is_left_out() {
        let every_second = (0..u64::MAX).step_by(2);
        let set = WorkingSet::new(ID, u64::MAX, PAGE, every_second.take(MAX_RUNS + 5));
        assert_eq!(set.pages(), MAX_RUNS as u64);
    }
}
