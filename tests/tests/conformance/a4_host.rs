//! A4: what becomes of the guest's memory when the host changes its own mapping of it.

use std::fs::File;
use std::os::fd::FromRawFd;

use applevisor::prelude::*;
use applevisor_sys::{HV_MEMORY_EXEC, HV_MEMORY_READ, hv_error_t};

use crate::a4_memory::{GRANULE, Host, IPA, RW, hv_map, hv_protect, peeker, temporary_file};
use crate::guest::*;
use crate::iss;

/// A shared memory object without a name, as a host's guest RAM may be.
fn shared_object(size: usize) -> File {
    let name = std::ffi::CString::new(format!("/squib-conf.{}", std::process::id())).unwrap();
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    // SAFETY: the name ends in NUL; the descriptor is new and nobody else's.
    let object = unsafe {
        let descriptor = libc::shm_open(name.as_ptr(), flags, 0o600);
        assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
        libc::shm_unlink(name.as_ptr());
        File::from_raw_fd(descriptor)
    };
    object.set_len(size as u64).unwrap();
    object
}

/// As a pager has it: one object, a view that is closed at first and is what the guest gets, a view to fill it through.
#[test]
fn a4_11_a4_15_a_shared_object_is_opened_and_mapped_granule_by_granule() {
    let guest = peeker();
    let object = shared_object(4 * GRANULE);
    let view = Host::file(&object, 4 * GRANULE, libc::MAP_SHARED);
    let fill = Host::file(&object, 4 * GRANULE, libc::MAP_SHARED);
    view.protect(libc::PROT_NONE);
    for granule in [2, 0, 3, 1] {
        let offset = granule * GRANULE;
        let ipa = IPA + offset as u64;
        guest.peek_aborts(ipa + 0x10);
        fill.write(offset + 0x10, granule as u64 + 7);
        view.protect_part(offset, GRANULE, libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(hv_map(view.at.wrapping_add(offset), ipa, GRANULE, RW | HV_MEMORY_EXEC), 0);
        assert_eq!(guest.peek(ipa + 0x10), granule as u64 + 7);
        guest.poke(ipa + 0x18, 5);
        assert_eq!((fill.read(offset + 0x18), view.read(offset + 0x18)), (5, 5));
    }
}

/// Dirty tracking of RAM that is a private mapping of a file: the first store is allowed late, and goes to the copy.
#[test]
fn a4_06_a4_12_a_private_file_mapping_can_be_write_protected() {
    let guest = peeker();
    let file = temporary_file(2 * GRANULE, 0x66);
    let host = Host::file(&file, 2 * GRANULE, libc::MAP_PRIVATE);
    assert_eq!(hv_map(host.at, IPA, 2 * GRANULE, RW | HV_MEMORY_EXEC), 0);
    for round in 0..2 {
        assert_eq!(hv_protect(IPA, 2 * GRANULE, HV_MEMORY_READ | HV_MEMORY_EXEC), 0);
        assert_eq!(guest.peek(IPA), 0x66 + round);
        guest.vcpu.set_reg(Reg::PC, RAM + 8).unwrap();
        guest.vcpu.set_reg(Reg::X0, IPA).unwrap();
        guest.vcpu.set_reg(Reg::X2, 0x67 + round).unwrap();
        let exception = guest.run_to_class(ec::DATA_ABORT);
        assert_eq!((iss::status(exception.syndrome), exception.physical_address), (iss::PERMISSION, IPA));
        assert_eq!(hv_protect(IPA, GRANULE, RW | HV_MEMORY_EXEC), 0);
        guest.run_straight_to(2);
        assert_eq!((host.read(0), guest.peek(IPA)), (0x67 + round, 0x67 + round));
    }
    assert_eq!(guest.peek(IPA + GRANULE as u64), 0x66);
}

#[test]
fn a4_08_host_protection_does_not_reach_the_guest() {
    let ended = alone("a4_host::a4_08_host_protection_does_not_reach_the_guest", || {
        let guest = peeker();
        let host = Host::anonymous(GRANULE, libc::MAP_SHARED);
        host.write(0, 3);
        assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
        assert_eq!(guest.peek(IPA), 3);
        host.protect(libc::PROT_NONE);
        guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
        // A run that does not end is an answer too.
        let exit = guest.run_or_give_up();
        let found = match exit.reason {
            ExitReason::CANCELED => "the run does not end",
            _ if exit.exception.syndrome >> 26 == ec::HVC => "nothing",
            _ => "an abort",
        };
        switch(
            "host-mprotect",
            match found {
                "nothing" => "off",
                "an abort" => "on",
                other => other,
            },
        );
        probe(PROTECTED_LATER, found);
        host.protect(libc::PROT_READ | libc::PROT_WRITE);
        guest.poke(IPA, 4);
        assert_eq!(host.read(0), 4);
    });
    if ended == Alone::Endless {
        switch("host-mprotect", ENDLESS);
        probe(PROTECTED_LATER, ENDLESS);
    }
    assert_ne!(ended, Alone::Killed);
}

const PROTECTED_LATER: &str = "what host mprotect(PROT_NONE) does to a guest that had the page";
const ENDLESS: &str = "the run does not end, hv_vcpus_exit or not";

#[test]
fn a4_11_replacing_the_host_mapping() {
    let guest = peeker();
    let host = Host::anonymous(GRANULE, libc::MAP_SHARED);
    host.write(0, 3);
    assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
    host.replace(libc::MAP_SHARED | libc::MAP_ANON, -1);
    host.write(0, 99);
    let seen = guest.peek(IPA);
    switch_is_on("host-remap", seen != 3);
    probe(
        "after mmap(MAP_FIXED) over mapped memory the guest sees",
        if seen == 3 { "the old object" } else { "the new one" },
    );
    assert!(seen == 3 || seen == 99, "{seen}");
    guest.poke(IPA, 4);
    assert_eq!(host.read(0), if seen == 3 { 99 } else { 4 });
    if seen == 3 {
        // Nor does it lose the object when the host lets go of the address: only where the guest feels the host's protection is there
        // nothing any more (or whatever has come to that address meanwhile).
        // SAFETY: this test's own mapping, which it does not use again.
        unsafe { libc::munmap(host.at.cast(), GRANULE) };
        guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
        guest.vcpu.set_reg(Reg::X0, IPA).unwrap();
        let there = guest.run_on().exception.syndrome >> 26 == ec::HVC;
        probe("after munmap of mapped memory the guest sees", if there { "the old object" } else { "nothing" });
        assert!(!there || guest.x(Reg::X1) == 4);
    }
}

#[test]
fn a4_09_memory_that_was_inaccessible_when_mapped() {
    let accessed = "guest access to memory that was PROT_NONE when mapped";
    let ended = alone("a4_host::a4_09_memory_that_was_inaccessible_when_mapped", || {
        let guest = peeker();
        let host = Host::anonymous(GRANULE, libc::MAP_SHARED);
        host.protect(libc::PROT_NONE);
        let code = hv_map(host.at, IPA, GRANULE, RW);
        probe("hv_vm_map of PROT_NONE memory", name(code));
        // Opening it later may not help.
        host.protect(libc::PROT_READ | libc::PROT_WRITE);
        if code != 0 {
            let error = code == hv_error_t::HV_ERROR as i32;
            switch("prot-none-map", if error { "error".to_owned() } else { name(code) });
            assert_eq!(hv_map(host.at, IPA, GRANULE, RW), 0);
            assert_eq!(guest.peek(IPA), 0);
            return;
        }
        guest.vcpu.set_reg(Reg::X0, IPA).unwrap();
        let exit = guest.run_or_give_up();
        let found = match exit.reason {
            ExitReason::CANCELED => "the run does not end",
            _ if exit.exception.syndrome >> 26 == ec::HVC => "it is there once the host has opened it",
            _ => "an abort",
        };
        switch("prot-none-map", if exit.reason == ExitReason::CANCELED { "hang" } else { found });
        probe(accessed, found);
    });
    if ended == Alone::Endless {
        switch("prot-none-map", "hang");
        probe(accessed, ENDLESS);
    }
    assert_ne!(ended, Alone::Killed);
}
