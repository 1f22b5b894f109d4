//! The C face: every `hv_*` function `applevisor-sys` declares up to macOS 15.0, and `os_release`.
//!
//! Each function here checks its arguments as the framework does, finds the virtual machine or vCPU meant, and hands over to
//! the model behind. They never panic on bad input and never touch memory through a handle: configuration and state objects
//! are numbers into a table, vCPUs are slots.

mod access;
mod gic;
mod gic_config;
mod memory;
mod object;
mod registers;
mod vcpu;
mod vcpu_config;
mod vm;

/// Makes whoever can reach this function link every `hv_*` function along with it.
///
/// A linker that finds a name both in a library like this one and in a framework may settle for the framework if nothing
/// else makes it open the library. Each module is an object file of its own, and each of these calls opens one; then the
/// definitions inside win.
pub(crate) fn link() {
    let anchors: [fn(); 8] = [
        gic::anchor,
        gic_config::anchor,
        memory::anchor,
        object::anchor,
        registers::anchor,
        vcpu::anchor,
        vcpu_config::anchor,
        vm::anchor,
    ];
    std::hint::black_box(anchors);
}

/// Gives a module the function that [`link`] opens it by.
macro_rules! anchor {
    () => {
        /// See [`super::link`].
        #[inline(never)]
        pub fn anchor() {
            std::hint::black_box(line!());
        }
    };
}
use anchor;

/// What the functions return, `hv_return_t`.
pub type Return = i32;

/// `hv_return_t` values.
pub mod ret {
    use super::Return;

    /// Done.
    pub const SUCCESS: Return = 0;
    /// Failed, no further reason.
    pub const ERROR: Return = 0xfae9_4001_u32 as i32;
    /// The owning resource is busy.
    pub const BUSY: Return = 0xfae9_4002_u32 as i32;
    /// An argument is wrong.
    pub const BAD_ARGUMENT: Return = 0xfae9_4003_u32 as i32;
    /// The vCPU cannot be run in the state it was put into.
    pub const ILLEGAL_GUEST_STATE: Return = 0xfae9_4004_u32 as i32;
    /// No slot or memory left.
    pub const NO_RESOURCES: Return = 0xfae9_4005_u32 as i32;
    /// There is no virtual machine, GIC or vCPU.
    pub const NO_DEVICE: Return = 0xfae9_4006_u32 as i32;
    /// Not allowed.
    pub const DENIED: Return = 0xfae9_4007_u32 as i32;
    /// Not supported.
    pub const UNSUPPORTED: Return = 0xfae9_400f_u32 as i32;
}

/// Turns the inside's `Result` into the outside's code.
fn code(result: Result<(), Return>) -> Return {
    result.err().unwrap_or(ret::SUCCESS)
}

/// Writes a result through a pointer from the caller.
///
/// # Safety
/// `place` is null or valid for a write of a `T`, which is what the C signature promises.
unsafe fn put<T>(place: *mut T, value: T) -> Result<(), Return> {
    if place.is_null() {
        return Err(ret::BAD_ARGUMENT);
    }
    // SAFETY: not null, so valid by the caller's promise; a C caller's alignment is not taken on trust.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

#[cfg(test)]
mod signatures;
