//! The Mach server alone, with a handler that only opens pages.

use std::io;
use std::sync::Arc;

use squib_host::pager::{FaultHandler, MachPager, Verdict};

use crate::saved::PAGE;
use crate::watch::{Held, in_time, turn};

/// Pages that cannot be accessed until the handler opens them; nothing is read and nothing mapped at stage 2.
struct Closed {
    at: *mut u8,
    pages: usize,
}

// SAFETY: an address, of a mapping that lives as long as the process and is only read volatilely.
unsafe impl Send for Closed {}
// SAFETY: as above.
unsafe impl Sync for Closed {}

impl Closed {
    fn new(pages: usize) -> Arc<Closed> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), pages * PAGE, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Arc::new(Closed { at: at.cast(), pages })
    }

    fn touch(&self, page: usize) -> u8 {
        // SAFETY: inside the mapping; that it faults is what is tested.
        unsafe { self.at.add(page * PAGE).read_volatile() }
    }
}

impl FaultHandler for Closed {
    fn handle(&self, address: u64) -> Verdict {
        let offset = (address as usize).wrapping_sub(self.at as usize);
        if offset >= self.pages * PAGE {
            return Verdict::NotOurs;
        }
        // SAFETY: a page of our own mapping.
        let result = unsafe {
            libc::mprotect(self.at.add(offset / PAGE * PAGE).cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE)
        };
        if result == 0 { Verdict::Resolved } else { Verdict::Failed }
    }
}

/// A thread is stopped by a fault in the middle of the allocator, whose lock it holds. Whoever allocates now waits for it.
#[test]
fn a_fault_inside_the_allocator_is_answered() {
    let _turn = turn();
    let closed = Closed::new(8);
    let pager = MachPager::new(Arc::clone(&closed) as Arc<dyn FaultHandler>, 1).expect("a pager");
    in_time("a fault inside the allocator was never answered\n", || {
        let _registered = pager.register_current_thread().expect("registered");
        // After this the pager's thread has started: from now on it only answers.
        closed.touch(0);
        let held = Held::hold();
        let sum = (1..8).map(|page| closed.touch(page)).sum::<u8>();
        drop(held);
        assert_eq!(sum, 0);
    });
}
