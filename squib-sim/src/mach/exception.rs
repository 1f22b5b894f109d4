//! Exception ports of threads and of the task: set, get, swap.
//!
//! A thread's ports are words that its signal handler reads without a lock. Writers are ordinary code and exclude each other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::kernel::{Kernel, Name};
use super::port;
use super::signal;
use super::types::*;

/// First kind of exception; kinds are bits of a mask.
const FIRST_EXCEPTION: usize = 1;
const KINDS: usize = EXC_TYPES_COUNT as usize;

/// Where each kind of exception goes.
#[derive(Default)]
pub struct ExceptionPorts([AtomicU64; KINDS]);

/// Kinds of exceptions that go the same way, and where.
type Groups = Vec<(exception_mask_t, Action)>;

/// Where one kind of exception goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    pub port: mach_port_t,
    behavior: exception_behavior_t,
    flavor: thread_state_flavor_t,
}

impl Action {
    /// Port (31:0), flavor (47:32), behavior (62:48), codes of 64 bits (63).
    fn pack(self) -> u64 {
        let behavior = self.behavior as u32;
        let low = u64::from(behavior & 0x7fff) << 48 | u64::from(self.flavor as u16) << 32 | u64::from(self.port);
        low | u64::from(behavior & MACH_EXCEPTION_CODES) << 32
    }

    fn unpack(word: u64) -> Action {
        let behavior = (word >> 48 & 0x7fff) as u32 | (word >> 32) as u32 & MACH_EXCEPTION_CODES;
        Action { port: word as u32, behavior: behavior as i32, flavor: i32::from((word >> 32) as u16) }
    }
}

impl ExceptionPorts {
    /// Where an exception goes. Async-signal-safe.
    pub fn action(&self, exception: exception_type_t) -> Action {
        let word = usize::try_from(exception).ok().and_then(|kind| self.0.get(kind));
        word.map_or_else(Action::default, |word| Action::unpack(word.load(Ordering::Acquire)))
    }

    /// Sets the actions of the kinds in `mask`.
    pub fn set(&self, mask: exception_mask_t, action: Action) {
        for (_, word) in self.selected(mask) {
            word.store(action.pack(), Ordering::Release);
        }
    }

    fn selected(&self, mask: exception_mask_t) -> impl Iterator<Item = (exception_mask_t, &AtomicU64)> {
        let all = self.0.iter().enumerate().skip(FIRST_EXCEPTION).map(|(kind, word)| (1 << kind, word));
        all.filter(move |(bit, _)| mask & bit != 0)
    }

    /// The actions of the kinds in `mask`, those that are the same taken together.
    fn groups(&self, mask: exception_mask_t) -> Groups {
        let mut groups = Groups::new();
        for (bit, word) in self.selected(mask) {
            let action = Action::unpack(word.load(Ordering::Acquire));
            match groups.iter_mut().find(|(_, seen)| *seen == action) {
                Some((bits, _)) => *bits |= bit,
                None => groups.push((bit, action)),
            }
        }
        groups
    }
}

/// One change at a time: a swap is one step.
static CHANGES: Mutex<()> = Mutex::new(());

/// Runs `change` on the exception ports of a thread or of the task.
fn with_ports<T>(target: Target, change: impl FnOnce(&ExceptionPorts) -> T) -> Result<T, kern_return_t> {
    let kernel = Kernel::get();
    let _one = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    match (target, Name::parse(target.name())) {
        (Target::Task(_), Some(Name::Task)) => Ok(change(&kernel.task)),
        (Target::Thread(_), Some(Name::Thread(place))) => {
            kernel.threads[place.index].while_alive(place.generation, change).ok_or(MACH_SEND_INVALID_DEST)
        }
        _ => Err(MACH_SEND_INVALID_DEST),
    }
}

/// Whose exception ports.
#[derive(Clone, Copy)]
enum Target {
    Task(task_t),
    Thread(thread_act_t),
}

impl Target {
    fn name(self) -> mach_port_t {
        match self {
            Target::Task(name) | Target::Thread(name) => name,
        }
    }

    fn set(self, mask: exception_mask_t, action: Action) -> kern_return_t {
        match check(mask, action).and_then(|()| with_ports(self, |ports| ports.set(mask, action))) {
            Ok(()) => KERN_SUCCESS,
            Err(refusal) => refusal,
        }
    }

    fn get(self, mask: exception_mask_t) -> Result<Groups, kern_return_t> {
        with_ports(self, |ports| ports.groups(mask))
    }

    fn swap(self, mask: exception_mask_t, action: Action) -> Result<Groups, kern_return_t> {
        check(mask, action)?;
        with_ports(self, |ports| {
            let groups = ports.groups(mask);
            ports.set(mask, action);
            groups
        })
    }
}

