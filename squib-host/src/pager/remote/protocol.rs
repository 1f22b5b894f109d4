//! The protocol between a restored machine and a page server, byte by byte: `docs/page-server.md` in code.
//!
//! Shapes are structs whose memory is the wire's; decoders check every length before anything is allocated or read for it.

use std::io::{self, Read};

use squib_snapshot::SnapshotId;
use squib_snapshot::digest::checksum;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of HELLO and WELCOME.
pub const MAGIC: [u8; 8] = *b"SQUIBPGS";
/// The version this build speaks.
pub const VERSION: u16 = 1;
/// Bytes of a page.
pub const PAGE: u64 = 16 << 10;
/// What offsets and lengths of a READ are multiples of.
pub const GRANULE: u64 = 4096;
/// Longest body of a frame to the server.
pub const MAX_REQUEST: u32 = 64 << 10;
/// Most layers.
pub const MAX_LAYERS: usize = 256;
/// Most ranges in one READ.
pub const MAX_RANGES: usize = 64;
/// Most bytes in one READ to this build's server.
pub const MAX_READ: u32 = 2 << 20;
/// Most pages in one SUMS.
pub const MAX_SUMS: u32 = 1024;
/// Longest text of an ERROR.
pub const MAX_TEXT: usize = 1024;

/// Kinds of frames.
pub mod kind {
    /// Client: first frame.
    pub const HELLO: u16 = 1;
    /// Server: answer to HELLO.
    pub const WELCOME: u16 = 2;
    /// Client: bytes of RAM.
    pub const READ: u16 = 3;
    /// Server: answer to READ.
    pub const DATA: u16 = 4;
    /// Client: checksums of pages.
    pub const SUMS: u16 = 5;
    /// Server: answer to SUMS.
    pub const SUMS_DATA: u16 = 6;
    /// Server: a request that cannot be met.
    pub const ERROR: u16 = 7;
}

/// Codes of ERROR.
pub mod code {
    /// No common version.
    pub const VERSION: u16 = 1;
    /// Another snapshot is served.
    pub const WRONG_SNAPSHOT: u16 = 2;
    /// Not this protocol.
    pub const MALFORMED: u16 = 3;
    /// Outside RAM, misaligned, or no such layer.
    pub const RANGE: u16 = 4;
    /// The layer does not hold this.
    pub const NOT_HELD: u16 = 5;
    /// The memory file is damaged.
    pub const DAMAGED: u16 = 6;
    /// Reading failed.
    pub const IO: u16 = 7;
    /// Too many clients.
    pub const BUSY: u16 = 8;
}

/// Head of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Bytes that follow.
    pub len: U32,
    /// One of [`kind`].
    pub kind: U16,
    /// 0.
    pub zero: U16,
    /// Which request; 0 for the connection.
    pub id: U64,
}

/// Bytes of [`Header`].
pub const HEADER: usize = size_of::<Header>();

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HelloHead {
    magic: [u8; 8],
    lowest: U16,
    highest: U16,
    layers: U32,
    ram_size: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WelcomeHead {
    magic: [u8; 8],
    version: U16,
    zero: U16,
    layers: U32,
    ram_size: U64,
    page: U32,
    max_read: U32,
}

/// One range of a READ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Range {
    /// Which layer.
    pub layer: U32,
    /// How many bytes.
    pub len: U32,
    /// From where on.
    pub offset: U64,
}

/// The body of SUMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sums {
    /// Which layer.
    pub layer: U32,
    /// How many pages.
    pub count: U32,
    /// From which page on.
    pub first: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DataHead {
    segments: U32,
    zero: U32,
}

/// One segment of DATA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Segment {
    /// 0 zeros, 1 bytes.
    pub kind: U32,
    /// How many.
    pub len: U32,
    /// Of the bytes; 0 for zeros.
    pub checksum: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ErrorHead {
    code: U16,
    zero: U16,
    len: U32,
}

/// What a peer sent is not this protocol; says what was wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

