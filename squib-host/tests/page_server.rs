//! The page server and its client, each against the other and against an implementation of the protocol that shares no code
//! with them (`peer`), which also misbehaves.

mod peer;

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use peer::Fault;
use squib_host::pager::{Images, Origin, PageServer, PageSource, RemoteConfig, RemoteSource, SourceError, Stop};
use squib_snapshot::{
    Chain, ChainStates, Contents, DirtyBitmap, GicState, MachineRecord, MicrovmState, PairRequest, SnapshotId,
    VcpuState, save_diff, save_pair,
};

const PAGE: usize = 16 << 10;
const MIB: usize = 1 << 20;

/// Bytes that repeat nowhere.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// A chain of snapshots in a directory of its own: a base, and diffs if wanted.
struct Saved {
    directory: tempfile::TempDir,
    ram: Vec<u8>,
    links: Vec<(PathBuf, PathBuf, SnapshotId)>,
}

impl Saved {
    /// Block 0 is noise, block 1 zero, block 2 has a few pages, the rest is noise again.
    fn new(size: usize, block_size: u64) -> Saved {
        let mut ram = noise(1, size);
        for byte in &mut ram[2 * MIB..(5 * MIB).min(size)] {
            *byte = 0;
        }
        ram[4 * MIB + 5 * PAGE + 100] = 7;
        let mut saved = Saved { directory: tempfile::tempdir().expect("a directory"), ram, links: Vec::new() };
        saved.save(block_size, None);
        saved
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn save(&mut self, block_size: u64, dirty: Option<&DirtyBitmap>) {
        let number = self.links.len();
        let (state_path, memory_path) = (self.file(&format!("{number}.state")), self.file(&format!("{number}.mem")));
        let mut state = MicrovmState {
            vcpu_states: vec![VcpuState::new(0)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        };
        state.vm_info.track_dirty_pages = true;
        let request = PairRequest {
            state_path: &state_path,
            memory_path: &memory_path,
            state: &state,
            machine: &MachineRecord::default(),
            memory: &self.ram,
            ram_start: 0,
            ram_size: self.ram.len() as u64,
            contents: Contents::Full,
            block_size,
        };
        let report = match (dirty, self.links.last()) {
            (Some(dirty), Some((.., parent))) => save_diff(&request, *parent, dirty),
            _ => save_pair(&request),
        };
        self.links.push((state_path, memory_path, report.expect("saved").identity));
    }

    /// Changes some bytes and saves a diff of pages of `page` bytes.
    fn diff(&mut self, seed: u64, page: u64, block_size: u64) {
        let dirty = DirtyBitmap::new(0, self.ram.len() as u64, page).expect("a bitmap");
        for n in 0..40 {
            let at = (u64::from_le_bytes(noise(seed + n, 8).try_into().expect("8")) % self.ram.len() as u64) as usize;
            self.ram[at] ^= 0x55;
            dirty.set_dirty(at as u64);
        }
        self.save(block_size, Some(&dirty));
    }

    fn chain(&self) -> Chain {
        let diffs: Vec<_> = self.links[1..].iter().map(|(state, memory, _)| (state, memory)).collect();
        Chain::open((&self.links[0].0, &self.links[0].1), &diffs).expect("a chain")
    }

    fn states(&self) -> ChainStates {
        let diffs: Vec<_> = self.links[1..].iter().map(|(state, ..)| state).collect();
        ChainStates::open(&self.links[0].0, &diffs).expect("a chain")
    }

    fn identities(&self) -> Vec<[u8; 16]> {
        self.links.iter().map(|(.., id)| id.0).collect()
    }

    fn socket(&self) -> PathBuf {
        self.file("socket")
    }

    fn serve(&self) -> Serving {
        Serving::start(Images::chain(&self.chain()).expect("images"), &self.socket())
    }

    fn connect(&self) -> Result<RemoteSource, SourceError> {
        RemoteSource::connect(quick(&self.socket()), self.states())
    }
}

/// Impatient enough for tests of servers that never answer.
fn quick(path: &Path) -> RemoteConfig {
    let (answer_timeout, patience) = (Duration::from_millis(300), Duration::from_millis(600));
    RemoteConfig { answer_timeout, patience, ..RemoteConfig::new(path) }
}

/// A page server of ours on a thread; ended when dropped.
struct Serving {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    fn start(images: Images, socket: &Path) -> Serving {
        let server = PageServer::bind(images, socket).expect("bound");
        let stop = server.stop_handle().expect("a handle");
        let thread = Some(thread::spawn(move || server.serve(false).expect("served")));
        Serving { stop, thread }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.stop();
        self.thread.take().map(JoinHandle::join);
    }
}

/// Every page, by several threads, each in an order of its own; then odd ranges, and all at once.
fn reads_all_of(source: &RemoteSource, ram: &[u8]) {
    let pages = ram.len().div_ceil(PAGE);
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for n in 0..pages {
                    let page = (n * 37 + thread * 11) % pages;
                    let expected = &ram[page * PAGE..ram.len().min((page + 1) * PAGE)];
                    let mut bytes = vec![0xee; expected.len()];
                    let origin = source.read((page * PAGE) as u64, &mut bytes).expect("read");
                    assert!(bytes == expected, "page {page}");
                    assert!(origin != Origin::Zero || expected.iter().all(|&byte| byte == 0));
                }
            });
        }
    });
    for (start, len) in [(0, ram.len()), (5000, 3 * MIB), (4 * MIB + 1, 1), (ram.len() - 1, 1), (7, 0)] {
        let mut bytes = vec![0xee; len];
        source.read(start as u64, &mut bytes).expect("read");
        assert!(bytes == ram[start..start + len], "{len} bytes at {start}");
    }
    source.read(ram.len() as u64, &mut [0]).expect_err("beyond RAM");
}

