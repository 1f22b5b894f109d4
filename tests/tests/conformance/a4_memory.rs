//! A4: stage-2 memory.

use std::ffi::c_void;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::{Barrier, Mutex};

use applevisor::memory::PAGE_SIZE;
use applevisor::prelude::*;
use applevisor_sys::*;

use crate::asm::*;
use crate::code;
use crate::guest::*;

pub const GRANULE: usize = PAGE_SIZE;
const BAD_ARGUMENT: i32 = hv_error_t::HV_BAD_ARGUMENT as i32;
/// Free IPA space.
pub const IPA: u64 = 0x8000_0000;

/// A host mapping aligned to the granule.
pub struct Host {
    pub at: *mut u8,
    size: usize,
}

impl Host {
    /// Anonymous memory.
    pub fn anonymous(size: usize, kind: i32) -> Host {
        Host::map(size, kind | libc::MAP_ANON, -1)
    }

    /// A file, from its start.
    pub fn file(file: &File, size: usize, kind: i32) -> Host {
        Host::map(size, kind, file.as_raw_fd())
    }

    fn map(size: usize, flags: i32, fd: i32) -> Host {
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a fresh reservation, in whose aligned middle the mapping is put; the ends stay reserved.
        unsafe {
            let base = libc::mmap(ptr::null_mut(), size + GRANULE, libc::PROT_NONE, reserve, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            let at = base.cast::<u8>().add(base.cast::<u8>().align_offset(GRANULE));
            let host = Host { at, size };
            host.replace(flags, fd);
            host
        }
    }

    /// Puts something else at the same address.
    pub fn replace(&self, flags: i32, fd: i32) {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: only what this value stands for is replaced, and only these tests know of it.
        let new = unsafe { libc::mmap(self.at.cast(), self.size, access, flags | libc::MAP_FIXED, fd, 0) };
        assert_eq!(new, self.at.cast());
    }

    pub fn protect(&self, protection: i32) {
        self.protect_part(0, self.size, protection);
    }

    pub fn protect_part(&self, offset: usize, size: usize, protection: i32) {
        assert!(offset + size <= self.size);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mprotect(self.at.add(offset).cast(), size, protection) }, 0);
    }

    pub fn write(&self, offset: usize, value: u64) {
        assert!(offset + 8 <= self.size);
        // SAFETY: inside the mapping, which is writable; the guest is not running.
        unsafe { self.at.add(offset).cast::<u64>().write_volatile(value) };
    }

    /// Puts up to two instructions at the start.
    pub fn write_code(&self, code: &[u32]) {
        self.write(0, code.iter().rev().fold(0, |word, &instruction| word << 32 | u64::from(instruction)));
        forget_instructions(self.at, 8);
    }

    pub fn read(&self, offset: usize) -> u64 {
        assert!(offset + 8 <= self.size);
        // SAFETY: inside the mapping, which is readable; the guest is not running.
        unsafe { self.at.add(offset).cast::<u64>().read_volatile() }
    }
}

pub fn hv_map(host: *mut u8, ipa: u64, size: usize, flags: u64) -> i32 {
    // SAFETY: the memory stays until the test ends, after the guest's last run.
    unsafe { hv_vm_map(host.cast::<c_void>(), ipa, size, flags) }
}

pub fn hv_unmap(ipa: u64, size: usize) -> i32 {
    // SAFETY: changes the guest's memory only.
    unsafe { hv_vm_unmap(ipa, size) }
}

pub fn hv_protect(ipa: u64, size: usize, flags: u64) -> i32 {
    // SAFETY: changes the guest's memory only.
    unsafe { hv_vm_protect(ipa, size, flags) }
}

/// Loads and stores.
pub const RW: u64 = HV_MEMORY_READ | HV_MEMORY_WRITE;

pub fn temporary_file(size: usize, fill: u64) -> File {
    let path = std::env::temp_dir().join(format!("squib-conformance-{}-{fill:x}", std::process::id()));
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(&fill.to_le_bytes().repeat(size / 8)).unwrap();
    file
}

