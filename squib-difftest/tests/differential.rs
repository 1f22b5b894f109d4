//! Half a minute of random instruction sequences on the engine and on `qemu-aarch64`: no difference, no encoding left out.
//!
//! For more: `cargo run --release -p squib-difftest -- --seconds 3600`.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use squib_difftest::campaign::{self, Limits, Subject, Table};
use squib_difftest::engine::Engine;
use squib_difftest::generator::Draw;
use squib_difftest::rng;

const QEMU: &str = "qemu-aarch64";

/// A process has one virtual machine: the tests that need one take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn limits(seconds: u64) -> Limits {
    Limits { time: Duration::from_secs(seconds), cases: u64::MAX, failures: 5, reports: 2 }
}

#[test]
fn the_engine_and_the_reference_agree() {
    let _turn = turn();
    let seed = rng::any_seed();
    println!("seed {seed}");
    let mut engine = Engine::new().expect("a virtual machine");
    let (mut coverage, mut reports) = (BTreeMap::new(), String::new());
    // On a machine that has much else to do, more turns: until no encoding is left out.
    for turn in 0..10 {
        for kind in Draw::ALL.into_iter().filter(|kind| !kind.only_undefined()) {
            let seconds = if matches!(kind, Draw::Simd | Draw::SimdFp | Draw::Mixed) { 4 } else { 2 };
            let summary = campaign::run(&mut engine, Path::new(QEMU), kind, seed + turn, 0, limits(seconds))
                .expect("both sides answer; qemu-aarch64 comes with Debian's qemu-user");
            println!("{kind:?}: {} sequences, {} instructions", summary.cases, summary.instructions);
            reports.extend(summary.failures.into_iter().map(|failure| failure.report));
            for (name, count) in summary.coverage {
                *coverage.entry(name).or_insert(0) += count;
            }
        }
        assert!(reports.is_empty(), "seed {}:\n{reports}", seed + turn);
        if campaign::uncovered(&coverage).is_empty() {
            return;
        }
    }
    panic!("seed {seed}: never executed: {:?}", campaign::uncovered(&coverage));
}

/// Compares which words are UNDEFINED: always the same ones. What is neither a row nor on one of the lists of words that
/// cannot be compared is not known to be comparable; the command looks for such words with new seeds.
fn compare_undefined(subject: &mut dyn Subject) {
    const SEED: u64 = 1;
    for kind in [Draw::SystemSpace, Draw::Undefined] {
        let cases = kind.cases().unwrap_or(100_000);
        let limits = Limits { time: Duration::MAX, cases, failures: 20, reports: 2 };
        let summary = campaign::run(subject, Path::new(QEMU), kind, SEED, 0, limits).expect("both sides answer");
        let reports: String = summary.failures.into_iter().map(|failure| failure.report).collect();
        assert!(reports.is_empty(), "{reports}");
        assert_eq!(summary.cases, cases);
    }
}

#[test]
fn the_same_words_are_undefined() {
    let _turn = turn();
    compare_undefined(&mut Engine::new().expect("a virtual machine"));
}

#[test]
fn the_table_of_encodings_is_the_references() {
    compare_undefined(&mut Table);
}