fn malformed<T>(text: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(text.into()))
}

impl From<&str> for Malformed {
    fn from(text: &str) -> Malformed {
        Malformed(text.into())
    }
}

/// What is wrong with a HELLO or a WELCOME, without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadGreeting {
    /// It ends before its head does.
    #[error("{0} is too short")]
    Short(&'static str),
    /// It begins with something else.
    #[error("{0} does not begin with SQUIBPGS")]
    Magic(&'static str),
    /// More than there can be.
    #[error("{0} layers (limit {MAX_LAYERS})")]
    Layers(u32),
    /// Not as many identities as announced.
    #[error("{0} layers announced, {1} bytes of identities sent")]
    Identities(u32, usize),
    /// A WELCOME that cannot be worked with.
    #[error("WELCOME with pages of {page} bytes, reads of {max_read}, {layers} layers")]
    Offer {
        /// Bytes of a page.
        page: u32,
        /// Most bytes in one READ.
        max_read: u32,
        /// Their number.
        layers: usize,
    },
}

impl From<BadGreeting> for Malformed {
    fn from(bad: BadGreeting) -> Malformed {
        Malformed(bad.to_string())
    }
}

/// Why what a server offers will not do for a client, without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Another version.
    Version,
    /// It does not know what it serves.
    Unnamed,
    /// Another snapshot.
    Snapshot,
    /// Another size of RAM.
    RamSize,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest version it speaks.
    pub versions: (u16, u16),
    /// Bytes of RAM; 0: whatever is served.
    pub ram_size: u64,
    /// Identities of the layers, base first; none: whatever is served.
    pub layers: Vec<SnapshotId>,
}

/// What a server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome<'a> {
    /// The version to speak.
    pub version: u16,
    /// Bytes of RAM.
    pub ram_size: u64,
    /// Bytes of a page.
    pub page: u32,
    /// Most bytes in one READ.
    pub max_read: u32,
    /// Identities of the layers, base first; zeros where they are not known.
    pub layers: &'a [[u8; 16]],
}

/// A frame, head and body.
pub fn frame(kind: u16, id: u64, parts: &[&[u8]]) -> Vec<u8> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    let header = Header { len: U32::new(len as u32), kind: U16::new(kind), zero: U16::ZERO, id: U64::new(id) };
    let mut bytes = Vec::with_capacity(HEADER + len);
    bytes.extend_from_slice(header.as_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Reads the head of a frame; `None` if the peer closed instead of sending one. On a stream with a timeout an error of the kind
/// [`io::ErrorKind::WouldBlock`] says that nothing came; nothing is lost then.
pub fn read_header(from: &mut impl Read) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match from.read(&mut bytes[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed in the middle of a frame")),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if have > 0 => return Err(stalled(e)),
            // Linux says WouldBlock, others may say TimedOut.
            Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => return Err(e),
        }
    }
    Ok(Some(zerocopy::transmute!(bytes)))
}

/// A timeout in the middle of a frame is an error of its own.
fn stalled(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, "it stopped in the middle of a frame")
        }
        io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), "it closed in the middle of a frame"),
        _ => e,
    }
}

/// Reads the body that `header` announces, if it is no longer than `limit`.
pub fn read_body(from: &mut impl Read, header: &Header, limit: u32) -> io::Result<Vec<u8>> {
    let len = header.len.get();
    if len > limit || header.zero.get() != 0 {
        let text = format!("it announced a frame of kind {} with {len} bytes (limit {limit})", header.kind);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body).map_err(stalled)?;
    Ok(body)
}

fn decode_identities(bytes: &[u8], count: u32) -> Result<&[[u8; 16]], BadGreeting> {
    if count as usize > MAX_LAYERS {
        return Err(BadGreeting::Layers(count));
    }
    let (ids, _) = bytes.as_chunks::<16>();
    ids.get(..count as usize).ok_or(BadGreeting::Identities(count, bytes.len()))
}

