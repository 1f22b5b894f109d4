//! Registrations that nest, pagers that end while faults wait, handlers that fail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use super::*;

/// The arena, but it counts as its own only after somebody opened the gate.
struct Gated {
    arena: Arc<Arena>,
    asked: mpsc::SyncSender<()>,
    gate: Mutex<mpsc::Receiver<Verdict>>,
}

impl FaultHandler for Gated {
    fn handle(&self, address: u64) -> Verdict {
        let _ = self.asked.send(());
        match self.gate.lock().expect("no thread panics with it").recv() {
            Ok(Verdict::Resolved) | Err(_) => self.arena.handle(address),
            Ok(other) => other,
        }
    }
}

#[test]
fn faults_that_wait_are_answered_before_the_pager_ends() {
    let arena = Arena::new(8);
    let (asked_to, asked) = mpsc::sync_channel(8);
    let (open, gate) = mpsc::sync_channel(8);
    let pager = MachPager::new(Arc::new(Gated { arena: arena.clone(), asked: asked_to, gate: Mutex::new(gate) }), 1);
    let pager = pager.expect("a pager");
    let registered = std::sync::Barrier::new(9);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|page| {
                let (arena, pager, registered) = (&arena, &pager, &registered);
                scope.spawn(move || {
                    let _registration = pager.register_current_thread().expect("registered");
                    registered.wait();
                    arena.read(page * PAGE)
                })
            })
            .collect();
        registered.wait();
        // One is being handled; the others queue up behind it, more than a queue holds messages from user space.
        asked.recv().expect("a first fault");
        for _ in 0..8 {
            open.send(Verdict::Resolved).expect("open");
        }
        for (page, thread) in threads.into_iter().enumerate() {
            assert_eq!(thread.join().expect("went on"), Arena::byte(page));
        }
    });
    drop(pager);
}

#[test]
fn dropping_while_a_fault_is_being_handled_lets_it_finish() {
    let arena = Arena::new(1);
    let (asked_to, asked) = mpsc::sync_channel(8);
    let (open, gate) = mpsc::sync_channel(8);
    let handler = Gated { arena: arena.clone(), asked: asked_to, gate: Mutex::new(gate) };
    let pager = MachPager::new(Arc::new(handler), 2).expect("a pager");
    let (registered_to, registered) = mpsc::channel();
    let (pager_to, pager_from) = mpsc::channel::<MachPager>();
    std::thread::scope(|scope| {
        let faulting = scope.spawn(|| {
            let _registration = pager.register_current_thread().expect("registered");
            registered_to.send(()).expect("sent");
            pager_to.send(pager).expect("sent");
            arena.read(0)
        });
        registered.recv().expect("registered");
        let pager = pager_from.recv().expect("the pager");
        asked.recv().expect("a fault");
        let dropping = scope.spawn(move || drop(pager));
        open.send(Verdict::Resolved).expect("open");
        assert_eq!(faulting.join().expect("went on"), Arena::byte(0));
        dropping.join().expect("ended");
    });
}

#[test]
fn registrations_nest_and_the_one_before_comes_back() {
    let (outer_arena, inner_arena) = (Arena::new(3), Arena::new(1));
    let outer = MachPager::new(outer_arena.clone(), 1).expect("a pager");
    let inner = MachPager::new(inner_arena.clone(), 1).expect("a pager");
    let first = outer.register_current_thread().expect("registered");
    assert_eq!(outer_arena.read(0), Arena::byte(0));
    let second = inner.register_current_thread().expect("registered");
    assert_eq!(inner_arena.read(0), Arena::byte(0));
    drop(second);
    assert_eq!(outer_arena.read(PAGE), Arena::byte(1));
    // The same pager twice; the inner one's end changes nothing.
    drop(outer.register_current_thread().expect("registered again"));
    assert_eq!(outer_arena.read(2 * PAGE), Arena::byte(2));
    drop(first);
}

#[test]
fn registrations_may_end_in_another_order() {
    let (first_arena, second_arena) = (Arena::new(1), Arena::new(2));
    let first = MachPager::new(first_arena.clone(), 1).expect("a pager");
    let second = MachPager::new(second_arena.clone(), 1).expect("a pager");
    let before = current_port();
    let (one, two) = (first.register_current_thread().expect("one"), second.register_current_thread().expect("two"));
    assert_eq!(current_port(), second.port());
    drop(one);
    assert_eq!(current_port(), second.port(), "the later registration still holds");
    assert_eq!(second_arena.read(0), Arena::byte(0));
    drop(two);
    assert_eq!(current_port(), before, "and leaves what was there before both");
}

/// The calling thread's exception port for memory faults.
fn current_port() -> super::super::sys::mach_port_t {
    use super::super::sys::*;
    let (mut mask, mut count, mut port, mut behavior, mut flavor) = (0, 1, 0, 0, 0);
    // SAFETY: results go to locals, one element each; the rights that come along are given up.
    unsafe {
        let thread = mach_thread_self();
        let result = thread_get_exception_ports(
            thread,
            EXC_MASK_BAD_ACCESS,
            &mut mask,
            &mut count,
            &mut port,
            &mut behavior,
            &mut flavor,
        );
        assert_eq!(result, KERN_SUCCESS);
        mach_port_deallocate(mach_task_self(), thread);
        if port != MACH_PORT_NULL {
            mach_port_deallocate(mach_task_self(), port);
        }
    }
    port
}

#[test]
fn a_registration_may_outlive_its_pager() {
    let arena = Arena::new(1);
    let (before, registration) = {
        let pager = MachPager::new(arena.clone(), 2).expect("a pager");
        let before = current_port();
        (before, pager.register_current_thread().expect("registered"))
    };
    // The port is dead, and this thread still has it; a new pager is not confused by that.
    let pager = MachPager::new(arena.clone(), 1).expect("another pager");
    let second = pager.register_current_thread().expect("registered");
    assert_eq!(arena.read(0), Arena::byte(0));
    drop(second);
    drop(registration);
    assert_eq!(current_port(), before);
}

#[test]
fn registering_and_dropping_leaves_no_rights_behind() {
    use super::super::sys::*;
    let pager = MachPager::new(Arena::new(1), 1).expect("a pager");
    let thread = mach_thread_self();
    let references = |name| {
        let mut count = 0;
        // SAFETY: the result goes to a local.
        assert_eq!(unsafe { mach_port_get_refs(mach_task_self(), name, 0, &mut count) }, KERN_SUCCESS);
        count
    };
    let before = (references(pager.port()), references(thread));
    for _ in 0..5 {
        let one = pager.register_current_thread().expect("registered");
        let two = pager.register_current_thread().expect("registered");
        drop((one, two));
    }
    assert_eq!((references(pager.port()), references(thread)), before);
    mach_port_deallocate(mach_task_self(), thread);
}

#[test]
fn a_handler_sees_no_tag_and_several_threads_ask_at_once() {
    let arena = Arena::new(2);
    let both = std::sync::Barrier::new(2);
    let handler = {
        let arena = arena.clone();
        Decide(move |address| {
            // Passed only if two threads of the pager are here at the same time.
            both.wait();
            arena.handle(address)
        })
    };
    let pager = MachPager::new(Arc::new(handler), 2).expect("a pager");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for page in 0..2 {
            let (arena, pager, done) = (&arena, &pager, &done);
            scope.spawn(move || {
                let _registered = pager.register_current_thread().expect("registered");
                assert_eq!(arena.read(page * PAGE), Arena::byte(page));
                done.store(true, Ordering::Relaxed);
            });
        }
    });
    assert!(done.load(Ordering::Relaxed));
}
