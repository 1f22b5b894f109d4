//! The scheduling priority of threads that work in the background.

/// Makes the calling thread give way to others. Where the system refuses, it goes on as it was.
#[cfg(target_os = "linux")]
pub fn lower() {
    // SAFETY: plain calls. On Linux a "process" of setpriority is a thread.
    unsafe {
        let thread = libc::syscall(libc::SYS_gettid);
        libc::setpriority(libc::PRIO_PROCESS, thread as libc::id_t, 10);
    }
}

/// Makes the calling thread give way to others. Where the system refuses, it goes on as it was.
#[cfg(target_os = "macos")]
pub fn lower() {
    // SAFETY: plain call about the calling thread.
    unsafe { libc::pthread_set_qos_class_self_np(libc::qos_class_t::QOS_CLASS_UTILITY, 0) };
}
