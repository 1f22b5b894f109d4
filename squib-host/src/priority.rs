//! The scheduling priority of threads: vCPUs before others, background work after them.
//!
//! On Apple silicon the quality-of-service class of a thread decides between performance and efficiency cores, and whether its
//! timers may be late. A process that was started in the background (by launchd, by ssh) hands its class on to new threads, so
//! a vCPU asks for its own.

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

/// Asks for a performance core and exact timers for the calling thread, which is a vCPU. Where the system refuses, it goes on as
/// it was.
#[cfg(target_os = "macos")]
pub fn raise() {
    // SAFETY: plain call about the calling thread.
    unsafe { libc::pthread_set_qos_class_self_np(libc::qos_class_t::QOS_CLASS_USER_INTERACTIVE, 0) };
}

/// Elsewhere all cores are alike, and a priority above the usual is root's alone.
#[cfg(not(target_os = "macos"))]
pub fn raise() {}
