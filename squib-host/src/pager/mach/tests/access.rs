//! Every way an instruction can touch an absent page, alone and in a storm.

use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

fn pager(arena: &Arc<Arena>, threads: usize) -> MachPager {
    MachPager::new(arena.clone(), threads).expect("a pager")
}

#[test]
fn reads_writes_and_atomics_are_executed_again() {
    let arena = Arena::new(4);
    let pager = pager(&arena, 1);
    let _registered = pager.register_current_thread().expect("registered");
    assert_eq!(arena.read(5), Arena::byte(0));
    // SAFETY: inside the mapping; aligned; no references.
    unsafe {
        arena.at(PAGE + 8).cast::<u64>().write_volatile(7);
        assert_eq!(arena.at(PAGE + 8).cast::<u64>().read_volatile(), 7);
        assert_eq!(arena.read(PAGE), Arena::byte(1), "the rest of the page came first");
        let word = AtomicU32::from_ptr(arena.at(2 * PAGE + 16).cast());
        let before = u32::from_ne_bytes([Arena::byte(2); 4]);
        assert_eq!(word.fetch_add(1, Ordering::SeqCst), before);
        assert_eq!(word.load(Ordering::SeqCst), before + 1);
        let word = AtomicU32::from_ptr(arena.at(3 * PAGE + 4).cast());
        let before = u32::from_ne_bytes([Arena::byte(3); 4]);
        assert_eq!(word.compare_exchange(before, 9, Ordering::AcqRel, Ordering::Acquire), Ok(before));
    }
    assert_eq!(arena.asked.load(Ordering::Relaxed), 4, "one fault for each page");
}

#[test]
fn a_copy_over_several_pages_and_an_access_over_a_border() {
    let arena = Arena::new(8);
    let pager = pager(&arena, 2);
    let _registered = pager.register_current_thread().expect("registered");
    let mut bytes = vec![0u8; 5 * PAGE];
    // SAFETY: source inside the mapping, destination our own.
    unsafe { arena.at(PAGE / 2).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte, Arena::byte((at + PAGE / 2) / PAGE), "{at}");
    }
    // SAFETY: inside the mapping; the read is allowed to be misaligned.
    let word = unsafe { arena.at(7 * PAGE - 4).cast::<u64>().read_unaligned() };
    let (low, high) = ([Arena::byte(6); 4], [Arena::byte(7); 4]);
    assert_eq!(word.to_ne_bytes(), [low, high].concat()[..]);
    assert_eq!(arena.present(), 8);
}

#[test]
fn a_storm_of_faults_loses_nothing() {
    const THREADS: usize = 8;
    let arena = Arena::new(128);
    let pager = pager(&arena, 3);
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (arena, pager, start) = (&arena, &pager, &start);
            scope.spawn(move || {
                let _registered = pager.register_current_thread().expect("registered");
                start.wait();
                for step in 0..128 {
                    // All threads over all pages, each in another order, all adding to the same words.
                    let page = (step * (2 * thread + 1) + 16 * thread) % 128;
                    assert_eq!(arena.read(page * PAGE + 64), Arena::byte(page));
                    // SAFETY: inside the mapping, aligned.
                    unsafe { AtomicU32::from_ptr(arena.at(page * PAGE).cast()) }.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(arena.present(), 128);
    for page in 0..128 {
        // SAFETY: inside the mapping, aligned; the page is present.
        let word = unsafe { arena.at(page * PAGE).cast::<u32>().read_volatile() };
        assert_eq!(word, u32::from_ne_bytes([Arena::byte(page); 4]) + THREADS as u32, "page {page}");
    }
}

#[test]
fn errno_and_registers_survive_a_fault() {
    let arena = Arena::new(2);
    let pager = pager(&arena, 1);
    let _registered = pager.register_current_thread().expect("registered");
    // SAFETY: an invalid descriptor, on purpose.
    assert_eq!(unsafe { libc::close(-1) }, -1);
    let sum: f64 = (1..=4).map(|n| f64::from(n) + f64::from(arena.read(PAGE * (n % 2) as usize))).sum();
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
    assert_eq!(sum, 10.0 + 2.0 * f64::from(Arena::byte(0)) + 2.0 * f64::from(Arena::byte(1)));
}

#[test]
fn a_system_call_on_an_absent_page_fails_with_efault_and_raises_nothing() {
    let arena = Arena::new(2);
    let pager = pager(&arena, 1);
    let _registered = pager.register_current_thread().expect("registered");
    let file = tempfile::tempfile().expect("a temporary file");
    file.write_all_at(&[7; PAGE], 0).expect("written");
    // SAFETY: the buffer is inside the mapping, absent on purpose: the kernel refuses it.
    let read = |at: *mut u8| unsafe { libc::pread(std::os::fd::AsRawFd::as_raw_fd(&file), at.cast(), PAGE, 0) };
    assert_eq!(read(arena.at(0)), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
    assert_eq!(arena.asked.load(Ordering::Relaxed), 0, "no exception was raised");
    // Made present first, as an accessor does, the same call works.
    assert_eq!(arena.read(0), Arena::byte(0));
    assert_eq!(read(arena.at(0)), PAGE as isize);
    assert_eq!(arena.read(PAGE - 1), 7);
}