/// A guest that loads from X0 to X1, and then stores X2 to X0, reporting after each.
pub fn peeker() -> Guest<GicDisabled> {
    guest(&[ldr(1, 0), hvc(1), str(2, 0), hvc(2)])
}

impl<G> Guest<G> {
    /// What the guest reads at `ipa`.
    pub fn peek(&self, ipa: u64) -> u64 {
        self.vcpu.set_reg(Reg::PC, RAM).unwrap();
        self.vcpu.set_reg(Reg::X0, ipa).unwrap();
        self.run_to(1);
        self.x(Reg::X1)
    }

    /// Makes the guest write at `ipa`.
    pub fn poke(&self, ipa: u64, value: u64) {
        self.vcpu.set_reg(Reg::PC, RAM + 8).unwrap();
        self.vcpu.set_reg(Reg::X0, ipa).unwrap();
        self.vcpu.set_reg(Reg::X2, value).unwrap();
        self.run_to(2);
    }

    /// The abort the guest meets when it reads at `ipa`.
    pub fn peek_aborts(&self, ipa: u64) {
        self.vcpu.set_reg(Reg::PC, RAM).unwrap();
        self.vcpu.set_reg(Reg::X0, ipa).unwrap();
        // Whether the low bits come with it is not relied on.
        assert_eq!(self.run_to_class(ec::DATA_ABORT).physical_address & !0xfff, ipa & !0xfff);
    }
}

#[test]
fn a4_01_everything_is_a_multiple_of_the_granule() {
    let _guest = peeker();
    let host = Host::anonymous(4 * GRANULE, libc::MAP_SHARED);
    // macOS 26 can have a smaller granule than the host's page.
    let smaller = hv_map(host.at, IPA, 0x1000, RW);
    switch("granule", if smaller == 0 { "4k" } else { "16k" });
    probe("granule", if smaller == 0 { "4 KiB" } else { "16 KiB" });
    let granule = if smaller == 0 { 0x1000 } else { GRANULE };
    assert!(smaller == BAD_ARGUMENT || hv_unmap(IPA, 0x1000) == 0);
    let half = granule / 2;
    assert_eq!(hv_map(host.at.wrapping_add(half), IPA, granule, RW), BAD_ARGUMENT);
    assert_eq!(hv_map(host.at, IPA + half as u64, granule, RW), BAD_ARGUMENT);
    assert_eq!(hv_map(host.at, IPA, half, RW), BAD_ARGUMENT);
    assert_eq!(hv_map(host.at, IPA, 2 * GRANULE, RW), 0);
    assert_eq!(hv_protect(IPA + half as u64, GRANULE, RW), BAD_ARGUMENT);
    assert_eq!(hv_protect(IPA, half, RW), BAD_ARGUMENT);
    assert_eq!(hv_unmap(IPA + half as u64, GRANULE), BAD_ARGUMENT);
    assert_eq!(hv_unmap(IPA, half), BAD_ARGUMENT);
    assert_eq!(hv_unmap(IPA, 2 * GRANULE), 0);
}

#[test]
fn a4_02_host_memory_must_exist() {
    let _guest = peeker();
    let host = Host::anonymous(2 * GRANULE, libc::MAP_SHARED);
    // SAFETY: gives up half of the mapping, which nothing uses.
    unsafe { libc::munmap(host.at.add(GRANULE).cast(), GRANULE) };
    assert_ne!(hv_map(host.at, IPA, 2 * GRANULE, RW), 0);
    assert_ne!(hv_map(ptr::null_mut(), IPA, GRANULE, RW), 0);
    assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
}

#[test]
fn a4_02_a_range_over_two_regions() {
    let guest = peeker();
    let host = Host::anonymous(2 * GRANULE, libc::MAP_SHARED);
    // Another object under the second half.
    let file = temporary_file(GRANULE, 0x77);
    let second = Host { at: host.at.wrapping_add(GRANULE), size: GRANULE };
    second.replace(libc::MAP_SHARED, file.as_raw_fd());
    host.write(0, 0x76);
    let code = hv_map(host.at, IPA, 2 * GRANULE, RW);
    probe("hv_vm_map of two adjacent host mappings", name(code));
    if code == 0 {
        assert_eq!((guest.peek(IPA), guest.peek(IPA + GRANULE as u64)), (0x76, 0x77));
    }
}

