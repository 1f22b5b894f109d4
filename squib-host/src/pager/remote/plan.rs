//! What has to be asked for to have a page, and whether what came is right: told by the states alone, for both ways to a server, the
//! ordinary one ([`client`](super::client)) and the quiet one ([`line`](super::line)). So nothing in here allocates, errors included.

use std::ops::Range;

use arrayvec::ArrayVec;
use squib_snapshot::digest::checksum;
use squib_snapshot::{ChainStates, MemoryRecord};
use zerocopy::little_endian::{U32, U64};

use super::protocol::{self, GRANULE, PAGE};
use super::sums::{Joiner, held_in_page, length};

/// Parts of a page that can come from different places: no layer has smaller pages than the server's granule ([`Plan::new`]).
pub(super) const PARTS: usize = (PAGE / GRANULE) as usize;

static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// What came is not what the state says, or cannot be compared with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error(
        "{what} at {start:#x}..{end:#x} are wrong: checksum {found:#018x}, the snapshot's state says {expected:#018x}"
    )]
    Sum { what: &'static str, start: u64, end: u64, found: u64, expected: u64 },
    #[error("the checksums of a block are missing")]
    NoSums,
    #[error("layer {0} has no record")]
    NoRecord(usize),
}

fn compare(what: &'static str, range: Range<u64>, found: u64, expected: u64) -> Result<(), Wrong> {
    match found == expected {
        true => Ok(()),
        false => Err(Wrong::Sum { what, start: range.start, end: range.end, found, expected }),
    }
}

/// Part of a page that one layer gives.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) layer: usize,
    pub(super) page: u64,
    /// What the layer holds of the page: all of it is fetched, so that it can be checked.
    pub(super) held: ArrayVec<Range<u64>, PARTS>,
}

impl Piece {
    /// Bytes to be fetched.
    pub(super) fn len(&self) -> u64 {
        length(self.held.iter().cloned())
    }

    /// What a READ asks for.
    pub(super) fn ranges(&self) -> impl Iterator<Item = protocol::Range> + '_ {
        self.held.iter().map(|part| protocol::Range {
            layer: U32::new(self.layer as u32),
            len: U32::new((part.end - part.start) as u32),
            offset: U64::new(part.start),
        })
    }
}

/// Which layer gives what, and the checksums of it.
#[derive(Debug)]
pub(super) struct Plan {
    states: ChainStates,
    /// Whether what comes is compared with the states.
    verify: bool,
}

impl Plan {
    /// For a snapshot that a page server can give out. The error says what to do about one that it cannot.
    pub(super) fn new(states: ChainStates, verify: bool) -> Result<Plan, String> {
        for (layer, link) in states.links().iter().enumerate() {
            let Some(memory) = states.memory(layer) else { return Err(Wrong::NoRecord(layer).to_string()) };
            if memory.pages.as_ref().is_some_and(|pages| !pages.page_size().is_multiple_of(GRANULE)) {
                let text = "is a diff of pages below 4 KiB, which cannot be served: merge the chain (squib merge)";
                return Err(format!("{} {text}", link.path().display()));
            }
        }
        Joiner::prepare();
        Ok(Plan { states, verify })
    }

    pub(super) fn states(&self) -> &ChainStates {
        &self.states
    }

    fn memory(&self, layer: usize) -> Result<&MemoryRecord, Wrong> {
        self.states.memory(layer).ok_or(Wrong::NoRecord(layer))
    }

    /// Blocks of a layer for which the checksums of their pages are needed.
    pub(super) fn blocks(&self, layer: usize) -> u64 {
        match self.states.memory(layer) {
            Some(memory) if self.verify && memory.sums.block_size() > PAGE => {
                self.states.ram_size().div_ceil(memory.sums.block_size())
            }
            _ => 0,
        }
    }