#[test]
fn every_page_of_a_snapshot_arrives() {
    for (size, block_size) in [(8 * MIB, 0), (8 * MIB, 16 << 10), (8 * MIB, 4096), (8 * MIB, 64 << 10)] {
        let saved = Saved::new(size, block_size);
        let _server = saved.serve();
        let source = saved.connect().expect("connected");
        reads_all_of(&source, &saved.ram);
        assert_eq!(source.size(), size as u64);
        let block = if block_size == 0 { 2 << 20 } else { block_size };
        let first = (4 * MIB + 5 * PAGE + 100) as u64 / block * block;
        assert_eq!(source.known_zero(2 << 20, 8 << 20), first - (2 << 20));
        assert_eq!(source.known_zero(0, 8 << 20), 0);
    }
}

#[test]
fn every_page_of_a_chain_arrives() {
    for (block_size, page) in [(0, 16384), (0, 4096), (4096, 16384), (32768, 65536), (8192, 4096)] {
        // The last page is shorter than the others.
        let mut saved = Saved::new(7 * MIB + 12288, block_size);
        saved.diff(100, page, block_size);
        saved.diff(200, page, 0);
        let _server = saved.serve();
        reads_all_of(&saved.connect().expect("connected"), &saved.ram);
    }
}

#[test]
fn one_page_costs_one_page_and_the_checksums_of_its_block() {
    let saved = Saved::new(8 * MIB, 0);
    let _server = saved.serve();
    let source = saved.connect().expect("connected");
    let mut page = vec![0; PAGE];
    source.read(0, &mut page).expect("read");
    let first = source.bytes_received();
    assert_eq!(first as usize, (16 + 8 * 128) + (16 + 8 + 16 + PAGE), "SUMS_DATA and DATA");
    source.read(PAGE as u64, &mut page).expect("read");
    assert_eq!((source.bytes_received() - first) as usize, 16 + 8 + 16 + PAGE, "DATA");
    let before = source.bytes_received();
    // A page of zeros in a block that is not, and a block of zeros.
    assert_eq!(source.read(5 << 20, &mut page).expect("read"), Origin::Server);
    assert_eq!(source.read(4 << 20, &mut page).expect("read"), Origin::Zero);
    assert!(source.bytes_received() - before < 3 * PAGE as u64);
    let before = source.bytes_received();
    assert_eq!(source.read(3 << 20, &mut page).expect("read"), Origin::Zero);
    assert_eq!(source.bytes_received(), before, "known without asking");
}

