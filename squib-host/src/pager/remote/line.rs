//! Lines: connections of their own for the threads of the pager's net, which may neither allocate nor wait for what a stopped thread
//! holds ([`PageSource::read_quietly`](crate::pager::PageSource::read_quietly)). The ordinary connection is shared, its answers take memory, and
//! a thread hands them out; so it is no way for them.
//!
//! A line belongs to one thread at a time, which sends a request and receives its answer itself. All that this takes is made with the
//! source: buffers, the socket's address, HELLO. A connection is made at the first use of a line; that, and all else, are
//! system calls. Each of them ends in time: the socket never blocks, and waiting for it is `poll`. Errors are numbers.
//!
//! What is asked for, and what is believed, is the ordinary client's [`Plan`].

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with, sockopt,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::link::{FIRST_PAUSE, LONGEST_PAUSE, Target};
use super::plan::{PARTS, Piece, Plan, Wrong};
use super::protocol::{self, HEADER, Header, MAX_LAYERS, MAX_TEXT, PAGE, Range, Welcome, code, kind};
use super::sums::CHUNK;
use crate::pager::slots::Slots;
use crate::pager::{Origin, Unexplained};

/// Longest WELCOME.
const WELCOME: usize = 32 + 16 * MAX_LAYERS;
/// Longest answer to a READ of a page.
const DATA: usize = protocol::data_limit(PAGE as u32) as usize;
/// Longest ERROR.
const ERROR: usize = 8 + MAX_TEXT;
/// Pages of the largest block.
const PAGES: usize = (CHUNK / PAGE) as usize;
/// Room for the longest body.
const BODY: usize = {
    let (mut most, lengths) = (WELCOME, [DATA, ERROR, 8 * PAGES]);
    let mut n = 0;
    while n < lengths.len() {
        most = if lengths[n] > most { lengths[n] } else { most };
        n += 1;
    }
    most
};

/// Why a page could not be had this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// The connection is of no use any more: it is broken, slow, or what came by it is wrong. Another one may be.
    Lost,
    /// The server says: not now.
    NotNow,
    /// The server says: never.
    Never,
}

impl From<Errno> for Trouble {
    fn from(_: Errno) -> Trouble {
        Trouble::Lost
    }
}

impl From<Wrong> for Trouble {
    fn from(_: Wrong) -> Trouble {
        Trouble::Lost
    }
}

/// Checksums of the pages of a block, where the ordinary client knows them.
pub(super) type Known<'a> = &'a dyn Fn(usize, u64) -> Option<&'a [u64]>;

/// The lines to one server.
#[derive(Debug)]
pub(super) struct Lines {
    target: Target,
    address: SocketAddrUnix,
    hello: Box<[u8]>,
    /// For one page, over all connections.
    patience: Duration,
    lines: Slots<Line>,
}

impl Lines {
    /// As many lines as there are threads that may use them, none of them connected. The error is that of the socket's name.
    pub(super) fn new(target: Target, patience: Duration, count: usize) -> std::io::Result<Lines> {
        let lines = Slots::new(std::iter::repeat_with(|| Line::new(target.answer_timeout)).take(count));
        let (address, hello) = (SocketAddrUnix::new(&target.path)?, target.hello.encode().into_boxed_slice());
        Ok(Lines { target, address, hello, patience, lines })
    }

