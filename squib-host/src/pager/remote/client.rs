//! RAM from a page server, every page of it checked against the snapshot's state before anyone sees it.
//!
//! A state has a checksum per block of up to 2 MiB. The first page of a block costs one more request, sent along with it: the
//! checksums of all pages of the block, which joined must be the block's. From then on each page is checked alone.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use squib_snapshot::digest::checksum;
use squib_snapshot::{ChainStates, MemoryRecord};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::link::{Connection, Fault, Link, Sent, Target};
use super::protocol::{self, Hello, MAX_RANGES, Malformed, PAGE, Range, VERSION, code, kind};
use super::sums::{Joiner, held_in_page};
use crate::pager::{Origin, PageSource, SourceError};

/// How a server that refuses for now is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// How to reach a page server, and how patient to be with it.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Its socket.
    pub path: PathBuf,
    /// For connecting, and for each answer; then the connection is given up and the request asked again on a new one.
    pub answer_timeout: Duration,
    /// For one read, over all connections; then it fails with [`SourceError::Unavailable`], or with [`SourceError::Wrong`] if the
    /// server gave wrong bytes last.
    pub patience: Duration,
    /// Whether every page is compared with the state's checksums. Without that a server's word is taken.
    pub verify: bool,
}

impl RemoteConfig {
    /// 5 s for each answer, 10 s for each read, every page checked.
    pub fn new(path: impl Into<PathBuf>) -> RemoteConfig {
        let (answer_timeout, patience) = (Duration::from_secs(5), Duration::from_secs(10));
        RemoteConfig { path: path.into(), answer_timeout, patience, verify: true }
    }
}

/// RAM from a page server.
///
/// ```no_run
/// use squib_host::pager::{PageSource, RemoteConfig, RemoteSource};
/// use squib_snapshot::ChainStates;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let states = ChainStates::open("vm.state".as_ref(), &[] as &[&str])?;
/// let source = RemoteSource::connect(RemoteConfig::new("pages.sock"), states)?;
/// let mut page = vec![0; 16384];
/// source.read(0, &mut page)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RemoteSource {
    config: RemoteConfig,
    states: ChainStates,
    link: Arc<Link>,
    /// For each layer and block: checksums of its pages, once they are known to be right.
    sums: Vec<Vec<PageSums>>,
}

/// Checksums of the pages of one block.
type PageSums = OnceLock<Box<[u64]>>;

/// Part of a page that one layer gives.
struct Piece {
    layer: usize,
    page: u64,
    /// What the layer holds of the page: all of it is fetched, so that it can be checked.
    held: Vec<std::ops::Range<u64>>,
}

/// SUMS on the way.
struct SumsSent {
    layer: usize,
    block: u64,
    count: u32,
    sent: Sent,
}

impl RemoteSource {
    /// Connects. Fails at once if the server is not there, or serves something else.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] saying which server and why.
    pub fn connect(config: RemoteConfig, states: ChainStates) -> Result<RemoteSource, SourceError> {
        let target = Target {
            path: config.path.clone(),
            hello: Hello {
                versions: (VERSION, VERSION),
                ram_size: states.ram_size(),
                layers: states.identities().collect(),
            },
            accept_unnamed: config.verify,
            answer_timeout: config.answer_timeout,
        };
        let blocks = |layer| match states.memory(layer) {
            Some(memory) if config.verify && memory.sums.block_size() > PAGE => {
                states.ram_size().div_ceil(memory.sums.block_size())
            }
            _ => 0,
        };
        let sums =
            (0..states.links().len()).map(|layer| (0..blocks(layer)).map(|_| OnceLock::new()).collect()).collect();
        let source = RemoteSource { link: Link::new(target), config, states, sums };
        // The thread that connects keeps to the time; this is for a connect that blocks.
        let deadline = Instant::now() + 3 * source.config.answer_timeout;
        source.link.connect(deadline).map_err(|why| source.unavailable(&why))?;
        Ok(source)
    }

