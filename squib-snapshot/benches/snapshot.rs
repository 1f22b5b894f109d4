//! What a snapshot costs, each figure beside its baseline from the same run: `cargo bench -p squib-snapshot`.
//!
//! Every sample of ours is taken right after one of its baseline. The table at the end gives our time over the baseline's, from the
//! medians and from the best samples, and the bound that the project holds itself to. `SQUIB_BENCH_MIB` sets the size of RAM (1024), `TMPDIR` the
//! file system.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode};
use squib_snapshot::*;

const PAGE: u64 = 16384;

/// Every sample of every benchmark, for the table.
#[derive(Default)]
struct Samples(RefCell<BTreeMap<String, Vec<Duration>>>);

impl Samples {
    /// Benchmarks `work`, with a run of the baseline before each of its own so that other load on the machine meets both alike.
    fn run(
        &self,
        c: &mut Criterion,
        name: &str,
        samples: usize,
        base: &mut dyn FnMut() -> Duration,
        mut work: impl FnMut() -> Duration,
    ) {
        let (group, id) = name.split_once('/').unwrap_or((name, name));
        let mut group = c.benchmark_group(group);
        group.sample_size(samples).sampling_mode(SamplingMode::Flat);
        group.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(10));
        group.bench_function(id, |b| {
            b.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    self.add(&baseline_of(name), base());
                    let time = work();
                    self.add(name, time);
                    total += time;
                }
                total
            });
        });
        group.finish();
    }

    fn add(&self, name: &str, time: Duration) {
        self.0.borrow_mut().entry(name.to_string()).or_default().push(time);
    }

    /// Median and best.
    fn of(&self, name: &str) -> Option<(f64, f64)> {
        let mut all = self.0.borrow().get(name)?.clone();
        all.sort();
        Some((all[all.len() / 2].as_secs_f64(), all[0].as_secs_f64()))
    }

    fn ratio(&self, what: &str, ours: &str, bound: &str) {
        if let (Some(a), Some(b)) = (self.of(ours), self.of(&baseline_of(ours))) {
            let (median, best) = (a.0 / b.0, a.1 / b.1);
            println!("| {what} | {:.3} ms | {:.3} ms | {median:.2} ({best:.2}) | {bound} |", a.0 * 1e3, b.0 * 1e3);
        }
    }
}

/// Under which the baseline's samples of a benchmark are kept: its own, taken in turns with it.
fn baseline_of(name: &str) -> String {
    format!("{name}, baseline")
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

/// Bytes without repetition.
fn noise(len: usize) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend(seed.to_le_bytes());
    }
    bytes
}

struct Files {
    dir: tempfile::TempDir,
    state: MicrovmState,
    machine: MachineRecord,
}

impl Files {
    fn new() -> Self {
        let state = MicrovmState {
            vm_info: VmInfo { track_dirty_pages: true, ..VmInfo::default() },
            vcpu_states: vec![VcpuState::new(0)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        };
        Self { dir: tempfile::tempdir().expect("a directory"), state, machine: MachineRecord::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Removes what an earlier save or baseline wrote and lets the file system settle: giving blocks back takes its time, which is
    /// neither ours nor the baseline's.
    fn clear(&self) {
        for entry in std::fs::read_dir(self.dir.path()).expect("the directory") {
            std::fs::remove_file(entry.expect("an entry").path()).expect("a removal");
        }
        File::open(self.dir.path()).and_then(|dir| dir.sync_all()).expect("a sync");
    }

    fn save(&self, ram: &dyn PageReader, ram_size: u64, contents: Contents<'_>) -> PairReport {
        let request = PairRequest {
            state_path: &self.path("vm.snap"),
            memory_path: &self.path("vm.mem"),
            state: &self.state,
            machine: &self.machine,
            memory: ram,
            ram_start: 0,
            ram_size,
            contents,
            block_size: 0,
        };
        save_pair(&request).expect("the save works")
    }
}

fn bare_write(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("a file");
    for chunk in bytes.chunks(1 << 20) {
        file.write_all(chunk).expect("a write");
    }
    file.sync_all().expect("a sync");
}

fn bare_pages(path: &Path, ram: &[u8], pages: &PageSet) {
    let file = File::create(path).expect("a file");
    file.set_len(ram.len() as u64).expect("a length");
    for page in pages.iter() {
        let at = page * PAGE;
        write_all_at(&file, &ram[at as usize..(at + PAGE) as usize], at);
    }
    file.sync_all().expect("a sync");
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], at: u64) {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at).expect("a write");
}

#[cfg(not(unix))]
fn write_all_at(mut file: &File, bytes: &[u8], at: u64) {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(at)).expect("a seek");
    file.write_all(bytes).expect("a write");
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at).expect("a read");
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, bytes: &mut [u8], at: u64) {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(at)).expect("a seek");
    file.read_exact(bytes).expect("a read");
}

