//! What a version 5.1 snapshot says beyond 5.0: who it is, what it continues, what its memory must look like, and the
//! parts of the machine that a 5.0 state has no place for.
//!
//! A [`SnapshotRecord`] travels inside the state file as one more device record with the reserved kind
//! [`RECORD_DEVICE_KIND`], so a reader of version 5.0 still understands the envelope and refuses the file by its version.
//! The bytes are described in [`format`](crate::format) and written by `codec`.

mod codec;
mod report;
mod wire;

use std::collections::BTreeMap;
use std::ops::Range;

use semver::Version;

use crate::dirty::PageSet;
use crate::error::{Result, SnapshotError};
use crate::identity::SnapshotId;

/// Version of a state file that holds a [`SnapshotRecord`].
pub const SNAPSHOT_VERSION_RECORD: Version = Version::new(5, 1, 0);

/// Kind of the device record that carries a [`SnapshotRecord`]; no device of a machine may use it.
pub const RECORD_DEVICE_KIND: &str = "squib.record";

/// Bytes of memory that one checksum covers unless the saver chose fewer.
pub const DEFAULT_BLOCK_SIZE: u64 = 2 << 20;

/// Everything a version 5.1 state holds beside its [`MicrovmState`](crate::MicrovmState).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// This snapshot.
    pub identity: SnapshotId,
    /// The snapshot a diff continues.
    pub parent: Option<SnapshotId>,
    /// Its memory file.
    pub memory: MemoryRecord,
    /// The rest of the machine.
    pub machine: MachineRecord,
}

/// The parts of a machine that version 5.0 has no place for. Filled by the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineRecord {
    /// One per vCPU, in the order of [`MicrovmState::vcpu_states`](crate::MicrovmState::vcpu_states).
    pub vcpus: Vec<VcpuRecord>,
    /// The host it was captured on.
    pub host: HostRecord,
    /// Time.
    pub clock: ClockRecord,
    /// Anything else, by name, opaque to this crate.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

/// State of one vCPU outside its registers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VcpuRecord {
    /// GIC CPU interface (ICC_PMR_EL1, ICC_CTLR_EL1, ...) by the 16-bit encoding `op0<<14 | op1<<11 | CRn<<7 | CRm<<3 |
    /// op2`. The GIC blob does not hold these.
    pub icc_regs: BTreeMap<u16, u64>,
    /// Host counter minus guest counter.
    pub vtimer_offset: u64,
    /// Whether virtual timer exits are masked.
    pub vtimer_masked: bool,
    /// IRQ line pending.
    pub pending_irq: bool,
    /// FIQ line pending.
    pub pending_fiq: bool,
    /// Whether debug exceptions exit to the host.
    pub trap_debug_exceptions: bool,
    /// Whether debug register accesses exit to the host.
    pub trap_debug_reg_accesses: bool,
    /// Anything else of this vCPU (emulated PMU, SME state, ...), by name.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

/// What a snapshot depends on; a restore compares it with the host it finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRecord {
    /// Operating system, such as `macos` or `linux`.
    pub os: String,
    /// Its build.
    pub os_build: String,
    /// The processor's name.
    pub cpu: String,
    /// Program and version that wrote the snapshot.
    pub vmm: String,
    /// Frequency of the guest's counter in Hz (CNTFRQ_EL0).
    pub counter_frequency: u64,
}

/// How guest time relates to the world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClockMode {
    /// The counter follows the host's.
    #[default]
    Host,
    /// The counter follows the number of executed instructions.
    Deterministic,
}

/// Time at the moment of the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClockRecord {
    /// Wall clock, in nanoseconds since 1970-01-01 UTC.
    pub wall_clock_ns: u64,
    /// The guest's CNTVCT_EL0.
    pub guest_counter: u64,
    /// How the counter runs.
    pub mode: ClockMode,
    /// Instructions executed so far, in deterministic mode.
    pub instructions: u64,
}

/// What the memory file holds and how to check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRecord {
    /// Guest physical address of the first byte.
    pub ram_start: u64,
    /// Bytes of RAM, and length of the memory file.
    pub ram_size: u64,
    /// The pages of a diff; `None` for a full snapshot.
    pub pages: Option<PageSet>,
    /// Checksums, block by block.
    pub sums: BlockSums,
}