#[test]
fn a_server_without_a_state_is_checked_all_the_same() {
    let saved = Saved::new(6 * MIB, 0);
    let images = || Images::memory_file(&saved.links[0].1).expect("images");
    assert_eq!(images().identities()[0].0, [0; 16]);
    let _server = Serving::start(images(), &saved.socket());
    reads_all_of(&saved.connect().expect("connected"), &saved.ram);
    // Who does not check takes no unnamed server.
    let trusting = RemoteConfig { verify: false, ..quick(&saved.socket()) };
    let error = RemoteSource::connect(trusting, saved.states()).expect_err("unnamed").to_string();
    assert!(error.contains("--state"), "{error}");
}

#[test]
fn who_trusts_a_server_gets_its_bytes_unchecked() {
    let saved = Saved::new(6 * MIB, 0);
    let lying = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::Lies);
    let trusting = RemoteConfig { verify: false, ..quick(&saved.socket()) };
    let source = RemoteSource::connect(trusting, saved.states()).expect("connected");
    let mut page = vec![0; PAGE];
    source.read(0, &mut page).expect("read");
    assert_ne!(page, saved.ram[..PAGE]);
    drop(lying);
}

// --- an independent client and our server ---

struct Client(UnixStream);

impl Client {
    /// Connects and says HELLO; returns kind and body of the answer.
    fn greet(socket: &Path, hello: &[u8]) -> (Client, u16, Vec<u8>) {
        let mut client = Client(UnixStream::connect(socket).expect("connected"));
        client.0.write_all(hello).expect("sent");
        let (kind, id, body) = peer::receive(&mut client.0).expect("an answer");
        assert_eq!(id, 0);
        (client, kind, body)
    }

    fn welcomed(saved: &Saved) -> Client {
        let hello = peer::hello((1, 1), saved.ram.len() as u64, &saved.identities());
        let (client, kind, _) = Client::greet(&saved.socket(), &hello);
        assert_eq!(kind, peer::WELCOME);
        client
    }

    fn send(&mut self, kind: u16, id: u64, body: &[u8]) {
        self.0.write_all(&peer::frame(kind, id, body)).expect("sent");
    }

    fn ask(&mut self, kind: u16, body: &[u8]) -> (u16, Vec<u8>) {
        self.send(kind, 77, body);
        let (kind, id, body) = peer::receive(&mut self.0).expect("an answer");
        assert_eq!(id, 77);
        (kind, body)
    }

    #[track_caller]
    fn refused(&mut self, kind: u16, body: &[u8], code: u16, words: &str) {
        let (kind, body) = self.ask(kind, body);
        assert_eq!(kind, peer::ERROR);
        let (found, text) = peer::error(&body);
        assert!(found == code && text.contains(words), "{found}: {text}");
    }
}

#[test]
fn welcome_says_what_is_served() {
    let mut saved = Saved::new(6 * MIB, 0);
    saved.diff(1, 16384, 0);
    let _server = saved.serve();
    // Exactly this, whatever there is, and what a later version may append.
    let exact = peer::hello((1, 1), 6 << 20, &saved.identities());
    let mut later = peer::hello((1, 9), 0, &[]);
    later.extend([9; 40]);
    later[0] += 40;
    for hello in [exact, peer::hello((0, 1), 0, &[]), later] {
        let (_, kind, body) = Client::greet(&saved.socket(), &hello);
        assert_eq!(kind, peer::WELCOME);
        assert_eq!(&body[..8], b"SQUIBPGS");
        assert_eq!((peer::u16_at(&body, 8), peer::u16_at(&body, 10), peer::u32_at(&body, 12)), (1, 0, 2));
        assert_eq!((peer::u64_at(&body, 16), peer::u32_at(&body, 24)), (6 << 20, 16384));
        assert!(peer::u32_at(&body, 28) >= 16384);
        assert_eq!(body[32..], saved.identities().concat());
    }
}

