//! Guest RAM that arrives one page at a time, in any order, costs the host neither a kernel mapping a page nor a scan of all
//! of them: what a pager does to the stand-in.

use std::ffi::c_void;
use std::ptr;

use applevisor::memory::PAGE_SIZE;
use applevisor::prelude::*;
use applevisor_sys::{HV_MEMORY_READ, HV_MEMORY_WRITE, hv_vm_map, hv_vm_unmap};

extern crate squib_sim as _;

const PAGES: usize = 16_384;
const RAM: u64 = 0x4000_0000;

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count())
}

/// Every page once, in an order without neighbours.
fn scattered() -> impl Iterator<Item = usize> {
    (0..PAGES).map(|n| n * 40_503 % PAGES)
}

#[test]
fn sixteen_thousand_pages_one_by_one() {
    let vm = VirtualMachine::new().unwrap();
    let size = PAGES * PAGE_SIZE;
    let flags = libc::MAP_SHARED | libc::MAP_ANON | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, which stays until the process ends.
    let host = unsafe {
        let base = libc::mmap(ptr::null_mut(), size + PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(base, libc::MAP_FAILED);
        base.cast::<u8>().add(base.cast::<u8>().align_offset(PAGE_SIZE))
    };
    let before = mappings();
    let mut most = 0;
    for (done, page) in scattered().enumerate() {
        let (at, ipa) = (host.wrapping_add(page * PAGE_SIZE), RAM + (page * PAGE_SIZE) as u64);
        // SAFETY: a page of the mapping above.
        assert_eq!(unsafe { hv_vm_map(at.cast::<c_void>(), ipa, PAGE_SIZE, HV_MEMORY_READ | HV_MEMORY_WRITE) }, 0);
        if done % 1024 == 0 {
            most = most.max(mappings());
        }
    }
    assert!(most < before + 100, "{before} mappings became {most}");
    for page in scattered() {
        // SAFETY: no guest runs.
        assert_eq!(unsafe { hv_vm_unmap(RAM + (page * PAGE_SIZE) as u64, PAGE_SIZE) }, 0);
    }
    assert!(mappings() < before + 10, "all given back");
    drop(vm);
}
