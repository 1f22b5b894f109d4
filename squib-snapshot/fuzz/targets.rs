//! What is fuzzed: each function takes any bytes and must come back, with an error or not, soon and in bounded memory.
//!
//! Trailers are put right before decoding, or nothing would ever get past them; the bytes as they are go in as well.
#![allow(dead_code)] // Every target uses one of these.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use squib_snapshot::*;

/// Memory files are made as long as a state says, up to this.
const MOST_RAM: u64 = 4 << 20;

/// `body` with the trailer that belongs to it.
pub fn with_trailer(body: &[u8]) -> Vec<u8> {
    let mut writer = Crc64Writer::new(Vec::new());
    writer.write_all(body).expect("a Vec takes everything");
    let crc = writer.checksum();
    let mut bytes = writer.into_inner();
    bytes.extend(crc.to_le_bytes());
    bytes
}

/// A state file from memory.
pub fn state_load(data: &[u8]) {
    let body = &data[..data.len().saturating_sub(8)];
    for bytes in [data, &with_trailer(body), &with_trailer(data)] {
        let _ = peek_header(bytes);
        if let Ok(file) = StateFile::from_slice(bytes) {
            let _ = file.state().verify_compatible();
            if let Some(record) = file.record() {
                let again = SnapshotRecord::from_bytes(&record.to_bytes()).expect("what was read can be written");
                assert_eq!(&again, record);
                let _ = (record.human(), record.to_json());
            }
        }
        if let Ok(snapshot) = Snapshot::<MicrovmState>::load_from_slice(bytes) {
            let mut out = Vec::new();
            snapshot.save(&mut out).expect("what was read can be written");
            let again = Snapshot::<MicrovmState>::load_from_slice(&out).expect("and read again");
            assert_eq!(again, snapshot);
        }
    }
    let _ = SnapshotRecord::from_bytes(data);
}

/// A state file from disk, with and without a right trailer.
pub fn describe(data: &[u8]) {
    let dir = dir();
    let path = dir.path().join("vm.snap");
    for bytes in [data, &with_trailer(data)] {
        fs::write(&path, bytes).expect("the file is written");
        if let Ok(description) = squib_snapshot::describe(&path) {
            let _ = (description.human(), description.to_json());
        }
        let _ = load(&path);
    }
}

/// Two states: the first four bytes say where the second begins.
pub fn chain_open(data: &[u8]) {
    let dir = dir();
    let _ = chain(dir.path(), data);
}

/// As `chain_open`; a chain that opens is read and merged.
pub fn merge(data: &[u8]) {
    let dir = dir();
    let Some(chain) = chain(dir.path(), data) else { return };
    let mut ram = vec![0; chain.ram_size().min(MOST_RAM) as usize];
    let readable = chain.read_checked(0, &mut ram).is_ok();
    let (state, memory) = (dir.path().join("out.snap"), dir.path().join("out.mem"));
    if squib_snapshot::merge(&chain, &state, &memory).is_ok() {
        let merged = Pair::open(&state, &memory).expect("what was merged opens");
        // Damage is never made to look right, and nothing else looks damaged.
        assert_eq!(merged.verify().is_ok(), readable);
        assert!(!readable || fs::read(&memory).expect("the memory") == ram);
    }
}

fn chain(dir: &Path, data: &[u8]) -> Option<Chain> {
    let (split, rest) = data.split_first_chunk::<4>()?;
    let (base, diff) = rest.split_at_checked(u32::from_le_bytes(*split) as usize)?;
    let base = pair(dir, "base", base)?;
    if diff.is_empty() {
        return Chain::from_pairs(base, vec![]).ok();
    }
    Chain::from_pairs(base, vec![pair(dir, "diff", diff)?]).ok()
}

/// Writes a state and a memory file full of `5a` for it, and opens them.
fn pair(dir: &Path, name: &str, body: &[u8]) -> Option<Pair> {
    let (state, memory): (PathBuf, PathBuf) = (dir.join(format!("{name}.snap")), dir.join(format!("{name}.mem")));
    let bytes = with_trailer(body);
    fs::write(&state, &bytes).expect("the state is written");
    let file = StateFile::from_slice(&bytes).ok()?;
    let size = file.record().map_or(65536, |r| r.memory.ram_size);
    let mut out = File::create(&memory).expect("a memory file");
    if size <= MOST_RAM {
        out.write_all(&vec![0x5a; size as usize]).expect("the memory is written");
    }
    Pair::open(&state, &memory).ok()
}

fn dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("a directory")
}
