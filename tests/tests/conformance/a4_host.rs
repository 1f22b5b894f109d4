//! A4: what becomes of the guest's memory when the host changes its own mapping of it.

use applevisor::prelude::*;
use applevisor_sys::hv_error_t;

use crate::a4_memory::{GRANULE, Host, IPA, RW, hv_map, peeker};
use crate::guest::*;

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
    if !ended {
        switch("host-mprotect", ENDLESS);
        probe(PROTECTED_LATER, ENDLESS);
    }
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
    if !ended {
        switch("prot-none-map", "hang");
        probe(accessed, ENDLESS);
    }
}