/// A source that hides its memory, so that every byte is copied out of it.
struct Copying<'a>(&'a [u8]);

impl PageReader for Copying<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buf)
    }
}

fn memory(c: &mut Criterion, s: &Samples, size: usize) {
    let files = Files::new();
    let mut ram = noise(size);
    let bare = files.path("bare");
    let mut bare_full = || {
        files.clear();
        timed(|| bare_write(&bare, &ram))
    };
    s.run(c, "full/save", 10, &mut bare_full, || {
        files.clear();
        timed(|| files.save(&ram, size as u64, Contents::Full))
    });
    s.run(c, "full/save from a copying source", 10, &mut bare_full, || {
        files.clear();
        timed(|| files.save(&Copying(&ram), size as u64, Contents::Full))
    });

    let pages = size as u64 / PAGE;
    let dirty = PageSet::from_pages(PAGE, pages, (0..pages / 100).map(|i| i * 100 + i * 37 % 100));
    let parent = SnapshotId([1; 16]);
    let mut bare_diff = || {
        files.clear();
        timed(|| bare_pages(&bare, &ram, &dirty))
    };
    s.run(c, "diff/save", 30, &mut bare_diff, || {
        files.clear();
        timed(|| files.save(&ram, size as u64, Contents::Diff { parent, pages: &dirty }))
    });

    let dense = ram.clone();
    for (page, bytes) in ram.chunks_mut(PAGE as usize).enumerate() {
        if page * 7 % 10 != 0 {
            bytes.fill(0);
        }
    }
    let mut full = || {
        files.clear();
        timed(|| files.save(&dense, size as u64, Contents::Full))
    };
    s.run(c, "sparse/save", 10, &mut full, || {
        files.clear();
        timed(|| files.save(&ram, size as u64, Contents::Full))
    });
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if s.of("sparse/save").is_some() {
            let used = std::fs::metadata(files.path("vm.mem")).expect("the file").blocks() * 512;
            let held = ram.chunks(PAGE as usize).filter(|p| p.iter().any(|b| *b != 0)).count() as u64 * PAGE;
            println!("sparse: {used} bytes on disk for {held} non-zero bytes: {:.4}", used as f64 / held as f64);
        }
    }
}

/// Single pages of a checked memory, in scattered order: what a lazy restore costs beyond reading the file.
fn lazy(c: &mut Criterion, s: &Samples) {
    let files = Files::new();
    let ram = noise(256 << 20);
    files.save(&ram, ram.len() as u64, Contents::Full);
    let pair = || Pair::open(&files.path("vm.snap"), &files.path("vm.mem")).expect("the pair");
    let bare = pair();
    let blocks = ram.len() as u64 / DEFAULT_BLOCK_SIZE;
    let mut buffer = vec![0; DEFAULT_BLOCK_SIZE as usize];
    let mut page = vec![0; PAGE as usize];
    let mut read_blocks =
        || timed(|| (0..blocks).for_each(|n| read_exact_at(bare.memory_file(), &mut buffer, n * DEFAULT_BLOCK_SIZE)));
    s.run(c, "lazy/first page of a block", 20, &mut read_blocks, || {
        let chain = Chain::from_pairs(pair(), vec![]).expect("a chain");
        timed(|| {
            (0..blocks).for_each(|n| chain.read_checked(n * DEFAULT_BLOCK_SIZE + PAGE, &mut page).expect("a page"));
        })
    });
    let chain = Chain::from_pairs(pair(), vec![]).expect("a chain");
    let pages = ram.len() as u64 / PAGE;
    let scattered = || (0..pages).map(|n| n * 7919 % pages * PAGE);
    scattered().for_each(|at| chain.read_checked(at, &mut page).expect("a page"));
    let mut bare_page = vec![0; PAGE as usize];
    let mut read_pages = || timed(|| scattered().for_each(|at| read_exact_at(bare.memory_file(), &mut bare_page, at)));
    s.run(c, "lazy/page of a checked block", 20, &mut read_pages, || {
        timed(|| scattered().for_each(|at| chain.read_checked(at, &mut page).expect("a page")))
    });
}

