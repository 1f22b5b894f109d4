//! The Mach calls, one face for every host: on Apple silicon the kernel's (`mach2` 0.6, and what it lacks), elsewhere the
//! stand-in's, with the same names, arguments and byte layouts.

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
pub use apple::*;

#[cfg(not(all(target_os = "macos", target_arch = "aarch64")))]
pub use squib_sim::mach::*;

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
mod apple {
    pub use mach2::exception_types::*;
    pub use mach2::kern_return::*;
    pub use mach2::mach_port::mach_port_allocate;
    pub use mach2::mach_types::thread_act_t;
    pub use mach2::message::*;
    pub use mach2::port::*;
    pub use mach2::thread_status::thread_state_flavor_t;

    /// `mach/mig_errors.h`; not in mach2.
    pub const MIG_BAD_ID: kern_return_t = -303;
    /// `mach/mig_errors.h`; not in mach2.
    pub const MIG_BAD_ARGUMENTS: kern_return_t = -304;
    /// `mach/arm/thread_status.h`; a `static` in mach2.
    pub const ARM_THREAD_STATE64: thread_state_flavor_t = 6;
    /// `mach/arm/thread_status.h`; not in mach2.
    pub const THREAD_STATE_MAX: mach_msg_type_number_t = 1296;

    // Calls that take and return numbers: rights are names in a table of the kernel's, which checks each. No memory of ours is
    // involved, so they are as safe as in the stand-in.

    /// The name of the own task.
    pub fn mach_task_self() -> mach_port_t {
        // SAFETY: reads a name that the C library keeps.
        unsafe { mach2::traps::mach_task_self() }
    }

    /// A send right to the calling thread, to be given up.
    pub fn mach_thread_self() -> mach_port_t {
        // SAFETY: no arguments.
        unsafe { mach2::mach_init::mach_thread_self() }
    }

    /// Gives the task a right under this name.
    pub fn mach_port_insert_right(
        task: mach_port_t,
        name: mach_port_name_t,
        right: mach_port_t,
        disposition: mach_msg_type_name_t,
    ) -> kern_return_t {
        // SAFETY: numbers only.
        unsafe { mach2::mach_port::mach_port_insert_right(task, name, right, disposition) }
    }

    /// Gives up one user reference.
    pub fn mach_port_deallocate(task: mach_port_t, name: mach_port_name_t) -> kern_return_t {
        // SAFETY: numbers only.
        unsafe { mach2::mach_port::mach_port_deallocate(task, name) }
    }

    /// Destroys a receive right, and changes the count of send rights.
    pub fn mach_port_destruct(
        task: mach_port_t,
        name: mach_port_name_t,
        srdelta: mach_port_delta_t,
        guard: mach2::vm_types::mach_port_context_t,
    ) -> kern_return_t {
        // SAFETY: numbers only.
        unsafe { mach2::mach_port::mach_port_destruct(task, name, srdelta, guard) }
    }

    /// Sets the exception ports of a thread.
    pub fn thread_set_exception_ports(
        thread: thread_act_t,
        mask: exception_mask_t,
        new_port: mach_port_t,
        behavior: exception_behavior_t,
        flavor: thread_state_flavor_t,
    ) -> kern_return_t {
        // SAFETY: numbers only.
        unsafe { mach2::thread_act::thread_set_exception_ports(thread, mask, new_port, behavior, flavor) }
    }

    /// Sets the exception ports of the task.
    #[cfg(test)]
    pub fn task_set_exception_ports(
        task: mach_port_t,
        mask: exception_mask_t,
        new_port: mach_port_t,
        behavior: exception_behavior_t,
        flavor: thread_state_flavor_t,
    ) -> kern_return_t {
        // SAFETY: numbers only.
        unsafe { mach2::task::task_set_exception_ports(task, mask, new_port, behavior, flavor) }
    }

    unsafe extern "C" {
        /// `mach/thread_act.defs`; not in mach2.
        pub fn thread_swap_exception_ports(
            thread: thread_act_t,
            exception_mask: exception_mask_t,
            new_port: mach_port_t,
            behavior: exception_behavior_t,
            new_flavor: thread_state_flavor_t,
            masks: exception_mask_array_t,
            masks_count: *mut mach_msg_type_number_t,
            old_handlers: exception_port_array_t,
            old_behaviors: exception_behavior_array_t,
            old_flavors: exception_flavor_array_t,
        ) -> kern_return_t;
        /// `mach/thread_act.defs`; not in mach2.
        #[cfg(test)]
        pub fn thread_get_exception_ports(
            thread: thread_act_t,
            exception_mask: exception_mask_t,
            masks: exception_mask_array_t,
            masks_count: *mut mach_msg_type_number_t,
            old_handlers: exception_port_array_t,
            old_behaviors: exception_behavior_array_t,
            old_flavors: exception_flavor_array_t,
        ) -> kern_return_t;
        /// `mach/mach_port.defs`; not in mach2.
        #[cfg(test)]
        pub fn mach_port_get_refs(
            task: mach_port_t,
            name: mach_port_t,
            right: mach_port_right_t,
            refs: *mut mach_port_urefs_t,
        ) -> kern_return_t;
    }
}
