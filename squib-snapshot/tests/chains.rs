//! Chains on a real file system against an oracle: base plus diffs is the RAM at every step, merged or not.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use squib_snapshot::*;

const PAGE: u64 = 16384;

struct Bench {
    dir: tempfile::TempDir,
    state: MicrovmState,
    block_size: u64,
}

impl Bench {
    fn new(block_size: u64) -> Self {
        let state = MicrovmState {
            vm_info: VmInfo { track_dirty_pages: true, ..VmInfo::default() },
            vcpu_states: vec![VcpuState::new(0)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        };
        Self { dir: tempfile::tempdir().unwrap(), state, block_size }
    }

    fn paths(&self, n: usize) -> (PathBuf, PathBuf) {
        (self.dir.path().join(format!("{n}.snap")), self.dir.path().join(format!("{n}.mem")))
    }

    fn save(&self, n: usize, ram: &[u8], contents: Contents<'_>) -> SnapshotId {
        let (state_path, memory_path) = self.paths(n);
        let report = save_pair(&PairRequest {
            state_path: &state_path,
            memory_path: &memory_path,
            state: &self.state,
            machine: &MachineRecord {
                clock: ClockRecord { instructions: n as u64, ..Default::default() },
                ..Default::default()
            },
            memory: &ram,
            ram_start: 0,
            ram_size: ram.len() as u64,
            contents,
            block_size: self.block_size,
        });
        report.unwrap().identity
    }

    fn diff(&self, n: usize, ram: &[u8], parent: SnapshotId, page_size: u64, pages: &[u64]) -> SnapshotId {
        let count = (ram.len() as u64).div_ceil(page_size);
        let pages = PageSet::from_pages(page_size, count, pages.iter().copied());
        self.save(n, ram, Contents::Diff { parent, pages: &pages })
    }

    fn pair(&self, n: usize) -> Pair {
        let (state, memory) = self.paths(n);
        Pair::open(&state, &memory).unwrap()
    }

    fn chain(&self, numbers: &[usize]) -> Result<Chain> {
        Chain::from_pairs(self.pair(numbers[0]), numbers[1..].iter().map(|n| self.pair(*n)).collect())
    }
}

/// One diff: its granule (4 KiB and up), and which pages get which byte (0 included).
fn diffs() -> impl Strategy<Value = Vec<(u32, Vec<(u64, u8)>)>> {
    let pages = proptest::collection::btree_map(0u64..70, 0u8..3, 0..12).prop_map(|m| m.into_iter().collect());
    proptest::collection::vec((0u32..5, pages), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_reads_and_merges_to_the_ram_it_was_saved_from(
        base in proptest::collection::vec(0u8..3, 66), tail in 1usize..16384, steps in diffs(), small_blocks in any::<bool>(),
        at in 0u64..70 * PAGE, len in 0u64..5 * PAGE,
    ) {
        let bench = Bench::new(if small_blocks { 4096 } else { 0 });
        let mut ram: Vec<u8> = base.iter().flat_map(|b| std::iter::repeat_n(*b, PAGE as usize)).collect();
        ram.truncate(65 * PAGE as usize + tail);
        let mut parent = bench.save(0, &ram, Contents::Full);
        let mut numbers = vec![0];
        for (n, (coarser, pages)) in steps.into_iter().enumerate() {
            let page_size = (PAGE / 4) << coarser;
            let pages: Vec<(u64, u8)> = pages.into_iter().filter(|(p, _)| p * page_size < ram.len() as u64).collect();
            for (page, byte) in &pages {
                let start = (page * page_size) as usize;
                let end = ram.len().min(start + page_size as usize);
                ram[start..end].fill(*byte);
            }
            let pages: Vec<u64> = pages.into_iter().map(|(p, _)| p).collect();
            parent = bench.diff(n + 1, &ram, parent, page_size, &pages);
            numbers.push(n + 1);
        }
        let chain = bench.chain(&numbers).unwrap();
        let mut back = vec![0xff; ram.len()];
        chain.read_checked(0, &mut back).unwrap();
        prop_assert!(back == ram);
        back.fill(0xff);
        chain.read_unchecked(0, &mut back).unwrap();
        prop_assert!(back == ram);
        let (at, end) = (at.min(ram.len() as u64), (at + len).min(ram.len() as u64));
        let mut part = vec![0xff; (end - at) as usize];
        chain.read_checked(at, &mut part).unwrap();
        prop_assert!(part == ram[at as usize..end as usize]);
        // Page by page, out of order and twice, as a lazy restore asks for them.
        let lazy = bench.chain(&numbers).unwrap();
        let count = (ram.len() as u64).div_ceil(PAGE);
        for n in 0..2 * count {
            let start = (at + n * 29) % count * PAGE;
            let end = (start + PAGE).min(ram.len() as u64);
            let mut page = vec![0xff; (end - start) as usize];
            lazy.read_checked(start, &mut page).unwrap();
            prop_assert!(page == ram[start as usize..end as usize], "page at {}", start);
            page.fill(0xff);
            prop_assert_eq!(chain.read_page_checked(start, &mut page), Ok(()));
            prop_assert!(page == ram[start as usize..end as usize], "page at {}, without a lock", start);
        }
        part.fill(0xff);
        prop_assert_eq!(chain.read_page_checked(at, &mut part), Ok(()));
        prop_assert!(part == ram[at as usize..end as usize]);
        prop_assert!(!chain.is_known_zero(at, end - at) || part.iter().all(|b| *b == 0));

        let (state, memory) = bench.paths(99);
        let report = merge(&chain, &state, &memory).unwrap();
        prop_assert_eq!(report.identity, parent);
        prop_assert_eq!(report.diffs, numbers.len() - 1);
        let merged = Pair::open(&state, &memory).unwrap();
        merged.verify().unwrap();
        prop_assert!(fs::read(&memory).unwrap() == ram);
        prop_assert!(!merged.state_file().record().unwrap().memory.is_diff());
        prop_assert_eq!(merged.state_file().record().unwrap().machine.clock.instructions, numbers.len() as u64 - 1);
        // The same memory saved whole has the same checksums.
        bench.save(98, &ram, Contents::Full);
        let sums = |n| bench.pair(n).state_file().record().unwrap().memory.sums.clone();
        prop_assert_eq!(sums(99), sums(98));
        // The merge is the same snapshot: what continues its newest link continues it.
        bench.diff(97, &ram, parent, PAGE, &[0]);
        bench.chain(&[99, 97]).unwrap();
    }
}

#[test]
fn links_that_do_not_fit_are_refused_with_the_reason() {
    let bench = Bench::new(0);
    let ram = vec![1; 8 * PAGE as usize];
    let base = bench.save(0, &ram, Contents::Full);
    let one = bench.diff(1, &ram, base, PAGE, &[1]);
    let two = bench.diff(2, &ram, one, PAGE, &[2]);
    bench.diff(3, &ram, two, PAGE, &[3]);
    let foreign = bench.save(4, &ram, Contents::Full);
    bench.diff(5, &ram, foreign, PAGE, &[3]);
    let small = vec![1; 4 * PAGE as usize];
    bench.diff(6, &small, base, PAGE, &[1]);
    bench.chain(&[0, 1, 2, 3]).unwrap();
    let reason = |numbers: &[usize], at: usize| match bench.chain(numbers) {
        Err(SnapshotError::BrokenChain { path, reason }) => {
            assert_eq!(path, bench.paths(at).0);
            reason
        }
        other => panic!("{numbers:?}: {other:?}"),
    };
    assert!(reason(&[1, 2], 1).contains("begins with a full snapshot"));
    assert!(reason(&[0, 2, 1], 2).contains("the order is wrong"));
    assert!(reason(&[0, 1, 3], 3).contains("which is not given"));
    assert!(reason(&[0, 1, 1], 1).contains("not"));
    assert!(reason(&[0, 5], 5).contains(&foreign.to_string()));
    assert!(reason(&[0, 4], 4).contains("full snapshot, not a diff"));
    assert!(reason(&[0, 6], 6).contains("RAM is 65536 bytes"));
}

#[test]
fn a_page_of_a_checked_block_is_read_alone_and_still_checked() {
    let bench = Bench::new(0);
    let ram: Vec<u8> = (0..200 * PAGE).map(|i| (i / 4096 * 7 + 1) as u8).collect();
    bench.save(0, &ram, Contents::Full);
    let chain = bench.chain(&[0]).unwrap();
    let mut page = vec![0; PAGE as usize];
    chain.read_checked(3 * PAGE, &mut page).unwrap();

    assert_eq!(
        chain.read_page_checked(3 * PAGE + 7, &mut page),
        Ok(()),
        "more than a page is slower, and no less right"
    );
    assert!(page == ram[3 * PAGE as usize + 7..][..PAGE as usize]);
    assert_eq!(chain.read_page_checked(199 * PAGE + 1, &mut page), Err(Unreadable));
    assert_eq!(chain.read_page_checked(200 * PAGE, &mut page), Err(Unreadable));

    // From here on the file changes under the chain.
    let (_, memory) = bench.paths(0);
    let mut bad = ram.clone();
    bad[7 * PAGE as usize + 100] ^= 1;
    fs::write(&memory, &bad).unwrap();
    chain.read_checked(5 * PAGE + 10, &mut page).unwrap();
    assert!(page == ram[5 * PAGE as usize + 10..][..PAGE as usize], "only what is asked for is read again");
    for (at, len) in [(7 * PAGE, PAGE), (7 * PAGE + 5, 1), (6 * PAGE, 2 * PAGE)] {
        let e = chain.read_checked(at, &mut vec![0; len as usize]).unwrap_err();
        let range = 7 * PAGE..8 * PAGE;
        assert!(matches!(&e, SnapshotError::MemoryDamaged { start, end, .. } if (*start..*end) == range), "{e}");
    }
    assert_eq!(chain.read_page_checked(7 * PAGE, &mut page), Err(Unreadable));
    assert_eq!(chain.read_page_checked(6 * PAGE, &mut page), Ok(()));
    assert_eq!(chain.read_page_checked(6 * PAGE + 1, &mut page[..5]), Err(Unreadable), "its block is damaged");
    // The other block was never read; its first read checks all of it.
    let mut bad = ram.clone();
    bad[199 * PAGE as usize] ^= 1;
    fs::write(&memory, &bad).unwrap();
    assert_eq!(chain.read_page_checked(130 * PAGE, &mut page), Err(Unreadable));
    let e = chain.read_checked(130 * PAGE, &mut page).unwrap_err();
    assert!(matches!(&e, SnapshotError::MemoryDamaged { start, .. } if *start == 2 << 20), "{e}");
    chain.read_checked(7 * PAGE, &mut page).unwrap();
    assert!(page == ram[7 * PAGE as usize..][..PAGE as usize], "what is right again is read again");
}

#[test]
fn a_merge_over_its_own_links_and_one_of_damaged_links() {
    let bench = Bench::new(0);
    let mut ram = vec![3; 40 * PAGE as usize];
    ram[..20 * PAGE as usize].fill(0);
    let base = bench.save(0, &ram, Contents::Full);
    ram[PAGE as usize * 5] = 9;
    ram[PAGE as usize * 30..PAGE as usize * 31].fill(0);
    bench.diff(1, &ram, base, PAGE, &[5, 30]);

    let (state, memory) = bench.paths(1);
    let good = fs::read(&memory).unwrap();
    let mut bad = good.clone();
    bad[PAGE as usize * 5 + 7] ^= 1;
    fs::write(&memory, &bad).unwrap();
    let before = fs::read(&state).unwrap();
    let chain = bench.chain(&[0, 1]).unwrap();
    assert!(matches!(merge(&chain, &state, &memory), Err(SnapshotError::MemoryDamaged { path, .. }) if path == memory));
    assert_eq!(
        (fs::read(&state).unwrap(), fs::read(&memory).unwrap()),
        (before, bad),
        "a failed merge changes nothing"
    );
    let mut buf = [0; 1];
    let e = chain.read_at(PAGE * 5, &mut buf).unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::InvalidData);
    chain.read_checked(PAGE * 21, &mut buf).unwrap();
    assert_eq!(chain.verify_report().unwrap().iter().map(|r| r.damaged.len()).collect::<Vec<_>>(), [0, 1]);

    fs::write(&memory, &good).unwrap();
    let chain = bench.chain(&[0, 1]).unwrap();
    merge(&chain, &state, &memory).unwrap();
    assert_eq!(fs::read(&memory).unwrap(), ram);
    bench.pair(1).verify().unwrap();
}

#[test]
fn a_base_of_version_5_0_can_be_continued() {
    let bench = Bench::new(0);
    let mut ram = vec![0; 8 * PAGE as usize];
    ram[PAGE as usize..].fill(4);
    let (state_path, memory_path) = bench.paths(0);
    let request = SaveRequest {
        state_path: &state_path,
        memory_path: &memory_path,
        kind: SnapshotKind::Full,
        state: bench.state.clone(),
        memory: &ram,
        ram_size: ram.len() as u64,
        memory_page_size: PAGE,
        dirty: None,
    };
    save(request).unwrap();
    let parent = bench.pair(0).state_file().identity();
    ram[PAGE as usize * 2] = 5;
    bench.diff(1, &ram, parent, PAGE, &[2]);
    let chain = bench.chain(&[0, 1]).unwrap();
    let mut back = vec![0; ram.len()];
    chain.read_checked(0, &mut back).unwrap();
    assert_eq!(back, ram);
    let (state, memory) = bench.paths(2);
    merge(&chain, &state, &memory).unwrap();
    bench.pair(2).verify().unwrap();
    assert_eq!(fs::read(memory).unwrap(), ram);
}

/// A file system's clone has the mode of its original; the result of a merge is written to, and its owner's.
#[cfg(unix)]
#[test]
fn a_chain_on_a_base_that_is_to_be_read_only_is_merged() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(0);
    let mut ram = vec![3; 4 * PAGE as usize];
    let parent = bench.save(0, &ram, Contents::Full);
    ram[PAGE as usize] = 5;
    bench.diff(1, &ram, parent, PAGE, &[1]);
    fs::set_permissions(bench.paths(0).1, fs::Permissions::from_mode(0o444)).unwrap();
    let (state, memory) = bench.paths(2);
    merge(&bench.chain(&[0, 1]).unwrap(), &state, &memory).unwrap();
    bench.pair(2).verify().unwrap();
    assert_eq!(fs::read(&memory).unwrap(), ram);
    assert_eq!(memory.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