fn digests(c: &mut Criterion, s: &Samples) {
    let ram = noise(256 << 20);
    let sum =
        || ram.chunks_exact(8).fold(0u64, |a, w| a.wrapping_add(u64::from_le_bytes(w.try_into().expect("eight"))));
    let mut read = || timed(sum);
    let crc = || crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &ram);
    s.run(c, "digest/checksum", 20, &mut read, || timed(crc));
    let zeros = vec![0u8; 256 << 20];
    let zero_page = [0u8; 4096];
    let compare = || zeros.chunks_exact(4096).all(|p| p == zero_page);
    s.run(c, "digest/zero detection", 20, &mut read, || timed(|| assert!(black_box(compare()))));
}

fn machine_of_32() -> MicrovmState {
    let vcpu = |n: u64| {
        let mut v = VcpuState::new(n);
        v.regs.x = std::array::from_fn(|i| 0xffff_8000_0000_0000 + n * 4096 + i as u64);
        v.fp_regs.v = std::array::from_fn(|i| [n.wrapping_mul(0x9e37_79b9_7f4a_7c15), i as u64]);
        v.sys_regs = SysReg::all().iter().map(|r| (r.as_encoded(), r.as_encoded() << n)).collect();
        v.psci_state = PsciVcpuState::On;
        v
    };
    let device =
        |n: u32| DeviceState { kind: "virtio-block".into(), id: format!("disk{n}"), mmio_slot: n, blob: noise(512) };
    MicrovmState {
        vcpu_states: (0..32).map(vcpu).collect(),
        device_states: DeviceStates::from_devices((0..16).map(device)),
        gic_state: GicState::from_bytes(noise(32 << 10)),
        ..MicrovmState::default()
    }
}

fn state(c: &mut Criterion, s: &Samples) {
    let snapshot = Snapshot::new(machine_of_32());
    let mut bytes = Vec::new();
    snapshot.save(&mut bytes).expect("it encodes");
    let mut bare = || timed(|| bitcode::serialize(&snapshot));
    s.run(c, "state/encode + CRC", 100, &mut bare, || {
        let mut out = Vec::with_capacity(bytes.len());
        timed(|| snapshot.save(&mut out).expect("it encodes"))
    });
    let body = &bytes[..bytes.len() - 8];
    let decode = || bitcode::deserialize::<Snapshot<MicrovmState>>(body).expect("it decodes");
    let mut bare = || timed(decode);
    s.run(c, "state/decode + verify", 100, &mut bare, || {
        timed(|| {
            let file = StateFile::from_slice(&bytes).expect("it decodes");
            file.state().verify_compatible().expect("it fits");
        })
    });
    println!("state: 32 vCPUs, 16 devices, {} bytes", bytes.len());
}

