//! The transport and the devices behind it, driven as a guest's driver would: through registers and a split virtqueue in guest
//! memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::block::Block;
use super::mmio::VirtioMmio;
use super::rng::{Entropy, Rng};
use crate::devices::Device;
use crate::devices::testing::Lines;
use crate::memory::{GuestMemory, GuestRam};
use crate::pager::testing::{LazyRam, TestSource};

const BASE: u64 = 0x4000_0000;
const DESC: u64 = BASE;
const AVAIL: u64 = BASE + 0x4000;
const USED: u64 = BASE + 0x8000;
const HEADER: u64 = BASE + 0x1_0000;
const DATA: u64 = BASE + 0x2_0000;
const STATUS: u64 = BASE + 0x1_0800;
const INTID: u32 = 48;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Driver {
    device: VirtioMmio,
    ram: Arc<GuestRam>,
    memory: GuestMemory,
    lines: Arc<Lines>,
    avail: u16,
}

impl Driver {
    fn new(ram: &Arc<GuestRam>, backend: Box<dyn super::Backend>, synchronous: bool) -> Driver {
        let lines = Lines::new();
        let device = VirtioMmio::new(backend, Arc::clone(ram), lines.line(INTID), synchronous).unwrap();
        Driver { device, ram: Arc::clone(ram), memory: ram.guest_memory().unwrap(), lines, avail: 0 }
    }

    fn reg(&self, offset: u64) -> u32 {
        self.device.read(offset, 4) as u32
    }

    fn set(&self, offset: u64, value: u32) {
        self.device.write(offset, 4, u64::from(value));
    }

    /// Device initialisation (virtio 1.2 §3.1) with one queue of 16.
    fn start(&self) {
        assert_eq!((self.reg(0), self.reg(4)), (0x7472_6976, 2));
        self.set(0x70, 0);
        self.set(0x70, 1 | 2);
        self.set(0x14, 1);
        assert_eq!(self.reg(0x10) & 1, 1, "VIRTIO_F_VERSION_1");
        self.set(0x24, 1);
        self.set(0x20, 1);
        self.set(0x70, 1 | 2 | 8);
        assert_eq!(self.reg(0x70), 11, "FEATURES_OK");
        self.set(0x30, 0);
        assert!(self.reg(0x34) >= 16);
        self.set(0x38, 16);
        for (register, address) in [(0x80, DESC), (0x90, AVAIL), (0xa0, USED)] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
        self.set(0x70, 15);
    }

