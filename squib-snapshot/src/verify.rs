//! Proving that memory is what it was when it was saved: block by block, all of it or only what is read.

use std::ops::Range;
use std::path::Path;

use crate::digest::{checksum, is_zero};
use crate::error::{Result, SnapshotError};
use crate::fs::read_exact_at;
use crate::image::UNIT;
use crate::pair::Pair;
use crate::record::MemoryRecord;

/// What [`Pair::verify`] looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Bytes checked.
    pub bytes: u64,
    /// Blocks with a checksum.
    pub blocks: u64,
    /// Damaged ranges of RAM, each with the stored and the computed checksum. Empty if all is well.
    pub damaged: Vec<Damage>,
}

/// One block whose bytes are not those that were saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Bytes from the start of RAM.
    pub range: Range<u64>,
    /// Checksum in the state.
    pub expected: u64,
    /// Checksum of the file.
    pub found: u64,
}

impl Damage {
    pub(crate) fn into_error(self, path: &Path) -> SnapshotError {
        SnapshotError::MemoryDamaged {
            path: path.to_path_buf(),
            start: self.range.start,
            end: self.range.end,
            expected: self.expected,
            found: self.found,
        }
    }
}

impl VerifyReport {
    /// An object for tools.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let damaged: Vec<_> = self
            .damaged
            .iter()
            .map(|d| {
                serde_json::json!({
                    "start": d.range.start,
                    "end": d.range.end,
                    "expected": format!("{:#018x}", d.expected),
                    "found": format!("{:#018x}", d.found),
                })
            })
            .collect();
        serde_json::json!({ "ok": self.damaged.is_empty(), "bytes": self.bytes, "blocks": self.blocks, "damaged": damaged })
    }

    /// Text for a terminal.
    #[must_use]
    pub fn human(&self) -> String {
        let mut text = format!("checked {} bytes of memory in {} blocks: ", self.bytes, self.blocks);
        match self.damaged.len() {
            0 => text.push_str("no damage\n"),
            n => text.push_str(&format!("{n} damaged\n")),
        }
        for d in &self.damaged {
            text.push_str(&format!(
                "  {:#x}..{:#x}: checksum {:#018x}, expected {:#018x}\n",
                d.range.start, d.range.end, d.found, d.expected
            ));
        }
        text
    }
}

impl Pair {
    /// Checks every byte of memory; the first damaged block is an error that names it.
    ///
    /// # Errors
    /// [`SnapshotError::MemoryDamaged`], [`SnapshotError::MemoryIo`]; [`SnapshotError::NotRecorded`] for version 5.0, which has no
    /// checksums.
    pub fn verify(&self) -> Result<VerifyReport> {
        let report = self.verify_report()?;
        match report.damaged.first() {
            None => Ok(report),
            Some(d) => Err(d.clone().into_error(self.memory_path())),
        }
    }

    /// Checks every byte of memory and lists all damage.
    ///
    /// # Errors
    /// As [`Self::verify`], damage excepted.
    pub fn verify_report(&self) -> Result<VerifyReport> {
        let memory = &self.state_file().require_record("checksums of its memory")?.memory;
        let mut report = VerifyReport::default();
        let mut buffer = Vec::new();
        for block in 0..memory.ram_size.div_ceil(memory.sums.block_size()) {
            if let Some(damage) = self.check_block(memory, block, &mut buffer)? {
                report.damaged.push(damage);
            }
            report.bytes += buffer.len() as u64;
            report.blocks += u64::from(memory.sums.get(block).is_some());
        }
        Ok(report)
    }

    /// Compares a few blocks (the first, the middle and the last that have a checksum) with their checksums: a cheap way, whatever the
    /// size of RAM, to tell the memory file of another snapshot before it is mapped. [`Self::verify`] checks all of it.
    ///
    /// # Errors
    /// [`SnapshotError::PairMismatch`], [`SnapshotError::MemoryIo`]; [`SnapshotError::NotRecorded`] for version 5.0.
    pub fn probe(&self) -> Result<()> {
        let memory = &self.state_file().require_record("checksums of its memory")?.memory;
        let count = memory.sums.iter().count();
        let mut buffer = Vec::new();
        for place in [0, count / 2, count.saturating_sub(1)] {
            let Some((block, _)) = memory.sums.iter().nth(place) else { continue };
            if let Some(damage) = self.check_block(memory, block, &mut buffer)? {
                return Err(SnapshotError::PairMismatch {
                    state: self.state_file().path().to_path_buf(),
                    memory: self.memory_path().to_path_buf(),
                    reason: format!(
                        "the bytes at {:#x}..{:#x} are not those that were saved; it belongs to another snapshot or is damaged",
                        damage.range.start, damage.range.end
                    ),
                });
            }
        }
        Ok(())
    }

    /// Reads what the file holds of one block into `buffer` and compares it with its checksum.
    pub(crate) fn check_block(
        &self,
        memory: &MemoryRecord,
        block: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Damage>> {
        debug_assert!(memory.sums.block_size() <= UNIT);
        let ranges = memory.ranges_in_block(block);
        buffer.resize(ranges.iter().map(|r| (r.end - r.start) as usize).sum(), 0);
        self.read_ranges(&ranges, buffer)?;
        let found = checksum(buffer);
        let range = memory.sums.block_range(block, memory.ram_size);
        match memory.sums.get(block) {
            Some(expected) if expected == found => Ok(None),
            None if is_zero(buffer) => Ok(None),
            // A block without checksum must be all zero: what was found is compared with the checksum of that.
            expected => {
                let zeros = || checksum(&vec![0; buffer.len()]);
                Ok(Some(Damage { range, expected: expected.unwrap_or_else(zeros), found }))
            }
        }
    }

    /// Reads these ranges, one after the other, into `buffer`, which is as long as all of them.
    pub(crate) fn read_ranges(&self, ranges: &[Range<u64>], mut buffer: &mut [u8]) -> Result<()> {
        for range in ranges {
            let (head, tail) = buffer.split_at_mut((range.end - range.start) as usize);
            read_exact_at(self.memory_file(), head, range.start).map_err(|e| self.memory_error(e))?;
            buffer = tail;
        }
        Ok(())
    }
}
