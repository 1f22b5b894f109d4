//! The Mach calls of the stand-in, as a Mach has them: rights and dead names, messages and trailers, exceptions and their replies.
#![cfg(target_os = "linux")]

use std::sync::mpsc;

use squib_sim::mach::*;

const PAGE: usize = 0x4000;
const STATE: exception_behavior_t = (EXCEPTION_STATE | MACH_EXCEPTION_CODES) as exception_behavior_t;
/// A thread that was served goes on; one that was not is caught by the handler below, which opens the page too.
static LAST_RESORT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

fn task() -> task_t {
    mach_task_self()
}

/// A receive right with one send right.
fn port() -> mach_port_t {
    let mut name = MACH_PORT_NULL;
    // SAFETY: the result goes to a local.
    unsafe {
        assert_eq!(mach_port_allocate(task(), MACH_PORT_RIGHT_RECEIVE, &mut name), KERN_SUCCESS);
        assert_eq!(mach_port_insert_right(task(), name, name, MACH_MSG_TYPE_MAKE_SEND), KERN_SUCCESS);
    }
    name
}

fn references(name: mach_port_t, right: mach_port_right_t) -> Result<u32, kern_return_t> {
    let mut count = 0;
    // SAFETY: the result goes to a local.
    match unsafe { mach_port_get_refs(task(), name, right, &mut count) } {
        KERN_SUCCESS => Ok(count),
        error => Err(error),
    }
}

fn destroy(name: mach_port_t) {
    assert_eq!(mach_port_destruct(task(), name, -1, 0), KERN_SUCCESS);
}

/// Sends words, the header's six included.
fn send(words: &[u32], timeout: Option<u32>) -> mach_msg_return_t {
    let mut message = words.to_vec();
    let option = MACH_SEND_MSG | timeout.map_or(0, |_| MACH_SEND_TIMEOUT);
    // SAFETY: the message is as long as said.
    unsafe { mach_msg(message.as_mut_ptr().cast(), option, 4 * words.len() as u32, 0, 0, timeout.unwrap_or(0), 0) }
}

fn plain(to: mach_port_t, id: u32) -> Vec<u32> {
    vec![MACH_MSG_TYPE_COPY_SEND, 24, to, 0, 0, id]
}

/// Receives into `room` bytes, waiting if there is no timeout.
fn receive(from: mach_port_t, room: usize, option: mach_msg_option_t, timeout: u32) -> (mach_msg_return_t, Vec<u32>) {
    let mut words = vec![0xffff_ffffu32; room.div_ceil(4)];
    // SAFETY: the buffer has room for what is said.
    let result = unsafe {
        mach_msg(words.as_mut_ptr().cast(), MACH_RCV_MSG | option, 0, room as u32, from, timeout, MACH_PORT_NULL)
    };
    (result, words)
}

fn poll(from: mach_port_t) -> (mach_msg_return_t, Vec<u32>) {
    receive(from, 1024, MACH_RCV_TIMEOUT, 0)
}

#[test]
fn rights_are_counted_and_die() {
    let name = port();
    assert_eq!(references(name, MACH_PORT_RIGHT_SEND), Ok(1));
    assert_eq!(mach_port_mod_refs(task(), name, MACH_PORT_RIGHT_SEND, 2), KERN_SUCCESS);
    assert_eq!(mach_port_deallocate(task(), name), KERN_SUCCESS);
    assert_eq!(references(name, MACH_PORT_RIGHT_SEND), Ok(2));
    assert_eq!(mach_port_mod_refs(task(), name, MACH_PORT_RIGHT_SEND, -3), KERN_INVALID_VALUE);
    assert_eq!(mach_port_mod_refs(task(), name, MACH_PORT_RIGHT_RECEIVE, -1), KERN_SUCCESS);
    // Send rights have become dead names.
    assert_eq!(references(name, MACH_PORT_RIGHT_DEAD_NAME), Ok(2));
    assert_eq!(send(&plain(name, 1), None), MACH_SEND_INVALID_DEST);
    assert_eq!(poll(name).0, MACH_RCV_INVALID_NAME);
    assert_eq!(mach_port_deallocate(task(), name), KERN_SUCCESS);
    assert_eq!(mach_port_deallocate(task(), name), KERN_SUCCESS);
    assert_eq!(mach_port_deallocate(task(), name), KERN_INVALID_NAME);
    assert_eq!(mach_port_destruct(task(), name, 0, 0), KERN_INVALID_NAME);
    assert_eq!(mach_port_insert_right(task(), name, name, MACH_MSG_TYPE_MAKE_SEND), KERN_INVALID_CAPABILITY);
}

