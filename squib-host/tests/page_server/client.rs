//! Our client and an independent server, which misbehaves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use squib_host::pager::{Images, PageServer, PageSource, RemoteConfig, RemoteSource, SourceError};

use crate::fixture::{MIB, PAGE, Saved, Serving, quick, reads_all_of};
use crate::peer::{self, Fault};
use crate::server::Client;

#[test]
fn answers_in_any_order_are_taken() {
    let saved = Saved::new(6 * MIB, 0);
    let _server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::None);
    reads_all_of(&saved.connect_patiently(), &saved.ram);
}

#[test]
fn a_server_that_will_not_do_is_an_error_at_once() {
    let saved = Saved::new(6 * MIB, 0);
    let error = saved.connect().expect_err("nobody is there").to_string();
    assert!(error.contains("no such socket") && error.contains(saved.socket().to_str().expect("UTF-8")), "{error}");
    for (fault, words) in [
        (Fault::ClosesAtHello, vec!["closed without an answer"]),
        (Fault::SilentAtHello, vec!["no WELCOME within 800ms"]),
        (Fault::Garbage, vec!["announced a frame", "is it a page server?"]),
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
    let long = saved.file(&"x".repeat(200));
    let error = RemoteSource::connect(quick(&long), saved.states()).expect_err("no such name").to_string();
    assert!(error.contains("too long"), "{error}");
    std::os::unix::net::UnixListener::bind(saved.socket()).expect("bound");
    let error = saved.connect().expect_err("nobody listens").to_string();
    assert!(error.contains("nobody listens"), "{error}");
    let error = RemoteSource::connect(quick(&saved.links[0].0), saved.states()).expect_err("a file").to_string();
    assert!(error.contains("not a socket"), "{error}");
}

/// A fault in the middle: a named error, no byte of it taken for data; and when the server mends its ways, the same source
/// goes on.
#[track_caller]
fn survives(fault: Fault, words: &[&str], expected: fn(String) -> SourceError) {
    let expected = std::mem::discriminant(&expected(String::new()));
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
                assert_eq!(std::mem::discriminant(&error), expected, "{fault:?}: {error:?}");
                let text = error.to_string();
                let said = words.iter().any(|words| text.contains(words));
                assert!(said && text.contains("page server"), "{fault:?}: {text}");
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
    survives(Fault::ClosesAtRead, &["closed the connection"], SourceError::Unavailable);
    // Whoever asks when the connection has just gone learns it in writing.
    survives(Fault::ClosesInAnswer, &["middle of a frame", "closed the connection"], SourceError::Unavailable);
}

#[test]
fn a_server_that_is_slow_is_unavailable() {
    survives(Fault::Silent, &["no answer within 800ms"], SourceError::Unavailable);
    survives(Fault::Stalls, &["within 800ms"], SourceError::Unavailable);
}

#[test]
fn a_server_that_lies_is_asked_again_and_not_believed() {
    survives(Fault::Lies, &["are wrong: checksum"], SourceError::Wrong);
    survives(Fault::LiesZero, &["are wrong: checksum"], SourceError::Wrong);
}

#[test]
fn checksums_of_pages_must_be_those_of_the_state() {
    let saved = Saved::new(6 * MIB, 0);
    let _server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::LiesWell);
    let source = saved.connect().expect("connected");
    let error = source.read(0, &mut vec![0; PAGE]).expect_err("a lie");
    assert!(matches!(error, SourceError::Wrong(_)), "{error}");
    assert!(error.to_string().contains("checksums of the pages at 0x0..0x200000 are wrong"), "{error}");
}

#[test]
fn small_blocks_are_checked_directly() {
    for block_size in [4096, 16384] {
        let saved = Saved::new(6 * MIB, block_size);
        let server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::None);
        reads_all_of(&saved.connect_patiently(), &saved.ram);
        let source = saved.connect().expect("connected");
        server.set(Fault::LiesWell);
        let error = source.read(0, &mut vec![0; PAGE]).expect_err("a lie");
        assert!(matches!(error, SourceError::Wrong(_)), "{error}");
    }
}

#[test]
fn a_server_that_sends_garbage_is_unavailable() {
    survives(Fault::BadTransport, &["DATA does not have the checksum"], SourceError::Unavailable);
    survives(Fault::Short, &["not the length asked for"], SourceError::Unavailable);
    survives(Fault::Long, &["announced a frame"], SourceError::Unavailable);
    survives(Fault::Oversized, &["4294967295 bytes"], SourceError::Unavailable);
    survives(Fault::WrongId, &["which nobody made"], SourceError::Unavailable);
    survives(Fault::WrongKind, &["answers with kind 6 where 4 is due"], SourceError::Unavailable);
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
    survives(Fault::Damaged, &["the disk is on fire"], SourceError::Damaged);
    survives(Fault::Io, &["the disk is on fire"], SourceError::Unavailable);
    // No reason to give a page up: what the states say is there is there, on the right server.
    survives(Fault::NotHeld, &["the disk is on fire"], SourceError::Wrong);
    survives(Fault::Unknown, &["the disk is on fire"], SourceError::Wrong);
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
fn a_diff_of_pages_that_no_server_gives_out_is_refused_with_the_remedy() {
    let mut saved = Saved::new(6 * MIB, 0);
    saved.diff(1, 2048, 0);
    let error = saved.connect().expect_err("pages of 2 KiB").to_string();
    assert!(error.contains("1.state") && error.contains("below 4 KiB") && error.contains("squib merge"), "{error}");
}

/// Its connections are the parent's, and stay so: a forked child neither uses nor ends them.
#[test]
fn a_forked_child_leaves_the_connections_alone() {
    let saved = Saved::new(6 * MIB, 0);
    let server = peer::Server::start(&saved.socket(), saved.ram.clone(), saved.identities()[0], Fault::None);
    let mut source = Some(saved.connect().expect("connected"));
    let mut page = vec![0; PAGE];
    let mut reads = |source: &RemoteSource| {
        source.read(0, &mut page).expect("read");
        source.read_quietly(PAGE as u64, &mut page).expect("read");
    };
    reads(source.as_ref().expect("here"));
    // SAFETY: the child only does what is in this block and leaves by `_exit`; the C library makes its allocator usable after fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let source = source.take().expect("here");
        let mut page = vec![0; PAGE];
        let error = source.read(0, &mut page).expect_err("the parent's").to_string();
        let refused =
            error.contains("a forked child has to make its own") && source.read_quietly(0, &mut page).is_err();
        drop(source);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if refused { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: our own child; the result goes to a local.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child was refused");
    reads(source.as_ref().expect("here"));
    assert_eq!(server.hellos.load(Ordering::SeqCst), 2, "the connections are the same");
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