    /// Puts a chain of (address, length, flags) up, without telling the device.
    fn offer(&mut self, chain: &[(u64, u32, u16)]) {
        for (n, &(address, len, flags)) in chain.iter().enumerate() {
            let at = GuestAddress(DESC + 16 * n as u64);
            let flags = flags | if n + 1 < chain.len() { NEXT } else { 0 };
            self.memory.write_obj(address, at).unwrap();
            self.memory.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
            self.memory.write_obj(n as u16 + 1, GuestAddress(at.0 + 14)).unwrap();
        }
        let slot = AVAIL + 4 + 2 * u64::from(self.avail % 16);
        self.memory.write_obj(0u16, GuestAddress(slot)).unwrap();
        self.avail += 1;
        self.memory.write_obj(self.avail, GuestAddress(AVAIL + 2)).unwrap();
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Length the device reported for the last request.
    fn used_len(&self) -> u32 {
        let slot = u64::from(self.used().wrapping_sub(1) % 16);
        self.memory.read_obj(GuestAddress(USED + 4 + 8 * slot + 4)).unwrap()
    }

    fn notify(&self) {
        self.set(0x50, 0);
    }

    fn wait(&self) {
        let start = Instant::now();
        while self.used() != self.avail {
            assert!(start.elapsed() < Duration::from_secs(60), "the request was never completed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One block request; the status byte.
    fn block(&mut self, kind: u32, sector: u64, len: u32, flags: u16) -> u8 {
        self.block_header(kind, sector);
        let data = (DATA, len, flags);
        let ends = [(HEADER, 16, 0), (STATUS, 1, WRITE)];
        let chain = if len == 0 { ends.to_vec() } else { vec![ends[0], data, ends[1]] };
        self.offer(&chain);
        self.notify();
        self.wait();
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn block_header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(u64::from(kind), GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        self.memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
    }
}

fn ram() -> Arc<GuestRam> {
    GuestRam::new(BASE, 1 << 20, true).unwrap()
}

fn image(directory: &tempfile::TempDir) -> PathBuf {
    let path = directory.path().join("disk.img");
    fs::write(&path, (0..64 * 512u32).map(|n| (n / 512) as u8).collect::<Vec<_>>()).unwrap();
    path
}

fn disk(path: &Path, read_only: bool, synchronous: bool) -> Driver {
    let block = Block::open(path, read_only, "serial".into(), false).unwrap();
    Driver::new(&ram(), Box::new(block), synchronous)
}

#[test]
fn a_disk_reads_writes_flushes_and_names_itself() {
    for synchronous in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let path = image(&directory);
        let mut driver = disk(&path, false, synchronous);
        driver.start();
        assert_eq!(driver.reg(0x08), 2);
        assert_eq!(driver.device.read(0x100, 8), 64, "capacity in sectors");
        assert_eq!(driver.block(0, 3, 1024, WRITE), 0);
        assert_eq!(driver.used_len(), 1025);
        assert!(driver.lines.level(INTID));
        driver.set(0x64, driver.reg(0x60));
        assert!(!driver.lines.level(INTID));
        let mut sectors = [0; 1024];
        driver.memory.read_slice(&mut sectors, GuestAddress(DATA)).unwrap();
        assert!(sectors[..512].iter().all(|&b| b == 3) && sectors[512..].iter().all(|&b| b == 4));

        driver.memory.write_slice(&[0x77; 512], GuestAddress(DATA)).unwrap();
        assert_eq!(driver.block(1, 63, 512, 0), 0);
        assert_eq!(driver.block(4, 0, 0, 0), 0);
        assert_eq!(fs::read(&path).unwrap()[63 * 512..], [0x77; 512]);
        assert_eq!(driver.block(8, 0, 20, WRITE), 0);
        assert_eq!(driver.memory.read_obj::<[u8; 8]>(GuestAddress(DATA)).unwrap(), *b"serial\0\0");
        // Write zeroes: one segment of two sectors from 4.
        driver.memory.write_slice(&[4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], GuestAddress(DATA)).unwrap();
        assert_eq!(driver.block(13, 0, 16, 0), 0);
        let after = fs::read(&path).unwrap();
        assert!(after[4 * 512..6 * 512].iter().all(|&b| b == 0) && after[6 * 512] == 6);
    }
}

#[test]
fn what_a_disk_cannot_do_is_an_error_status() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut driver = disk(&path, true, true);
    driver.start();
    assert_eq!(driver.block(1, 0, 512, 0), 1, "the disk is read-only");
    assert_eq!(driver.block(0, 64, 512, WRITE), 1, "behind the end");
    assert_eq!(driver.block(0, u64::MAX, 512, WRITE), 1, "the offset overflows");
    assert_eq!(driver.block(0, 0, 100, WRITE), 1, "no whole sector");
    assert_eq!(driver.block(99, 0, 0, 0), 2, "no such request");
    assert_eq!(fs::read(&path).unwrap()[0], 0);
}

#[test]
fn a_broken_chain_asks_for_a_reset_and_a_reset_helps() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = disk(&image(&directory), false, true);
    driver.start();
    // No room for a status.
    driver.block_header(0, 0);
    driver.offer(&[(HEADER, 16, 0)]);
    driver.notify();
    assert_eq!(driver.reg(0x70) & 0x40, 0x40, "DEVICE_NEEDS_RESET");
    assert_eq!(driver.reg(0x60) & 2, 2, "configuration change");
    driver.notify();
    assert_eq!(driver.used(), 0);
    driver.set(0x70, 0);
    assert!(!driver.lines.level(INTID));
    driver.avail = 0;
    driver.memory.write_obj(0u16, GuestAddress(AVAIL + 2)).unwrap();
    driver.start();
    assert_eq!(driver.block(0, 1, 512, WRITE), 0);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let driver = Driver::new(&ram(), Box::new(Rng::new(Entropy::Seeded(1))), true);
    driver.set(0x70, 3);
    driver.set(0x24, 0);
    driver.set(0x20, 1 << 5);
    driver.set(0x24, 1);
    driver.set(0x20, 1);
    driver.set(0x70, 11);
    assert_eq!(driver.reg(0x70), 3);
    assert_eq!(driver.reg(0xb0), u32::MAX, "no shared memory");
}

/// A request that was offered while the device was quiesced is neither lost nor done twice: the restored device does it.
#[test]
fn a_request_survives_save_and_restore() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let mut first = disk(&path, false, false);
    first.start();
    assert_eq!(first.block(0, 1, 512, WRITE), 0);
    first.device.quiesce();
    first.block_header(0, 7);
    first.offer(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    first.notify();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(first.used(), 1, "a quiesced device does nothing");
    let saved = first.device.save().unwrap();
    let (ram, avail) = (Arc::clone(&first.ram), first.avail);
    drop(first);

    let lines = Lines::new();
    let block = Block::open(&path, false, "serial".into(), false).unwrap();
    let device = VirtioMmio::new(Box::new(block), Arc::clone(&ram), lines.line(INTID), false).unwrap();
    device.restore(&saved).unwrap();
    let second = Driver { device, memory: ram.guest_memory().unwrap(), ram, lines, avail };
    second.device.resume();
    second.wait();
    assert_eq!(second.used(), 2);
    assert_eq!(second.memory.read_obj::<u8>(GuestAddress(DATA)).unwrap(), 7);
    assert!(second.lines.level(INTID), "the interrupt of the first request was never acknowledged");
}

#[test]
fn a_changed_image_is_refused_unless_it_was_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let saved = disk(&path, false, true).device.save().unwrap();
    let restore = |overridden: bool| {
        let block = Block::open(&path, false, "serial".into(), overridden).unwrap();
        Driver::new(&ram(), Box::new(block), true).device.restore(&saved)
    };
    restore(false).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(restore(false).unwrap_err().to_string().contains("modified since"));
    restore(true).unwrap();
    file.set_len(32 * 512).unwrap();
    assert!(restore(true).unwrap_err().to_string().contains("bytes long"));
}

#[test]
fn an_image_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let open = |read_only| Block::open(&path, read_only, String::new(), false);
    let writer = open(false).unwrap();
    assert!(open(true).unwrap_err().to_string().contains("in use"));
    drop(writer);
    let (_one, _two) = (open(true).unwrap(), open(true).unwrap());
    assert!(open(false).is_err());
    fs::write(directory.path().join("odd"), [0; 100]).unwrap();
    assert!(Block::open(&directory.path().join("odd"), true, String::new(), false).is_err());
}

