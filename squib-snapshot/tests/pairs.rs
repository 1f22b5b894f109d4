//! Pairs on a real file system: what is saved is what is opened, and whatever is not the same pair is refused.

use std::fs;
use std::path::{Path, PathBuf};

use squib_snapshot::*;

const MIB: u64 = 1 << 20;

struct Bench {
    dir: tempfile::TempDir,
    state: MicrovmState,
    machine: MachineRecord,
}

impl Bench {
    fn new() -> Self {
        let mut vcpu = VcpuState::new(0x8000_0000);
        vcpu.psci_state = PsciVcpuState::On;
        let state = MicrovmState {
            vm_info: VmInfo { mem_size_mib: 8, track_dirty_pages: true, ..VmInfo::default() },
            vcpu_states: vec![vcpu.clone(), vcpu],
            gic_state: GicState::from_bytes(vec![1, 2, 3]),
            ..MicrovmState::default()
        };
        let vcpu = VcpuRecord { icc_regs: [(0xc230, 0xf0)].into(), vtimer_offset: 77, ..VcpuRecord::default() };
        let machine = MachineRecord {
            vcpus: vec![vcpu, VcpuRecord { pending_irq: true, ..VcpuRecord::default() }],
            host: HostRecord { os: "linux".into(), counter_frequency: 24_000_000, ..HostRecord::default() },
            clock: ClockRecord { wall_clock_ns: 5, guest_counter: 6, mode: ClockMode::Deterministic, instructions: 7 },
            blobs: [("console".to_string(), vec![9])].into(),
        };
        Self { dir: tempfile::tempdir().unwrap(), state, machine }
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.dir.path().join(format!("{name}.snap")), self.dir.path().join(format!("{name}.mem")))
    }

    fn save(&self, name: &str, memory: &dyn PageReader, size: u64, contents: Contents<'_>) -> Result<PairReport> {
        let (state_path, memory_path) = self.paths(name);
        save_pair(&PairRequest {
            state_path: &state_path,
            memory_path: &memory_path,
            state: &self.state,
            machine: &self.machine,
            memory,
            ram_start: 0x8000_0000,
            ram_size: size,
            contents,
            block_size: 65536,
        })
    }

    fn open(&self, name: &str) -> Result<Pair> {
        let (state, memory) = self.paths(name);
        Pair::open(&state, &memory)
    }
}

/// RAM of which a third is zero, in stretches of all lengths.
fn ram(size: u64) -> Vec<u8> {
    let mut seed = 1u64;
    (0..size / 4096)
        .flat_map(|page| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let value = if seed >> 33 & 3 == 0 || page / 64 % 3 == 1 { 0 } else { (seed >> 40) as u8 };
            std::iter::repeat_n(value, 4096)
        })
        .collect()
}

/// A reader that has nothing in memory, so that every byte is copied.
struct Copying(Vec<u8>);

impl PageReader for Copying {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buf)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_full_pair_comes_back_whole() {
    let bench = Bench::new();
    // Odd sizes, small and large enough for the workers.
    for size in [4096, 100 * 4096, 2 * MIB, 9 * MIB + 3 * 4096] {
        let bytes = ram(size);
        let slice = bench.save("slice", &bytes, size, Contents::Full).unwrap();
        let copy = bench.save("copy", &Copying(bytes.clone()), size, Contents::Full).unwrap();
        assert_ne!(slice.identity, copy.identity);
        for name in ["slice", "copy"] {
            let pair = bench.open(name).unwrap();
            assert_eq!(fs::read(pair.memory_path()).unwrap(), bytes);
            let report = pair.verify().unwrap();
            assert_eq!(report.bytes, size);
            let record = pair.state_file().record().unwrap();
            assert_eq!(record.machine, bench.machine);
            assert_eq!((record.parent, record.memory.is_diff()), (None, false));
            assert_eq!(pair.state_file().state(), &bench.state);
            assert_eq!(pair.ram_size().unwrap(), size);
        }
        let records = ["slice", "copy"].map(|n| bench.open(n).unwrap().state_file().record().unwrap().memory.clone());
        assert_eq!(records[0], records[1], "the same memory has the same checksums");
    }
    assert_eq!(names(bench.dir.path()), ["copy.mem", "copy.snap", "slice.mem", "slice.snap"]);
}