#[test]
fn hello_that_cannot_be_met_is_refused_with_the_reason() {
    let saved = Saved::new(6 * MIB, 0);
    let _server = saved.serve();
    let ours = saved.identities();
    let mut no_magic = peer::hello((1, 1), 0, &[]);
    no_magic[16] = b'X';
    let mut many = peer::hello((1, 1), 0, &[]);
    many[16 + 12..16 + 16].copy_from_slice(&1000u32.to_le_bytes());
    for (hello, code, words) in [
        (peer::hello((2, 3), 0, &[]), 1, "versions 2 to 3"),
        (peer::hello((1, 1), 0, &[[0x77; 16]]), 2, "77777777777777777777777777777777"),
        (peer::hello((1, 1), 0, &[ours[0], ours[0]]), 2, "not"),
        (peer::hello((1, 1), 1 << 20, &ours), 2, "1048576 bytes"),
        (no_magic, 3, "SQUIBPGS"),
        (many, 3, "1000 layers"),
        (peer::frame(peer::HELLO, 0, &[1; 10]), 3, "too short"),
        (peer::frame(peer::READ, 1, &peer::ranges(&[(0, 4096, 0)])), 3, "not HELLO"),
    ] {
        let (mut client, kind, body) = Client::greet(&saved.socket(), &hello);
        assert_eq!(kind, peer::ERROR);
        let (found, text) = peer::error(&body);
        assert!(found == code && text.contains(words), "{found}: {text}");
        assert!(peer::receive(&mut client.0).is_none(), "it closes");
    }
}

#[test]
fn an_independent_client_gets_ranges_batches_and_sums() {
    let mut saved = Saved::new(6 * MIB, 0);
    let base = saved.ram.clone();
    saved.diff(1, 16384, 0);
    let _server = saved.serve();
    let mut client = Client::welcomed(&saved);
    let (kind, body) = client
        .ask(peer::READ, &peer::ranges(&[(0, 4096, 8192), (0, 1 << 20, 5 << 20), (0, 65536, 3 << 20), (0, 16384, 0)]));
    assert_eq!(kind, peer::DATA);
    let expected = [&base[8192..12288], &base[5 * MIB..6 * MIB], &[0; 65536], &base[..PAGE]].concat();
    let (bytes, sent) = peer::data(&body);
    assert!(bytes == expected);
    assert_eq!(sent, expected.len() - 65536, "holes are not sent");
    // What a diff holds, and its checksums.
    let states = saved.states();
    let held = states.memory(1).expect("a record").pages.clone().expect("a diff");
    let (first, _) = held.runs().next().expect("a page");
    let page = first as usize * PAGE;
    let (_, body) = client.ask(peer::READ, &peer::ranges(&[(1, 16384, page as u64)]));
    assert!(peer::data(&body).0 == saved.ram[page..page + PAGE]);
    let sums = |layer: u32| [&layer.to_le_bytes()[..], &384u32.to_le_bytes(), &0u64.to_le_bytes()].concat();
    for (layer, ram) in [(0, &base), (1, &saved.ram)] {
        let (kind, body) = client.ask(peer::SUMS, &sums(layer));
        assert_eq!((kind, body.len()), (peer::SUMS_DATA, 384 * 8));
        for page in 0..384 {
            let held = layer == 0 || held.contains(page as u64);
            let expected = if held { peer::crc64(&ram[page * PAGE..(page + 1) * PAGE]) } else { 0 };
            assert_eq!(peer::u64_at(&body, page * 8), expected, "layer {layer}, page {page}");
        }
    }
}

#[test]
fn many_requests_at_once_are_each_answered_once() {
    let saved = Saved::new(8 * MIB, 0);
    let _server = saved.serve();
    let client = Client::welcomed(&saved);
    let mut from = client.0.try_clone().expect("cloned");
    let mut to = client.0;
    let sender = thread::spawn(move || {
        for id in 1..=1000u64 {
            let request = peer::ranges(&[(0, 16384, id % 512 * 16384)]);
            to.write_all(&peer::frame(peer::READ, id, &request)).expect("sent");
        }
        to
    });
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let (kind, id, body) = peer::receive(&mut from).expect("an answer");
        assert_eq!(kind, peer::DATA);
        let page = id as usize % 512 * PAGE;
        assert!(peer::data(&body).0 == saved.ram[page..page + PAGE], "request {id}");
        assert!(seen.insert(id), "request {id} twice");
    }
    sender.join().expect("sent");
}