#[test]
fn a_message_arrives_with_a_trailer() {
    let name = port();
    let mut message = plain(name, 77);
    message.extend([1, 2, 3]);
    assert_eq!(send(&message, None), MACH_MSG_SUCCESS);
    let (result, words) = poll(name);
    assert_eq!(result, MACH_MSG_SUCCESS);
    assert_eq!(words[..6], [MACH_MSG_TYPE_MOVE_SEND << 8, 36, 0, name, 0, 77], "bits, size, no reply, local, id");
    assert_eq!(words[6..11], [1, 2, 3, 0, 8], "body, then a trailer of format 0 and 8 bytes");
    assert_eq!(poll(name).0, MACH_RCV_TIMED_OUT);
    destroy(name);
}

#[test]
fn a_buffer_without_room_for_the_trailer_is_too_small() {
    let name = port();
    assert_eq!(send(&plain(name, 1), None), MACH_MSG_SUCCESS);
    // With MACH_RCV_LARGE the message stays, and its size is told.
    let (result, words) = receive(name, 31, MACH_RCV_LARGE, 0);
    assert_eq!((result, words[1]), (MACH_RCV_TOO_LARGE, 24));
    // Without, it is destroyed.
    assert_eq!(receive(name, 31, 0, 0).0, MACH_RCV_TOO_LARGE);
    assert_eq!(poll(name).0, MACH_RCV_TIMED_OUT);
    assert_eq!(send(&plain(name, 2), None), MACH_MSG_SUCCESS);
    assert_eq!(receive(name, 32, 0, 0).0, MACH_MSG_SUCCESS, "24 bytes and 8 of trailer");
    destroy(name);
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let name = port();
    let with = |at: usize, word: u32| {
        let mut message = plain(name, 1);
        message.extend([1, 0]);
        message[at] = word;
        send(&message, None)
    };
    assert_eq!(with(2, MACH_PORT_NULL), MACH_SEND_INVALID_DEST);
    assert_eq!(with(2, MACH_PORT_DEAD), MACH_SEND_INVALID_DEST);
    assert_eq!(with(0, 0), MACH_SEND_INVALID_DEST);
    assert_eq!(with(0, MACH_MSG_TYPE_COPY_SEND | 0x4000_0000), MACH_SEND_INVALID_HEADER);
    assert_eq!(with(0, MACH_MSG_TYPE_COPY_SEND | MACH_MSGH_BITS_COMPLEX), MACH_SEND_INVALID_TYPE);
    assert_eq!(with(3, 0x903), MACH_SEND_INVALID_REPLY);
    assert_eq!(send(&plain(name, 1)[..5], None), MACH_SEND_MSG_TOO_SMALL);
    assert_eq!(poll(name).0, MACH_RCV_TIMED_OUT, "nothing arrived");
    destroy(name);
}

#[test]
fn a_queue_holds_five_messages() {
    let name = port();
    for id in 0..5 {
        assert_eq!(send(&plain(name, id), None), MACH_MSG_SUCCESS);
    }
    assert_eq!(send(&plain(name, 5), Some(1)), MACH_SEND_TIMED_OUT);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| send(&plain(name, 5), None));
        for id in 0..6 {
            let (result, words) = receive(name, 1024, 0, 0);
            assert_eq!((result, words[5]), (MACH_MSG_SUCCESS, id));
        }
        assert_eq!(waiting.join().expect("sent"), MACH_MSG_SUCCESS);
    });
    destroy(name);
}