impl MemoryRecord {
    /// Whether only some pages are in the file.
    #[must_use]
    pub fn is_diff(&self) -> bool {
        self.pages.is_some()
    }

    /// Byte ranges of block `block` that the file holds: what its checksum covers, in ascending order.
    #[must_use]
    pub fn ranges_in_block(&self, block: u64) -> Vec<Range<u64>> {
        self.ranges_within(self.sums.block_range(block, self.ram_size))
    }

    /// Byte ranges within `range` that the file holds, in ascending order.
    #[must_use]
    pub fn ranges_within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.held_within(range).collect()
    }

    /// As [`Self::ranges_within`], one after the other, without an allocation.
    pub fn held_within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let all = self.pages.is_none().then(|| range.clone());
        all.into_iter().chain(self.pages.iter().flat_map(move |pages| byte_ranges(pages, range.clone())))
    }
}

/// Byte ranges of `pages` within `range`.
pub(crate) fn byte_ranges(pages: &PageSet, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let size = pages.page_size();
    let (first, end) = (range.start / size, range.end.div_ceil(size));
    pages.runs_within(first, end).map(move |(at, count)| {
        (at * size).max(range.start)..(at.saturating_add(count)).saturating_mul(size).min(range.end)
    })
}

/// Checksums (CRC-64/NVME) of a memory file, one per block of [`BlockSums::block_size`] bytes.
///
/// A block without one is all zero in a full snapshot and holds no page in a diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSums {
    block_size: u64,
    /// One bit per block: has a checksum.
    present: Vec<u64>,
    /// For each word of `present`, checksums before it.
    rank: Vec<u32>,
    sums: Vec<u64>,
}

impl BlockSums {
    /// From `(block, checksum)` in ascending order.
    pub(crate) fn new(block_size: u64, block_count: u64, sums: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut present = vec![0u64; block_count.div_ceil(64) as usize];
        let mut values = Vec::new();
        for (block, sum) in sums {
            present[(block / 64) as usize] |= 1 << (block % 64);
            values.push(sum);
        }
        Self::from_parts(block_size, present, values)
    }

    fn from_parts(block_size: u64, present: Vec<u64>, sums: Vec<u64>) -> Self {
        let mut before = 0;
        let rank = present
            .iter()
            .map(|word| {
                let here = before;
                before += word.count_ones();
                here
            })
            .collect();
        Self { block_size, present, rank, sums }
    }

    /// Bytes per checksum, a power of two.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// The checksum of a block, if it has one.
    #[must_use]
    pub fn get(&self, block: u64) -> Option<u64> {
        let index = usize::try_from(block / 64).ok()?;
        let word = *self.present.get(index)?;
        let bit = 1u64 << (block % 64);
        if word & bit == 0 {
            return None;
        }
        let position = self.rank[index] + (word & (bit - 1)).count_ones();
        self.sums.get(position as usize).copied()
    }

    /// `(block, checksum)` of every block that has one, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let blocks =
            self.present.iter().enumerate().flat_map(|(i, &word)| {
                (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i as u64 * 64 + bit)
            });
        blocks.zip(self.sums.iter().copied())
    }

    /// Bytes that block `block` covers.
    #[must_use]
    pub fn block_range(&self, block: u64, ram_size: u64) -> Range<u64> {
        let start = block.saturating_mul(self.block_size).min(ram_size);
        start..start.saturating_add(self.block_size).min(ram_size)
    }
}

impl SnapshotRecord {
    /// The bytes that go into the state file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads what [`SnapshotRecord::to_bytes`] wrote. Never allocates more than a small multiple of `bytes.len()`.
    ///
    /// # Errors
    /// [`SnapshotError::Record`] saying what is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        codec::decode(bytes)
    }
}

/// Checks a checksum block size: a power of two from 4 KiB to 2 MiB.
pub(crate) fn check_block_size(block_size: u64) -> Result<()> {
    if block_size.is_power_of_two() && (4096..=DEFAULT_BLOCK_SIZE).contains(&block_size) {
        return Ok(());
    }
    Err(SnapshotError::InvalidPath(format!("checksum block must be a power of two from 4 KiB to 2 MiB: {block_size}")))
}