#[test]
fn requests_that_cannot_be_met_are_refused_and_the_next_is_answered() {
    let mut saved = Saved::new(6 * MIB, 0);
    saved.diff(1, 16384, 0);
    let _server = saved.serve();
    let mut client = Client::welcomed(&saved);
    let size = 6u64 << 20;
    for (range, code, words) in [
        ((0, 4096, size), 4, "not inside"),
        ((0, 8192, size - 4096), 4, "not inside"),
        ((0, 4096, u64::MAX - 4095), 4, "not inside"),
        ((0, 4096, 100), 4, "misaligned"),
        ((0, 100, 4096), 4, "misaligned"),
        ((0, 0, 4096), 4, "0 bytes"),
        ((2, 4096, 0), 4, "no layer 2"),
        ((1, 1 << 20, 0), 5, "does not hold"),
    ] {
        client.refused(peer::READ, &peer::ranges(&[range]), code, words);
    }
    let sums = |layer: u32, count: u32, first: u64| {
        [&layer.to_le_bytes()[..], &count.to_le_bytes(), &first.to_le_bytes()].concat()
    };
    client.refused(peer::SUMS, &sums(0, 1, 384), 4, "RAM has 384");
    client.refused(peer::SUMS, &sums(0, 2, u64::MAX), 4, "RAM has 384");
    client.refused(peer::SUMS, &sums(7, 1, 0), 4, "no layer 7");
    assert_eq!(client.ask(peer::READ, &peer::ranges(&[(0, 4096, 0)])).0, peer::DATA);
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_and_closed_and_others_go_on() {
    let saved = Saved::new(6 * MIB, 0);
    let _server = saved.serve();
    let mut well_behaved = Client::welcomed(&saved);
    for (kind, body, words) in [
        (99, vec![], "kind 99"),
        (peer::HELLO, vec![0; 24], "kind 1"),
        (peer::READ, vec![0; 15], "ranges"),
        (peer::READ, vec![], "0 ranges"),
        (peer::READ, vec![0; 16 * 65], "65 ranges"),
        (peer::READ, peer::ranges(&[(0, 4 << 20, 0)]), "4194304 bytes"),
        (peer::SUMS, vec![0; 17], "16 bytes"),
        (peer::SUMS, [0u32.to_le_bytes(), 1025u32.to_le_bytes(), [0; 4], [0; 4]].concat(), "1025 pages"),
    ] {
        let mut client = Client::welcomed(&saved);
        client.refused(kind, &body, 3, words);
        assert!(peer::receive(&mut client.0).is_none(), "it closes");
    }
    // A frame that is too long is refused before its body comes.
    let mut client = Client::welcomed(&saved);
    client.0.write_all(&[0xff; 16]).expect("sent");
    let (kind, _, body) = peer::receive(&mut client.0).expect("an answer");
    assert_eq!((kind, peer::error(&body).0), (peer::ERROR, 3));
    assert_eq!(well_behaved.ask(peer::READ, &peer::ranges(&[(0, 4096, 0)])).0, peer::DATA);
}

#[test]
fn damaged_and_shortened_files_are_named() {
    let saved = Saved::new(6 * MIB, 0);
    let memory = fs::OpenOptions::new().write(true).open(&saved.links[0].1).expect("the memory file");
    memory.write_all_at(&[!saved.ram[5 * MIB]], 5 << 20).expect("written");
    {
        let _server = saved.serve();
        let source = saved.connect().expect("connected");
        let mut page = vec![0; PAGE];
        let error = source.read(5 << 20, &mut page).expect_err("damaged");
        assert!(matches!(error, SourceError::Damaged(_)), "{error}");
        assert!(error.to_string().contains("0.mem") && error.to_string().contains("0x400000"), "{error}");
        source.read(0, &mut page).expect("the rest is sound");
        // Cut short while it is served.
        memory.set_len(MIB as u64 + 100).expect("shortened");
        let error = source.read(MIB as u64, &mut page).expect_err("too short");
        assert!(error.to_string().contains("cut short"), "{error}");
        source.read(PAGE as u64, &mut page).expect("the rest is sound");
    }
    // And before: a pair is refused, a file alone is of another size.
    Chain::open((&saved.links[0].0, &saved.links[0].1), &[] as &[(&str, &str)]).expect_err("too short");
    let _server = Serving::start(Images::memory_file(&saved.links[0].1).expect("images"), &saved.socket());
    let error = saved.connect().expect_err("another size").to_string();
    assert!(error.contains("6291456") && error.contains("1048676"), "{error}");
}

#[test]
fn what_is_not_a_memory_file_is_not_served() {
    let directory = tempfile::tempdir().expect("a directory");
    let empty = directory.path().join("empty");
    fs::write(&empty, "").expect("written");
    for path in [&empty, directory.path(), &directory.path().join("none")] {
        let error = Images::memory_file(path).expect_err("refused").to_string();
        assert!(error.contains(path.to_str().expect("UTF-8")), "{error}");
    }
}

// --- our client and an independent server ---

#[test]
fn answers_in_any_order_are_taken() {
    let saved = Saved::new(6 * MIB, 0);
    let _server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::None);
    reads_all_of(&saved.connect().expect("connected"), &saved.ram);
}