#[test]
fn a_receiver_learns_that_its_port_is_gone() {
    let name = port();
    std::thread::scope(|scope| {
        let (ready_to, ready) = mpsc::channel();
        let receiver = scope.spawn(move || {
            assert_eq!(receive(name, 1024, 0, 0).0, MACH_MSG_SUCCESS);
            ready_to.send(()).expect("sent");
            receive(name, 1024, 0, 0).0
        });
        assert_eq!(send(&plain(name, 1), None), MACH_MSG_SUCCESS);
        ready.recv().expect("received");
        destroy(name);
        // Either it waited already, or it came too late.
        assert!(matches!(receiver.join().expect("ended"), MACH_RCV_PORT_CHANGED | MACH_RCV_INVALID_NAME));
    });
}

#[test]
fn a_send_once_right_that_is_not_used_says_so() {
    let (name, reply) = (port(), port());
    let mut message = plain(name, 1);
    message[0] |= MACH_MSG_TYPE_MAKE_SEND_ONCE << 8;
    message[3] = reply;
    // Given up after receiving.
    assert_eq!(send(&message, None), MACH_MSG_SUCCESS);
    let (_, words) = poll(name);
    assert_eq!(words[0] & MACH_MSGH_BITS_REMOTE_MASK, MACH_MSG_TYPE_MOVE_SEND_ONCE);
    assert_eq!(mach_port_deallocate(task(), words[2]), KERN_SUCCESS);
    assert_eq!(poll(reply).1[5], MACH_NOTIFY_SEND_ONCE as u32);
    // Destroyed in the queue.
    assert_eq!(send(&message, None), MACH_MSG_SUCCESS);
    destroy(name);
    assert_eq!(poll(reply).1[5], MACH_NOTIFY_SEND_ONCE as u32);
    destroy(reply);
}

/// Exception ports of the thread or the task, by kind: masks and ports.
fn exception_ports(thread: Option<thread_act_t>, mask: exception_mask_t) -> Vec<(exception_mask_t, mach_port_t)> {
    let (mut masks, mut ports, mut behaviors, mut flavors) = ([0; 14], [0; 14], [0; 14], [0; 14]);
    let mut count = 14;
    // SAFETY: the arrays have room for `count` elements.
    unsafe {
        let (masks, ports) = (masks.as_mut_ptr(), ports.as_mut_ptr());
        let (behaviors, flavors) = (behaviors.as_mut_ptr(), flavors.as_mut_ptr());
        let result = match thread {
            Some(thread) => thread_get_exception_ports(thread, mask, masks, &mut count, ports, behaviors, flavors),
            None => task_get_exception_ports(task(), mask, masks, &mut count, ports, behaviors, flavors),
        };
        assert_eq!(result, KERN_SUCCESS);
    }
    masks.into_iter().zip(ports).take(count as usize).collect()
}