/// On other systems a file system takes no such name.
#[cfg(target_os = "linux")]
#[test]
fn an_image_whose_name_no_snapshot_could_record_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(std::ffi::OsStr::from_bytes(b"disk\xff"));
    fs::rename(image(&directory), &path).unwrap();
    let error = Block::open(&path, true, String::new(), false).unwrap_err().to_string();
    assert!(error.contains("another name"), "{error}");
}

#[test]
fn entropy_fills_the_buffer_and_marks_it_dirty() {
    let ram = GuestRam::new(BASE, 1 << 20, true).unwrap();
    let mut driver = Driver::new(&ram, Box::new(Rng::new(Entropy::Seeded(1))), true);
    driver.start();
    driver.offer(&[(DATA, 64, WRITE)]);
    ram.dirty().unwrap().drain();
    driver.notify();
    assert_eq!((driver.used(), driver.used_len()), (1, 64));
    assert_ne!(driver.memory.read_obj::<[u8; 16]>(GuestAddress(DATA)).unwrap(), [0; 16]);
    let page = |address: u64| (address - BASE) / (16 << 10);
    assert_eq!(ram.dirty().unwrap().drain(), [page(USED), page(DATA)]);
}

/// The device in another one's place, over the same memory, of which nothing is present and whose source is away; and whether the
/// machine was told of that.
fn over_absent_memory(
    first: Driver,
    synchronous: bool,
    backend: impl Fn() -> Option<Box<dyn super::Backend>>,
) -> (LazyRam, Driver, Arc<AtomicBool>) {
    let saved = first.device.save().unwrap();
    let mut bytes = vec![0; 1 << 20];
    first.memory.read_slice(&mut bytes, GuestAddress(BASE)).unwrap();
    let avail = first.avail;
    drop(first);
    let lazy = LazyRam::new(TestSource::new(bytes), 1);
    lazy.source.away.store(true, Ordering::Relaxed);
    let told = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&told);
    lazy.pager.on_failure(move |_| tell.store(true, Ordering::Relaxed));
    // A process that another test is starting may hold an image for a moment more.
    let mut made = None;
    patiently("the image is free again", || {
        made = backend();
        made.is_some()
    });
    let (lines, ram) = (Lines::new(), Arc::clone(&lazy.ram));
    let device = VirtioMmio::new(made.unwrap(), Arc::clone(&ram), lines.line(INTID), synchronous).unwrap();
    device.restore(&saved).unwrap();
    let driver = Driver { device, memory: ram.guest_memory().unwrap(), ram, lines, avail };
    (lazy, driver, told)
}

