//! RAM from a page server, every page of it checked against the snapshot's state before anyone sees it.
//!
//! A state has a checksum per block of up to 2 MiB. The first page of a block costs one more request, sent along with it: the
//! checksums of all pages of the block, which joined must be the block's. From then on each page is checked alone. The threads of the
//! pager's net, who may not wait for a connection that others use, have [`line`](super::line)s.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use squib_snapshot::ChainStates;
use zerocopy::IntoBytes;

use super::line::Lines;
use super::link::{Connection, Fault, Link, Sent, Target};
use super::plan::{Piece, Plan, Wrong};
use super::protocol::{self, Hello, MAX_RANGES, PAGE, Range, VERSION, code, kind};
use crate::pager::{Origin, PageSource, SourceError, Unexplained, net};

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
    /// As `patience`, for a page that code of this process touched without asking for it first. It cannot be told an error: the process
    /// ends as with any other bad address.
    pub exception_patience: Duration,
    /// Whether every page is compared with the state's checksums. Without that a server's word is taken.
    pub verify: bool,
}

impl RemoteConfig {
    /// 5 s for each answer, 10 s for each read, 60 s where an error would end the process; every page checked.
    pub fn new(path: impl Into<PathBuf>) -> RemoteConfig {
        let (answer_timeout, patience) = (Duration::from_secs(5), Duration::from_secs(10));
        let exception_patience = Duration::from_secs(60);
        RemoteConfig { path: path.into(), answer_timeout, patience, exception_patience, verify: true }
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
    plan: Plan,
    link: Arc<Link>,
    /// For the threads of the pager's net.
    lines: Lines,
    /// Bytes of answers that came by the lines.
    received_quietly: AtomicU64,
    /// For each layer and block: checksums of its pages, once they are known to be right.
    sums: Vec<Vec<PageSums>>,
}

/// Checksums of the pages of one block.
type PageSums = OnceLock<Box<[u64]>>;

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
    /// [`SourceError::Unavailable`] saying which server and why; [`SourceError::Damaged`] for a diff of pages below 4 KiB, which no
    /// server gives out.
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
        let layers = states.links().len();
        let plan = Plan::new(states, config.verify).map_err(SourceError::Damaged)?;
        let sums = (0..layers).map(|layer| (0..plan.blocks(layer)).map(|_| OnceLock::new()).collect()).collect();
        let link = Link::new(target.clone());
        // The thread that connects keeps to the time; this is for a connect that blocks.
        let deadline = Instant::now() + 3 * config.answer_timeout;
        link.connect(deadline).map_err(|why| unavailable(&config, &why))?;
        let lines = Lines::new(target, config.exception_patience, net::THREADS);
        let lines = lines.map_err(|why| unavailable(&config, &why.to_string()))?;
        Ok(RemoteSource { config, plan, link, lines, received_quietly: AtomicU64::new(0), sums })
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
        self.link.received.load(Ordering::Relaxed) + self.received_quietly.load(Ordering::Relaxed)
    }

    fn unavailable(&self, why: &str) -> SourceError {
        unavailable(&self.config, why)
    }

    fn damaged(&self, why: &str) -> SourceError {
        SourceError::Damaged(format!("page server {}: {why}", self.config.path.display()))
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
            all_zero &= protocol::decode_data(&answer, &mut bytes).map_err(|why| garbage(connection, why.into()))?;
            let mut rest = &bytes[..];
            for piece in &pieces[batch] {
                let (part, after) = rest.split_at(piece.len() as usize);
                rest = after;
                let sum = match self.cell(piece)? {
                    Some((block, cell)) => {
                        Some(self.plan.sum(piece, block, cell.get().map_or(&[][..], |sums| &sums[..]))?)
                    }
                    None => None,
                };
                self.plan.check(piece, part, sum)?;
                self.plan.place(piece, part, offset, buf);
            }
        }
        Ok(if all_zero { Origin::Zero } else { Origin::Server })
    }

    /// Which layers hold what of `[offset, end)`, page by page. What is known to be zero is left out.
    fn pieces(&self, offset: u64, end: u64) -> Result<Vec<Piece>, Fault> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = self.plan.states().known_zero(offset, end);
        while at < end {
            let stop = end.min((at / PAGE + 1) * PAGE);
            pieces.extend(self.plan.pieces(at, stop)?);
            at = self.plan.states().known_zero(stop, end);
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
            let request = self.plan.sums_request(piece.layer, block)?;
            let count = request.count.get();
            let sent = connection.send(kind::SUMS, request.as_bytes(), kind::SUMS_DATA, count * 8)?;
            asked.push(SumsSent { layer: piece.layer, block, count, sent });
        }
        Ok(asked)
    }

    /// The block of a piece, and where the checksums of its pages are kept; `None` where blocks are checked directly, or nothing is.
    fn cell(&self, piece: &Piece) -> Result<Option<(u64, &PageSums)>, Fault> {
        let block = self.plan.block(piece)?;
        Ok(block.and_then(|block| Some((block, self.sums.get(piece.layer)?.get(block as usize)?))))
    }

    /// Takes the checksums of a block's pages if joined they are the one in the state.
    fn take_sums(&self, connection: &Connection, asked: &SumsSent) -> Result<(), Fault> {
        let body = connection.wait(&asked.sent)?;
        let Some(sums) = protocol::decode_sums_data(&body, asked.count) else {
            return Err(garbage(connection, format!("checksums of {} pages in {} bytes", asked.count, body.len())));
        };
        let sums: Box<[u64]> = sums.iter().map(|sum| sum.get()).collect();
        self.plan.check_sums(asked.layer, asked.block, sums.iter().copied())?;
        // Another thread may have been here first, with the same.
        let _ = self.sums[asked.layer][asked.block as usize].set(sums);
        Ok(())
    }

    fn ask_ranges(&self, connection: &Connection, pieces: &[Piece]) -> Result<(Sent, u32), Fault> {
        let mut ranges: Vec<Range> = Vec::new();
        for range in pieces.iter().flat_map(Piece::ranges) {
            match ranges.last_mut() {
                Some(last) if last.layer == range.layer && last.offset + u64::from(last.len) == range.offset => {
                    last.len += range.len;
                }
                _ => ranges.push(range),
            }
        }
        let len = ranges.iter().map(|range| range.len.get()).sum();
        let sent = connection.send(kind::READ, ranges.as_bytes(), kind::DATA, protocol::data_limit(len))?;
        Ok((sent, len))
    }
}

