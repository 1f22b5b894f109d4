//! `mach_msg`: sending to ports and to waiting faults, receiving with a trailer, timeouts, messages that are too large.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::fault;
use super::futex;
use super::kernel::{Kernel, Name, Place};
use super::port::{self, Message};
use super::types::*;

const HEADER: usize = size_of::<mach_msg_header_t>();
const TRAILER: usize = size_of::<mach_msg_trailer_t>();

/// A message from user space in a queue.
pub struct UserMessage {
    bytes: Vec<u8>,
    reply: Reply,
}

/// The right to reply that travels with a message.
enum Reply {
    None,
    Send(Place),
    SendOnce(Place),
}

/// A send-once right in the task's name space.
#[derive(Default)]
pub struct SendOnce {
    generation: u16,
    target: Option<Place>,
}

impl UserMessage {
    /// Destroys the message, and with it the right to reply.
    pub fn destroy(self, kernel: &Kernel) {
        if let Reply::SendOnce(target) = self.reply {
            notify_send_once(kernel, target);
        }
    }
}

/// Takes a send-once right out of the name space: the port it is for.
pub fn take_send_once(kernel: &Kernel, place: Place) -> Option<Place> {
    let mut table = kernel.send_once.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = table.get_mut(place.index).filter(|entry| entry.generation == place.generation)?;
    entry.target.take()
}

/// Puts a send-once right into the name space; `None` if there is no room.
fn name_send_once(kernel: &Kernel, target: Place) -> Option<Name> {
    let mut table = kernel.send_once.lock().unwrap_or_else(PoisonError::into_inner);
    let index = table.iter().position(|entry| entry.target.is_none()).unwrap_or(table.len());
    if index == table.len() {
        if index > 0x3ff {
            return None;
        }
        table.push(SendOnce::default());
    }
    let entry = &mut table[index];
    entry.generation = entry.generation.wrapping_add(1);
    entry.target = Some(target);
    Some(Name::SendOnce(Place { index, generation: entry.generation }))
}

/// Tells a port that a send-once right for it was destroyed without a message.
pub fn notify_send_once(kernel: &Kernel, target: Place) {
    let header = mach_msg_header_t { msgh_size: HEADER as u32, msgh_id: MACH_NOTIFY_SEND_ONCE, ..Default::default() };
    enqueue(kernel, target, Box::new(UserMessage { bytes: to_bytes(&header).to_vec(), reply: Reply::None }));
}

fn enqueue(kernel: &Kernel, target: Place, message: Box<UserMessage>) {
    match port::rights(kernel, target) {
        Some((port, mut rights)) if rights.receive => {
            port.collect(kernel, &mut rights);
            rights.queue.push_back(Message::User(message));
            drop(rights);
            port.announce(1);
        }
        _ => message.destroy(kernel),
    }
}

fn to_bytes(header: &mach_msg_header_t) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let fields = [
        header.msgh_bits,
        header.msgh_size,
        header.msgh_remote_port,
        header.msgh_local_port,
        header.msgh_voucher_port,
        header.msgh_id as u32,
    ];
    for (at, field) in fields.into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// Time left until a deadline; `Some(None)`: there is none, `None`: it has passed.
fn left(deadline: Option<Instant>) -> Option<Option<Duration>> {
    match deadline {
        None => Some(None),
        Some(deadline) => deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).map(Some),
    }
}

fn deadline(wanted: bool, timeout: mach_msg_timeout_t) -> Option<Instant> {
    wanted.then(|| Instant::now() + Duration::from_millis(timeout.into()))
}

