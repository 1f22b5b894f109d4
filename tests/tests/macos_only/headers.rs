//! What Apple's headers say of everything foreign that code for a Mac names, in Rust's words.
//!
//! Two compilers read this. rustc does when it compiles this test for a Mac (`make macos`): libc, mach2 and squib-host declare these
//! types and values, or it is an error. And `make macos` makes an assertion in C++ of every line and has it compiled against the
//! headers of the SDK (`tests/macho/headers.rs`): the headers say the same, or it is an error. On other systems rustc compares the values with
//! the stand-in's. That nothing is missing here is tested by `named.rs`.

#[allow(dead_code, unused_imports, reason = "mach2's own functions are named below, not the safe faces of some")]
#[path = "../../../squib-host/src/pager/mach/sys.rs"]
mod sys;

use std::mem::offset_of;

use sys::*;

/// What both kernels have: Apple's, and the one that the stand-in plays.
const _: () = {
    // mach/kern_return.h, mach/mig_errors.h
    assert!(KERN_SUCCESS == 0);
    assert!(KERN_INVALID_ADDRESS == 1);
    assert!(KERN_PROTECTION_FAILURE == 2);
    assert!(KERN_NO_SPACE == 3);
    assert!(KERN_INVALID_ARGUMENT == 4);
    assert!(KERN_FAILURE == 5);
    assert!(KERN_RESOURCE_SHORTAGE == 6);
    assert!(KERN_MEMORY_ERROR == 10);
    assert!(KERN_INVALID_NAME == 15);
    assert!(KERN_INVALID_TASK == 16);
    assert!(KERN_INVALID_RIGHT == 17);
    assert!(KERN_INVALID_VALUE == 18);
    assert!(KERN_INVALID_CAPABILITY == 20);
    assert!(KERN_RIGHT_EXISTS == 21);
    assert!(KERN_NOT_SUPPORTED == 46);
    assert!(MIG_BAD_ID == -303);
    assert!(MIG_BAD_ARGUMENTS == -304);
    // mach/port.h
    assert!(MACH_PORT_NULL == 0);
    assert!(MACH_PORT_DEAD == 0xffff_ffff);
    assert!(MACH_PORT_RIGHT_SEND == 0);
    assert!(MACH_PORT_RIGHT_RECEIVE == 1);
    assert!(MACH_PORT_RIGHT_SEND_ONCE == 2);
    assert!(MACH_PORT_RIGHT_DEAD_NAME == 4);
    assert!(MACH_PORT_QLIMIT_DEFAULT == 5);
    // mach/message.h
    assert!(MACH_MSG_SUCCESS == 0);
    assert!(MACH_SEND_INVALID_DEST == 0x1000_0003);
    assert!(MACH_SEND_TIMED_OUT == 0x1000_0004);
    assert!(MACH_SEND_MSG_TOO_SMALL == 0x1000_0008);
    assert!(MACH_SEND_INVALID_REPLY == 0x1000_0009);
    assert!(MACH_SEND_INVALID_RIGHT == 0x1000_000a);
    assert!(MACH_SEND_INVALID_TYPE == 0x1000_000f);
    assert!(MACH_SEND_INVALID_HEADER == 0x1000_0010);
    assert!(MACH_RCV_INVALID_NAME == 0x1000_4002);
    assert!(MACH_RCV_TIMED_OUT == 0x1000_4003);
    assert!(MACH_RCV_TOO_LARGE == 0x1000_4004);
    assert!(MACH_RCV_PORT_CHANGED == 0x1000_4006);
    assert!(MACH_RCV_PORT_DIED == 0x1000_4009);
    assert!(MACH_MSG_TYPE_MOVE_SEND == 17);
    assert!(MACH_MSG_TYPE_MOVE_SEND_ONCE == 18);
    assert!(MACH_MSG_TYPE_COPY_SEND == 19);
    assert!(MACH_MSG_TYPE_MAKE_SEND == 20);
    assert!(MACH_MSG_TYPE_MAKE_SEND_ONCE == 21);
    assert!(MACH_MSGH_BITS_REMOTE_MASK == 0x1f);
    assert!(MACH_MSGH_BITS_LOCAL_MASK == 0x1f00);
    assert!(MACH_MSGH_BITS_VOUCHER_MASK == 0x1f_0000);
    assert!(MACH_MSGH_BITS_COMPLEX == 0x8000_0000);
    assert!(MACH_MSGH_BITS_USER == 0x801f_1f1f);
    assert!(MACH_MSG_OPTION_NONE == 0);
    assert!(MACH_SEND_MSG == 1);
    assert!(MACH_RCV_MSG == 2);
    assert!(MACH_RCV_LARGE == 4);
    assert!(MACH_SEND_TIMEOUT == 0x10);
    assert!(MACH_RCV_TIMEOUT == 0x100);
    assert!(MACH_MSG_TIMEOUT_NONE == 0);
    assert!(MACH_MSG_TRAILER_FORMAT_0 == 0);
    assert!(size_of::<mach_msg_header_t>() == 24);
    assert!(offset_of!(mach_msg_header_t, msgh_bits) == 0);
    assert!(offset_of!(mach_msg_header_t, msgh_size) == 4);
    assert!(offset_of!(mach_msg_header_t, msgh_remote_port) == 8);
    assert!(offset_of!(mach_msg_header_t, msgh_local_port) == 12);
    assert!(offset_of!(mach_msg_header_t, msgh_voucher_port) == 16);
    assert!(offset_of!(mach_msg_header_t, msgh_id) == 20);
    assert!(size_of::<mach_msg_trailer_t>() == 8);
    // mach/exception_types.h
    assert!(EXC_BAD_ACCESS == 1);
    assert!(EXC_MASK_BAD_ACCESS == 1 << 1);
    assert!(EXC_MASK_BAD_INSTRUCTION == 1 << 2);
    assert!(EXC_MASK_ARITHMETIC == 1 << 3);
    assert!(EXC_MASK_BREAKPOINT == 1 << 6);
    assert!(EXCEPTION_DEFAULT == 1);
    assert!(EXCEPTION_STATE == 2);
    assert!(EXCEPTION_STATE_IDENTITY == 3);
    assert!(MACH_EXCEPTION_CODES == 0x8000_0000);
    // mach/arm/thread_status.h
    assert!(ARM_THREAD_STATE64 == 6);
    assert!(THREAD_STATE_MAX == 1296);
    // Types of one word.
    assert!(size_of::<thread_act_t>() == 4);
    assert!(size_of::<thread_state_flavor_t>() == 4);
    assert!(size_of::<kern_return_t>() == 4);
};