#[test]
fn exception_ports_are_set_read_in_groups_and_checked() {
    let (name, all) = (port(), EXC_MASK_BAD_ACCESS | EXC_MASK_ARITHMETIC | EXC_MASK_BREAKPOINT);
    let thread = mach_thread_self();
    let set = move |mask, port, behavior, flavor| thread_set_exception_ports(thread, mask, port, behavior, flavor);
    assert_eq!(exception_ports(Some(thread), all), [(all, MACH_PORT_NULL)], "all alike: none");
    assert_eq!(set(EXC_MASK_BAD_ACCESS, name, STATE, ARM_THREAD_STATE64), KERN_SUCCESS);
    let expected = [(EXC_MASK_BAD_ACCESS, name), (EXC_MASK_ARITHMETIC | EXC_MASK_BREAKPOINT, MACH_PORT_NULL)];
    assert_eq!(exception_ports(Some(thread), all), expected);
    assert_eq!(references(name, MACH_PORT_RIGHT_SEND), Ok(2), "reading gave a send right");
    assert_eq!(mach_port_deallocate(task(), name), KERN_SUCCESS);

    assert_eq!(set(EXC_MASK_BAD_ACCESS, name, 0, ARM_THREAD_STATE64), KERN_INVALID_ARGUMENT, "behaviour 0");
    assert_eq!(set(1, name, STATE, ARM_THREAD_STATE64), KERN_INVALID_ARGUMENT, "no such exception");
    assert_eq!(set(EXC_MASK_BAD_ACCESS, 0x777, STATE, ARM_THREAD_STATE64), MACH_SEND_INVALID_RIGHT);
    assert_eq!(set(EXC_MASK_BAD_ACCESS, name, EXCEPTION_DEFAULT as i32, ARM_THREAD_STATE64), KERN_NOT_SUPPORTED);
    assert_eq!(set(EXC_MASK_BAD_ACCESS, name, EXCEPTION_STATE as i32, ARM_THREAD_STATE64), KERN_NOT_SUPPORTED);

    // A dead port reads as dead.
    destroy(name);
    assert_eq!(exception_ports(Some(thread), EXC_MASK_BAD_ACCESS), [(EXC_MASK_BAD_ACCESS, MACH_PORT_DEAD)]);
    assert_eq!(set(EXC_MASK_BAD_ACCESS, MACH_PORT_NULL, EXCEPTION_DEFAULT as i32, THREAD_STATE_NONE), KERN_SUCCESS);
    assert_eq!(exception_ports(None, EXC_MASK_BAD_ACCESS), [(EXC_MASK_BAD_ACCESS, MACH_PORT_NULL)]);
    assert_eq!(mach_port_deallocate(task(), thread), KERN_SUCCESS);
}

#[test]
fn a_threads_port_dies_with_it() {
    let name = std::thread::spawn(mach_thread_self).join().expect("ended");
    assert_eq!(references(name, MACH_PORT_RIGHT_DEAD_NAME), Ok(1));
    let set = thread_set_exception_ports(name, EXC_MASK_BAD_ACCESS, MACH_PORT_NULL, STATE, ARM_THREAD_STATE64);
    assert_eq!(set, MACH_SEND_INVALID_DEST);
    assert_eq!(mach_port_deallocate(task(), name), KERN_SUCCESS);
    assert_eq!(mach_port_deallocate(task(), name), KERN_INVALID_NAME);
}

extern "C" fn open_page(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    LAST_RESORT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    // SAFETY: the kernel's siginfo; mprotect is a bare system call.
    unsafe { open((*info).si_addr() as u64) };
}

/// # Safety
/// The page may be made accessible.
unsafe fn open(address: u64) {
    let page = (address as usize & !(PAGE - 1)) as *mut libc::c_void;
    // SAFETY: the caller's promise.
    unsafe { libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE) };
}

/// Touches a page without access on a thread whose exceptions go to `port`, and lets `answer` do with the request what it likes. Whether
/// the fault was left to the process's own handler.
fn one_fault(port: mach_port_t, answer: impl FnOnce(Vec<u32>)) -> bool {
    // SAFETY: a new mapping; the handler is async-signal-safe, and zero is a value of every field.
    let page = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = open_page as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), 2 * PAGE, libc::PROT_NONE, flags, -1, 0)
    } as usize;
    let page = page.next_multiple_of(PAGE);
    let before = LAST_RESORT.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let faulting = scope.spawn(move || {
            // SAFETY: numbers only; the page may fault, that is what it is for.
            unsafe {
                let thread = mach_thread_self();
                let set = thread_set_exception_ports(thread, EXC_MASK_BAD_ACCESS, port, STATE, ARM_THREAD_STATE64);
                assert_eq!(set, KERN_SUCCESS);
                mach_port_deallocate(task(), thread);
                (page as *const u8).wrapping_add(0x123).read_volatile()
            }
        });
        let (result, words) = receive(port, 2048, 0, 0);
        assert_eq!(result, MACH_MSG_SUCCESS);
        assert_eq!(words[48 / 4..56 / 4], [(page + 0x123) as u32, ((page + 0x123) >> 32) as u32]);
        answer(words);
        assert_eq!(faulting.join().expect("went on"), 0);
    });
    LAST_RESORT.load(std::sync::atomic::Ordering::Relaxed) != before
}