/// Sends a message, receives one, or does the first and then the second, as `option` says. Options known: `MACH_SEND_MSG`,
/// `MACH_RCV_MSG`, `MACH_RCV_LARGE` and the two timeouts; others have no effect. A message with rights or memory in its body is
/// refused with `MACH_SEND_INVALID_TYPE`.
///
/// # Safety
/// `msg` points to `send_size` readable and `rcv_size` writable bytes, as far as `option` asks for them, and nobody else writes them
/// meanwhile.
pub unsafe fn mach_msg(
    msg: *mut mach_msg_header_t,
    option: mach_msg_option_t,
    send_size: mach_msg_size_t,
    rcv_size: mach_msg_size_t,
    rcv_name: mach_port_name_t,
    timeout: mach_msg_timeout_t,
    _notify: mach_port_name_t,
) -> mach_msg_return_t {
    let kernel = Kernel::get();
    if option & MACH_SEND_MSG != 0 {
        if (send_size as usize) < HEADER || !send_size.is_multiple_of(4) {
            return MACH_SEND_MSG_TOO_SMALL;
        }
        // SAFETY: the caller's promise.
        let bytes = unsafe { std::slice::from_raw_parts(msg.cast::<u8>(), send_size as usize) };
        // SAFETY: at least a header is there, and `msg` is aligned as its type asks.
        let header = unsafe { msg.read() };
        let result = send(kernel, header, bytes, deadline(option & MACH_SEND_TIMEOUT != 0, timeout));
        if result != MACH_MSG_SUCCESS {
            return result;
        }
    }
    if option & MACH_RCV_MSG == 0 {
        return MACH_MSG_SUCCESS;
    }
    let received = match receive(kernel, option, rcv_size as usize, rcv_name, timeout) {
        Ok(received) => received,
        Err(Refused::Plainly(result)) => return result,
        Err(Refused::TooLarge(header, trailer)) => {
            let received = Received { header, message: Bytes::Empty, trailer };
            // SAFETY: as below; a buffer too small for this, too, gets nothing.
            unsafe { write_back(msg, rcv_size as usize, &received) };
            return MACH_RCV_TOO_LARGE;
        }
    };
    // SAFETY: `receive` checked that the message and its trailer fit.
    unsafe { write_back(msg, rcv_size as usize, &received) };
    MACH_MSG_SUCCESS
}

/// # Safety
/// `msg` points to `room` writable bytes.
unsafe fn write_back(msg: *mut mach_msg_header_t, room: usize, received: &Received) {
    let (header, body) = (to_bytes(&received.header), &received.message.get()[HEADER..]);
    let mut trailer = [0; TRAILER];
    trailer[..4].copy_from_slice(&MACH_MSG_TRAILER_FORMAT_0.to_ne_bytes());
    trailer[4..].copy_from_slice(&(TRAILER as u32).to_ne_bytes());
    let trailer = if received.trailer { &trailer[..] } else { &[] };
    if room < HEADER + body.len() + trailer.len() {
        return;
    }
    let to = msg.cast::<u8>();
    // SAFETY: it fits, as was just checked, and a caller's buffer is not one of ours.
    unsafe {
        to.copy_from_nonoverlapping(header.as_ptr(), HEADER);
        to.add(HEADER).copy_from_nonoverlapping(body.as_ptr(), body.len());
        to.add(HEADER + body.len()).copy_from_nonoverlapping(trailer.as_ptr(), trailer.len());
    }
}

fn send(kernel: &Kernel, header: mach_msg_header_t, bytes: &[u8], deadline: Option<Instant>) -> mach_msg_return_t {
    if header.msgh_bits & !MACH_MSGH_BITS_USER != 0 || header.msgh_bits & MACH_MSGH_BITS_VOUCHER_MASK != 0 {
        return MACH_SEND_INVALID_HEADER;
    }
    if header.msgh_bits & MACH_MSGH_BITS_COMPLEX != 0 {
        match bytes[HEADER..].first_chunk() {
            None => return MACH_SEND_MSG_TOO_SMALL,
            Some(count) if u32::from_ne_bytes(*count) != 0 => return MACH_SEND_INVALID_TYPE,
            Some(_) => {}
        }
    }
    let remote = header.msgh_bits & MACH_MSGH_BITS_REMOTE_MASK;
    let destination = match (Name::parse(header.msgh_remote_port), remote) {
        (Some(name @ Name::Port(_)), MACH_MSG_TYPE_COPY_SEND | MACH_MSG_TYPE_MOVE_SEND) => name,
        (Some(name @ Name::Port(_)), MACH_MSG_TYPE_MAKE_SEND | MACH_MSG_TYPE_MAKE_SEND_ONCE) => name,
        (Some(name @ (Name::Fault(_) | Name::SendOnce(_))), MACH_MSG_TYPE_MOVE_SEND_ONCE) => name,
        _ => return MACH_SEND_INVALID_DEST,
    };
    let local = (header.msgh_bits & MACH_MSGH_BITS_LOCAL_MASK) >> 8;
    let reply = match reply_right(kernel, header.msgh_local_port, local) {
        Ok(reply) => reply,
        Err(result) => return result,
    };
    if let Name::Fault(place) = destination {
        // No queue and no allocation: a reply to a fault goes to the waiting thread's own place.
        let taken = fault::named(kernel, place).is_some_and(|fault| fault.answer(place, bytes));
        return if taken { MACH_MSG_SUCCESS } else { MACH_SEND_INVALID_DEST };
    }
    let mut message = Box::new(UserMessage { bytes: bytes.to_vec(), reply });
    message.bytes[4..8].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
    match destination {
        Name::SendOnce(place) => match take_send_once(kernel, place) {
            Some(target) => enqueue(kernel, target, message),
            None => return MACH_SEND_INVALID_DEST,
        },
        Name::Port(place) => return send_to_port(kernel, place, remote, message, deadline),
        _ => return MACH_SEND_INVALID_DEST,
    }
    MACH_MSG_SUCCESS
}

