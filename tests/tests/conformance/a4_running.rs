//! A4: changes of stage 2 under vCPUs that run: what `hv_vm_protect` and `hv_vm_unmap` take away is gone when they return.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use applevisor::memory::PAGE_SIZE;
use applevisor::prelude::*;
use applevisor_sys::*;

use crate::a4_memory::{Host, RW, hv_map, hv_protect, hv_unmap};
use crate::asm::*;
use crate::guest::*;

const SPACE: u64 = 0x8000_0000;
const VCPUS: usize = 3;

/// Counts in memory without end; whatever the guest lacks, it tries again.
fn count(vm: &VirtualMachineInstance<GicDisabled>, place: u64, stop: &AtomicBool, ids: &Mutex<Vec<u64>>) {
    let vcpu = vm.vcpu_create().unwrap();
    ids.lock().unwrap().push(vcpu.id());
    prepare(&vcpu, RAM);
    vcpu.set_reg(Reg::X0, place).unwrap();
    while !stop.load(Ordering::SeqCst) {
        vcpu.run().unwrap();
        let exit = vcpu.get_exit_info();
        if exit.reason == ExitReason::CANCELED && stop.load(Ordering::SeqCst) {
            return;
        }
        assert_eq!((exit.reason, exit.exception.syndrome >> 26), (ExitReason::EXCEPTION, ec::DATA_ABORT));
        assert_eq!(exit.exception.physical_address & !0xfff, place & !0xfff);
        thread::yield_now();
    }
}

/// Ends the counting, whatever becomes of the test.
struct Stop<'a>(&'a AtomicBool, &'a Mutex<Vec<u64>>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        // An abort is an exit, and then the flag is seen.
        hv_protect(SPACE, PAGE_SIZE, HV_MEMORY_NONE);
        hv_unmap(SPACE, PAGE_SIZE);
        // Where it does not come: the first request may be lost.
        for id in self.1.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().cycle().take(2 * VCPUS) {
            // SAFETY: an array of one id. A vCPU that is gone already is an error to the call and none to us.
            unsafe { hv_vcpus_exit(id, 1) };
        }
    }
}

#[test]
fn a4_06_what_is_taken_away_is_gone_on_return() {
    let guest = guest(&[ldr(1, 0), add(1, 1, 1), str(1, 0), b(-3)]);
    let host = Host::anonymous(PAGE_SIZE, libc::MAP_SHARED);
    let counters = || (0..VCPUS).map(|vcpu| host.read(64 * vcpu)).collect::<Vec<_>>();
    let grant = || assert_eq!(hv_map(host.at, SPACE, PAGE_SIZE, RW), 0);
    let (stop, ids) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    grant();
    thread::scope(|scope| {
        let _stop = Stop(&stop, &ids);
        for vcpu in 0..VCPUS as u64 {
            let (vm, stop, ids) = (guest.vm.clone(), &stop, &ids);
            scope.spawn(move || count(&vm, SPACE + 64 * vcpu, stop, ids));
        }
        for round in 0..21 {
            let before = counters();
            let start = Instant::now();
            while counters().iter().zip(&before).any(|(now, before)| now == before) {
                assert!(start.elapsed() < Duration::from_secs(60), "a vCPU does not get on");
                thread::yield_now();
            }
            match round % 3 {
                0 => assert_eq!(hv_protect(SPACE, PAGE_SIZE, HV_MEMORY_READ), 0),
                1 => assert_eq!(hv_protect(SPACE, PAGE_SIZE, HV_MEMORY_NONE), 0),
                _ => assert_eq!(hv_unmap(SPACE, PAGE_SIZE), 0),
            }
            let frozen = counters();
            thread::sleep(Duration::from_millis(1));
            assert_eq!(counters(), frozen, "round {round}: a store after the right to store was gone");
            match round % 3 {
                2 => grant(),
                _ => assert_eq!(hv_protect(SPACE, PAGE_SIZE, RW), 0),
            }
        }
    });
}
