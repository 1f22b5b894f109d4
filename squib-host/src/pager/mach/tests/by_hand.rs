//! Messages the pager did not ask for, sent to its port by hand: each gets an answer or none, and the pager goes on.

use super::super::message::{BUFFER, Buffer, HEADER, NDR_RECORD, REQUEST_ID, STOP_ID};
use super::super::sys::*;
use super::*;

/// A port of the test's own, to be answered on.
struct ReplyTo(mach_port_t);

impl ReplyTo {
    fn new() -> ReplyTo {
        let mut name = MACH_PORT_NULL;
        // SAFETY: the result goes to a local.
        let result = unsafe { mach_port_allocate(mach_task_self(), MACH_PORT_RIGHT_RECEIVE, &mut name) };
        assert_eq!(result, KERN_SUCCESS);
        ReplyTo(name)
    }

    /// The words of the answer.
    fn receive(&self) -> Vec<u32> {
        let mut buffer = [0u64; 1024];
        // SAFETY: the buffer is as large as said.
        let result = unsafe {
            let size = size_of_val(&buffer) as u32;
            mach_msg(buffer.as_mut_ptr().cast(), MACH_RCV_MSG, 0, size, self.0, 0, MACH_PORT_NULL)
        };
        assert_eq!(result, MACH_MSG_SUCCESS);
        let words: Vec<u32> = buffer.iter().flat_map(|long| [*long as u32, (*long >> 32) as u32]).collect();
        words[..words[1] as usize / 4].to_vec()
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        mach_port_destruct(mach_task_self(), self.0, 0, 0);
    }
}

/// Sends `words` behind a header with this id to the pager.
fn send(pager: &MachPager, id: mach_msg_id_t, complex: bool, words: &[u32], reply: Option<&ReplyTo>) {
    let mut message = vec![0u32; HEADER / 4];
    message[0] = MACH_MSG_TYPE_COPY_SEND
        | reply.map_or(0, |_| MACH_MSG_TYPE_MAKE_SEND_ONCE << 8)
        | if complex { MACH_MSGH_BITS_COMPLEX } else { 0 };
    message[1] = (HEADER + 4 * words.len()) as u32;
    message[2] = pager.port();
    message[3] = reply.map_or(MACH_PORT_NULL, |reply| reply.0);
    message[5] = id as u32;
    message.extend(words);
    // SAFETY: the message is as long as said; words are aligned as a header is.
    let result = unsafe {
        let size = 4 * message.len() as u32;
        mach_msg(message.as_mut_ptr().cast(), MACH_SEND_MSG, size, 0, MACH_PORT_NULL, 0, MACH_PORT_NULL)
    };
    assert_eq!(result, MACH_MSG_SUCCESS);
}

/// The body of a request 2406, as a kernel would write it.
fn request(exception: u32, code: u32, address: u64) -> Vec<u32> {
    let ndr = NDR_RECORD.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
    let mut words: Vec<u32> = ndr.collect();
    words.extend([exception, 2, code, 0, address as u32, (address >> 32) as u32, 6, 68]);
    words.extend(100..168);
    words
}

#[test]
fn a_request_by_hand_is_answered_with_2506_and_the_state_as_it_came() {
    let arena = Arena::new(1);
    let pager = MachPager::new(arena.clone(), 1).expect("a pager");
    let reply = ReplyTo::new();
    for (words, verdict) in [
        (request(1, 2, arena.at(0x20) as u64), KERN_SUCCESS),
        (request(1, 2, arena.at(0x20) as u64 | 0xa5 << 56), KERN_SUCCESS),
        (request(1, 1, 0x10), KERN_FAILURE),
        // A misaligned access to a page of ours: nothing a pager could mend.
        (request(1, 0x101, arena.at(1) as u64), KERN_FAILURE),
        (request(6, 2, arena.at(0) as u64), KERN_FAILURE),
    ] {
        send(&pager, REQUEST_ID, false, &words, Some(&reply));
        let answer = reply.receive();
        assert_eq!(answer[1], 316);
        assert_eq!(answer[5], 2506);
        assert_eq!(answer[8] as kern_return_t, verdict, "{words:x?}");
        assert_eq!(answer[9..11], [6, 68]);
        assert_eq!(answer[11..], (100..168).collect::<Vec<u32>>());
    }
    assert_eq!(arena.read(0), Arena::byte(0), "the page is present; no fault of this thread was needed");
}

#[test]
fn foreign_and_malformed_messages_get_an_error_and_the_pager_goes_on() {
    let arena = Arena::new(2);
    let pager = MachPager::new(arena.clone(), 1).expect("a pager");
    let reply = ReplyTo::new();
    let sound = request(1, 2, arena.at(0) as u64);
    let (mut one_code, mut short) = (sound.clone(), sound.clone());
    one_code[3] = 1;
    short.truncate(30);
    let cases: [(mach_msg_id_t, bool, &[u32], kern_return_t); 7] = [
        (2405, false, &sound, MIG_BAD_ID),
        (2407, false, &sound, MIG_BAD_ID),
        (0, false, &[], MIG_BAD_ID),
        (STOP_ID, false, &[], MIG_BAD_ID),
        (REQUEST_ID, false, &one_code, MIG_BAD_ARGUMENTS),
        (REQUEST_ID, false, &short, MIG_BAD_ARGUMENTS),
        // Complex, with no descriptors.
        (REQUEST_ID, true, &[0, 0], MIG_BAD_ARGUMENTS),
    ];
    for (id, complex, words, error) in cases {
        send(&pager, id, complex, words, Some(&reply));
        let answer = reply.receive();
        assert_eq!(answer[1], 36, "{id}");
        assert_eq!(answer[5] as i32, id + 100);
        assert_eq!(answer[8] as kern_return_t, error, "{id}");
    }
    let _registered = pager.register_current_thread().expect("registered");
    assert_eq!(arena.read(PAGE), Arena::byte(1));
}

#[test]
fn messages_that_cannot_be_answered_do_not_stop_the_pager() {
    let arena = Arena::new(2);
    let pager = MachPager::new(arena.clone(), 1).expect("a pager");
    // Nobody to answer: garbage, a stop nobody asked for, a request.
    send(&pager, 4711, false, &[1, 2, 3], None);
    send(&pager, STOP_ID, false, &[], None);
    send(&pager, REQUEST_ID, false, &request(1, 2, arena.at(0) as u64), None);
    // Larger than any exception: destroyed on arrival.
    send(&pager, REQUEST_ID, false, &vec![7; BUFFER / 4], None);
    // Somebody who went away before the answer.
    let gone = ReplyTo::new();
    send(&pager, 4711, false, &[], Some(&gone));
    drop(gone);
    let _registered = pager.register_current_thread().expect("registered");
    assert_eq!(arena.read(PAGE), Arena::byte(1));
    assert_eq!(arena.present(), 2, "the request without a reply port was handled, too");
    assert_eq!(size_of::<Buffer>() / 8 * 8, size_of::<Buffer>());
}