/// What only the stand-in has a use for.
#[cfg(not(target_os = "macos"))]
const _: () = {
    assert!(MIG_TYPE_ERROR == -300);
    assert!(MIG_REPLY_MISMATCH == -301);
    assert!(MIG_SERVER_DIED == -308);
    assert!(MACH_NOTIFY_SEND_ONCE == 71);
    assert!(THREAD_STATE_NONE == 5);
    assert!(ARM_THREAD_STATE64_COUNT == 68);
    assert!(EXC_TYPES_COUNT == 14);
};

/// What only a Mac has.
#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
mod apple {
    use super::sys;
    use mach2::mach_time::mach_timebase_info_data_t;
    use mach2::message::mach_msg_header_t;
    use mach2::vm_region::vm_region_basic_info_64;
    use std::ffi::{c_char, c_void};
    use std::mem::offset_of;

    type Array = *mut u32;
    type Flavors = *mut i32;

    const _: () = {
        assert!(mach2::vm_statistics::VM_FLAGS_FIXED == 0);
        assert!(mach2::vm_statistics::VM_FLAGS_OVERWRITE == 0x4000);
        assert!(mach2::vm_inherit::VM_INHERIT_NONE == 2);
        assert!(mach2::vm_region::VM_REGION_BASIC_INFO_64 == 9);
        assert!(mach2::vm_region::VM_REGION_BASIC_INFO_COUNT_64 == 9);
        assert!(size_of::<vm_region_basic_info_64>() == 36);
        assert!(offset_of!(vm_region_basic_info_64, protection) == 0);
        assert!(offset_of!(vm_region_basic_info_64, max_protection) == 4);
        assert!(size_of::<mach_timebase_info_data_t>() == 8);
        assert!(offset_of!(mach_timebase_info_data_t, numer) == 0);
        assert!(offset_of!(mach_timebase_info_data_t, denom) == 4);
        assert!(size_of::<mach2::vm_types::mach_port_context_t>() == 8);
        assert!(libc::O_RDWR == 2);
        assert!(libc::O_CREAT == 0x200);
        assert!(libc::O_EXCL == 0x800);
        assert!(libc::PROT_READ == 1);
        assert!(libc::PROT_WRITE == 2);
        assert!(libc::CLOCK_MONOTONIC_RAW == 4);
        assert!(libc::CLOCK_UPTIME_RAW == 8);
        assert!(size_of::<libc::clockid_t>() == 4);
        assert!(libc::F_RDADVISE == 44);
        assert!(size_of::<libc::radvisory>() == 16);
        assert!(libc::qos_class_t::QOS_CLASS_USER_INTERACTIVE as u32 == 0x21);
        assert!(libc::qos_class_t::QOS_CLASS_UTILITY as u32 == 0x11);
        assert!(libc::OS_SYNC_WAIT_ON_ADDRESS_NONE == 0);
        assert!(libc::OS_SYNC_WAKE_BY_ADDRESS_NONE == 0);
        // A macro that names a variable of the C library's.
        let _: unsafe fn() -> u32 = mach2::traps::mach_task_self;
        let _: unsafe extern "C" fn() -> u32 = mach2::mach_init::mach_thread_self;
        let _: unsafe extern "C" fn() -> u64 = mach2::mach_time::mach_absolute_time;
        let _: unsafe extern "C" fn() -> u64 = mach2::mach_time::mach_continuous_time;
        let _: unsafe extern "C" fn(*mut mach_timebase_info_data_t) -> i32 = mach2::mach_time::mach_timebase_info;
        let _: unsafe extern "C" fn(*mut mach_msg_header_t, i32, u32, u32, u32, u32, u32) -> i32 =
            mach2::message::mach_msg;
        let _: unsafe extern "C" fn(*mut mach_msg_header_t) = mach2::message::mach_msg_destroy;
        let _: unsafe extern "C" fn(u32, u32, *mut u32) -> i32 = mach2::mach_port::mach_port_allocate;
        let _: unsafe extern "C" fn(u32, u32) -> i32 = mach2::mach_port::mach_port_deallocate;
        let _: unsafe extern "C" fn(u32, u32, i32, u64) -> i32 = mach2::mach_port::mach_port_destruct;
        let _: unsafe extern "C" fn(u32, u32, u32, *mut u32) -> i32 = sys::mach_port_get_refs;
        let _: unsafe extern "C" fn(u32, u32, u32, u32) -> i32 = mach2::mach_port::mach_port_insert_right;
        let _: unsafe extern "C" fn(u32, u32, u32, i32) -> i32 = mach2::mach_port::mach_port_mod_refs;
        let _: unsafe extern "C" fn(u32, u32, u32, i32, i32) -> i32 = mach2::thread_act::thread_set_exception_ports;
        let _: unsafe extern "C" fn(u32, u32, Array, Array, Array, Flavors, Flavors) -> i32 =
            sys::thread_get_exception_ports;
        let _: unsafe extern "C" fn(u32, u32, u32, i32, i32, Array, Array, Array, Flavors, Flavors) -> i32 =
            sys::thread_swap_exception_ports;
        let _: unsafe extern "C" fn(u32, u32, u32, i32, i32) -> i32 = mach2::task::task_set_exception_ports;
        let _: unsafe extern "C" fn(u32, *mut u64, *mut u64, i32, *mut i32, *mut u32, *mut u32) -> i32 =
            mach2::vm::mach_vm_region;
        let _: unsafe extern "C" fn(u32, *mut u64, u64, u64, i32, u32, u64, i32, *mut i32, *mut i32, u32) -> i32 =
            mach2::vm::mach_vm_remap;
        let _: unsafe extern "C" fn(*mut c_void, u64, usize, u32) -> i32 = libc::os_sync_wait_on_address;
        let _: unsafe extern "C" fn(*mut c_void, usize, u32) -> i32 = libc::os_sync_wake_by_address_all;
        let _: unsafe extern "C" fn(libc::qos_class_t, i32) -> i32 = libc::pthread_set_qos_class_self_np;
        let _: unsafe extern "C" fn(*const c_char, *mut c_void, *mut usize, *mut c_void, usize) -> i32 =
            libc::sysctlbyname;
        let _: unsafe extern "C" fn(*const c_char, i32, ...) -> i32 = libc::shm_open;
        let _: unsafe extern "C" fn(*const c_char) -> i32 = libc::shm_unlink;
        unsafe extern "C" {
            fn sys_icache_invalidate(start: *mut c_void, len: usize);
        }
        let _: unsafe extern "C" fn(*mut c_void, usize) = sys_icache_invalidate;
        let _: unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> i32 = libc::clock_gettime;
        let _: unsafe extern "C" fn(*mut c_void, usize, i32) -> i32 = libc::mprotect;
        let _: unsafe extern "C" fn(i32, i32, *const c_char, u32) -> i32 = libc::fclonefileat;
        let _: unsafe extern "C" fn(i32, i32, ...) -> i32 = libc::fcntl;
    };
}
