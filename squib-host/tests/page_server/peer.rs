//! A second implementation of the page server's protocol, for both sides, written from `docs/page-server.md` alone: it shares no code
//! with the crate. The server can misbehave in every way its client has to survive.

#![allow(dead_code)] // Each test program uses its part.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

pub const HELLO: u16 = 1;
pub const WELCOME: u16 = 2;
pub const READ: u16 = 3;
pub const DATA: u16 = 4;
pub const SUMS: u16 = 5;
pub const SUMS_DATA: u16 = 6;
pub const ERROR: u16 = 7;

/// CRC-64/NVME, bit by bit from its parameters: polynomial 0xad93d23594c93659, reflected, initial value and final xor all ones.
pub fn crc64(bytes: &[u8]) -> u64 {
    static TABLE: std::sync::OnceLock<Vec<u64>> = std::sync::OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let polynomial = 0xad93_d235_94c9_3659_u64.reverse_bits();
        let step = |crc: u64| if crc & 1 == 1 { crc >> 1 ^ polynomial } else { crc >> 1 };
        (0..256).map(|byte| (0..8).fold(byte, |crc, _| step(crc))).collect()
    });
    !bytes.iter().fold(!0, |crc: u64, &byte| crc >> 8 ^ table[(crc as u8 ^ byte) as usize])
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A frame as the page draws it.
pub fn frame(kind: u16, id: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(id.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Reads a frame: kind, id, body. `None` at the end.
pub fn receive(stream: &mut UnixStream) -> Option<(u16, u64, Vec<u8>)> {
    let mut header = [0; 16];
    stream.read_exact(&mut header).ok()?;
    let mut body = vec![0; u32_at(&header, 0) as usize];
    stream.read_exact(&mut body).ok()?;
    Some((u16_at(&header, 4), u64_at(&header, 8), body))
}

pub fn hello(versions: (u16, u16), ram_size: u64, layers: &[[u8; 16]]) -> Vec<u8> {
    let mut body = b"SQUIBPGS".to_vec();
    body.extend(versions.0.to_le_bytes());
    body.extend(versions.1.to_le_bytes());
    body.extend((layers.len() as u32).to_le_bytes());
    body.extend(ram_size.to_le_bytes());
    layers.iter().for_each(|id| body.extend(id));
    frame(HELLO, 0, &body)
}

/// The body of a READ: layer, bytes, offset for each range.
pub fn ranges(ranges: &[(u32, u32, u64)]) -> Vec<u8> {
    let range = |(layer, len, offset): &(u32, u32, u64)| {
        [&layer.to_le_bytes()[..], &len.to_le_bytes(), &offset.to_le_bytes()].concat()
    };
    ranges.iter().flat_map(range).collect()
}

/// What a DATA says: the bytes, and how many of them were sent.
pub fn data(body: &[u8]) -> (Vec<u8>, usize) {
    let segments = u32_at(body, 0) as usize;
    assert_eq!(u32_at(body, 4), 0);
    let (mut bytes, mut sent, mut at) = (Vec::new(), 0, 8 + 16 * segments);
    for segment in body[8..at].chunks(16) {
        let len = u32_at(segment, 4) as usize;
        assert_ne!(len, 0);
        match u32_at(segment, 0) {
            0 => {
                assert_eq!(u64_at(segment, 8), 0);
                bytes.resize(bytes.len() + len, 0);
            }
            1 => {
                assert_eq!(u64_at(segment, 8), crc64(&body[at..at + len]));
                bytes.extend(&body[at..at + len]);
                (at, sent) = (at + len, sent + len);
            }
            other => panic!("a segment of kind {other}"),
        }
    }
    assert_eq!(at, body.len());
    (bytes, sent)
}

/// Code and text of an ERROR.
pub fn error(body: &[u8]) -> (u16, String) {
    assert_eq!(u32_at(body, 4) as usize, body.len() - 8);
    (u16_at(body, 0), String::from_utf8(body[8..].to_vec()).expect("UTF-8"))
}

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing; it answers in reverse order, a few at a time.
    None,
    /// Closes instead of WELCOME.
    ClosesAtHello,
    /// Says nothing to HELLO.
    SilentAtHello,
    /// Sends what is not this protocol.
    Garbage,
    /// Speaks version 2 only.
    Version,
    /// Serves another snapshot.
    OtherSnapshot,
    /// Serves another size of RAM.
    OtherSize,
    /// A page size of 4096.
    OtherPage,
    /// Refuses HELLO with the text "not today".
    Refuses,
    /// Closes when asked for something.
    ClosesAtRead,
    /// Closes in the middle of an answer.
    ClosesInAnswer,
    /// Never answers.
    Silent,
    /// Stops in the middle of an answer.
    Stalls,
    /// Flips a bit of the data; the transport's checksum fits.
    Lies,
    /// Flips a bit of the data, and sends checksums of pages that fit it.
    LiesWell,
    /// Says that everything is zero.
    LiesZero,
    /// Flips a bit, and nothing fits.
    BadTransport,
    /// One segment too few.
    Short,
    /// More than was asked for.
    Long,
    /// Announces 4 GiB.
    Oversized,
    /// Answers a request that nobody made.
    WrongId,
    /// Answers READ with SUMS_DATA.
    WrongKind,
    /// Checksums of fewer pages.
    ShortSums,
    /// ERROR 6.
    Damaged,
    /// ERROR 7.
    Io,
    /// ERROR 5.
    NotHeld,
    /// ERROR 999, which there is not.
    Unknown,
}

/// A server in this process.
pub struct Server {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    fault: Arc<Mutex<Fault>>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    pub requests: Arc<AtomicUsize>,
    /// Connections on which HELLO came.
    pub hellos: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves one layer: a full snapshot.
    pub fn start(path: &Path, ram: Vec<u8>, identity: [u8; 16], fault: Fault) -> Server {
        let listener = UnixListener::bind(path).expect("bound");
        let fault = Arc::new(Mutex::new(fault));
        let (stopping, streams) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (requests, hellos) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (stop, open, how) = (stopping.clone(), streams.clone(), fault.clone());
        let counts = (hellos.clone(), requests.clone());
        let ram = Arc::new(ram);
        let thread = thread::spawn(move || {
            let mut clients = Vec::new();
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let stream = stream.expect("a client");
                open.lock().expect("lock").push(stream.try_clone().expect("cloned"));
                let (ram, (hellos, requests), how) = (ram.clone(), counts.clone(), how.clone());
                clients.push(thread::spawn(move || {
                    let end = stream.try_clone().expect("cloned");
                    serve(stream, &ram, identity, &how, (&hellos, &requests));
                    let _ = end.shutdown(std::net::Shutdown::Both);
                }));
            }
            for client in clients {
                client.join().expect("a client's thread");
            }
        });
        Server { path: path.to_owned(), stopping, fault, streams, requests, hellos, thread: Some(thread) }
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().expect("lock") = fault;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        for stream in self.streams.lock().expect("lock").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One client. Returns when the connection is at its end.
fn serve(
    mut stream: UnixStream,
    ram: &[u8],
    identity: [u8; 16],
    fault: &Mutex<Fault>,
    (hellos, count): (&AtomicUsize, &AtomicUsize),
) {
    let now = || *fault.lock().expect("lock");
    let Some((HELLO, 0, hello)) = receive(&mut stream) else { return };
    assert_eq!(&hello[..8], b"SQUIBPGS");
    hellos.fetch_add(1, Ordering::SeqCst);
    assert!(u16_at(&hello, 8) <= 1 && u16_at(&hello, 10) >= 1, "it speaks version 1");
    match now() {
        Fault::ClosesAtHello => return,
        Fault::SilentAtHello => return wait_for_end(&mut stream),
        Fault::Garbage => return drop(stream.write_all(&[0x5a; 4096])),
        Fault::Refuses => {
            let body = [&1u16.to_le_bytes()[..], &[0, 0], &9u32.to_le_bytes(), b"not today"].concat();
            return drop(stream.write_all(&frame(ERROR, 0, &body)));
        }
        _ => {}
    }
    let mut welcome = b"SQUIBPGS".to_vec();
    welcome.extend(if now() == Fault::Version { 2u16 } else { 1 }.to_le_bytes());
    welcome.extend([0, 0]);
    welcome.extend(1u32.to_le_bytes());
    welcome.extend((ram.len() as u64 + if now() == Fault::OtherSize { 16384 } else { 0 }).to_le_bytes());
    welcome.extend(if now() == Fault::OtherPage { 4096u32 } else { 16384 }.to_le_bytes());
    welcome.extend((1u32 << 20).to_le_bytes());
    welcome.extend(if now() == Fault::OtherSnapshot { [0xab; 16] } else { identity });
    if stream.write_all(&frame(WELCOME, 0, &welcome)).is_err() {
        return;
    }
    let mut held: Vec<Vec<u8>> = Vec::new();
    while let Some((kind, id, body)) = receive(&mut stream) {
        count.fetch_add(1, Ordering::SeqCst);
        let fault = now();
        match fault {
            Fault::ClosesAtRead => return,
            Fault::Silent => continue,
            _ => {}
        }
        let answer = answer(kind, id, &body, ram, fault);
        match fault {
            Fault::ClosesInAnswer => return drop(stream.write_all(&answer[..answer.len() / 2])),
            Fault::Stalls => {
                let _ = stream.write_all(&answer[..answer.len() / 2]);
                return wait_for_end(&mut stream);
            }
            _ => {}
        }
        // In reverse order whatever has come together.
        held.push(answer);
        if held.len() < 4 && more(&stream) {
            continue;
        }
        for answer in held.drain(..).rev() {
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

/// Whether another request is on its way: only then may an answer be held back.
fn more(stream: &UnixStream) -> bool {
    let mut fds = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::IN)];
    let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    rustix::event::poll(&mut fds, Some(&wait)).is_ok_and(|n| n > 0)
}

fn wait_for_end(stream: &mut UnixStream) {
    let _ = std::io::copy(stream, &mut std::io::sink());
}

fn answer(kind: u16, id: u64, body: &[u8], ram: &[u8], fault: Fault) -> Vec<u8> {
    let id = if fault == Fault::WrongId { id + 1000 } else { id };
    let refuse = |code: u16| {
        let text = b"the disk is on fire";
        let body = [&code.to_le_bytes()[..], &[0, 0], &(text.len() as u32).to_le_bytes(), text].concat();
        frame(ERROR, id, &body)
    };
    let lying = |offset: usize, len: usize| {
        let mut bytes = ram[offset..offset + len].to_vec();
        if matches!(fault, Fault::Lies | Fault::LiesWell) {
            bytes[len / 2] ^= 4;
        }
        if fault == Fault::LiesZero {
            bytes.fill(0);
        }
        bytes
    };
    match (kind, fault) {
        (_, Fault::Damaged) => refuse(6),
        (_, Fault::Io) => refuse(7),
        (_, Fault::NotHeld) => refuse(5),
        (_, Fault::Unknown) => refuse(999),
        (_, Fault::Oversized) => {
            let mut frame = frame(if kind == READ { DATA } else { SUMS_DATA }, id, &[]);
            frame[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            frame
        }
        (SUMS, _) => {
            let (count, first) = (u32_at(body, 4) as usize, u64_at(body, 8) as usize);
            let count = if fault == Fault::ShortSums { count - 1 } else { count };
            let sum = |page: usize| {
                let start = page * 16384;
                let len = 16384.min(ram.len() - start);
                crc64(&if fault == Fault::LiesWell { lying(start, len) } else { ram[start..start + len].to_vec() })
            };
            frame(SUMS_DATA, id, &(first..first + count).flat_map(|page| sum(page).to_le_bytes()).collect::<Vec<_>>())
        }
        (READ, Fault::WrongKind) => frame(SUMS_DATA, id, &[0; 64]),
        (READ, _) => {
            let (mut segments, mut payload, mut count) = (Vec::new(), Vec::new(), 0u32);
            let ranges: Vec<_> = body.chunks(16).collect();
            for (n, range) in ranges.iter().enumerate() {
                let (len, offset) = (u32_at(range, 4) as usize, u64_at(range, 8) as usize);
                assert_eq!(u32_at(range, 0), 0, "layer 0");
                let mut bytes = lying(offset, len);
                if n + 1 == ranges.len() {
                    match fault {
                        Fault::Short => bytes.truncate(len - 4096),
                        Fault::Long => bytes.extend([1; 4096]),
                        _ => {}
                    }
                }
                for part in bytes.chunks(8192) {
                    count += 1;
                    let zero = part.iter().all(|&byte| byte == 0);
                    segments.extend(u32::from(!zero).to_le_bytes());
                    segments.extend((part.len() as u32).to_le_bytes());
                    let sum = crc64(part) ^ u64::from(fault == Fault::BadTransport);
                    segments.extend(if zero { 0 } else { sum }.to_le_bytes());
                    if !zero {
                        payload.extend(part);
                    }
                }
            }
            let head = [count.to_le_bytes(), [0; 4]].concat();
            frame(DATA, id, &[head, segments, payload].concat())
        }
        other => panic!("an unknown request: {other:?}"),
    }
}
