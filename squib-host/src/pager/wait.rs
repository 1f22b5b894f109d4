//! Sleeping until a word of memory changes: the kernel's own primitive, since whoever waits for a page may not take a lock or
//! allocate, and may be anywhere.

use std::sync::atomic::AtomicU32;

/// Sleeps while `word` holds `value`; may return early. A change that is followed by [`wake_all`] is never slept through.
#[cfg(target_os = "linux")]
pub fn wait(word: &AtomicU32, value: u32) {
    // SAFETY: the word lives as long as the call, which only reads it; no timeout is given. Every way the call can fail (the
    // value differs, a signal came) is an early return, which callers expect.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            std::ptr::null::<libc::timespec>(),
        )
    };
}

/// Wakes every thread that sleeps on `word`.
#[cfg(target_os = "linux")]
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: the word's address is only used as a key.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX) };
}

/// Sleeps while `word` holds `value`; may return early. A change that is followed by [`wake_all`] is never slept through.
#[cfg(target_os = "macos")]
pub fn wait(word: &AtomicU32, value: u32) {
    // SAFETY: the word is four bytes, aligned, and lives as long as the call, which only reads it. Errors (an interrupt) are
    // early returns, which callers expect.
    unsafe {
        libc::os_sync_wait_on_address(word.as_ptr().cast(), u64::from(value), 4, libc::OS_SYNC_WAIT_ON_ADDRESS_NONE)
    };
}

/// Wakes every thread that sleeps on `word`.
#[cfg(target_os = "macos")]
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: the word is four bytes, aligned; its address is only used as a key. That nobody sleeps is an error to the
    // call and none to us.
    unsafe { libc::os_sync_wake_by_address_all(word.as_ptr().cast(), 4, libc::OS_SYNC_WAKE_BY_ADDRESS_NONE) };
}
