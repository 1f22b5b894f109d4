//! Which link of a chain holds what: told by the state files alone.

use std::path::Path;

use crate::error::{Result, SnapshotError};
use crate::identity::SnapshotId;
use crate::record::MemoryRecord;
use crate::state_file::StateFile;

/// The states of a chain (or of a single full snapshot) without its memory files, for readers that get memory from elsewhere: from a
/// page server, say.
///
/// Every state is of version 5.1: without its record nobody could tell right bytes from wrong ones.
#[derive(Debug, Clone)]
pub struct ChainStates {
    links: Vec<StateFile>,
    ram_size: u64,
}

impl ChainStates {
    /// Opens the states of the base and of each diff, oldest first.
    ///
    /// # Errors
    /// Those of [`StateFile::open`] and of [`Self::from_states`].
    pub fn open<P: AsRef<Path>>(base: &Path, diffs: &[P]) -> Result<Self> {
        let mut links = vec![StateFile::open(base)?];
        for diff in diffs {
            links.push(StateFile::open(diff.as_ref())?);
        }
        Self::from_states(links)
    }

    /// Takes states, base first.
    ///
    /// # Errors
    /// [`SnapshotError::BrokenChain`] if they are not one chain in this order; [`SnapshotError::NotRecorded`] for a state of
    /// version 5.0.
    pub fn from_states(links: Vec<StateFile>) -> Result<Self> {
        let Some(base) = links.first() else {
            return Err(SnapshotError::InvalidPath("a chain has at least one state".into()));
        };
        let ram_size = base.require_record("checksums of its memory")?.memory.ram_size;
        for link in &links {
            link.require_record("checksums of its memory")?;
            link.state().verify_compatible()?;
        }
        check(&links, ram_size)?;
        Ok(Self { links, ram_size })
    }

    /// The links, base first.
    #[must_use]
    pub fn links(&self) -> &[StateFile] {
        &self.links
    }

    /// The identities of the links, base first.
    pub fn identities(&self) -> impl Iterator<Item = SnapshotId> + '_ {
        self.links.iter().map(StateFile::identity)
    }

    /// State of the newest link: the machine this chain restores.
    #[must_use]
    pub fn newest(&self) -> &StateFile {
        // `from_states` refuses an empty chain.
        &self.links[self.links.len() - 1]
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.ram_size
    }

    /// What the memory file of link `link` holds.
    #[must_use]
    pub fn memory(&self, link: usize) -> Option<&MemoryRecord> {
        Some(&self.links.get(link)?.record()?.memory)
    }

    /// As [`Chain::locate`](crate::Chain::locate).
    #[must_use]
    pub fn locate(&self, offset: u64, limit: u64) -> (usize, u64) {
        locate(&self.links, offset, limit.min(self.ram_size))
    }

    /// The end (at most `limit`) of the stretch from `offset` on that is known to be zero; `offset` itself if it is not.
    #[must_use]
    pub fn known_zero(&self, offset: u64, limit: u64) -> u64 {
        known_zero(&self.links, self.ram_size, offset, limit.min(self.ram_size))
    }
}

/// The newest link that holds the byte at `offset`, and the end (at most `end`) of the stretch for which that is so.
pub(crate) fn locate<L: AsRef<StateFile>>(links: &[L], offset: u64, mut end: u64) -> (usize, u64) {
    for (index, link) in links.iter().enumerate().skip(1).rev() {
        let Some(pages) = link.as_ref().pages() else { continue };
        let size = pages.page_size();
        let page = offset / size;
        if let Some((first, count)) = pages.runs_within(page, end.div_ceil(size)).next() {
            if first == page {
                return (index, end.min((page + count).saturating_mul(size)));
            }
            end = first * size;
        }
    }
    (0, end)
}

/// The end (at most `end`, inside RAM) of the stretch from `offset` on that no link holds data for.
pub(crate) fn known_zero<L: AsRef<StateFile>>(links: &[L], ram_size: u64, offset: u64, end: u64) -> u64 {
    let Some(record) = links.first().and_then(|base| base.as_ref().record()) else { return offset };
    let sums = &record.memory.sums;
    let mut at = offset;
    while at < end {
        let block = at / sums.block_size();
        match locate(links, at, sums.block_range(block, ram_size).end.min(end)) {
            (0, next) if sums.get(block).is_none() => at = next,
            _ => break,
        }
    }
    at
}

/// Checks that the links are one chain in this order.
pub(crate) fn check<L: AsRef<StateFile>>(links: &[L], ram_size: u64) -> Result<()> {
    let links: Vec<&StateFile> = links.iter().map(AsRef::as_ref).collect();
    let broken =
        |link: &StateFile, reason: String| Err(SnapshotError::BrokenChain { path: link.path().to_path_buf(), reason });
    if let Some(parent) = links[0].parent() {
        return broken(links[0], format!("it is a diff of {parent}; a chain begins with a full snapshot"));
    }
    if links[0].pages().is_some() {
        return broken(links[0], "it holds only some pages; a chain begins with a full snapshot".into());
    }
    for (index, link) in links.iter().enumerate().skip(1) {
        let before = links[index - 1];
        let (Some(record), Some(parent), Some(_)) = (link.record(), link.parent(), link.pages()) else {
            return broken(link, "it is a full snapshot, not a diff".into());
        };
        if parent != before.identity() {
            let reason = match links.iter().position(|l| l.identity() == parent) {
                Some(place) if place > index => {
                    format!("the order is wrong: it continues {:?}, which is given after it", links[place].path())
                }
                Some(place) => {
                    format!("it continues {:?}, not {:?} which is given before it", links[place].path(), before.path())
                }
                None => format!(
                    "it continues snapshot {parent}, which is not given; {:?} before it is {}",
                    before.path(),
                    before.identity()
                ),
            };
            return broken(link, reason);
        }
        let start = |file: &StateFile| file.record().map(|r| r.memory.ram_start);
        if record.memory.ram_size != ram_size || start(before).is_some_and(|s| s != record.memory.ram_start) {
            return broken(
                link,
                format!(
                    "its RAM is {} bytes at {:#x}, that of the base is {ram_size} bytes",
                    record.memory.ram_size, record.memory.ram_start
                ),
            );
        }
    }
    Ok(())
}
