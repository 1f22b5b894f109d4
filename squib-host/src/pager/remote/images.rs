//! What a page server gives out: one memory file, or those of a chain, layer by layer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use squib_snapshot::digest::checksum;
use squib_snapshot::{Chain, MemoryRecord, SnapshotId};
use zerocopy::little_endian::{U32, U64};

use super::protocol::{self, GRANULE, PAGE, Segment, code};
use super::sums::{CHUNK, Joiner};
use crate::error::{Error, Result};
use crate::files;
use crate::memory::is_hole;

/// Why a request cannot be met: the code and the text of an ERROR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) text: String,
}

/// Memory files, open for reading, and what is known of them.
#[derive(Debug)]
pub struct Images {
    layers: Vec<Layer>,
    ram_size: u64,
}

#[derive(Debug)]
struct Layer {
    file: File,
    path: PathBuf,
    identity: SnapshotId,
    /// What the state says; without it the layer is taken to hold everything.
    memory: Option<MemoryRecord>,
    /// Checksums of pages, by chunks of [`CHUNK`], once they were asked for.
    sums: Vec<OnceLock<Box<[u64]>>>,
}

impl Images {
    /// A full memory file whose state is not at hand. Clients that check every page use it, others do not.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be opened; [`Error::Config`] if it is not a file with something in it.
    pub fn memory_file(path: &Path) -> Result<Images> {
        let file = files::open(File::options().read(true), "open the memory file", path)?;
        let examined = file.metadata();
        let failed = |source| Error::File { action: "examine the memory file", path: path.to_owned(), source };
        let len = examined.map_err(failed)?.len();
        if len == 0 {
            return Err(Error::Config(format!("{} is not a memory file: it is empty", path.display())));
        }
        let layer = Layer::new(file, path, SnapshotId([0; 16]), None, len);
        Ok(Images { layers: vec![layer], ram_size: len })
    }

    /// The memory files of a chain, or of the single full snapshot that it is.
    ///
    /// # Errors
    /// [`Error::System`] if a file cannot be kept open; [`Error::Config`] if a diff's pages are smaller than 4 KiB.
    pub fn chain(chain: &Chain) -> Result<Images> {
        let ram_size = chain.ram_size();
        let layer = |pair: &squib_snapshot::Pair| {
            let state = pair.state_file();
            let path = pair.memory_path();
            let memory = state.record().map(|record| record.memory.clone());
            if state.pages().is_some_and(|pages| !pages.page_size().is_multiple_of(GRANULE)) {
                let text = "is a diff of pages below 4 KiB, which cannot be served: merge the chain (squib merge)";
                return Err(Error::Config(format!("{} {text}", path.display())));
            }
            let open = |source| Error::System { action: format!("keep {} open", path.display()), source };
            let file = pair.memory_file().try_clone().map_err(open)?;
            Ok(Layer::new(file, path, state.identity(), memory, ram_size))
        };
        Ok(Images { layers: chain.links().iter().map(layer).collect::<Result<_>>()?, ram_size })
    }

    /// Bytes of RAM.
    pub fn ram_size(&self) -> u64 {
        self.ram_size
    }

    /// Identities, base first; zeros for a memory file without a state.
    pub fn identities(&self) -> Vec<SnapshotId> {
        self.layers.iter().map(|layer| layer.identity).collect()
    }

    fn layer(&self, layer: U32) -> Result<&Layer, Refusal> {
        let refusal = || Refusal {
            code: code::RANGE,
            text: format!("there is no layer {layer}: {} are served", self.layers.len()),
        };
        self.layers.get(layer.get() as usize).ok_or_else(refusal)
    }

    /// Reads what the ranges of a READ ask for: segments, and the bytes of those that are not zero.
    pub(super) fn read(&self, ranges: &[protocol::Range]) -> Result<(Vec<Segment>, Vec<u8>), Refusal> {
        let total: u64 = ranges.iter().map(|range| u64::from(range.len.get())).sum();
        if total > u64::from(protocol::MAX_READ) {
            let text = format!("READ of {total} bytes: at most {} are given at once", protocol::MAX_READ);
            return Err(Refusal { code: code::MALFORMED, text });
        }
        for range in ranges {
            self.check(range)?;
        }
        let (mut segments, mut bytes) = (Vec::new(), Vec::with_capacity(total as usize));
        for range in ranges {
            self.layer(range.layer)?.read(range, &mut segments, &mut bytes)?;
        }
        Ok((segments, bytes))
    }

    /// Whether a range is inside RAM, aligned, and held by its layer.
    fn check(&self, range: &protocol::Range) -> Result<(), Refusal> {
        let (offset, len) = (range.offset.get(), u64::from(range.len.get()));
        let end = offset.checked_add(len).filter(|end| *end <= self.ram_size && len > 0);
        let Some(end) =
            end.filter(|end| offset.is_multiple_of(GRANULE) && (len.is_multiple_of(GRANULE) || *end == self.ram_size))
        else {
            let size = self.ram_size;
            let text = format!("{len} bytes at {offset:#x} are misaligned or not inside the {size} bytes of RAM");
            return Err(Refusal { code: code::RANGE, text });
        };
        let layer = self.layer(range.layer)?;
        let held = |memory: &MemoryRecord| match &memory.ranges_within(offset..end)[..] {
            [all] => *all == (offset..end),
            _ => false,
        };
        if layer.memory.as_ref().is_none_or(held) {
            return Ok(());
        }
        let text = format!("snapshot {} is a diff that does not hold {offset:#x}..{end:#x}", layer.identity);
        Err(Refusal { code: code::NOT_HELD, text })
    }