/// The right to reply that the local port of a header asks to send along.
fn reply_right(kernel: &Kernel, local: mach_port_t, disposition: u32) -> Result<Reply, mach_msg_return_t> {
    if local == MACH_PORT_NULL {
        return if disposition == 0 { Ok(Reply::None) } else { Err(MACH_SEND_INVALID_REPLY) };
    }
    let Some(Name::Port(place)) = Name::parse(local) else { return Err(MACH_SEND_INVALID_REPLY) };
    let Some((_, rights)) = port::rights(kernel, place) else { return Err(MACH_SEND_INVALID_REPLY) };
    match disposition {
        MACH_MSG_TYPE_MAKE_SEND_ONCE if rights.receive => Ok(Reply::SendOnce(place)),
        MACH_MSG_TYPE_MAKE_SEND if rights.receive => Ok(Reply::Send(place)),
        MACH_MSG_TYPE_COPY_SEND if rights.receive && rights.send > 0 => Ok(Reply::Send(place)),
        _ => Err(MACH_SEND_INVALID_REPLY),
    }
}

fn send_to_port(
    kernel: &Kernel,
    place: Place,
    disposition: mach_msg_type_name_t,
    message: Box<UserMessage>,
    deadline: Option<Instant>,
) -> mach_msg_return_t {
    loop {
        let Some((port, mut rights)) = port::rights(kernel, place) else { return MACH_SEND_INVALID_DEST };
        let makes = matches!(disposition, MACH_MSG_TYPE_MAKE_SEND | MACH_MSG_TYPE_MAKE_SEND_ONCE);
        if !rights.receive || (!makes && rights.send == 0) {
            return MACH_SEND_INVALID_DEST;
        }
        let departures = port.departures.load(Ordering::Acquire);
        port.collect(kernel, &mut rights);
        // A send-once right always has room; that is what it is for.
        if rights.queue.len() < MACH_PORT_QLIMIT_DEFAULT as usize || disposition == MACH_MSG_TYPE_MAKE_SEND_ONCE {
            if disposition == MACH_MSG_TYPE_MOVE_SEND {
                rights.send -= 1;
            }
            rights.queue.push_back(Message::User(message));
            drop(rights);
            port.announce(1);
            return MACH_MSG_SUCCESS;
        }
        drop(rights);
        match left(deadline) {
            None => return MACH_SEND_TIMED_OUT,
            Some(left) => futex::wait(&port.departures, departures, left),
        }
    }
}

/// What a receiver gets.
struct Received {
    header: mach_msg_header_t,
    message: Bytes,
    trailer: bool,
}

/// A message, header included. An exception is copied, so that receiving it allocates nothing: the thread that waits may hold the
/// lock of the allocator.
#[allow(clippy::large_enum_variant)] // Boxed it would be allocated.
enum Bytes {
    Empty,
    Fault([u8; fault::REQUEST]),
    User(Vec<u8>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Empty => &[0; HEADER],
            Bytes::Fault(bytes) => bytes,
            Bytes::User(bytes) => bytes,
        }
    }
}

enum Refused {
    Plainly(mach_msg_return_t),
    /// What the receiver gets instead: a header, and perhaps a trailer.
    TooLarge(mach_msg_header_t, bool),
}

