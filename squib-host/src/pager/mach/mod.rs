//! The Mach part of the pager: faults of our own threads on absent RAM, caught and resolved while the thread waits.
//!
//! A guest never comes through here: its accesses leave `hv_vcpu_run` as aborts. But device threads and loaders touch guest RAM
//! with ordinary instructions, and on absent pages (`PROT_NONE`) these raise `EXC_BAD_ACCESS`. A thread that may do this registers
//! ([`MachPager::register_current_thread`]) and the kernel then sends each of its faults as a message to the pager's port, with the
//! thread stopped until the reply. One of the pager's threads asks the [`FaultHandler`] about the address and replies: success, and
//! the instruction is executed again; failure, and the fault goes its usual way, to a debugger, a crash reporter, or the
//! process's own handler of SIGSEGV or SIGBUS.
//!
//! | file | what |
//! |---|---|
//! | `sys` | the Mach calls: `mach2` and what it lacks on Apple, `squib_sim::mach` elsewhere |
//! | `message` | requests 2406 and replies 2506, byte by byte |
//! | `server` | the port and the threads that receive from it |
//! | `guard` | registration of a thread, and what was registered before |
//!
//! # What it does not catch
//! * System calls. `read`, `write` and their like fail with `EFAULT` on an absent page and raise nothing: whoever passes guest memory
//!   to the kernel makes it present first. The pager is the net below that.
//! * Threads that did not register.
//! * Faults of the pager's own threads: a handler reaches RAM through the fill view only.
//! * Forked children: exception ports of threads stay behind, see [`MachPager`].

mod guard;
mod message;
mod server;
mod sys;

#[cfg(test)]
mod tests;

pub use guard::Registration;
pub use server::{FaultHandler, MachPager, Verdict};