    /// Which layers hold what of `[offset, end)`, which lies in one page. What is known to be zero is left out.
    pub(super) fn pieces(&self, offset: u64, end: u64) -> Result<ArrayVec<Piece, PARTS>, Wrong> {
        let mut pieces: ArrayVec<Piece, PARTS> = ArrayVec::new();
        let (mut at, page) = (offset, offset / PAGE);
        while at < end {
            let zero = self.states.known_zero(at, end);
            if zero > at {
                at = zero;
                continue;
            }
            let (layer, stop) = self.states.locate(at, end);
            // A layer may come twice in one page: before and after a smaller page of another.
            if !pieces.iter().any(|piece| piece.layer == layer) {
                // Neither array overflows: layers, and runs of pages of a layer, change at multiples of the granule.
                pieces.push(Piece { layer, page, held: held_in_page(self.memory(layer)?, page).collect() });
            }
            at = stop;
        }
        Ok(pieces)
    }

    /// The block of a piece, if the checksums of its pages are needed; blocks of a page or less are checked directly.
    pub(super) fn block(&self, piece: &Piece) -> Result<Option<u64>, Wrong> {
        let size = self.memory(piece.layer)?.sums.block_size();
        Ok((self.verify && size > PAGE).then(|| piece.page * PAGE / size))
    }

    /// What asks for the checksums of a block's pages.
    pub(super) fn sums_request(&self, layer: usize, block: u64) -> Result<protocol::Sums, Wrong> {
        let range = self.memory(layer)?.sums.block_range(block, self.states.ram_size());
        let (first, count) = (range.start / PAGE, (range.end - range.start).div_ceil(PAGE) as u32);
        Ok(protocol::Sums { layer: U32::new(layer as u32), count: U32::new(count), first: U64::new(first) })
    }

    /// Whether checksums of a block's pages, joined, are the one in the state.
    pub(super) fn check_sums(&self, layer: usize, block: u64, sums: impl Iterator<Item = u64>) -> Result<(), Wrong> {
        let memory = self.memory(layer)?;
        let found = Joiner::default().join(memory, block, sums);
        // A block of a full snapshot without checksum is zero, and never asked for; one of a diff holds nothing.
        let expected = memory.sums.get(block).unwrap_or(0);
        let range = memory.sums.block_range(block, self.states.ram_size());
        compare("the checksums of the pages", range, found, expected)
    }

    /// Of the checksums of a block's pages, that of a piece.
    pub(super) fn sum(&self, piece: &Piece, block: u64, sums: &[u64]) -> Result<u64, Wrong> {
        let first = block * self.memory(piece.layer)?.sums.block_size() / PAGE;
        sums.get((piece.page - first) as usize).copied().ok_or(Wrong::NoSums)
    }

    /// Compares what a layer holds of a page with its checksum: with `sum` where there is a [`Plan::block`].
    pub(super) fn check(&self, piece: &Piece, bytes: &[u8], sum: Option<u64>) -> Result<(), Wrong> {
        if !self.verify {
            return Ok(());
        }
        let (memory, size) = (self.memory(piece.layer)?, self.states.ram_size());
        let page = piece.page * PAGE..((piece.page + 1) * PAGE).min(size);
        if memory.sums.block_size() > PAGE {
            return compare("the bytes", page, checksum(bytes), sum.ok_or(Wrong::NoSums)?);
        }
        // Blocks of a page or less: what the layer holds of each is right here.
        let (mut at, mut rest) = (page.start, bytes);
        while at < page.end {
            let block = at / memory.sums.block_size();
            let range = memory.sums.block_range(block, size);
            let (part, after) = rest.split_at(length(memory.held_within(range.clone())) as usize);
            // A block without checksum is zero.
            let expected = memory.sums.get(block).unwrap_or_else(|| checksum(&ZEROS[..part.len()]));
            compare("the bytes", range.clone(), checksum(part), expected)?;
            (at, rest) = (range.end, after);
        }
        Ok(())
    }

    /// Copies what a piece gives to its place in `buf`, which begins at `offset` of RAM.
    pub(super) fn place(&self, piece: &Piece, bytes: &[u8], offset: u64, buf: &mut [u8]) {
        let end = offset + buf.len() as u64;
        let mut from = 0;
        for held in &piece.held {
            let (mut at, stop) = (held.start.max(offset), held.end.min(end));
            while at < stop {
                let (layer, next) = self.states.locate(at, stop);
                if layer == piece.layer {
                    let source = from + (at - held.start) as usize;
                    let len = (next - at) as usize;
                    buf[(at - offset) as usize..][..len].copy_from_slice(&bytes[source..source + len]);
                }
                at = next;
            }
            from += (held.end - held.start) as usize;
        }
    }
}