impl Hello {
    /// As a frame.
    pub fn encode(&self) -> Vec<u8> {
        let head = HelloHead {
            magic: MAGIC,
            lowest: U16::new(self.versions.0),
            highest: U16::new(self.versions.1),
            layers: U32::new(self.layers.len() as u32),
            ram_size: U64::new(self.ram_size),
        };
        let layers: Vec<u8> = self.layers.iter().flat_map(|id| id.0).collect();
        frame(kind::HELLO, 0, &[head.as_bytes(), &layers])
    }

    /// From a body.
    pub fn decode(body: &[u8]) -> Result<Hello, Malformed> {
        let (head, rest) = HelloHead::read_from_prefix(body).map_err(|_| BadGreeting::Short("HELLO"))?;
        if head.magic != MAGIC {
            return Err(BadGreeting::Magic("HELLO").into());
        }
        let versions = (head.lowest.get(), head.highest.get());
        let layers = decode_identities(rest, head.layers.get())?.iter().copied().map(SnapshotId).collect();
        Ok(Hello { versions, ram_size: head.ram_size.get(), layers })
    }
}

impl Welcome<'_> {
    /// As a frame.
    pub fn encode(&self) -> Vec<u8> {
        let head = WelcomeHead {
            magic: MAGIC,
            version: U16::new(self.version),
            zero: U16::ZERO,
            layers: U32::new(self.layers.len() as u32),
            ram_size: U64::new(self.ram_size),
            page: U32::new(self.page),
            max_read: U32::new(self.max_read),
        };
        frame(kind::WELCOME, 0, &[head.as_bytes(), self.layers.as_flattened()])
    }

    /// From a body. Allocates nothing.
    pub fn decode(body: &[u8]) -> Result<Welcome<'_>, BadGreeting> {
        let (head, rest) = WelcomeHead::read_from_prefix(body).map_err(|_| BadGreeting::Short("WELCOME"))?;
        if head.magic != MAGIC {
            return Err(BadGreeting::Magic("WELCOME"));
        }
        let (version, ram_size) = (head.version.get(), head.ram_size.get());
        let (page, max_read) = (head.page.get(), head.max_read.get());
        let layers = decode_identities(rest, head.layers.get())?;
        if u64::from(page) != PAGE || u64::from(max_read) < PAGE || layers.is_empty() {
            return Err(BadGreeting::Offer { page, max_read, layers: layers.len() });
        }
        Ok(Welcome { version, ram_size, page, max_read, layers })
    }

    /// Whether it has what `hello` wants. Who checks every page can do with a server that does not know what it serves.
    pub fn fits(&self, hello: &Hello, accept_unnamed: bool) -> Result<(), Unfit> {
        let unnamed = self.layers.iter().all(|id| *id == [0; 16]);
        let same = || self.layers.iter().eq(hello.layers.iter().map(|id| &id.0));
        if self.version != VERSION {
            return Err(Unfit::Version);
        }
        if unnamed && !accept_unnamed {
            return Err(Unfit::Unnamed);
        }
        if self.layers.len() != hello.layers.len() || !unnamed && !same() {
            return Err(Unfit::Snapshot);
        }
        if self.ram_size != hello.ram_size {
            return Err(Unfit::RamSize);
        }
        Ok(())
    }
}

/// The ranges of a READ.
pub fn decode_read(body: &[u8]) -> Result<&[Range], Malformed> {
    let ranges = <[Range]>::ref_from_bytes(body).map_err(|_| Malformed("READ is not a number of ranges".into()))?;
    match ranges.len() {
        1..=MAX_RANGES => Ok(ranges),
        n => malformed(format!("READ with {n} ranges (1 to {MAX_RANGES})")),
    }
}

/// The body of a SUMS.
pub fn decode_sums(body: &[u8]) -> Result<Sums, Malformed> {
    let sums = Sums::read_from_bytes(body).map_err(|_| Malformed("SUMS is not 16 bytes long".into()))?;
    match sums.count.get() {
        1..=MAX_SUMS => Ok(sums),
        n => malformed(format!("SUMS of {n} pages (1 to {MAX_SUMS})")),
    }
}

