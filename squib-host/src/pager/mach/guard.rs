//! Registration of a thread: its exception port for `EXC_BAD_ACCESS`, and whatever was there before.
//!
//! The port is the thread's and not the task's: it comes before a debugger's, and faults that are none of ours reach the debugger by the
//! kernel's own rule. `EXCEPTION_STATE | MACH_EXCEPTION_CODES` is the behaviour that carries 64-bit addresses and no rights at all, so there
//! is nothing to give up per message, and hardened processes may use it.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

use super::server::mach_result;
use super::sys::*;
use crate::error::{Error, Result};

const BEHAVIOR: exception_behavior_t = (EXCEPTION_STATE | MACH_EXCEPTION_CODES) as exception_behavior_t;

/// Faults of this thread go to the pager for as long as this exists.
///
/// While it does, exception ports that the thread itself had before are out of use (a failure goes to the task's ports, not to them);
/// they are put back when it is dropped. It stays on its thread.
#[derive(Debug)]
pub struct Registration {
    id: u64,
    pid: u32,
    _stays_here: PhantomData<*const ()>,
}

/// A registration in the order they were made, with what it replaced.
struct Entry {
    id: u64,
    live: bool,
    before: Saved,
}

thread_local! {
    static NEXT: Cell<u64> = const { Cell::new(0) };
    static STACK: RefCell<Vec<Entry>> = const { RefCell::new(Vec::new()) };
}

/// Makes `port` the calling thread's exception port for memory faults.
pub fn register(port: mach_port_t) -> Result<Registration> {
    let thread = ThisThread::new()?;
    let id = NEXT.get();
    let push = |stack: &RefCell<Vec<Entry>>| -> Result<()> {
        let before = thread.swap(port)?;
        stack.borrow_mut().push(Entry { id, live: true, before });
        Ok(())
    };
    match STACK.try_with(push) {
        Ok(pushed) => pushed?,
        Err(_) => return Err(Error::State("a thread that is ending cannot register with the pager".into())),
    }
    NEXT.set(id + 1);
    Ok(Registration { id, pid: std::process::id(), _stays_here: PhantomData })
}

impl Drop for Registration {
    fn drop(&mut self) {
        // A forked child has no exception ports to put back, and the names are its parent's. A thread without its stack is
        // ending, and its ports end with it.
        if self.pid != std::process::id() {
            return;
        }
        let _ = STACK.try_with(|stack| {
            let mut stack = stack.borrow_mut();
            for entry in stack.iter_mut().filter(|entry| entry.id == self.id) {
                entry.live = false;
            }
            // Dropped in another order than made: what an earlier one replaced is put back when the later one goes.
            while let Some(entry) = stack.pop_if(|entry| !entry.live) {
                if let Ok(thread) = ThisThread::new() {
                    thread.put_back(entry.before);
                }
            }
        });
    }
}

/// A send right to the calling thread, given up when dropped.
struct ThisThread(thread_act_t);

impl ThisThread {
    fn new() -> Result<ThisThread> {
        match mach_thread_self() {
            MACH_PORT_NULL => Err(Error::Mach { action: "name the calling thread", code: KERN_RESOURCE_SHORTAGE }),
            name => Ok(ThisThread(name)),
        }
    }

    /// Sets the port and returns what it replaced.
    fn swap(&self, port: mach_port_t) -> Result<Saved> {
        let (mut masks, mut ports, mut behaviors, mut flavors) = ([0], [MACH_PORT_NULL], [0], [0]);
        let mut count = 1;
        // SAFETY: the arrays have room for `count` elements: one, since one kind of exception has one port.
        let result = unsafe {
            thread_swap_exception_ports(
                self.0,
                EXC_MASK_BAD_ACCESS,
                port,
                BEHAVIOR,
                ARM_THREAD_STATE64,
                masks.as_mut_ptr(),
                &mut count,
                ports.as_mut_ptr(),
                behaviors.as_mut_ptr(),
                flavors.as_mut_ptr(),
            )
        };
        mach_result("register this thread's memory faults", result)?;
        Ok(Saved { port: ports[0], behavior: behaviors[0], flavor: flavors[0] })
    }

    /// Puts back what a registration replaced, and gives up the right to it.
    fn put_back(&self, saved: Saved) {
        let port = if saved.port == MACH_PORT_DEAD { MACH_PORT_NULL } else { saved.port };
        // What was never set reads as behaviour 0, which cannot be set.
        let behavior = if saved.behavior == 0 { EXCEPTION_DEFAULT as exception_behavior_t } else { saved.behavior };
        thread_set_exception_ports(self.0, EXC_MASK_BAD_ACCESS, port, behavior, saved.flavor);
        if port != MACH_PORT_NULL {
            mach_port_deallocate(mach_task_self(), port);
        }
    }
}

impl Drop for ThisThread {
    fn drop(&mut self) {
        mach_port_deallocate(mach_task_self(), self.0);
    }
}

/// An exception port, with a send right to it.
struct Saved {
    port: mach_port_t,
    behavior: exception_behavior_t,
    flavor: thread_state_flavor_t,
}