    /// Waits until the server is there and serves what it should, at most `timeout`.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] saying what went wrong last.
    pub fn wait_for_server(&self, timeout: Duration) -> Result<(), SourceError> {
        let connection = self.link.connection(Instant::now() + timeout, true);
        connection.map(drop).map_err(|why| self.unavailable(&why))
    }

    /// Bytes of answers so far.
    pub fn bytes_received(&self) -> u64 {
        self.link.received.load(Ordering::Relaxed)
    }

    fn unavailable(&self, why: &str) -> SourceError {
        SourceError::Unavailable(format!("page server {}: {why}", self.config.path.display()))
    }

    fn damaged(&self, why: &str) -> SourceError {
        SourceError::Damaged(format!("page server {}: {why}", self.config.path.display()))
    }

    fn memory(&self, layer: usize) -> Result<&MemoryRecord, Fault> {
        self.states.memory(layer).ok_or_else(|| Fault::Wrong(format!("layer {layer} has no record")))
    }

    /// One attempt at a part of RAM that is at most as long as one READ may be.
    fn fetch(&self, connection: &Connection, offset: u64, buf: &mut [u8]) -> Result<Origin, Fault> {
        let pieces = self.pieces(offset, offset + buf.len() as u64)?;
        buf.fill(0);
        if pieces.is_empty() {
            return Ok(Origin::Zero);
        }
        let asked = self.ask_sums(connection, &pieces)?;
        let batches = batches(&pieces, connection.max_read());
        let mut sent = Vec::with_capacity(batches.len());
        for batch in &batches {
            sent.push(self.ask_ranges(connection, &pieces[batch.clone()])?);
        }
        for sums in asked {
            self.take_sums(connection, &sums)?;
        }
        let mut all_zero = true;
        for (batch, (sent, len)) in batches.into_iter().zip(sent) {
            let mut bytes = vec![0; len as usize];
            let answer = connection.wait(&sent)?;
            all_zero &= protocol::decode_data(&answer, &mut bytes).map_err(|e| garbage(connection, e))?;
            let mut rest = &bytes[..];
            for piece in &pieces[batch] {
                let (part, after) = rest.split_at(length(&piece.held) as usize);
                rest = after;
                self.check(piece, part)?;
                self.place(piece, part, offset, buf);
            }
        }
        Ok(if all_zero { Origin::Zero } else { Origin::Server })
    }