/// The reply to a request: a verdict and the state as it came.
fn reply(request: &[u32], verdict: kern_return_t) -> Vec<u32> {
    let mut words = vec![MACH_MSG_TYPE_MOVE_SEND_ONCE, 316, request[2], 0, 0, 2506, 0, 1, verdict as u32, 6, 68];
    words.extend(&request[16..16 + 68]);
    words
}

fn open_and(request: &[u32]) {
    // SAFETY: the page of `one_fault`.
    unsafe { open(u64::from(request[12]) | u64::from(request[13]) << 32) };
}

/// One test, one thread at a time: the last resort is counted for the whole process.
#[test]
fn requests_and_replies() {
    let name = port();
    let resolved = one_fault(name, |request| {
        assert_eq!(request[..6], [18 | 17 << 8, 336, request[2], name, 0, 2406], "header");
        assert_eq!(
            request[6..16]
                .iter()
                .enumerate()
                .map(|(at, word)| match at {
                    // The address was checked.
                    6 | 7 => 0,
                    _ => *word,
                })
                .collect::<Vec<_>>(),
            [0, 1, 1, 2, 2, 0, 0, 0, 6, 68],
            "NDR, exception, codeCnt, code, flavor, count"
        );
        assert_eq!(request[84..86], [0, 8], "trailer");
        open_and(&request);
        assert_eq!(send(&reply(&request, KERN_SUCCESS), None), MACH_MSG_SUCCESS);
        assert_eq!(send(&reply(&request, KERN_SUCCESS), None), MACH_SEND_INVALID_DEST, "once means once");
    });
    assert!(!resolved, "a success goes on");

    type Change = fn(&mut Vec<u32>);
    let refusals: [(&str, Change); 9] = [
        ("a failure", |words| words[8] = 5),
        ("an error reply", |words| {
            words.truncate(9);
            words[8] = MIG_BAD_ID as u32;
        }),
        ("another routine's reply", |words| words[5] = 2505),
        ("complex", |words| {
            words[0] |= MACH_MSGH_BITS_COMPLEX;
            words[6] = 0;
        }),
        ("no state", |words| words.truncate(11)),
        ("a short state", |words| {
            words.truncate(11 + 67);
            words[10] = 67;
        }),
        ("an error reply that says success", |words| words.truncate(9)),
        ("more state than there is", |words| words[10] = 69),
        ("a state of another flavor", |words| words[9] = 5),
    ];
    for (what, change) in refusals {
        let refused = one_fault(name, |request| {
            let mut answer = reply(&request, KERN_SUCCESS);
            change(&mut answer);
            assert_eq!(send(&answer, None), MACH_MSG_SUCCESS, "{what}");
        });
        assert!(refused, "{what}: the next in line gets it");
    }

    let refused = one_fault(name, |request| {
        assert_eq!(mach_port_deallocate(task(), request[2]), KERN_SUCCESS);
    });
    assert!(refused, "the right to reply was given up");

    let refused = one_fault(name, |request| {
        // What was received can still be answered when the port is gone.
        destroy(name);
        assert_eq!(send(&reply(&request, KERN_FAILURE), None), MACH_MSG_SUCCESS);
    });
    assert!(refused);
}
