//! The tables behind the calls: ports, threads and faults of this process, and the names of rights to them.
//!
//! The signal handler reads these tables too, at any moment, so they are allocated once and never move, and everything the
//! handler touches in them is atomic. Locks exist, but only ordinary code takes them.
//!
//! Tables belong to a process. A forked child inherits the memory but not the tables: the first call it makes builds new ones,
//! and until then it has no ports at all. So it is on a Mac, where a child starts with an empty space of rights and its
//! thread without exception ports.

use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::exception::ExceptionPorts;
use super::fault::Fault;
use super::message::SendOnce;
use super::port::Port;
use super::thread::Thread;
use super::types::mach_port_name_t;

/// Most ports of a process.
const PORTS: usize = 256;
/// Most threads that asked for their own port or have exception ports.
const THREADS: usize = 1024;
/// Most faults that wait at the same time; a thread that finds no place tries again until there is one.
const FAULTS: usize = 256;

/// What a Mach kernel would know about this process.
pub struct Kernel {
    pid: u32,
    pub ports: Box<[Port]>,
    pub threads: Box<[Thread]>,
    pub faults: Box<[Fault]>,
    /// Send-once rights that came with messages from user space.
    pub send_once: Mutex<Vec<SendOnce>>,
    /// Exception ports of the task.
    pub task: ExceptionPorts,
}

static KERNEL: AtomicPtr<Kernel> = AtomicPtr::new(ptr::null_mut());

impl Kernel {
    fn new() -> Kernel {
        Kernel {
            pid: std::process::id(),
            ports: (0..PORTS).map(|_| Port::default()).collect(),
            threads: (0..THREADS).map(|_| Thread::default()).collect(),
            faults: (0..FAULTS).map(|_| Fault::default()).collect(),
            send_once: Mutex::default(),
            task: ExceptionPorts::default(),
        }
    }

    /// The tables of this process, if it made any call yet. Async-signal-safe.
    pub fn if_running() -> Option<&'static Kernel> {
        // SAFETY: the pointer is null or comes from `Box::into_raw` in `get`, and what it points to is never freed.
        let kernel = unsafe { KERNEL.load(Ordering::Acquire).as_ref() }?;
        (kernel.pid == std::process::id()).then_some(kernel)
    }

    /// The tables of this process.
    pub fn get() -> &'static Kernel {
        loop {
            if let Some(kernel) = Kernel::if_running() {
                return kernel;
            }
            let old = KERNEL.load(Ordering::Acquire);
            let new = Box::into_raw(Box::new(Kernel::new()));
            if KERNEL.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
                // SAFETY: made above, and published nowhere.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }
}

/// What a name stands for. A name is a `u32`: kind (31:28), index (27:18), generation (17:2), 3.
///
/// The generation changes whenever a place in a table is used anew, so that an old name does not reach a new thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The task itself.
    Task,
    /// A port, with a receive right, send rights, or (once it died) dead-name rights.
    Port(Place),
    /// A thread.
    Thread(Place),
    /// Where the reply to a fault goes.
    Fault(Place),
    /// A send-once right to a port.
    SendOnce(Place),
}

/// Index into a table, and which use of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub index: usize,
    pub generation: u16,
}

/// The name of the task, as it is on a Mac.
pub const TASK: mach_port_name_t = 0x103;

impl Name {
    /// The thing a number names, if it can be a name at all.
    pub fn parse(name: mach_port_name_t) -> Option<Name> {
        if name == TASK {
            return Some(Name::Task);
        }
        if name & 3 != 3 {
            return None;
        }
        let place = Place { index: (name >> 18 & 0x3ff) as usize, generation: (name >> 2) as u16 };
        match name >> 28 {
            1 => Some(Name::Port(place)),
            2 => Some(Name::Thread(place)),
            3 => Some(Name::Fault(place)),
            4 => Some(Name::SendOnce(place)),
            _ => None,
        }
    }

    /// Its number.
    pub fn number(self) -> mach_port_name_t {
        let (kind, place) = match self {
            Name::Task => return TASK,
            Name::Port(place) => (1, place),
            Name::Thread(place) => (2, place),
            Name::Fault(place) => (3, place),
            Name::SendOnce(place) => (4, place),
        };
        kind << 28 | (place.index as u32) << 18 | u32::from(place.generation) << 2 | 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_come_back() {
        let places = [Place { index: 0, generation: 0 }, Place { index: 1023, generation: 0xffff }];
        for place in places {
            for name in [Name::Port(place), Name::Thread(place), Name::Fault(place), Name::SendOnce(place), Name::Task]
            {
                assert_eq!(Name::parse(name.number()), Some(name));
                assert_ne!(name.number(), 0);
                assert_ne!(name.number(), !0);
            }
        }
        for number in [0, !0, 1, 0x1000_0000, 0x503] {
            assert_eq!(Name::parse(number), None, "{number:#x}");
        }
        const { assert!(PORTS <= 1024 && THREADS <= 1024 && FAULTS <= 1024) };
    }
}
