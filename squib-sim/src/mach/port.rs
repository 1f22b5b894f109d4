//! Ports: rights and the queue of messages.
//!
//! Two ways lead into a port's queue. Ordinary code locks it. The signal handler of a faulting thread pushes the fault's
//! index on a stack in one atomic word, without a lock, and whoever receives next moves the stack over to the queue. The word
//! carries the port's generation, so that a fault can neither get lost in a port that just died nor end up in its successor.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::fault;
use super::futex;
use super::kernel::{Kernel, Name, Place, TASK};
use super::message::{self, UserMessage};
use super::types::*;

/// The low half of `Port::incoming` when there is no receive right.
const DEAD: u32 = u32::MAX;

/// One port.
pub struct Port {
    /// Generation in the high half; in the low half the fault that came last (index + 1), 0 for none, or [`DEAD`].
    incoming: AtomicU64,
    /// Counts arrivals and the port's death: what receivers wait on.
    pub arrivals: AtomicU32,
    /// Counts departures: what senders wait on who found the queue full.
    pub departures: AtomicU32,
    rights: Mutex<Rights>,
}

/// What the lock of a port protects.
#[derive(Default)]
pub struct Rights {
    pub generation: u16,
    /// Whether this task holds the receive right; if not, `send` counts dead names.
    pub receive: bool,
    /// User references to the send right.
    pub send: u32,
    pub queue: VecDeque<Message>,
}

/// One message in a queue.
pub enum Message {
    /// An exception, by its index in the table of faults.
    Fault(usize),
    /// A message from user space.
    User(Box<UserMessage>),
}

impl Default for Port {
    fn default() -> Port {
        Port {
            incoming: AtomicU64::new(DEAD.into()),
            arrivals: AtomicU32::new(0),
            departures: AtomicU32::new(0),
            rights: Mutex::default(),
        }
    }
}