/// What a Mach says about a new exception port, and what this one cannot do.
fn check(mask: exception_mask_t, action: Action) -> Result<(), kern_return_t> {
    let Action { port, behavior, flavor } = action;
    let known = (1 << KINDS) - (1 << FIRST_EXCEPTION);
    let kind = behavior as u32 & !MACH_EXCEPTION_CODES;
    if mask & !known != 0 || !(EXCEPTION_DEFAULT..=EXCEPTION_STATE_IDENTITY).contains(&kind) {
        return Err(KERN_INVALID_ARGUMENT);
    }
    if !(0..=0xff).contains(&flavor) {
        return Err(KERN_INVALID_ARGUMENT);
    }
    if matches!(port, MACH_PORT_NULL | MACH_PORT_DEAD) {
        return Ok(());
    }
    let Some(Name::Port(place)) = Name::parse(port) else { return Err(MACH_SEND_INVALID_RIGHT) };
    if port::rights(Kernel::get(), place).is_none_or(|(_, rights)| rights.send == 0) {
        return Err(MACH_SEND_INVALID_RIGHT);
    }
    if behavior as u32 != EXCEPTION_STATE | MACH_EXCEPTION_CODES || flavor != ARM_THREAD_STATE64 {
        return Err(KERN_NOT_SUPPORTED);
    }
    signal::install().then_some(()).ok_or(KERN_NO_SPACE)
}

/// Where the ports that were set before are written to.
struct Old {
    masks: *mut exception_mask_t,
    count: *mut mach_msg_type_number_t,
    ports: *mut mach_port_t,
    behaviors: *mut exception_behavior_t,
    flavors: *mut thread_state_flavor_t,
}

impl Old {
    /// Writes actions that were read, as many as there is room for, with a new send right for every port.
    ///
    /// # Safety
    /// The arrays have room for `*count` elements.
    unsafe fn write(&self, read: Result<Groups, kern_return_t>) -> kern_return_t {
        let groups = match read {
            Ok(groups) => groups,
            Err(refusal) => return refusal,
        };
        // SAFETY: the caller's promise.
        let count = groups.len().min(unsafe { self.count.read() } as usize);
        for (at, (bits, action)) in groups.into_iter().enumerate().take(count) {
            // SAFETY: `at` is below `*count`.
            unsafe {
                self.masks.add(at).write(bits);
                self.ports.add(at).write(copy_send(action.port));
                self.behaviors.add(at).write(action.behavior);
                self.flavors.add(at).write(action.flavor);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.count.write(count as u32) };
        KERN_SUCCESS
    }
}

/// A send right to an exception port, as far as there still is one.
fn copy_send(name: mach_port_t) -> mach_port_t {
    let Some(Name::Port(place)) = Name::parse(name) else { return name };
    match port::rights(Kernel::get(), place) {
        Some((_, mut rights)) if rights.receive => {
            rights.send += 1;
            name
        }
        _ => MACH_PORT_DEAD,
    }
}

/// The calls for one kind of target: set, get, and both in one step.
macro_rules! exception_port_calls {
    ($whose:literal, $target:ident($type:ty), $set:ident, $get:ident, $swap:ident) => {
        #[doc = concat!("Sets the exception ports of ", $whose, " for the kinds in `mask`. `new_port` is a send right, or null to have none.")]
        pub fn $set(
            target: $type,
            mask: exception_mask_t,
            new_port: mach_port_t,
            behavior: exception_behavior_t,
            flavor: thread_state_flavor_t,
        ) -> kern_return_t {
            Target::$target(target).set(mask, Action { port: new_port, behavior, flavor })
        }

        #[doc = concat!("Reads the exception ports of ", $whose, " for the kinds in `mask`; kinds with the same action come as one element.")]
        ///
        /// # Safety
        /// The arrays have room for `*count` elements.
        pub unsafe fn $get(
            target: $type,
            mask: exception_mask_t,
            masks: *mut exception_mask_t,
            count: *mut mach_msg_type_number_t,
            ports: *mut mach_port_t,
            behaviors: *mut exception_behavior_t,
            flavors: *mut thread_state_flavor_t,
        ) -> kern_return_t {
            // SAFETY: the caller's promise.
            unsafe { Old { masks, count, ports, behaviors, flavors }.write(Target::$target(target).get(mask)) }
        }

        #[doc = concat!("Sets the exception ports of ", $whose, " and reads the ones before, in one step.")]
        ///
        /// # Safety
        /// The arrays have room for `*count` elements.
        #[allow(clippy::too_many_arguments)] // They are Apple's.
        pub unsafe fn $swap(
            target: $type,
            mask: exception_mask_t,
            new_port: mach_port_t,
            behavior: exception_behavior_t,
            flavor: thread_state_flavor_t,
            masks: *mut exception_mask_t,
            count: *mut mach_msg_type_number_t,
            ports: *mut mach_port_t,
            behaviors: *mut exception_behavior_t,
            flavors: *mut thread_state_flavor_t,
        ) -> kern_return_t {
            let action = Action { port: new_port, behavior, flavor };
            // SAFETY: the caller's promise.
            unsafe { Old { masks, count, ports, behaviors, flavors }.write(Target::$target(target).swap(mask, action)) }
        }
    };
}

exception_port_calls!(
    "a thread",
    Thread(thread_act_t),
    thread_set_exception_ports,
    thread_get_exception_ports,
    thread_swap_exception_ports
);
// They come after those of a thread.
exception_port_calls!(
    "the task",
    Task(task_t),
    task_set_exception_ports,
    task_get_exception_ports,
    task_swap_exception_ports
);