#[cfg(target_os = "linux")]
#[test]
fn zeros_take_no_room() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let mut bytes = vec![0; 16 << 20];
    bytes[5 << 20..][..8192].fill(1);
    let report = bench.save("sparse", &bytes, 16 * MIB, Contents::Full).unwrap();
    assert_eq!(report.memory_bytes, 8192);
    let metadata = fs::metadata(bench.paths("sparse").1).unwrap();
    assert_eq!(metadata.len(), 16 << 20);
    assert!(metadata.blocks() * 512 <= 65536, "{} blocks", metadata.blocks());
}

#[test]
fn any_flipped_byte_is_found_and_its_block_named() {
    let bench = Bench::new();
    let bytes = ram(2 * MIB);
    bench.save("vm", &bytes, 2 * MIB, Contents::Full).unwrap();
    let (_, memory) = bench.paths("vm");
    for at in [0, 65535, 65536, 777_777, (2 << 20) - 1, 64 * 4096 + 1, 70 * 4096] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        fs::write(&memory, &damaged).unwrap();
        let pair = bench.open("vm").unwrap();
        let block = at as u64 / 65536 * 65536;
        match pair.verify() {
            Err(SnapshotError::MemoryDamaged { path, start, end, expected, found }) => {
                assert_eq!((path, start, end), (memory.clone(), block, block + 65536));
                assert_ne!(expected, found);
            }
            other => panic!("byte {at}: {other:?}"),
        }
        let report = pair.verify_report().unwrap();
        assert_eq!(report.damaged.len(), 1);
        assert!(report.human().contains(&format!("{block:#x}..")), "{}", report.human());
        assert_eq!(report.to_json()["damaged"][0]["start"], block);
    }
}

#[test]
fn a_foreign_memory_file_is_refused() {
    let bench = Bench::new();
    bench.save("a", &ram(MIB), MIB, Contents::Full).unwrap();
    bench.save("b", &ram(2 * MIB), 2 * MIB, Contents::Full).unwrap();
    let (a, b) = (bench.paths("a"), bench.paths("b"));
    bench.save("c", &vec![3; MIB as usize], MIB, Contents::Full).unwrap();
    bench.open("c").unwrap().probe().unwrap();
    let mixed = Pair::open(&a.0, &bench.paths("c").1).unwrap();
    assert!(matches!(mixed.probe(), Err(SnapshotError::PairMismatch { .. })), "same length, other bytes");
    let e = Pair::open(&a.0, &b.1).unwrap_err();
    assert!(matches!(&e, SnapshotError::PairMismatch { memory, .. } if *memory == b.1), "{e}");
    fs::copy(&b.1, &a.1).unwrap();
    assert!(matches!(load(&a.0), Err(SnapshotError::PairMismatch { .. })), "load looks at the memory file, too");
    fs::remove_file(&a.1).unwrap();
    assert_eq!(load(&a.0).unwrap().source_version, SNAPSHOT_VERSION_RECORD);
    let e = bench.open("a").unwrap_err();
    assert_eq!(e.path(), Some(a.1.as_path()), "{e}");
}