    /// Fills `buf`, which is a page or the last part of RAM, with the bytes at `offset`. Also tells how many bytes were received for
    /// it.
    pub(super) fn read(
        &self,
        plan: &Plan,
        known: Known<'_>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(Origin, u64), Unexplained> {
        let end = offset.saturating_add(PAGE).min(plan.states().ram_size());
        if !offset.is_multiple_of(PAGE) || end.checked_sub(offset) != Some(buf.len() as u64) {
            return Err(Unexplained);
        }
        let pieces = plan.pieces(offset, end).map_err(|_| Unexplained)?;
        buf.fill(0);
        if pieces.is_empty() {
            return Ok((Origin::Zero, 0));
        }
        let mut line = self.lines.take();
        let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
        let before = line.wire.received;
        loop {
            match line.connect(self).and_then(|()| line.fetch(plan, known, &pieces, offset, buf)) {
                Ok(origin) => return Ok((origin, line.wire.received - before)),
                Err(Trouble::Never) => return Err(Unexplained),
                Err(Trouble::NotNow) => {}
                Err(Trouble::Lost) => line.wire.socket = None,
            }
            if begun.elapsed() + pause >= self.patience {
                return Err(Unexplained);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// One line, and room for what comes by it.
#[derive(Debug)]
struct Line {
    wire: Wire,
    /// What a layer holds of a page.
    page: Box<[u8]>,
    /// Checksums of the pages of the block that was asked for last, and which it is: they were found right.
    sums: ArrayVec<u64, PAGES>,
    sums_of: Option<(usize, u64)>,
}

impl Line {
    fn new(timeout: Duration) -> Line {
        let (page, body) = (vec![0; PAGE as usize].into_boxed_slice(), vec![0; BODY].into_boxed_slice());
        let wire = Wire { socket: None, timeout, id: 0, body, received: 0 };
        Line { wire, page, sums: ArrayVec::new(), sums_of: None }
    }

    /// Connects, if there is no connection, and finds out whether the server has what is wanted.
    fn connect(&mut self, lines: &Lines) -> Result<(), Trouble> {
        if self.wire.socket.is_some() {
            return Ok(());
        }
        let deadline = Instant::now() + self.wire.timeout;
        self.wire.socket = Some(dial(&lines.address, deadline)?);
        self.wire.send(&lines.hello, deadline)?;
        let header = self.wire.receive(WELCOME, deadline)?;
        if header.kind.get() != kind::WELCOME {
            return Err(Trouble::Lost);
        }
        let welcome = Welcome::decode(self.wire.body(&header)).map_err(|_| Trouble::Lost)?;
        welcome.fits(&lines.target.hello, lines.target.accept_unnamed).map_err(|_| Trouble::Lost)
    }

    /// One attempt at a page.
    fn fetch(
        &mut self,
        plan: &Plan,
        known: Known<'_>,
        pieces: &[Piece],
        offset: u64,
        buf: &mut [u8],
    ) -> Result<Origin, Trouble> {
        let mut all_zero = true;
        for piece in pieces {
            let sum = match plan.block(piece)? {
                Some(block) => Some(self.sum(plan, known, piece, block)?),
                None => None,
            };
            let ranges: ArrayVec<Range, PARTS> = piece.ranges().collect();
            let bytes = &mut self.page[..piece.len() as usize];
            let body = self.wire.ask(kind::READ, ranges.as_bytes(), kind::DATA, DATA)?;
            all_zero &= protocol::decode_data(body, bytes).map_err(|_| Trouble::Lost)?;
            plan.check(piece, bytes, sum)?;
            plan.place(piece, bytes, offset, buf);
        }
        Ok(if all_zero { Origin::Zero } else { Origin::Server })
    }

    /// The checksum of a piece, which lies in `block`.
    fn sum(&mut self, plan: &Plan, known: Known<'_>, piece: &Piece, block: u64) -> Result<u64, Trouble> {
        if let Some(sums) = known(piece.layer, block) {
            return Ok(plan.sum(piece, block, sums)?);
        }
        if self.sums_of != Some((piece.layer, block)) {
            self.sums_of = None;
            let request = plan.sums_request(piece.layer, block)?;
            let body = self.wire.ask(kind::SUMS, request.as_bytes(), kind::SUMS_DATA, 8 * PAGES)?;
            let sums = protocol::decode_sums_data(body, request.count.get()).ok_or(Trouble::Lost)?;
            plan.check_sums(piece.layer, block, sums.iter().map(|sum| sum.get()))?;
            self.sums.clear();
            // No block is larger than there is room for.
            self.sums.extend(sums.iter().map(|sum| sum.get()).take(PAGES));
            self.sums_of = Some((piece.layer, block));
        }
        Ok(plan.sum(piece, block, &self.sums)?)
    }
}

/// A connection, one request on it at a time.
#[derive(Debug)]
struct Wire {
    socket: Option<OwnedFd>,
    /// For each answer.
    timeout: Duration,
    /// The last request's.
    id: u64,
    body: Box<[u8]>,
    /// Bytes of answers.
    received: u64,
}

impl Wire {
    /// Sends a request and receives its answer: a body of the given kind, and of at most `limit` bytes.
    fn ask(&mut self, request: u16, body: &[u8], answer: u16, limit: usize) -> Result<&[u8], Trouble> {
        self.id += 1;
        let header = header(request, self.id, body.len());
        let mut frame: ArrayVec<u8, { HEADER + size_of::<[Range; PARTS]>() }> = ArrayVec::new();
        // No request is longer: the ranges of one page, or a SUMS.
        frame.try_extend_from_slice(header.as_bytes()).map_err(|_| Trouble::Never)?;
        frame.try_extend_from_slice(body).map_err(|_| Trouble::Never)?;
        let deadline = Instant::now() + self.timeout;
        self.send(&frame, deadline)?;
        let header = self.receive(limit, deadline)?;
        let to_us = header.id.get() == self.id;
        match header.kind.get() {
            found if found == answer && to_us => Ok(self.body(&header)),
            kind::ERROR if to_us => Err(match protocol::error_code(self.body(&header)) {
                Some(code::IO) => Trouble::NotNow,
                Some(code::DAMAGED) => Trouble::Never,
                _ => Trouble::Lost,
            }),
            _ => Err(Trouble::Lost),
        }
    }

    /// The body that a header announced, as [`Wire::receive`] has received it.
    fn body(&self, header: &Header) -> &[u8] {
        &self.body[..header.len.get() as usize]
    }

    fn send(&self, mut bytes: &[u8], deadline: Instant) -> Result<(), Trouble> {
        let socket = self.socket.as_ref().ok_or(Trouble::Lost)?;
        let flags = SendFlags::empty();
        #[cfg(not(target_os = "macos"))]
        let flags = flags | SendFlags::NOSIGNAL;
        while !bytes.is_empty() {
            match send(socket, bytes, flags) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => wait(socket, PollFlags::OUT, deadline)?,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Trouble::Lost),
            }
        }
        Ok(())
    }

    /// Receives a frame, whose body is an ERROR's or has at most `limit` bytes.
    fn receive(&mut self, limit: usize, deadline: Instant) -> Result<Header, Trouble> {
        let socket = self.socket.as_ref().ok_or(Trouble::Lost)?;
        let mut bytes = [0; HEADER];
        fill(socket, &mut bytes, deadline)?;
        let header = Header::read_from_bytes(&bytes).map_err(|_| Trouble::Lost)?;
        let limit = if header.kind.get() == kind::ERROR { ERROR } else { limit };
        let body = self.body.get_mut(..header.len.get() as usize).filter(|body| body.len() <= limit);
        fill(socket, body.filter(|_| header.zero.get() == 0).ok_or(Trouble::Lost)?, deadline)?;
        self.received += (HEADER as u64) + u64::from(header.len.get());
        Ok(header)
    }
}

fn header(kind: u16, id: u64, len: usize) -> Header {
    Header { len: U32::new(len as u32), kind: U16::new(kind), zero: U16::ZERO, id: U64::new(id) }
}

/// A socket that never blocks, connected.
fn dial(address: &SocketAddrUnix, deadline: Instant) -> Result<OwnedFd, Trouble> {
    let mut pause = FIRST_PAUSE;
    loop {
        let socket = socket()?;
        match connect(&socket, address) {
            Ok(()) => return Ok(socket),
            // Not yet: it says so when it can be written to.
            Err(Errno::INPROGRESS | Errno::INTR) => {
                wait(&socket, PollFlags::OUT, deadline)?;
                sockopt::socket_error(&socket)??;
                return Ok(socket);
            }
            // There are more who want to connect than may wait (Linux).
            Err(Errno::AGAIN) if Instant::now() + pause < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(_) => return Err(Trouble::Lost),
        }
    }
}

/// A socket that never blocks, is closed by `exec`, and raises no SIGPIPE. (On macOS the socket is told so, elsewhere each `send`.)
fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::empty();
    #[cfg(not(target_os = "macos"))]
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // What takes no flags is told after the fact.
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    ioctl_fionbio(&socket, true)?;
    #[cfg(target_os = "macos")]
    sockopt::set_socket_nosigpipe(&socket, true)?;
    Ok(socket)
}

/// Reads exactly as many bytes as there is room for.
fn fill(socket: &OwnedFd, mut room: &mut [u8], deadline: Instant) -> Result<(), Trouble> {
    while !room.is_empty() {
        match rustix::io::read(socket, &mut *room) {
            Ok(0) => return Err(Trouble::Lost),
            Ok(count) => room = &mut room[count..],
            Err(Errno::AGAIN) => wait(socket, PollFlags::IN, deadline)?,
            Err(Errno::INTR) => {}
            Err(_) => return Err(Trouble::Lost),
        }
    }
    Ok(())
}

/// Waits until a socket is ready, or in trouble, which the next call tells.
fn wait(socket: &OwnedFd, events: PollFlags, deadline: Instant) -> Result<(), Trouble> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        match poll(&mut [PollFd::new(socket, events)], Some(&left)) {
            Ok(0) => return Err(Trouble::Lost),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(_) => return Err(Trouble::Lost),
        }
    }
}