#[test]
fn a4_03_an_overlapping_map_is_refused_or_replaces() {
    let guest = peeker();
    let (old, new) = (Host::anonymous(GRANULE, libc::MAP_SHARED), Host::anonymous(2 * GRANULE, libc::MAP_SHARED));
    old.write(0, 1);
    new.write(0, 2);
    assert_eq!(hv_map(old.at, IPA, GRANULE, RW), 0);
    assert_eq!(guest.peek(IPA), 1);
    let code = hv_map(new.at, IPA, 2 * GRANULE, RW);
    let seen = guest.peek(IPA);
    let found = match (name(code).as_str(), seen) {
        ("HV_SUCCESS", 2) => "replace".to_owned(),
        ("HV_BAD_ARGUMENT", 1) => "bad-argument".to_owned(),
        ("HV_ERROR", 1) => "error".to_owned(),
        (code, seen) => format!("{code}, and the guest sees the {} memory", if seen == 1 { "old" } else { "new" }),
    };
    probe("hv_vm_map over a mapping", format_args!("{}: {found}", name(code)));
    switch("overlapping-map", found);
    if code != 0 {
        // Whole or not at all.
        guest.peek_aborts(IPA + GRANULE as u64);
    }
}

/// macOS 26.3 was seen to end a process for the first of these (`EXC_GUARD`, `DEALLOC_GAP`).
#[test]
fn a4_04_what_is_not_mapped_may_be_refused_to_be_unmapped() {
    let ended = alone("a4_memory::a4_04_what_is_not_mapped_may_be_refused_to_be_unmapped", || {
        let guest = peeker();
        let host = Host::anonymous(2 * GRANULE, libc::MAP_SHARED);
        probe("hv_vm_protect of nothing", name(hv_protect(IPA, GRANULE, RW)));
        probe("hv_vm_unmap of nothing", name(hv_unmap(IPA, GRANULE)));
        assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
        let partly = hv_unmap(IPA, 2 * GRANULE);
        probe("hv_vm_unmap of more than is mapped", name(partly));
        assert!(partly == 0 || hv_unmap(IPA, GRANULE) == 0);
        guest.peek_aborts(IPA);
    });
    switch(
        "unmap-gap",
        match ended {
            Alone::Ended => "error",
            Alone::Killed => "killed",
            Alone::Endless => "the call does not return",
        },
    );
    if ended == Alone::Killed {
        probe("hv_vm_unmap of what is not all mapped", "ends the process");
    }
}

#[test]
fn a4_05_an_unmapped_page_can_be_supplied_and_the_access_retried() {
    let guest = peeker();
    let host = Host::anonymous(GRANULE, libc::MAP_SHARED);
    host.write(0x18, 42);
    guest.peek_aborts(IPA + 0x18);
    assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
    guest.run_to(1);
    assert_eq!(guest.x(Reg::X1), 42);
    assert_eq!(hv_unmap(IPA, GRANULE), 0);
    guest.peek_aborts(IPA + 0x18);
}

#[test]
fn a4_05_a_missing_page_of_code_can_be_supplied() {
    let guest = peeker();
    let host = Host::anonymous(GRANULE, libc::MAP_SHARED);
    host.write_code(&[hvc(7)]);
    guest.vcpu.set_reg(Reg::PC, IPA).unwrap();
    assert_eq!(guest.run_to_class(ec::INSTRUCTION_ABORT).physical_address, IPA);
    assert_eq!(hv_map(host.at, IPA, GRANULE, RW | HV_MEMORY_EXEC), 0);
    guest.run_to(7);
    // Other code at the same place.
    assert_eq!(hv_unmap(IPA, GRANULE), 0);
    let other = Host::anonymous(GRANULE, libc::MAP_SHARED);
    other.write_code(&[hvc(8)]);
    assert_eq!(hv_map(other.at, IPA, GRANULE, RW | HV_MEMORY_EXEC), 0);
    guest.vcpu.set_reg(Reg::PC, IPA).unwrap();
    guest.run_to(8);
}