impl Port {
    /// Queues a fault, from its signal handler. `false` if the port is dead.
    pub fn push(&self, kernel: &Kernel, generation: u16, index: usize) -> bool {
        let mut head = self.incoming.load(Ordering::Acquire);
        loop {
            if head as u32 == DEAD || head >> 32 != u64::from(generation) {
                return false;
            }
            kernel.faults[index].next.store(head as u32, Ordering::Relaxed);
            let new = head & !u64::from(u32::MAX) | (index as u64 + 1);
            match self.incoming.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        self.announce(1);
        true
    }

    /// Tells receivers that something is new.
    pub fn announce(&self, count: i32) {
        self.arrivals.fetch_add(1, Ordering::AcqRel);
        futex::wake(&self.arrivals, count);
    }

    /// Locks the rights. Only ordinary code does that.
    pub fn lock(&self) -> MutexGuard<'_, Rights> {
        self.rights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves faults that came in to the end of the queue, in the order they came.
    pub fn collect(&self, kernel: &Kernel, rights: &mut Rights) {
        let head = self.incoming.load(Ordering::Acquire);
        if head as u32 != 0 && head as u32 != DEAD {
            let empty = u64::from(rights.generation) << 32;
            let last = self.incoming.swap(empty, Ordering::AcqRel) as u32;
            append(kernel, rights, last);
        }
    }

    /// Brings a free place into use, with a receive right.
    fn open(&self, kernel: &Kernel, rights: &mut Rights) -> u16 {
        // All the room it can need: receiving a fault must not allocate.
        rights.queue.reserve(kernel.faults.len() + 2 * MACH_PORT_QLIMIT_DEFAULT as usize);
        rights.generation = rights.generation.wrapping_add(1);
        rights.receive = true;
        self.incoming.store(u64::from(rights.generation) << 32, Ordering::Release);
        rights.generation
    }

    /// Destroys the receive right: send rights become dead names, queued messages are destroyed, who waits is told.
    fn close(&self, kernel: &Kernel, mut rights: MutexGuard<'_, Rights>) {
        let dead = u64::from(rights.generation) << 32 | u64::from(DEAD);
        let last = self.incoming.swap(dead, Ordering::AcqRel) as u32;
        append(kernel, &mut rights, last);
        rights.receive = false;
        let queue = std::mem::take(&mut rights.queue);
        drop(rights);
        self.announce(i32::MAX);
        self.departures.fetch_add(1, Ordering::AcqRel);
        futex::wake(&self.departures, i32::MAX);
        for message in queue {
            match message {
                Message::Fault(index) => kernel.faults[index].lose_queued(),
                Message::User(message) => message.destroy(kernel),
            }
        }
    }
}

fn append(kernel: &Kernel, rights: &mut Rights, last: u32) {
    let start = rights.queue.len();
    let mut at = last;
    while at != 0 && at != DEAD {
        let index = at as usize - 1;
        at = kernel.faults[index].next.load(Ordering::Relaxed);
        rights.queue.push_back(Message::Fault(index));
    }
    rights.queue.make_contiguous()[start..].reverse();
}

/// The locked rights of the port `place` names, dead or alive.
pub fn rights(kernel: &Kernel, place: Place) -> Option<(&Port, MutexGuard<'_, Rights>)> {
    let port = kernel.ports.get(place.index)?;
    let rights = port.lock();
    let live = rights.generation == place.generation && (rights.receive || rights.send > 0);
    live.then_some((port, rights))
}

/// The name of the own task.
pub fn mach_task_self() -> mach_port_t {
    TASK
}

/// Makes a port and gives its receive right to the task. Only `MACH_PORT_RIGHT_RECEIVE` is offered.
///
/// # Safety
/// `name` is a valid place for the result.
pub unsafe fn mach_port_allocate(
    task: ipc_space_t,
    right: mach_port_right_t,
    name: *mut mach_port_name_t,
) -> kern_return_t {
    if task != TASK {
        return MACH_SEND_INVALID_DEST;
    }
    if right != MACH_PORT_RIGHT_RECEIVE {
        return KERN_INVALID_VALUE;
    }
    let kernel = Kernel::get();
    for (index, port) in kernel.ports.iter().enumerate() {
        let mut rights = port.lock();
        if !rights.receive && rights.send == 0 {
            let generation = port.open(kernel, &mut rights);
            // SAFETY: the caller's promise.
            unsafe { name.write(Name::Port(Place { index, generation }).number()) };
            return KERN_SUCCESS;
        }
    }
    KERN_NO_SPACE
}

/// Gives the task a send right, under the port's own name: `MACH_MSG_TYPE_MAKE_SEND` from the receive right, or
/// `MACH_MSG_TYPE_COPY_SEND` from a send right.
pub fn mach_port_insert_right(
    task: ipc_space_t,
    name: mach_port_name_t,
    right: mach_port_t,
    disposition: mach_msg_type_name_t,
) -> kern_return_t {
    if task != TASK {
        return MACH_SEND_INVALID_DEST;
    }
    let Some(Name::Port(place)) = Name::parse(right) else { return KERN_INVALID_CAPABILITY };
    if name != right {
        return KERN_RIGHT_EXISTS;
    }
    let Some((_, mut rights)) = self::rights(Kernel::get(), place) else { return KERN_INVALID_CAPABILITY };
    let allowed = match disposition {
        MACH_MSG_TYPE_MAKE_SEND => rights.receive,
        MACH_MSG_TYPE_COPY_SEND => rights.receive && rights.send > 0,
        _ => return KERN_INVALID_VALUE,
    };
    if !allowed {
        return KERN_INVALID_RIGHT;
    }
    rights.send += 1;
    KERN_SUCCESS
}

/// Gives up one user reference to a send right, send-once right or dead name.
pub fn mach_port_deallocate(task: ipc_space_t, name: mach_port_name_t) -> kern_return_t {
    let kernel = Kernel::get();
    if task != TASK {
        return MACH_SEND_INVALID_DEST;
    }
    match Name::parse(name) {
        Some(Name::Task) => KERN_SUCCESS,
        Some(Name::Port(place)) => change_send(kernel, place, -1),
        Some(Name::Thread(place)) => kernel.threads[place.index].release(place.generation),
        Some(Name::Fault(place)) if fault::named(kernel, place).is_some_and(|fault| fault.lose(place)) => KERN_SUCCESS,
        Some(Name::SendOnce(place)) => match message::take_send_once(kernel, place) {
            Some(target) => {
                message::notify_send_once(kernel, target);
                KERN_SUCCESS
            }
            None => KERN_INVALID_NAME,
        },
        _ => KERN_INVALID_NAME,
    }
}

fn change_send(kernel: &Kernel, place: Place, delta: mach_port_delta_t) -> kern_return_t {
    let Some((_, mut rights)) = rights(kernel, place) else { return KERN_INVALID_NAME };
    match rights.send.checked_add_signed(delta) {
        _ if rights.send == 0 => KERN_INVALID_RIGHT,
        None => KERN_INVALID_VALUE,
        Some(send) => {
            rights.send = send;
            KERN_SUCCESS
        }
    }
}

/// Changes the count of user references to a right of a port; the receive right has one, and -1 destroys it.
pub fn mach_port_mod_refs(
    task: ipc_space_t,
    name: mach_port_name_t,
    right: mach_port_right_t,
    delta: mach_port_delta_t,
) -> kern_return_t {
    let kernel = Kernel::get();
    if task != TASK {
        return MACH_SEND_INVALID_DEST;
    }
    let Some(Name::Port(place)) = Name::parse(name) else { return KERN_INVALID_NAME };
    let Some((port, rights)) = rights(kernel, place) else { return KERN_INVALID_NAME };
    match (right, rights.receive, delta) {
        (MACH_PORT_RIGHT_SEND, true, _) | (MACH_PORT_RIGHT_DEAD_NAME, false, _) => {
            drop(rights);
            change_send(kernel, place, delta)
        }
        (MACH_PORT_RIGHT_RECEIVE, true, 0) => KERN_SUCCESS,
        (MACH_PORT_RIGHT_RECEIVE, true, -1) => {
            port.close(kernel, rights);
            KERN_SUCCESS
        }
        (MACH_PORT_RIGHT_RECEIVE, true, _) => KERN_INVALID_VALUE,
        _ => KERN_INVALID_RIGHT,
    }
}

/// Destroys a receive right and changes the count of send rights by `srdelta`. `guard` is 0: no port here is guarded.
pub fn mach_port_destruct(
    task: ipc_space_t,
    name: mach_port_name_t,
    srdelta: mach_port_delta_t,
    guard: mach_port_context_t,
) -> kern_return_t {
    let kernel = Kernel::get();
    if task != TASK {
        return MACH_SEND_INVALID_DEST;
    }
    if guard != 0 {
        return KERN_INVALID_ARGUMENT;
    }
    let Some(Name::Port(place)) = Name::parse(name) else { return KERN_INVALID_NAME };
    let Some((port, mut rights)) = rights(kernel, place) else { return KERN_INVALID_NAME };
    if !rights.receive {
        return KERN_INVALID_RIGHT;
    }
    let Some(send) = rights.send.checked_add_signed(srdelta) else { return KERN_INVALID_VALUE };
    rights.send = send;
    port.close(kernel, rights);
    KERN_SUCCESS
}

/// The count of user references to one kind of right under a name; 0 for a right that is not held.
///
/// # Safety
/// `refs` is a valid place for the result.
pub unsafe fn mach_port_get_refs(
    task: ipc_space_t,
    name: mach_port_name_t,
    right: mach_port_right_t,
    refs: *mut mach_port_urefs_t,
) -> kern_return_t {
    let kernel = Kernel::get();
    if task != TASK {
        return MACH_SEND_INVALID_DEST;
    }
    let count = match Name::parse(name) {
        Some(Name::Port(place)) => rights(kernel, place).map(|(_, rights)| match (right, rights.receive) {
            (MACH_PORT_RIGHT_SEND, true) | (MACH_PORT_RIGHT_DEAD_NAME, false) => rights.send,
            (MACH_PORT_RIGHT_RECEIVE, true) => 1,
            _ => 0,
        }),
        Some(Name::Thread(place)) => kernel.threads[place.index].references(place.generation, right),
        _ => None,
    };
    let Some(count) = count else { return KERN_INVALID_NAME };
    // SAFETY: the caller's promise.
    unsafe { refs.write(count) };
    KERN_SUCCESS
}