#[test]
fn a_server_that_will_not_do_is_an_error_at_once() {
    let saved = Saved::new(6 * MIB, 0);
    let error = saved.connect().expect_err("nobody is there").to_string();
    assert!(error.contains("no such socket") && error.contains(saved.socket().to_str().expect("UTF-8")), "{error}");
    for (fault, words) in [
        (Fault::ClosesAtHello, vec!["closed without an answer"]),
        (Fault::SilentAtHello, vec!["no WELCOME within 300ms"]),
        (Fault::Garbage, vec!["announced a frame"]),
        (Fault::Version, vec!["version 2"]),
        (Fault::OtherSnapshot, vec!["abababababababababababababababab", &saved.links[0].2.to_string()]),
        (Fault::OtherSize, vec!["6307840 bytes", "6291456"]),
        (Fault::OtherPage, vec!["4096"]),
        (Fault::Refuses, vec!["not today"]),
    ]
    .map(|(fault, words)| (fault, words.into_iter().map(str::to_owned).collect::<Vec<_>>()))
    {
        let server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], fault);
        let error = saved.connect().expect_err("refused");
        assert!(matches!(error, SourceError::Unavailable(_)), "{error}");
        for word in words {
            assert!(error.to_string().contains(&word), "{fault:?}: {error}");
        }
        drop(server);
    }
    std::os::unix::net::UnixListener::bind(saved.socket()).expect("bound");
    let error = saved.connect().expect_err("nobody listens").to_string();
    assert!(error.contains("nobody listens"), "{error}");
}

/// A fault in the middle: a named error, no byte of it taken for data; and when the server mends its ways, the same source
/// goes on.
#[track_caller]
fn survives(fault: Fault, words: &str, damaged: bool) {
    let saved = Saved::new(6 * MIB, 0);
    let server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::None);
    let source = saved.connect().expect("connected");
    let mut page = vec![0xee; PAGE];
    source.read(0, &mut page).expect("read");
    server.set(fault);
    thread::scope(|scope| {
        for n in 1..4 {
            let source = &source;
            scope.spawn(move || {
                let error = source.read(n * PAGE as u64, &mut vec![0; PAGE]).expect_err("a fault");
                assert_eq!(matches!(error, SourceError::Damaged(_)), damaged, "{fault:?}: {error}");
                let text = error.to_string();
                assert!(text.contains(words) && text.contains("page server"), "{fault:?}: {text}");
            });
        }
    });
    server.set(Fault::None);
    for n in [0, 1, 5 * 64, 300] {
        let expected = &saved.ram[n * PAGE..(n + 1) * PAGE];
        source.read((n * PAGE) as u64, &mut page).expect("it goes on");
        assert!(page == expected, "page {n}");
    }
}

#[test]
fn a_server_that_dies_is_unavailable() {
    survives(Fault::ClosesAtRead, "closed the connection", false);
    survives(Fault::ClosesInAnswer, "middle of a frame", false);
}

#[test]
fn a_server_that_is_slow_is_unavailable() {
    survives(Fault::Silent, "no answer within 300ms", false);
    survives(Fault::Stalls, "within 300ms", false);
}