#[test]
fn a4_06_write_protection_by_the_page() {
    let guest = peeker();
    let pages = 64;
    let host = Host::anonymous(pages * GRANULE, libc::MAP_SHARED);
    assert_eq!(hv_map(host.at, IPA, pages * GRANULE, RW), 0);
    guest.poke(IPA + 5 * GRANULE as u64, 1);
    assert_eq!(hv_protect(IPA, pages * GRANULE, HV_MEMORY_READ), 0);
    for page in [0, 5, 63] {
        let ipa = IPA + (page * GRANULE) as u64 + 0x40;
        guest.vcpu.set_reg(Reg::PC, RAM + 8).unwrap();
        guest.vcpu.set_reg(Reg::X0, ipa).unwrap();
        guest.vcpu.set_reg(Reg::X2, page as u64 + 100).unwrap();
        let exception = guest.run_to_class(ec::DATA_ABORT);
        assert_ne!(exception.syndrome & 1 << 6, 0, "a write");
        assert_eq!(exception.physical_address, ipa);
        assert_eq!(host.read(page * GRANULE + 0x40), 0);
        assert_eq!(hv_protect(ipa & !(GRANULE as u64 - 1), GRANULE, RW), 0);
        guest.run_to(2);
        assert_eq!(host.read(page * GRANULE + 0x40), page as u64 + 100);
    }
    // Reading never needed help.
    assert_eq!(guest.peek(IPA + 7 * GRANULE as u64), 0);
}

#[test]
fn a4_06_permissions_are_per_kind_of_access() {
    let guest = peeker();
    let host = Host::anonymous(GRANULE, libc::MAP_SHARED);
    host.write_code(&[hvc(7)]);
    assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
    guest.vcpu.set_reg(Reg::PC, IPA).unwrap();
    let exception = guest.run_to_class(ec::INSTRUCTION_ABORT);
    assert_eq!(exception.syndrome & 0x3c, 0xc, "permission");
    assert_eq!(hv_protect(IPA, GRANULE, HV_MEMORY_EXEC | HV_MEMORY_READ), 0);
    guest.run_to(7);
    assert_eq!(hv_protect(IPA, GRANULE, HV_MEMORY_NONE), 0);
    guest.peek_aborts(IPA);
}

#[test]
fn a4_07_protecting_and_then_unmapping_reaches_a_running_vcpu() {
    // Another thread pulls the page away under a guest that reads it without end.
    let guest = guest(&code![ldr(1, 0), b(-1)]);
    let host = Host::anonymous(GRANULE, libc::MAP_SHARED);
    guest.vcpu.set_reg(Reg::X0, IPA).unwrap();
    for protect_first in [false, true] {
        assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
        guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                if protect_first {
                    assert_eq!(hv_protect(IPA, GRANULE, HV_MEMORY_NONE), 0);
                }
                assert_eq!(hv_unmap(IPA, GRANULE), 0);
            });
            assert_eq!(guest.run_to_class(ec::DATA_ABORT).physical_address, IPA);
        });
    }
}

#[test]
fn a4_11_host_and_guest_share_the_object() {
    let guest = peeker();
    let file = temporary_file(4 * GRANULE, 0x11);
    let view = Host::file(&file, 4 * GRANULE, libc::MAP_SHARED);
    let fill = Host::file(&file, 4 * GRANULE, libc::MAP_SHARED);
    assert_eq!(hv_map(view.at, IPA, 4 * GRANULE, RW), 0);
    fill.write(GRANULE, 1);
    assert_eq!(guest.peek(IPA + GRANULE as u64), 1);
    guest.poke(IPA + GRANULE as u64, 2);
    assert_eq!((view.read(GRANULE), fill.read(GRANULE)), (2, 2));
}