fn receive(
    kernel: &Kernel,
    option: mach_msg_option_t,
    room: usize,
    name: mach_port_name_t,
    timeout: mach_msg_timeout_t,
) -> Result<Received, Refused> {
    let Some(Name::Port(place)) = Name::parse(name) else { return Err(Refused::Plainly(MACH_RCV_INVALID_NAME)) };
    let deadline = deadline(option & MACH_RCV_TIMEOUT != 0, timeout);
    let mut refusal = MACH_RCV_INVALID_NAME;
    loop {
        let Some((port, mut rights)) = port::rights(kernel, place).filter(|(_, rights)| rights.receive) else {
            return Err(Refused::Plainly(refusal));
        };
        refusal = MACH_RCV_PORT_CHANGED;
        let arrivals = port.arrivals.load(Ordering::Acquire);
        port.collect(kernel, &mut rights);
        let size = match rights.queue.front() {
            None => 0,
            Some(Message::Fault(_)) => fault::REQUEST,
            Some(Message::User(message)) => message.bytes.len(),
        };
        if size != 0 {
            let fits = size + TRAILER <= room;
            if !fits && option & MACH_RCV_LARGE != 0 {
                let header = mach_msg_header_t { msgh_size: size as u32, msgh_local_port: name, ..Default::default() };
                return Err(Refused::TooLarge(header, false));
            }
            let message = rights.queue.pop_front();
            drop(rights);
            port.departures.fetch_add(1, Ordering::AcqRel);
            futex::wake(&port.departures, 1);
            match message {
                Some(message) if fits => return Ok(hand_over(kernel, place, name, message)),
                Some(message) => return Err(Refused::TooLarge(destroy_unreceived(kernel, name, message), true)),
                None => continue,
            }
        }
        drop(rights);
        match left(deadline) {
            None => return Err(Refused::Plainly(MACH_RCV_TIMED_OUT)),
            Some(left) => futex::wait(&port.arrivals, arrivals, left),
        }
    }
}

/// Without `MACH_RCV_LARGE`, a message that does not fit is destroyed, and the receiver gets an empty one.
fn destroy_unreceived(kernel: &Kernel, name: mach_port_name_t, message: Message) -> mach_msg_header_t {
    match message {
        Message::Fault(index) => kernel.faults[index].lose_queued(),
        Message::User(message) => message.destroy(kernel),
    }
    mach_msg_header_t { msgh_size: HEADER as u32, msgh_local_port: name, ..Default::default() }
}

/// Turns a message into what its receiver sees: remote is where the reply goes, local the port it came in on.
fn hand_over(kernel: &Kernel, place: Place, name: mach_port_name_t, message: Message) -> Received {
    let (message, reply, disposition) = match message {
        Message::Fault(index) => match kernel.faults[index].receive() {
            Some((request, use_of)) => {
                (Bytes::Fault(request), fault::reply_name(index, use_of), MACH_MSG_TYPE_MOVE_SEND_ONCE)
            }
            None => (Bytes::Empty, MACH_PORT_NULL, 0),
        },
        Message::User(message) => {
            let (reply, disposition) = name_reply(kernel, message.reply);
            (Bytes::User(message.bytes), reply, disposition)
        }
    };
    let bytes = message.get();
    let word = |at: usize| bytes[at..at + 4].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    let header = mach_msg_header_t {
        msgh_bits: word(0) & MACH_MSGH_BITS_COMPLEX | disposition | MACH_MSG_TYPE_MOVE_SEND << 8,
        msgh_size: bytes.len() as u32,
        msgh_remote_port: reply,
        msgh_local_port: name,
        msgh_voucher_port: MACH_PORT_NULL,
        msgh_id: word(20) as i32,
    };
    debug_assert!(matches!(Name::parse(name), Some(Name::Port(named)) if named == place));
    Received { header, message, trailer: true }
}

fn name_reply(kernel: &Kernel, reply: Reply) -> (mach_port_t, mach_msg_type_name_t) {
    match reply {
        Reply::None => (MACH_PORT_NULL, 0),
        Reply::SendOnce(target) => match name_send_once(kernel, target) {
            Some(name) => (name.number(), MACH_MSG_TYPE_MOVE_SEND_ONCE),
            None => {
                notify_send_once(kernel, target);
                (MACH_PORT_DEAD, 0)
            }
        },
        Reply::Send(target) => match port::rights(kernel, target) {
            Some((_, mut rights)) => {
                rights.send += 1;
                (Name::Port(target).number(), MACH_MSG_TYPE_MOVE_SEND)
            }
            None => (MACH_PORT_DEAD, MACH_MSG_TYPE_MOVE_SEND),
        },
    }
}

/// Gives up the rights that came with a received message: here only the right to reply, since bodies carry none.
///
/// # Safety
/// `msg` points to a received message.
pub unsafe fn mach_msg_destroy(msg: *mut mach_msg_header_t) {
    // SAFETY: the caller's promise.
    let header = unsafe { msg.read() };
    if header.msgh_remote_port != MACH_PORT_NULL && header.msgh_remote_port != MACH_PORT_DEAD {
        super::mach_port_deallocate(super::kernel::TASK, header.msgh_remote_port);
    }
}