fn bitmap(c: &mut Criterion, s: &Samples) {
    let log = DirtyBitmap::new(0, 64 << 30, PAGE).expect("a bitmap");
    let pages = log.page_count();
    let words = vec![0u64; (64 << 30) / PAGE as usize / 64];
    let mut bare = || timed(|| assert!(black_box(&words).iter().all(|w| *w == 0)));
    s.run(c, "drain/64 GiB clean", 200, &mut bare, || timed(|| log.drain_into(|_| ())));
    // Every thread anywhere, where cores take lines from each other, or each in an eighth of its own, as vCPUs mostly are.
    let marks = 1 << 20;
    let mark = |thread: u64, eighths: u64| {
        let mut at = (thread + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let (first, count) = (thread % eighths * (pages / eighths), pages / eighths);
        for _ in 0..marks {
            at ^= at << 13;
            at ^= at >> 7;
            at ^= at << 17;
            black_box(log.set_dirty_by_index(first + at % count));
        }
    };
    for (name, eighths) in [(MARK_ANYWHERE, 1), (MARK_APART, 8)] {
        let mut one = || timed(|| mark(0, eighths));
        s.run(c, name, 20, &mut one, || {
            timed(|| {
                std::thread::scope(|scope| {
                    (0..8).for_each(|thread| drop(scope.spawn(move || mark(thread, eighths))));
                });
            })
        });
    }
}

/// What choosing a granule adds to answering a fault: a decision and a mark beside a mark, on a RAM of 8 GiB half of which is
/// tracked by pages.
fn granules(c: &mut Criterion, s: &Samples) {
    const BLOCK: u64 = 2 << 20;
    let ram: u64 = 8 << 30;
    let controller = BlockController::new(ram, PageGeometry::APPLE_SILICON);
    let pages = ram / PAGE;
    let by_pages = (0..ram / BLOCK).step_by(2).map(|block| block * (BLOCK / PAGE));
    controller.next_epoch(&PageSet::from_pages(PAGE, pages, by_pages));
    let log = DirtyBitmap::new(0, ram, PAGE).expect("a bitmap");
    let faults = || (0..1u64 << 20).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % pages);
    let mut bare = || {
        timed(|| {
            faults().for_each(|page| {
                black_box(log.set_dirty_by_index(page));
            });
        })
    };
    s.run(c, "granule/decide and mark", 20, &mut bare, || {
        timed(|| {
            faults().for_each(|page| {
                black_box(controller.record_fault(page * PAGE));
                black_box(log.set_dirty_by_index(page));
            });
        })
    });
}

const MARK_ANYWHERE: &str = "mark/8 threads anywhere, 8 times the marks";
const MARK_APART: &str = "mark/8 threads in an eighth each, 8 times the marks";

fn main() {
    let mut c = Criterion::default().configure_from_args().without_plots();
    let s = Samples::default();
    let mib: usize = std::env::var("SQUIB_BENCH_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(1024);
    digests(&mut c, &s);
    state(&mut c, &s);
    bitmap(&mut c, &s);
    granules(&mut c, &s);
    lazy(&mut c, &s);
    memory(&mut c, &s, mib << 20);
    c.final_summary();

    println!("\n{mib} MiB of RAM; median times; ratio of medians (of best samples)\n");
    println!("| figure | ours | baseline | ratio | bound |\n|---|---|---|---|---|");
    s.ratio("full save, incompressible : bare write + sync", "full/save", "1.11");
    s.ratio("full save from a copying source : the same", "full/save from a copying source", "");
    s.ratio("full save, 90 % zero : full save, dense", "sparse/save", "0.25");
    s.ratio("diff save, 1 % scattered : bare pwrite + sync", "diff/save", "1.3");
    s.ratio("checksum, 256 MiB : reading every byte", "digest/checksum", "");
    s.ratio("zero detection, 256 MiB : the same", "digest/zero detection", "");
    s.ratio("first 16 KiB of 128 blocks, checked : reading the blocks", "lazy/first page of a block", "");
    s.ratio("16384 pages of checked blocks : reading the pages", "lazy/page of a checked block", "");
    s.ratio("state encode + CRC : bare bitcode", "state/encode + CRC", "under 1 ms");
    s.ratio("state decode + verify : bare bitcode", "state/decode + verify", "under 1 ms");
    s.ratio("drain, 64 GiB clean : bare scan", "drain/64 GiB clean", "under 0.1 ms");
    s.ratio("2^20 faults, granule chosen and marked : marked", "granule/decide and mark", "");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let bound = format!("{:.1} on {cores} cores", 8.0 / cores.min(8) as f64);
    s.ratio("8 x marks on 8 threads, an eighth each : 1 thread", MARK_APART, &bound);
    s.ratio("8 x marks on 8 threads, anywhere : 1 thread", MARK_ANYWHERE, "");
}