#[test]
fn a4_11_one_object_page_by_page() {
    // The pages of one object, handed over singly, backwards, and at more than one address.
    let guest = peeker();
    let pages = 32;
    let file = temporary_file(pages * GRANULE, 0x22);
    let view = Host::file(&file, pages * GRANULE, libc::MAP_SHARED);
    for page in (0..pages).rev() {
        view.write(page * GRANULE, page as u64);
        let at = view.at.wrapping_add(page * GRANULE);
        assert_eq!(hv_map(at, IPA + (page * GRANULE) as u64, GRANULE, RW), 0);
        assert_eq!(hv_map(at, 2 * IPA - (page * GRANULE) as u64, GRANULE, RW), 0);
    }
    for page in 0..pages {
        assert_eq!(guest.peek(IPA + (page * GRANULE) as u64), page as u64);
        assert_eq!(guest.peek(2 * IPA - (page * GRANULE) as u64), page as u64);
    }
    // Some go, and the others stay.
    for page in (0..pages).step_by(2) {
        assert_eq!(hv_unmap(IPA + (page * GRANULE) as u64, GRANULE), 0);
    }
    assert_eq!(guest.peek(IPA + 5 * GRANULE as u64), 5);
    guest.peek_aborts(IPA + 4 * GRANULE as u64);
    assert_eq!(guest.peek(2 * IPA - 4 * GRANULE as u64), 4);
}

#[test]
fn a4_10_a_copy_on_write_reaches_a_guest_that_has_read_the_page() {
    let guest = peeker();
    let file = temporary_file(2 * GRANULE, 0x44);
    let host = Host::file(&file, 2 * GRANULE, libc::MAP_PRIVATE);
    assert_eq!(hv_map(host.at, IPA, 2 * GRANULE, RW), 0);
    assert_eq!(guest.peek(IPA), 0x44);
    host.write(0, 1);
    assert_eq!(guest.peek(IPA), 1);
    assert_eq!(host.read(GRANULE), 0x44);
    guest.poke(IPA + GRANULE as u64, 2);
    assert_eq!(host.read(GRANULE), 2);
}

#[test]
fn a4_12_a_private_file_mapping_works_and_leaves_the_file_alone() {
    let guest = peeker();
    let mut file = temporary_file(4 * GRANULE, 0x33);
    let host = Host::file(&file, 4 * GRANULE, libc::MAP_PRIVATE);
    assert_eq!(hv_map(host.at, IPA, 4 * GRANULE, RW), 0);
    assert_eq!(guest.peek(IPA + 0x100), 0x33);
    guest.poke(IPA + 0x100, 7);
    assert_eq!((guest.peek(IPA + 0x100), host.read(0x100)), (7, 7));
    host.write(0x200, 8);
    assert_eq!(guest.peek(IPA + 0x200), 8);
    let mut bytes = [0; 8];
    file.seek(SeekFrom::Start(0x100)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 0x33);
}

#[test]
fn a4_13_memory_is_given_back_by_unmapping_replacing_and_mapping_again() {
    let guest = peeker();
    for kind in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let host = Host::anonymous(2 * GRANULE, kind);
        host.write(0, 5);
        assert_eq!(hv_map(host.at, IPA, 2 * GRANULE, RW), 0);
        assert_eq!(guest.peek(IPA), 5);
        assert_eq!(hv_unmap(IPA, 2 * GRANULE), 0);
        host.replace(kind | libc::MAP_ANON, -1);
        assert_eq!(hv_map(host.at, IPA, 2 * GRANULE, RW), 0);
        assert_eq!(guest.peek(IPA), 0);
        host.write(0, 6);
        assert_eq!(guest.peek(IPA), 6);
        assert_eq!(hv_unmap(IPA, 2 * GRANULE), 0);
    }
}