#[test]
fn a_diff_holds_its_pages_zero_or_not_and_drains_after_the_commit() {
    let bench = Bench::new();
    let mut bytes = ram(4 * MIB);
    let base = bench.save("base", &bytes, 4 * MIB, Contents::Full).unwrap();
    let dirty = DirtyBitmap::new(0x8000_0000, 4 * MIB, 16384).unwrap();
    bytes[3 * 16384..4 * 16384].fill(0);
    bytes[200 * 16384..202 * 16384].fill(0xee);
    dirty.set_range_dirty(0x8000_0000 + 3 * 16384, 1);
    dirty.set_range_dirty(0x8000_0000 + 200 * 16384, 2 * 16384);
    let (state_path, memory_path) = bench.paths("diff");
    let request = PairRequest {
        state_path: &state_path,
        memory_path: &memory_path,
        state: &bench.state,
        machine: &bench.machine,
        memory: &bytes,
        ram_start: 0x8000_0000,
        ram_size: 4 * MIB,
        contents: Contents::Full,
        block_size: 0,
    };

    let nowhere = bench.dir.path().join("missing/vm.mem");
    save_diff(&PairRequest { memory_path: &nowhere, ..request }, base.identity, &dirty).unwrap_err();
    assert_eq!(dirty.snapshot().len(), 3, "a failed diff loses nothing");

    let report = save_diff(&request, base.identity, &dirty).unwrap();
    assert!(dirty.snapshot().is_empty());
    assert_eq!(report.memory_bytes, 3 * 16384);
    let pair = bench.open("diff").unwrap();
    let record = pair.state_file().record().unwrap();
    assert_eq!(record.parent, Some(base.identity));
    assert_eq!(record.memory.pages.as_ref().unwrap().runs().collect::<Vec<_>>(), [(3, 1), (200, 2)]);
    assert_eq!(pair.verify().unwrap().bytes, 3 * 16384);
    let stored = fs::read(&memory_path).unwrap();
    assert_eq!(stored[200 * 16384..202 * 16384], bytes[200 * 16384..202 * 16384]);
    let mut damaged = stored.clone();
    damaged[3 * 16384] = 1;
    fs::write(&memory_path, damaged).unwrap();
    assert!(pair_is_damaged(&bench.open("diff").unwrap()), "zero pages are checked, too");
}

fn pair_is_damaged(pair: &Pair) -> bool {
    matches!(pair.verify(), Err(SnapshotError::MemoryDamaged { .. }))
}

#[test]
fn requests_that_make_no_sense_touch_nothing() {
    let bench = Bench::new();
    let bytes = ram(MIB);
    let set = PageSet::empty(16384, 64);
    let parent = SnapshotId([1; 16]);
    let diff = |pages| Contents::Diff { parent, pages };
    let short = PageSet::empty(16384, 63);
    assert!(matches!(bench.save("x", &bytes, MIB, diff(&short)), Err(SnapshotError::InvalidPath(_))));
    assert!(matches!(bench.save("x", &bytes, 0, Contents::Full), Err(SnapshotError::InvalidPath(_))));
    let mut untracked = Bench { dir: tempfile::tempdir().unwrap(), ..Bench::new() };
    untracked.state.vm_info.track_dirty_pages = false;
    assert!(matches!(untracked.save("x", &bytes, MIB, diff(&set)), Err(SnapshotError::InvalidPath(_))));
    untracked.machine.vcpus.pop();
    assert!(matches!(untracked.save("x", &bytes, MIB, Contents::Full), Err(SnapshotError::InvalidPath(_))));
    untracked.machine.vcpus.clear();
    untracked.state.gic_state.bytes.clear();
    assert!(matches!(untracked.save("x", &bytes, MIB, Contents::Full), Err(SnapshotError::Incompatible)));
    assert!(names(bench.dir.path()).is_empty() && names(untracked.dir.path()).is_empty());
    // Reading beyond the source is an error of the memory, and leaves nothing either.
    assert!(matches!(bench.save("x", &bytes, 2 * MIB, Contents::Full), Err(SnapshotError::MemoryIo(_))));
    assert!(matches!(bench.save("x", &bytes, 16 * MIB, Contents::Full), Err(SnapshotError::MemoryIo(_))));
    assert!(names(bench.dir.path()).is_empty());
}

