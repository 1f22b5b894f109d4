//! The page server and its client, each against the other and against an implementation of the protocol that shares no code
//! with them (`peer`), which also misbehaves.

mod client;
mod fixture;
mod peer;
mod server;

use fixture::{MIB, PAGE, Saved, Serving, quick, reads_all_of};
use peer::Fault;
use squib_host::pager::{Images, Origin, PageSource, RemoteConfig, RemoteSource};

#[test]
fn every_page_of_a_snapshot_arrives() {
    for (size, block_size) in [(8 * MIB, 0), (8 * MIB, 16 << 10), (8 * MIB, 4096), (8 * MIB, 64 << 10)] {
        let saved = Saved::new(size, block_size);
        let _server = saved.serve();
        let source = saved.connect_patiently();
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
        reads_all_of(&saved.connect_patiently(), &saved.ram);
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
    reads_all_of(&saved.connect_patiently(), &saved.ram);
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
