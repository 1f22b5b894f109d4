//! The threads of the process, as far as they asked for their own port; and which of them is the calling one.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::exception::{Action, ExceptionPorts};
use super::kernel::{Kernel, Name, Place};
use super::types::*;

/// One thread of the process.
#[derive(Default)]
pub struct Thread {
    ports: ExceptionPorts,
    rights: Mutex<ThreadRights>,
}

#[derive(Default)]
struct ThreadRights {
    generation: u16,
    alive: bool,
    /// User references to the thread's port, which are dead names once the thread has ended.
    send: u32,
}

impl Thread {
    /// The exception ports of the thread `generation` names, held alive while `change` looks at them.
    pub fn while_alive<T>(&self, generation: u16, change: impl FnOnce(&ExceptionPorts) -> T) -> Option<T> {
        let rights = self.lock();
        (rights.alive && rights.generation == generation).then(|| change(&self.ports))
    }

    fn lock(&self) -> MutexGuard<'_, ThreadRights> {
        self.rights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up one user reference.
    pub fn release(&self, generation: u16) -> kern_return_t {
        let mut rights = self.lock();
        match rights.send.checked_sub(1) {
            Some(send) if rights.generation == generation => {
                rights.send = send;
                KERN_SUCCESS
            }
            _ => KERN_INVALID_NAME,
        }
    }

    /// Count of user references.
    pub fn references(&self, generation: u16, right: mach_port_right_t) -> Option<u32> {
        let rights = self.lock();
        let held = if rights.alive { MACH_PORT_RIGHT_SEND } else { MACH_PORT_RIGHT_DEAD_NAME };
        (rights.generation == generation && rights.send > 0).then_some(if right == held { rights.send } else { 0 })
    }
}

thread_local! {
    /// This thread's place in the table: process (63:32), index + 1 (31:0). No destructor: the signal handler reads it.
    static SELF: Cell<u64> = const { Cell::new(0) };
    /// Frees the place when the thread ends.
    static AT_EXIT: AtExit = const { AtExit };
}

struct AtExit;

impl Drop for AtExit {
    fn drop(&mut self) {
        if let Some((_, thread)) = Kernel::if_running().and_then(this_thread) {
            SELF.set(0);
            thread.ports.set(!0, Action::default());
            thread.lock().alive = false;
        }
    }
}

/// The calling thread's place in the table, if it has one. Async-signal-safe.
fn this_thread(kernel: &Kernel) -> Option<(usize, &Thread)> {
    let word = SELF.get();
    let index = (word as u32).checked_sub(1)? as usize;
    let own = (word >> 32) as u32 == std::process::id();
    kernel.threads.get(index).filter(|_| own).map(|thread| (index, thread))
}

/// The calling thread's exception ports, if it has any. Async-signal-safe.
pub fn own_ports(kernel: &Kernel) -> Option<&ExceptionPorts> {
    this_thread(kernel).map(|(_, thread)| &thread.ports)
}

/// A send right to the calling thread, one user reference more for each call; `MACH_PORT_NULL` if there are too many threads.
pub fn mach_thread_self() -> mach_port_t {
    let kernel = Kernel::get();
    if let Some((index, thread)) = this_thread(kernel) {
        let mut rights = thread.lock();
        rights.send += 1;
        return Name::Thread(Place { index, generation: rights.generation }).number();
    }
    if AT_EXIT.try_with(|_| ()).is_err() {
        return MACH_PORT_NULL;
    }
    for (index, thread) in kernel.threads.iter().enumerate() {
        let mut rights = thread.lock();
        if !rights.alive && rights.send == 0 {
            let generation = rights.generation.wrapping_add(1);
            *rights = ThreadRights { generation, alive: true, send: 1 };
            SELF.set(u64::from(std::process::id()) << 32 | (index as u64 + 1));
            return Name::Thread(Place { index, generation }).number();
        }
    }
    MACH_PORT_NULL
}