#[test]
fn the_published_form_is_written_by_the_published_function() {
    let bench = Bench::new();
    let bytes = ram(MIB);
    let (state_path, memory_path) = bench.paths("old");
    let request = |kind, dirty| SaveRequest {
        state_path: &state_path,
        memory_path: &memory_path,
        kind,
        state: bench.state.clone(),
        memory: bytes.as_slice(),
        ram_size: MIB,
        memory_page_size: 16384,
        dirty,
    };
    assert_eq!(save(request(SnapshotKind::Full, None)).unwrap().pages_written, 0);
    let mut expected = Vec::new();
    Snapshot::new(bench.state.clone()).save(&mut expected).unwrap();
    assert_eq!(fs::read(&state_path).unwrap(), expected);
    assert_eq!(fs::read(&memory_path).unwrap(), bytes);
    assert_eq!(
        load(&state_path).unwrap(),
        LoadedSnapshot { state: bench.state.clone(), source_version: SNAPSHOT_VERSION }
    );

    let dirty = DirtyBitmap::new(0, MIB, 65536).unwrap();
    dirty.set_dirty(0);
    dirty.set_dirty(MIB - 1);
    let report = save(request(SnapshotKind::Diff, Some(&dirty))).unwrap();
    assert_eq!(report, SaveReport { kind: SnapshotKind::Diff, pages_written: 8 });
    assert_eq!(dirty.drain(), [0, 15], "the bitmap keeps its bits");
    let mut expected = vec![0; MIB as usize];
    expected[..65536].copy_from_slice(&bytes[..65536]);
    expected[15 * 65536..].copy_from_slice(&bytes[15 * 65536..]);
    assert_eq!(fs::read(&memory_path).unwrap(), expected);

    let invalid = |r: Result<SaveReport>, text: &str| match r {
        Err(SnapshotError::InvalidPath(t)) => assert_eq!(t, text),
        other => panic!("{other:?}"),
    };
    invalid(
        save(request(SnapshotKind::Diff, None)),
        "Diff snapshot requires track_dirty_pages=true and a dirty bitmap",
    );
    let small = DirtyBitmap::new(0, MIB / 2, 16384).unwrap();
    invalid(
        save(request(SnapshotKind::Diff, Some(&small))),
        "diff bitmap covers 524288 bytes, memory file expects 1048576",
    );
    let fine = DirtyBitmap::new(0, MIB, 4096).unwrap();
    invalid(
        save(request(SnapshotKind::Diff, Some(&fine))),
        "diff bitmap page (4096) must be a multiple of memory-file page (16384)",
    );
    invalid(
        save(SaveRequest { memory_page_size: 0, ..request(SnapshotKind::Full, None) }),
        "page_size must be a power of two: 0",
    );
    assert_eq!(fs::read(&memory_path).unwrap(), expected, "errors leave the pair alone");
    let pair = bench.open("old").unwrap();
    assert!(matches!(pair.verify(), Err(SnapshotError::NotRecorded { .. })));
    assert_eq!(names(bench.dir.path()), ["old.mem", "old.snap"]);
}

#[test]
fn state_and_memory_must_be_two_files() {
    let bench = Bench::new();
    let path = bench.dir.path().join("one");
    let bytes = ram(MIB);
    let request = PairRequest {
        state_path: &path,
        memory_path: &bench.dir.path().join(".").join("one"),
        state: &bench.state,
        machine: &bench.machine,
        memory: &bytes,
        ram_start: 0,
        ram_size: MIB,
        contents: Contents::Full,
        block_size: 0,
    };
    assert!(matches!(save_pair(&request), Err(SnapshotError::InvalidPath(_))));
    assert!(names(bench.dir.path()).is_empty());
}

/// A reader during which something else happens, once.
struct Meanwhile<'a> {
    bytes: Vec<u8>,
    act: std::sync::Mutex<Option<Box<dyn FnOnce() + Send + 'a>>>,
}

impl PageReader for Meanwhile<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if let Some(act) = self.act.lock().unwrap().take() {
            act();
        }
        self.bytes.read_at(offset, buf)
    }
}