impl From<Wrong> for Fault {
    fn from(wrong: Wrong) -> Fault {
        Fault::Wrong(wrong.to_string())
    }
}

fn unavailable(config: &RemoteConfig, why: &str) -> SourceError {
    SourceError::Unavailable(format!("page server {}: {why}", config.path.display()))
}

/// A server that sends what cannot be read is given up: what follows would be no better.
fn garbage(connection: &Connection, why: String) -> Fault {
    connection.fail(why.clone());
    Fault::Lost(why)
}

/// Groups of pieces that fit into one READ each.
fn batches(pieces: &[Piece], max_read: u32) -> Vec<std::ops::Range<usize>> {
    let mut batches: Vec<std::ops::Range<usize>> = Vec::new();
    let (mut bytes, mut ranges) = (0, 0);
    for (n, piece) in pieces.iter().enumerate() {
        (bytes, ranges) = (bytes + piece.len(), ranges + piece.held.len());
        match batches.last_mut() {
            Some(batch) if bytes <= u64::from(max_read) && ranges <= MAX_RANGES => batch.end = n + 1,
            _ => {
                batches.push(n..n + 1);
                (bytes, ranges) = (piece.len(), piece.held.len());
            }
        }
    }
    batches
}

impl PageSource for RemoteSource {
    fn size(&self) -> u64 {
        self.plan.states().ram_size()
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
                Err(Fault::Refused(code::DAMAGED, why)) => return Err(self.damaged(&why)),
                Err(Fault::Refused(code::IO, why)) => {
                    refused = Some((false, why));
                    std::thread::sleep(PAUSE);
                }
                // One that does not have what the states say it has, or answers what nobody has heard of, serves something else.
                Err(Fault::Wrong(why) | Fault::Refused(_, why)) => {
                    // Whoever comes next may be another server.
                    connection.fail(why.clone());
                    refused = Some((true, why));
                    std::thread::sleep(PAUSE);
                }
            }
        }
        Ok(origin)
    }

    fn read_quietly(&self, offset: u64, buf: &mut [u8]) -> Result<Origin, Unexplained> {
        // The lines of a forked child are its parent's.
        if self.link.is_inherited() {
            return Err(Unexplained);
        }
        // Checksums that the ordinary client was given. Looking for them takes no lock; setting them might, and is left to it.
        let known = |layer: usize, block: u64| {
            let cell: &PageSums = self.sums.get(layer)?.get(block as usize)?;
            cell.get().map(|sums| &sums[..])
        };
        let (origin, received) = self.lines.read(&self.plan, &known, offset, buf)?;
        self.received_quietly.fetch_add(received, Ordering::Relaxed);
        Ok(origin)
    }

    fn known_zero(&self, offset: u64, len: u64) -> u64 {
        self.plan.states().known_zero(offset, offset.saturating_add(len)) - offset
    }
}

impl Drop for RemoteSource {
    fn drop(&mut self) {
        self.link.close();
    }
}