#[test]
fn a_server_that_lies_is_damaged() {
    survives(Fault::Lies, "are wrong: checksum", true);
    survives(Fault::LiesZero, "are wrong: checksum", true);
}

#[test]
fn checksums_of_pages_must_be_those_of_the_state() {
    let saved = Saved::new(6 * MIB, 0);
    let _server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::LiesWell);
    let source = saved.connect().expect("connected");
    let error = source.read(0, &mut vec![0; PAGE]).expect_err("a lie");
    assert!(matches!(error, SourceError::Damaged(_)), "{error}");
    assert!(error.to_string().contains("checksums of the pages at 0x0..0x200000 are wrong"), "{error}");
}

#[test]
fn small_blocks_are_checked_directly() {
    for block_size in [4096, 16384] {
        let saved = Saved::new(6 * MIB, block_size);
        let server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::None);
        let source = saved.connect().expect("connected");
        reads_all_of(&source, &saved.ram);
        server.set(Fault::LiesWell);
        let error = source.read(0, &mut vec![0; PAGE]).expect_err("a lie");
        assert!(matches!(error, SourceError::Damaged(_)), "{error}");
    }
}

#[test]
fn a_server_that_sends_garbage_is_unavailable() {
    survives(Fault::BadTransport, "DATA does not have the checksum", false);
    survives(Fault::Short, "not the length asked for", false);
    survives(Fault::Long, "announced a frame", false);
    survives(Fault::Oversized, "4294967295 bytes", false);
    survives(Fault::WrongId, "which nobody made", false);
    survives(Fault::WrongKind, "answers with kind 6 where 4 is due", false);
}

#[test]
fn too_few_checksums_are_garbage() {
    let saved = Saved::new(6 * MIB, 0);
    let _server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::ShortSums);
    let error = saved.connect().expect("connected").read(0, &mut vec![0; PAGE]).expect_err("garbage");
    assert!(error.to_string().contains("checksums of 128 pages"), "{error}");
}

#[test]
fn a_servers_refusals_are_passed_on() {
    survives(Fault::Damaged, "the disk is on fire", true);
    survives(Fault::Io, "the disk is on fire", false);
}

#[test]
fn a_server_that_comes_back_is_found_and_another_is_not_taken() {
    let saved = Saved::new(6 * MIB, 0);
    let server = saved.serve();
    let patient = RemoteConfig { patience: Duration::from_secs(60), ..quick(&saved.socket()) };
    let source = Arc::new(RemoteSource::connect(patient, saved.states()).expect("connected"));
    let mut page = vec![0; PAGE];
    source.read(0, &mut page).expect("read");
    drop(server);
    let other = Saved::new(6 * MIB, 0);
    let wrong = Serving::start(Images::chain(&other.chain()).expect("images"), &saved.socket());
    // Waits through a server of another snapshot, which is only noticed, and goes on with the right one.
    let waiting = {
        let source = Arc::clone(&source);
        thread::spawn(move || {
            let mut page = vec![0; PAGE];
            source.read(PAGE as u64, &mut page).map(|_| page)
        })
    };
    let hasty = RemoteSource::connect(quick(&saved.socket()), saved.states()).expect_err("another snapshot");
    assert!(hasty.to_string().contains(&other.links[0].2.to_string()), "{hasty}");
    drop(wrong);
    let _server = saved.serve();
    let page = waiting.join().expect("the thread").expect("read");
    assert!(page == saved.ram[PAGE..2 * PAGE]);
}

#[test]
fn once_ends_with_the_first_client_and_leaves_nothing() {
    let saved = Saved::new(6 * MIB, 0);
    let server = PageServer::bind(Images::chain(&saved.chain()).expect("images"), saved.socket()).expect("bound");
    let serving = thread::spawn(move || server.serve(true));
    // One that never gets in does not count.
    let (refused, kind, _) = Client::greet(&saved.socket(), &peer::hello((9, 9), 0, &[]));
    assert_eq!(kind, peer::ERROR);
    drop(refused);
    let source = saved.connect().expect("connected");
    source.read(0, &mut vec![0; PAGE]).expect("read");
    drop(source);
    serving.join().expect("the thread").expect("served");
    assert!(!saved.socket().exists());
}