#[test]
fn allocations_are_mappable_and_given_back() {
    let guest = peeker();
    let mut at = ptr::null_mut();
    // SAFETY: a place for the address; what is allocated is given back after the guest's last use of it.
    unsafe {
        let default = hv_allocate_flags_t::HV_ALLOCATE_DEFAULT;
        assert_eq!(hv_vm_allocate(&mut at, 3 * GRANULE, default), 0);
        assert_eq!(at as usize % GRANULE, 0);
        assert_eq!(hv_map(at.cast(), IPA, 3 * GRANULE, RW), 0);
        guest.poke(IPA + 8, 9);
        assert_eq!(at.cast::<u64>().add(1).read(), 9);
        assert_eq!(hv_unmap(IPA, 3 * GRANULE), 0);
        assert_eq!(hv_vm_deallocate(at, 3 * GRANULE), 0);
    }
}

#[test]
fn a4_15_a4_16_a4_17_two_vcpus_that_miss_one_page_get_it_once() {
    // Nothing is mapped: each vCPU aborts, one of them fills and maps the page, both retry.
    let turn = Turn::take();
    let vm = machine();
    let mut ram = vm.memory_create(RAM_SIZE as usize).unwrap();
    ram.map(RAM, MemPerms::RWX).unwrap();
    write_code(&mut ram, RAM, &code![mov(0, IPA), ldr(1, 0), hvc(1)]);
    let host = Host::anonymous(GRANULE, libc::MAP_SHARED);
    let (address, missed, present) = (host.at as usize, Barrier::new(2), Mutex::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let vcpu = vm.vcpu_create().unwrap();
                prepare(&vcpu, RAM);
                let exit = run(&vm, &vcpu).exception;
                assert_eq!((exit.syndrome >> 26, exit.physical_address & !0xfff), (ec::DATA_ABORT, IPA));
                missed.wait();
                let mut present = present.lock().unwrap();
                if !*present {
                    // SAFETY: this test's own page, which no vCPU can reach yet.
                    unsafe { (address as *mut u64).write_volatile(42) };
                    assert_eq!(hv_map(address as *mut u8, IPA, GRANULE, RW), 0);
                    *present = true;
                }
                drop(present);
                assert_eq!(run(&vm, &vcpu).exception.syndrome, hvc_syndrome(1));
                assert_eq!(vcpu.get_reg(Reg::X1), Ok(42));
            });
        }
    });
    drop((ram, vm, turn));
}

#[test]
fn a4_21_a_later_change_of_a_privately_mapped_file() {
    let guest = peeker();
    let file = temporary_file(GRANULE, 0x55);
    let host = Host::file(&file, GRANULE, libc::MAP_PRIVATE);
    assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
    assert_eq!(guest.peek(IPA), 0x55);
    file.write_all_at(&0x66u64.to_le_bytes(), 0).unwrap();
    let seen = guest.peek(IPA);
    probe("a later change of a file that is mapped MAP_PRIVATE", if seen == 0x66 { "seen" } else { "not seen" });
    assert!(seen == 0x55 || seen == 0x66, "{seen:#x}");
}

#[test]
fn eight_gibibytes_protect_page_by_page_quickly_enough_to_track() {
    // No clock is looked at: this is about the number of kernel mappings, which is limited.
    let guest = peeker();
    let size = 8usize << 30;
    let host = Host::anonymous(size, libc::MAP_SHARED | libc::MAP_NORESERVE);
    let base = 4u64 << 30;
    // macOS makes large anonymous memory of several VM regions, and a call is for one: so small a part is never more.
    let part = 128 << 20;
    for at in (0..size).step_by(part) {
        assert_eq!(hv_map(host.at.wrapping_add(at), base + at as u64, part, RW), 0);
        assert_eq!(hv_protect(base + at as u64, part, HV_MEMORY_READ), 0);
    }
    for page in (0..size / GRANULE).step_by(2) {
        assert_eq!(hv_protect(base + (page * GRANULE) as u64, GRANULE, RW), 0);
    }
    guest.poke(base + size as u64 - 2 * GRANULE as u64, 3);
    assert_eq!(host.read(size - 2 * GRANULE), 3);
    for at in (0..size).step_by(part) {
        assert_eq!(hv_unmap(base + at as u64, part), 0);
    }
}