#[test]
fn of_two_savers_one_wins_and_the_other_is_told() {
    let bench = Bench::new();
    let (first, second) = (ram(MIB), vec![7; MIB as usize]);
    let (state_path, memory_path) = bench.paths("vm");
    let elsewhere = bench.dir.path().join("other.snap");
    let act = || {
        let e = bench.save("vm", &second, MIB, Contents::Full).unwrap_err();
        assert!(matches!(&e, SnapshotError::Busy { path } if *path == state_path), "{e}");
        // The memory file alone is a destination, too.
        let request = SaveRequest {
            state_path: &elsewhere,
            memory_path: &memory_path,
            kind: SnapshotKind::Full,
            state: bench.state.clone(),
            memory: &second,
            ram_size: MIB,
            memory_page_size: 16384,
            dirty: None,
        };
        assert!(matches!(save(request), Err(SnapshotError::Busy { path }) if path == memory_path));
        let report = recover(bench.dir.path()).unwrap();
        assert_eq!(report.busy, [memory_path.clone(), state_path.clone()]);
        assert!(report.removed.is_empty(), "what a living saver writes is left alone");
    };
    let reader = Meanwhile { bytes: first.clone(), act: std::sync::Mutex::new(Some(Box::new(act))) };
    bench.save("vm", &reader, MIB, Contents::Full).unwrap();
    assert_eq!(fs::read(&memory_path).unwrap(), first);
    assert_eq!(names(bench.dir.path()), ["vm.mem", "vm.snap"]);
}

#[cfg(unix)]
#[test]
fn new_files_are_private_and_links_at_the_destination_are_replaced() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let bench = Bench::new();
    let target = bench.dir.path().join("target");
    fs::write(&target, b"untouched").unwrap();
    let (state_path, memory_path) = bench.paths("vm");
    symlink(&target, &memory_path).unwrap();
    symlink(&target, &state_path).unwrap();
    let bytes = ram(MIB);
    let dir = bench.dir.path();
    let seen = || {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_str().unwrap().ends_with(".new") {
                assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600);
            }
        }
    };
    let reader = Meanwhile { bytes: bytes.clone(), act: std::sync::Mutex::new(Some(Box::new(seen))) };
    bench.save("vm", &reader, MIB, Contents::Full).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"untouched");
    for path in [&state_path, &memory_path] {
        let metadata = fs::symlink_metadata(path).unwrap();
        assert!(metadata.is_file() && metadata.mode() & 0o777 == 0o600);
    }
    bench.open("vm").unwrap().verify().unwrap();
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_replaced() {
    let bench = Bench::new();
    let (state, memory) = bench.paths("vm");
    for odd in [&state, &memory] {
        let _listener = std::os::unix::net::UnixListener::bind(odd).unwrap();
        for error in [
            check_destination(&state, &memory).unwrap_err(),
            bench.save("vm", &ram(MIB), MIB, Contents::Full).unwrap_err(),
        ] {
            assert_eq!(error.path(), Some(odd.as_path()));
            assert!(error.to_string().contains("a device, a pipe or a socket"), "{error}");
        }
        assert_eq!(names(bench.dir.path()).len(), 1, "the socket, and nothing beside it");
        fs::remove_file(odd).unwrap();
    }
    check_destination(&state, &memory).unwrap();
    assert_eq!(names(bench.dir.path()), [""; 0], "trying leaves nothing behind");
    fs::create_dir(&memory).unwrap();
    let error = check_destination(&state, &memory).unwrap_err().to_string();
    assert!(error.contains("is a directory"), "{error}");
}

#[test]
fn a_save_over_the_files_a_pair_is_open_from_does_not_touch_the_open_ones() {
    let bench = Bench::new();
    let first = ram(MIB);
    bench.save("vm", &first, MIB, Contents::Full).unwrap();
    let open = bench.open("vm").unwrap();
    let chain = Chain::from_pairs(bench.open("vm").unwrap(), vec![]).unwrap();
    bench.save("vm", &vec![9; MIB as usize], MIB, Contents::Full).unwrap();
    open.verify().unwrap();
    let mut back = vec![0; MIB as usize];
    chain.read_checked(0, &mut back).unwrap();
    assert_eq!(back, first);
    // Saving from the chain over itself: source and destination are the same files.
    let chain = Chain::from_pairs(bench.open("vm").unwrap(), vec![]).unwrap();
    bench.save("vm", &chain, MIB, Contents::Full).unwrap();
    assert_eq!(fs::read(bench.paths("vm").1).unwrap(), vec![9; MIB as usize]);
}
