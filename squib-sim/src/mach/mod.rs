//! The few Mach calls a host makes beside the framework's, for systems that are not Mach.
//!
//! Time: `vtimer_offset` is defined against `mach_absolute_time`, so whoever computes one needs the very clock the
//! stand-in's guests run on.
//!
//! Exceptions (Linux): ports, rights, messages and exception ports of one task, with the names, argument lists and byte
//! layouts of the Apple headers and of the crate `mach2`, enough for a pager that lives on Mach exceptions. The kernel's
//! part is played by a handler of SIGSEGV and SIGBUS: it writes the request message a Mach kernel would write, queues it on the
//! faulting thread's exception port and keeps the thread there until the reply.
//!
//! | file | what |
//! |---|---|
//! | `types` | types and constants under their C names |
//! | `kernel` | the tables of ports, threads and faults; names; what a forked child sees |
//! | `port` | rights and queues; `mach_port_*` |
//! | `message` | `mach_msg`, `mach_msg_destroy` |
//! | `exception`, `thread` | exception ports of threads and of the task; the threads |
//! | `fault` | one fault: request, wait, reply |
//! | `signal` | the handler, and the handlers that were there before it |
//! | `state` | `ARM_THREAD_STATE64` of an interrupted thread |
//!
//! # What it does not have
//! One task, no port sets, no out-of-line memory, no rights inside messages, no notifications but the send-once one. An
//! exception port must be set with `EXCEPTION_STATE | MACH_EXCEPTION_CODES` and `ARM_THREAD_STATE64`; other behaviours are refused
//! with `KERN_NOT_SUPPORTED`. Only `EXC_BAD_ACCESS` is ever raised.
//!
//! # Where it differs from a Mach
//! * A Mach decides before signals. A handler for SIGSEGV or SIGBUS that is installed *after* the first exception port was set
//!   is called first, until the next `thread_set_exception_ports` puts it in second place again.
//! * A signal handler that interrupts one of these calls must not touch memory that only a receiver can make accessible: the call may
//!   hold the lock of a port. (Faults themselves never take one.)
//! * A forked child starts without any port, as on a Mach; but the task's exception ports are not inherited either.

mod time;

#[cfg(target_os = "linux")]
mod exception;
#[cfg(target_os = "linux")]
mod fault;
#[cfg(target_os = "linux")]
mod futex;
#[cfg(target_os = "linux")]
mod kernel;
#[cfg(target_os = "linux")]
mod message;
#[cfg(target_os = "linux")]
mod port;
#[cfg(target_os = "linux")]
mod signal;
#[cfg(target_os = "linux")]
mod state;
#[cfg(target_os = "linux")]
mod thread;
mod types;

pub use time::*;
pub use types::*;

#[cfg(target_os = "linux")]
pub use exception::{
    task_get_exception_ports, task_set_exception_ports, task_swap_exception_ports, thread_get_exception_ports,
    thread_set_exception_ports, thread_swap_exception_ports,
};
#[cfg(target_os = "linux")]
pub use message::{mach_msg, mach_msg_destroy};
#[cfg(target_os = "linux")]
pub use port::{
    mach_port_allocate, mach_port_deallocate, mach_port_destruct, mach_port_get_refs, mach_port_insert_right,
    mach_port_mod_refs, mach_task_self,
};
#[cfg(target_os = "linux")]
pub use thread::mach_thread_self;
