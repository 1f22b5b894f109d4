//! Our server and an independent client.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use squib_host::pager::{Images, PageSource, SourceError};
use squib_snapshot::Chain;

use crate::fixture::{MIB, PAGE, Saved, Serving};
use crate::peer;

pub struct Client(UnixStream);

impl Client {
    /// Connects and says HELLO; returns kind and body of the answer.
    pub fn greet(socket: &Path, hello: &[u8]) -> (Client, u16, Vec<u8>) {
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
fn who_comes_when_all_room_is_taken_is_told_to_come_back() {
    let saved = Saved::new(6 * MIB, 0);
    let _server = saved.serve();
    let clients: Vec<_> = (0..192).map(|_| Client::welcomed(&saved)).collect();
    let hello = || Client::greet(&saved.socket(), &peer::hello((1, 1), 0, &[]));
    // However late it says HELLO: one that finds the connection closed does not look for the reason.
    let mut refused = Client(UnixStream::connect(saved.socket()).expect("connected"));
    thread::sleep(Duration::from_millis(50));
    refused.0.write_all(&peer::hello((1, 1), 0, &[])).expect("sent");
    let (kind, _, body) = peer::receive(&mut refused.0).expect("an answer");
    assert_eq!(kind, peer::ERROR);
    let (code, text) = peer::error(&body);
    assert!(code == 8 && text.contains("192 clients") && text.contains("come back later"), "{code}: {text}");
    assert!(peer::receive(&mut refused.0).is_none(), "it closes");
    drop(clients);
    let begun = Instant::now();
    while hello().1 != peer::WELCOME {
        assert!(begun.elapsed() < Duration::from_secs(60), "those who left are not noticed");
        thread::yield_now();
    }
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