    /// Which layers hold what of `[offset, end)`, page by page. What is known to be zero is left out.
    fn pieces(&self, offset: u64, end: u64) -> Result<Vec<Piece>, Fault> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = offset;
        while at < end {
            let zero = self.states.known_zero(at, end);
            if zero > at {
                at = zero;
                continue;
            }
            let page = at / PAGE;
            let (layer, stop) = self.states.locate(at, end.min((page + 1) * PAGE));
            // A layer may come twice in one page: before and after a smaller page of another.
            if !pieces.iter().rev().take_while(|p| p.page == page).any(|p| p.layer == layer) {
                pieces.push(Piece { layer, page, held: held_in_page(self.memory(layer)?, page) });
            }
            at = stop;
        }
        Ok(pieces)
    }

    /// Asks for the checksums of all blocks that are not known yet.
    fn ask_sums(&self, connection: &Connection, pieces: &[Piece]) -> Result<Vec<SumsSent>, Fault> {
        let mut asked: Vec<SumsSent> = Vec::new();
        for piece in pieces {
            let Some((block, cell)) = self.cell(piece)? else { continue };
            if cell.get().is_some() || asked.iter().any(|a| (a.layer, a.block) == (piece.layer, block)) {
                continue;
            }
            let range = self.memory(piece.layer)?.sums.block_range(block, self.states.ram_size());
            let (first, count) = (range.start / PAGE, (range.end - range.start).div_ceil(PAGE) as u32);
            let layer = U32::new(piece.layer as u32);
            let body = protocol::Sums { layer, count: U32::new(count), first: U64::new(first) };
            let sent = connection.send(kind::SUMS, body.as_bytes(), kind::SUMS_DATA, count * 8)?;
            asked.push(SumsSent { layer: piece.layer, block, count, sent });
        }
        Ok(asked)
    }

    /// The block of a piece, and where the checksums of its pages are kept; `None` where blocks are checked directly, or nothing is.
    fn cell(&self, piece: &Piece) -> Result<Option<(u64, &PageSums)>, Fault> {
        let block = piece.page * PAGE / self.memory(piece.layer)?.sums.block_size();
        Ok(self.sums[piece.layer].get(block as usize).map(|cell| (block, cell)))
    }

    /// Takes the checksums of a block's pages if joined they are the one in the state.
    fn take_sums(&self, connection: &Connection, asked: &SumsSent) -> Result<(), Fault> {
        let body = connection.wait(&asked.sent)?;
        let sums = protocol::decode_sums_data(&body, asked.count).map_err(|e| garbage(connection, e))?;
        let memory = self.memory(asked.layer)?;
        let found = Joiner::default().join(memory, asked.block, &sums);
        // A block of a full snapshot without checksum is zero, and never asked for; one of a diff holds nothing.
        let expected = memory.sums.get(asked.block).unwrap_or(0);
        if found != expected {
            let range = memory.sums.block_range(asked.block, self.states.ram_size());
            return Err(Fault::Wrong(mismatch("the checksums of the pages", &range, found, expected)));
        }
        // Another thread may have been here first, with the same.
        let _ = self.sums[asked.layer][asked.block as usize].set(sums);
        Ok(())
    }

    fn ask_ranges(&self, connection: &Connection, pieces: &[Piece]) -> Result<(Sent, u32), Fault> {
        let mut ranges: Vec<Range> = Vec::new();
        for piece in pieces {
            for part in &piece.held {
                let (layer, len) = (piece.layer as u32, (part.end - part.start) as u32);
                match ranges.last_mut() {
                    Some(last)
                        if last.layer.get() == layer && last.offset.get() + u64::from(last.len.get()) == part.start =>
                    {
                        last.len += len;
                    }
                    _ => {
                        ranges.push(Range { layer: U32::new(layer), len: U32::new(len), offset: U64::new(part.start) })
                    }
                }
            }
        }
        let len = ranges.iter().map(|range| range.len.get()).sum();
        let sent = connection.send(kind::READ, ranges.as_bytes(), kind::DATA, protocol::data_limit(len))?;
        Ok((sent, len))
    }

    /// Compares what a layer holds of a page with its checksum.
    fn check(&self, piece: &Piece, bytes: &[u8]) -> Result<(), Fault> {
        if !self.config.verify {
            return Ok(());
        }
        let memory = self.memory(piece.layer)?;
        let compare = |range: std::ops::Range<u64>, found, expected| match found == expected {
            true => Ok(()),
            false => Err(Fault::Wrong(mismatch("the bytes", &range, found, expected))),
        };
        let page = piece.page * PAGE..((piece.page + 1) * PAGE).min(self.states.ram_size());
        if let Some((block, cell)) = self.cell(piece)? {
            let first = block * memory.sums.block_size() / PAGE;
            let known = cell.get().and_then(|sums| sums.get((piece.page - first) as usize));
            let expected = *known.ok_or_else(|| Fault::Wrong("the checksums of a block are missing".into()))?;
            return compare(page, checksum(bytes), expected);
        }
        // Blocks of a page or less: what the layer holds of each is right here.
        let (mut at, mut rest) = (page.start, bytes);
        while at < page.end {
            let block = at / memory.sums.block_size();
            let range = memory.sums.block_range(block, self.states.ram_size());
            let (part, after) = rest.split_at(length(&memory.ranges_within(range.clone())) as usize);
            // A block without checksum is zero.
            let expected = memory.sums.get(block).unwrap_or_else(|| checksum(&vec![0; part.len()]));
            compare(range.clone(), checksum(part), expected)?;
            (at, rest) = (range.end, after);
        }
        Ok(())
    }

    /// Copies what a piece gives to its place in `buf`, which begins at `offset` of RAM.
    fn place(&self, piece: &Piece, bytes: &[u8], offset: u64, buf: &mut [u8]) {
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

/// A server that sends what cannot be read is given up: what follows would be no better.
fn garbage(connection: &Connection, malformed: Malformed) -> Fault {
    connection.fail(malformed.0.clone());
    Fault::Lost(malformed.0)
}

fn mismatch(what: &str, range: &std::ops::Range<u64>, found: u64, expected: u64) -> String {
    format!(
        "{what} at {:#x}..{:#x} are wrong: checksum {found:#018x}, the snapshot's state says {expected:#018x}",
        range.start, range.end
    )
}

fn length(held: &[std::ops::Range<u64>]) -> u64 {
    held.iter().map(|range| range.end - range.start).sum()
}

/// Groups of pieces that fit into one READ each.
fn batches(pieces: &[Piece], max_read: u32) -> Vec<std::ops::Range<usize>> {
    let mut batches: Vec<std::ops::Range<usize>> = Vec::new();
    let (mut bytes, mut ranges) = (0, 0);
    for (n, piece) in pieces.iter().enumerate() {
        (bytes, ranges) = (bytes + length(&piece.held), ranges + piece.held.len());
        match batches.last_mut() {
            Some(batch) if bytes <= u64::from(max_read) && ranges <= MAX_RANGES => batch.end = n + 1,
            _ => {
                batches.push(n..n + 1);
                (bytes, ranges) = (length(&piece.held), piece.held.len());
            }
        }
    }
    batches
}

impl PageSource for RemoteSource {
    fn size(&self) -> u64 {
        self.states.ram_size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, SourceError> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size()) {
            return Err(self.damaged(&format!("{} bytes at {offset:#x} are not inside RAM", buf.len())));
        }
        let mut since = Instant::now();
        // `refused`: what the server last said or did instead of giving the bytes, and whether it gave others.
        let (mut at, mut origin, mut refused) = (0, Origin::Zero, None);
        while at < buf.len() {
            let connection = self.link.connection(since + self.config.patience, true).map_err(|why| {
                let (wrong, why) = refused.take().unwrap_or((false, why));
                match self.unavailable(&format!("{why}; tried for {:.1?}", since.elapsed())) {
                    SourceError::Unavailable(why) if wrong => SourceError::Wrong(why),
                    error => error,
                }
            })?;
            // Up to a page's end, so that no page is fetched twice.
            let start = offset + at as u64;
            let stop = ((start + u64::from(connection.max_read())) / PAGE * PAGE).max(start + 1);
            let len = (stop - start).min((buf.len() - at) as u64) as usize;
            let part = &mut buf[at..][..len];
            match self.fetch(&connection, start, part) {
                Ok(from) => {
                    at += part.len();
                    since = Instant::now();
                    origin = if from == Origin::Zero { origin } else { from };
                }
                Err(Fault::Lost(_)) => {}
                Err(Fault::Wrong(why)) => {
                    // Whoever comes next may be another server.
                    connection.fail(why.clone());
                    refused = Some((true, why));
                    std::thread::sleep(PAUSE);
                }
                Err(Fault::Refused(code::IO, why)) => {
                    refused = Some((false, why));
                    std::thread::sleep(PAUSE);
                }
                Err(Fault::Refused(_, why)) => return Err(self.damaged(&why)),
            }
        }
        Ok(origin)
    }

    fn known_zero(&self, offset: u64, len: u64) -> u64 {
        self.states.known_zero(offset, offset.saturating_add(len)) - offset
    }
}

impl Drop for RemoteSource {
    fn drop(&mut self) {
        self.link.close();
    }
}
