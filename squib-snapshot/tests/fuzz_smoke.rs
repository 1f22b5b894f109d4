//! The fuzz targets over their corpus and over mutations of it, with stable Rust: no input may panic or hang. `cargo fuzz` goes
//! further with the same code (`fuzz/`). `SQUIB_FUZZ_ROUNDS` sets the number of mutations per corpus file (100), `SQUIB_SEED` the seed.
#![cfg(not(miri))] // Files by the thousand.

use std::fs;
use std::path::Path;

#[path = "../fuzz/targets.rs"]
mod targets;

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Flips, overwrites, removes, repeats and inserts bytes.
fn mutate(bytes: &mut Vec<u8>, random: &mut impl FnMut() -> u64) {
    for _ in 0..1 + random() % 4 {
        let at = (random() % (bytes.len() as u64 + 1)) as usize;
        let len = (random() % 9) as usize;
        let end = bytes.len().min(at + len);
        match random() % 6 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (random() % 8),
            1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][(random() % 6) as usize],
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            4 => bytes.truncate(at),
            _ => {
                let value = random() >> (random() % 64);
                drop(bytes.splice(at..end, value.to_le_bytes()[..len.min(8)].to_vec()));
            }
        }
    }
}

fn run(target: &str, body: fn(&[u8])) {
    let rounds = environment("SQUIB_FUZZ_ROUNDS", 100);
    let mut seed = environment("SQUIB_SEED", 0x00ff_1ce5) | 1;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&corpus).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", corpus.display());
    body(&[]);
    for path in files {
        let seed_bytes = fs::read(&path).unwrap();
        body(&seed_bytes);
        for _ in 0..rounds {
            let mut bytes = seed_bytes.clone();
            mutate(&mut bytes, &mut random);
            if let Err(panic) = std::panic::catch_unwind(|| body(&bytes)) {
                let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                eprintln!("{target}, from {}: {hex}", path.display());
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn state_load() {
    run("state_load", targets::state_load);
}

#[test]
fn describe() {
    run("describe", targets::describe);
}

#[test]
fn chain_open() {
    run("chain_open", targets::chain_open);
}

#[test]
fn merge() {
    run("merge", targets::merge);
}