#[test]
fn entropy_meets_no_absent_memory() {
    for synchronous in [false, true] {
        let rng = || Box::new(Rng::new(Entropy::Seeded(1)));
        let mut first = Driver::new(&ram(), rng(), false);
        first.start();
        first.device.quiesce();
        // Across two pages.
        let at = GuestAddress(DATA - 32);
        first.offer(&[(at.0, 64, WRITE)]);
        first.notify();
        let (lazy, driver, told) = over_absent_memory(first, synchronous, || Some(rng()));
        driver.device.resume();
        if synchronous {
            driver.notify();
        }
        patiently("the machine is told", || told.load(Ordering::Relaxed));
        driver.device.quiesce();
        lazy.source.away.store(false, Ordering::Relaxed);
        driver.device.resume();
        patiently("the request is answered", || driver.lines.level(INTID));
        assert_eq!((driver.used(), driver.used_len(), driver.reg(0x70) & 0x40), (1, 64, 0));
        let mut bytes = [0; 64];
        driver.memory.read_slice(&mut bytes, at).unwrap();
        assert!(bytes.chunks(32).all(|half| half != [0; 32]));
    }
}

/// Every kind of request on a device that is restored over memory of which nothing is present: rings, descriptors, buffers. Nobody
/// catches an access that the accessor did not announce, so a path that was missed would end this test with a signal. The source is
/// away at first: the request is neither lost nor answered with an error.
#[test]
fn no_request_meets_absent_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory);
    let zeroes = [4u8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    // Type, length of the data, its direction, what is in it.
    let requests =
        [(0, 2048, WRITE, &[][..]), (1, 1024, 0, &[0x55; 1024][..]), (8, 20, WRITE, &[]), (13, 16, 0, &zeroes)];
    for (synchronous, (kind, len, direction, data)) in [false, true].into_iter().flat_map(|s| requests.map(|r| (s, r)))
    {
        let mut first = disk(&path, false, false);
        first.start();
        first.device.quiesce();
        first.block_header(kind, 2);
        // Across two pages.
        let at = DATA - 512;
        first.memory.write_slice(data, GuestAddress(at)).unwrap();
        first.offer(&[(HEADER, 16, 0), (at, len, direction), (STATUS, 1, WRITE)]);
        first.notify();
        let open = || Block::open(&path, false, "serial".into(), false).ok();
        let (lazy, driver, told) = over_absent_memory(first, synchronous, || Some(Box::new(open()?)));
        driver.device.resume();
        if synchronous {
            driver.notify();
        }
        patiently("the machine is told", || told.load(Ordering::Relaxed));
        driver.device.quiesce();
        assert_eq!(driver.reg(0x70) & 0x40, 0, "no reset is asked for");
        lazy.source.away.store(false, Ordering::Relaxed);
        driver.device.resume();
        patiently("the request is answered", || driver.lines.level(INTID));
        assert_eq!(driver.used(), 1);
        assert_eq!(driver.memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0, "request {kind}");
        let mut answer = vec![0; len as usize];
        driver.memory.read_slice(&mut answer, GuestAddress(at)).unwrap();
        match kind {
            0 => assert!(answer.chunks(512).map(|sector| sector[0]).eq(2..6)),
            1 => assert_eq!(fs::read(&path).unwrap()[1024..2048], [0x55; 1024]),
            8 => assert_eq!(answer[..6], *b"serial"),
            _ => assert_eq!(fs::read(&path).unwrap()[2048..2560], [0; 512]),
        }
        drop(driver);
        fs::remove_file(&path).unwrap();
        image(&directory);
    }
}

fn patiently(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