    /// Checksums of the pages that a SUMS asks for.
    pub(super) fn sums(&self, sums: &protocol::Sums) -> Result<Vec<U64>, Refusal> {
        let layer = self.layer(sums.layer)?;
        let pages = self.ram_size.div_ceil(PAGE);
        let end = sums.first.get().checked_add(u64::from(sums.count.get())).filter(|end| *end <= pages);
        let Some(end) = end else {
            let text = format!("{} pages from page {} on: RAM has {pages}", sums.count, sums.first);
            return Err(Refusal { code: code::RANGE, text });
        };
        let per_chunk = CHUNK / PAGE;
        let mut out = Vec::with_capacity(sums.count.get() as usize);
        for page in sums.first.get()..end {
            let chunk = layer.chunk(page / per_chunk, self.ram_size)?;
            out.push(U64::new(chunk[(page % per_chunk) as usize]));
        }
        Ok(out)
    }
}

impl Layer {
    fn new(file: File, path: &Path, identity: SnapshotId, memory: Option<MemoryRecord>, ram_size: u64) -> Layer {
        let sums = (0..ram_size.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Layer { file, path: path.to_owned(), identity, memory, sums }
    }

    fn pread(&self, offset: u64, buf: &mut [u8]) -> Result<(), Refusal> {
        let path = self.path.display();
        self.file.read_exact_at(buf, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Refusal {
                code: code::DAMAGED,
                text: format!("the memory file {path} has been cut short: nothing is at {offset:#x}"),
            },
            _ => Refusal { code: code::IO, text: format!("cannot read the memory file {path}: {e}") },
        })
    }

    /// Appends a range: holes as zeros without reading them, the rest as bytes.
    fn read(&self, range: &protocol::Range, segments: &mut Vec<Segment>, bytes: &mut Vec<u8>) -> Result<(), Refusal> {
        let end = range.offset.get() + u64::from(range.len.get());
        let mut at = range.offset.get();
        while at < end {
            let hole = self.is_hole(at, end);
            let mut stop = (at / PAGE + 1) * PAGE;
            while stop < end && self.is_hole(stop, end) == hole {
                stop += PAGE;
            }
            let stop = stop.min(end);
            let len = (stop - at) as u32;
            if hole {
                segments.push(Segment { kind: U32::ZERO, len: U32::new(len), checksum: U64::ZERO });
            } else {
                let from = bytes.len();
                bytes.resize(from + len as usize, 0);
                self.pread(at, &mut bytes[from..])?;
                let checksum = U64::new(checksum(&bytes[from..]));
                segments.push(Segment { kind: U32::new(1), len: U32::new(len), checksum });
            }
            at = stop;
        }
        Ok(())
    }

    /// Whether the page at `at` (as far as `end`) is a hole inside the file: beyond its end there are no zeros, but nothing.
    fn is_hole(&self, at: u64, end: u64) -> bool {
        let stop = ((at / PAGE + 1) * PAGE).min(end);
        is_hole(&self.file, at, stop - at) && self.file.metadata().is_ok_and(|data| data.len() >= stop)
    }

    /// Checksums of the pages of one chunk, compared with the state's where there is one.
    fn chunk(&self, chunk: u64, ram_size: u64) -> Result<&[u64], Refusal> {
        let cell = &self.sums[chunk as usize];
        if let Some(sums) = cell.get() {
            return Ok(sums);
        }
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(ram_size);
        let mut sums = Vec::new();
        let mut page = Vec::with_capacity(PAGE as usize);
        for start in range.clone().step_by(PAGE as usize) {
            let end = (start + PAGE).min(range.end);
            page.clear();
            let mut take = |part: std::ops::Range<u64>| {
                let from = page.len();
                page.resize(from + (part.end - part.start) as usize, 0);
                self.pread(part.start, &mut page[from..])
            };
            match &self.memory {
                Some(memory) => memory.ranges_within(start..end).into_iter().try_for_each(take)?,
                None => take(start..end)?,
            }
            sums.push(checksum(&page));
        }
        self.check(range, &sums)?;
        Ok(cell.get_or_init(|| sums.into()))
    }

    /// Compares checksums of a chunk's pages with the state's: a server should be the first to know that its file is damaged.
    fn check(&self, range: std::ops::Range<u64>, sums: &[u64]) -> Result<(), Refusal> {
        let Some(memory) = self.memory.as_ref().filter(|memory| memory.sums.block_size() >= PAGE) else {
            return Ok(());
        };
        let mut joiner = Joiner::default();
        for (part, sums) in sums.chunks((memory.sums.block_size() / PAGE) as usize).enumerate() {
            let block = range.start / memory.sums.block_size() + part as u64;
            let Some(expected) = memory.sums.get(block) else { continue };
            if joiner.join(memory, block, sums.iter().copied()) != expected {
                let path = self.path.display();
                let block = memory.sums.block_range(block, memory.ram_size);
                let text = format!(
                    "the memory file {path} is damaged: the bytes at {:#x}..{:#x} are not those that were saved",
                    block.start, block.end
                );
                return Err(Refusal { code: code::DAMAGED, text });
            }
        }
        Ok(())
    }
}