/// The checksums of a SUMS_DATA, if it has `count` of them. Allocates nothing.
pub fn decode_sums_data(body: &[u8], count: u32) -> Option<&[U64]> {
    <[U64]>::ref_from_bytes(body).ok().filter(|sums| sums.len() == count as usize)
}

/// Longest DATA for a READ of `len` bytes.
pub const fn data_limit(len: u32) -> u32 {
    let segments = len.div_ceil(GRANULE as u32);
    (size_of::<DataHead>() as u32) + segments * (size_of::<Segment>() as u32) + len
}

/// The body of DATA: segments, then bytes, in one go.
pub fn encode_data(id: u64, segments: &[Segment], bytes: &[u8]) -> Vec<u8> {
    let head = DataHead { segments: U32::new(segments.len() as u32), zero: U32::ZERO };
    frame(kind::DATA, id, &[head.as_bytes(), segments.as_bytes(), bytes])
}

/// Writes the bytes of a DATA to `to`, whose length is what was asked for. Returns whether all of them are zeros that were not sent, or
/// what is wrong. Allocates nothing.
pub fn decode_data(body: &[u8], to: &mut [u8]) -> Result<bool, &'static str> {
    const SHORT: &str = "DATA is shorter than it says";
    const OTHER_LENGTH: &str = "DATA is not the length asked for";
    let (head, rest) = DataHead::read_from_prefix(body).map_err(|_| SHORT)?;
    let count = head.segments.get() as usize;
    if count > to.len().div_ceil(GRANULE as usize) {
        return Err("DATA has more segments than there can be");
    }
    let (segments, mut bytes) = <[Segment]>::ref_from_prefix_with_elems(rest, count).map_err(|_| SHORT)?;
    let mut to = to;
    let mut all_zero = true;
    for segment in segments {
        let len = segment.len.get() as usize;
        let split = std::mem::take(&mut to).split_at_mut_checked(len).filter(|_| len > 0);
        let (part, rest) = split.ok_or(OTHER_LENGTH)?;
        to = rest;
        if segment.kind.get() == 0 {
            part.fill(0);
            continue;
        }
        all_zero = false;
        let (sent, rest) = bytes.split_at_checked(len).filter(|_| segment.kind.get() == 1).ok_or(SHORT)?;
        if checksum(sent) != segment.checksum.get() {
            return Err("DATA does not have the checksum it says");
        }
        part.copy_from_slice(sent);
        bytes = rest;
    }
    if to.is_empty() && bytes.is_empty() { Ok(all_zero) } else { Err(OTHER_LENGTH) }
}

/// An ERROR as a frame; the text is cut to one line of at most [`MAX_TEXT`] bytes.
pub fn encode_error(id: u64, code: u16, text: &str) -> Vec<u8> {
    let text = text.replace(char::is_control, " ");
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    let head = ErrorHead { code: U16::new(code), zero: U16::ZERO, len: U32::new(text.len() as u32) };
    frame(kind::ERROR, id, &[head.as_bytes(), text.as_bytes()])
}

/// The code of an ERROR, without its text.
pub fn error_code(body: &[u8]) -> Option<u16> {
    ErrorHead::read_from_prefix(body).ok().map(|(head, _)| head.code.get())
}

/// Code and text of an ERROR. What is not text is shown as such: it goes to a terminal.
pub fn decode_error(body: &[u8]) -> Result<(u16, String), Malformed> {
    let (head, text) = ErrorHead::read_from_prefix(body).map_err(|_| Malformed("ERROR is too short".into()))?;
    if head.len.get() as usize != text.len() || text.len() > MAX_TEXT {
        return malformed(format!("ERROR with a text of {} bytes, {} sent", head.len, text.len()));
    }
    Ok((head.code.get(), String::from_utf8_lossy(text).replace(char::is_control, " ")))
}

#[cfg(test)]
mod tests;
