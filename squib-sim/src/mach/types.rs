//! Types and constants under the names of the Apple headers (`mach/message.h`, `mach/port.h`, `mach/exception_types.h`,
//! `mach/kern_return.h`, `mach/arm/thread_status.h`), with the sizes they have on arm64.

#![allow(non_camel_case_types, reason = "names of the Apple headers")]

use std::ffi::{c_int, c_uint};

/// Result of a Mach call.
pub type kern_return_t = c_int;
/// Result of `mach_msg`.
pub type mach_msg_return_t = kern_return_t;
/// 32-bit signed integer.
pub type integer_t = c_int;
/// 32-bit unsigned integer.
pub type natural_t = c_uint;
/// Name of a right, seen from user space.
pub type mach_port_t = c_uint;
/// Name of a right.
pub type mach_port_name_t = natural_t;
/// Kind of right, `MACH_PORT_RIGHT_*`.
pub type mach_port_right_t = natural_t;
/// Change of a reference count.
pub type mach_port_delta_t = integer_t;
/// Count of user references.
pub type mach_port_urefs_t = natural_t;
/// Guard of a port.
pub type mach_port_context_t = u64;
/// A task's name space of rights.
pub type ipc_space_t = mach_port_t;
/// A task.
pub type task_t = mach_port_t;
/// A thread.
pub type thread_act_t = mach_port_t;
/// Dispositions and flags of a message header.
pub type mach_msg_bits_t = c_uint;
/// Size of a message in bytes.
pub type mach_msg_size_t = natural_t;
/// Number that says what a message is.
pub type mach_msg_id_t = integer_t;
/// Options of `mach_msg`.
pub type mach_msg_option_t = integer_t;
/// Milliseconds.
pub type mach_msg_timeout_t = natural_t;
/// Disposition of a right in a message, `MACH_MSG_TYPE_*`.
pub type mach_msg_type_name_t = c_uint;
/// Count of elements.
pub type mach_msg_type_number_t = natural_t;
/// Format of a trailer.
pub type mach_msg_trailer_type_t = c_uint;
/// Size of a trailer in bytes.
pub type mach_msg_trailer_size_t = c_uint;
/// Kind of exception, `EXC_*`.
pub type exception_type_t = c_int;
/// Set of exceptions, `EXC_MASK_*`.
pub type exception_mask_t = c_uint;
/// Which message an exception becomes.
pub type exception_behavior_t = c_int;
/// Which registers a message carries.
pub type thread_state_flavor_t = c_int;

/// Header of every message, 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct mach_msg_header_t {
    /// Dispositions of remote (bits 4:0), local (12:8) and voucher port (20:16); bit 31: complex.
    pub msgh_bits: mach_msg_bits_t,
    /// Size in bytes, this header included, the trailer not.
    pub msgh_size: mach_msg_size_t,
    /// Sending: destination. Receiving: where the reply goes.
    pub msgh_remote_port: mach_port_t,
    /// Sending: where the reply shall go. Receiving: the port it came in on.
    pub msgh_local_port: mach_port_t,
    /// Voucher.
    pub msgh_voucher_port: mach_port_name_t,
    /// What the message is.
    pub msgh_id: mach_msg_id_t,
}

/// The smallest trailer, 8 bytes, which every received message ends in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct mach_msg_trailer_t {
    /// `MACH_MSG_TRAILER_FORMAT_0`.
    pub msgh_trailer_type: mach_msg_trailer_type_t,
    /// Size in bytes.
    pub msgh_trailer_size: mach_msg_trailer_size_t,
}

macro_rules! constants {
    ($($type:ty { $($(#[$doc:meta])* $name:ident = $value:expr;)* })*) => {
        $($(
            #[doc = concat!("`", stringify!($name), "` of the headers.")]
            $(#[$doc])*
            pub const $name: $type = $value;
        )*)*
    };
}

constants! {
    kern_return_t {
        KERN_SUCCESS = 0;
        KERN_INVALID_ADDRESS = 1;
        KERN_PROTECTION_FAILURE = 2;
        KERN_NO_SPACE = 3;
        KERN_INVALID_ARGUMENT = 4;
        KERN_FAILURE = 5;
        KERN_RESOURCE_SHORTAGE = 6;
        KERN_MEMORY_ERROR = 10;
        KERN_INVALID_NAME = 15;
        KERN_INVALID_TASK = 16;
        KERN_INVALID_RIGHT = 17;
        KERN_INVALID_VALUE = 18;
        KERN_INVALID_CAPABILITY = 20;
        KERN_RIGHT_EXISTS = 21;
        KERN_NOT_SUPPORTED = 46;
        MIG_TYPE_ERROR = -300;
        MIG_REPLY_MISMATCH = -301;
        MIG_BAD_ID = -303;
        MIG_BAD_ARGUMENTS = -304;
        MIG_SERVER_DIED = -308;
        MACH_MSG_SUCCESS = 0;
        MACH_SEND_INVALID_DEST = 0x1000_0003;
        MACH_SEND_TIMED_OUT = 0x1000_0004;
        MACH_SEND_MSG_TOO_SMALL = 0x1000_0008;
        MACH_SEND_INVALID_REPLY = 0x1000_0009;
        MACH_SEND_INVALID_RIGHT = 0x1000_000a;
        MACH_SEND_INVALID_TYPE = 0x1000_000f;
        MACH_SEND_INVALID_HEADER = 0x1000_0010;
        MACH_RCV_INVALID_NAME = 0x1000_4002;
        MACH_RCV_TIMED_OUT = 0x1000_4003;
        MACH_RCV_TOO_LARGE = 0x1000_4004;
        MACH_RCV_PORT_CHANGED = 0x1000_4006;
        MACH_RCV_PORT_DIED = 0x1000_4009;
    }
    mach_port_t {
        MACH_PORT_NULL = 0;
        MACH_PORT_DEAD = !0;
    }
    mach_port_right_t {
        MACH_PORT_RIGHT_SEND = 0;
        MACH_PORT_RIGHT_RECEIVE = 1;
        MACH_PORT_RIGHT_SEND_ONCE = 2;
        MACH_PORT_RIGHT_DEAD_NAME = 4;
    }
    mach_msg_type_name_t {
        MACH_MSG_TYPE_MOVE_SEND = 17;
        MACH_MSG_TYPE_MOVE_SEND_ONCE = 18;
        MACH_MSG_TYPE_COPY_SEND = 19;
        MACH_MSG_TYPE_MAKE_SEND = 20;
        MACH_MSG_TYPE_MAKE_SEND_ONCE = 21;
    }
    mach_msg_bits_t {
        MACH_MSGH_BITS_REMOTE_MASK = 0x1f;
        MACH_MSGH_BITS_LOCAL_MASK = 0x1f00;
        MACH_MSGH_BITS_VOUCHER_MASK = 0x1f_0000;
        MACH_MSGH_BITS_COMPLEX = 0x8000_0000;
        MACH_MSGH_BITS_USER = 0x801f_1f1f;
    }
    mach_msg_option_t {
        MACH_MSG_OPTION_NONE = 0;
        MACH_SEND_MSG = 1;
        MACH_RCV_MSG = 2;
        MACH_RCV_LARGE = 4;
        MACH_SEND_TIMEOUT = 0x10;
        MACH_RCV_TIMEOUT = 0x100;
    }
    mach_msg_timeout_t {
        MACH_MSG_TIMEOUT_NONE = 0;
    }
    mach_msg_id_t {
        MACH_NOTIFY_SEND_ONCE = 0o107;
    }
    c_uint {
        MACH_MSG_TRAILER_FORMAT_0 = 0;
        MACH_PORT_QLIMIT_DEFAULT = 5;
        EXC_BAD_ACCESS = 1;
        EXC_MASK_BAD_ACCESS = 1 << 1;
        EXC_MASK_BAD_INSTRUCTION = 1 << 2;
        EXC_MASK_ARITHMETIC = 1 << 3;
        EXC_MASK_BREAKPOINT = 1 << 6;
        EXCEPTION_DEFAULT = 1;
        EXCEPTION_STATE = 2;
        EXCEPTION_STATE_IDENTITY = 3;
        MACH_EXCEPTION_CODES = 0x8000_0000;
    }
    thread_state_flavor_t {
        THREAD_STATE_NONE = 5;
        ARM_THREAD_STATE64 = 6;
    }
    mach_msg_type_number_t {
        /// 33 registers of 64 bits, CPSR and a word of padding, in words of 32 bits.
        ARM_THREAD_STATE64_COUNT = 68;
        /// Most words of state a message can carry.
        THREAD_STATE_MAX = 1296;
        /// Kinds of exceptions, the unused 0 included.
        EXC_TYPES_COUNT = 14;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_sizes_of_the_headers() {
        assert_eq!(size_of::<mach_msg_header_t>(), 24);
        assert_eq!(std::mem::offset_of!(mach_msg_header_t, msgh_remote_port), 8);
        assert_eq!(std::mem::offset_of!(mach_msg_header_t, msgh_id), 20);
        assert_eq!(size_of::<mach_msg_trailer_t>(), 8);
        assert_eq!(MACH_NOTIFY_SEND_ONCE, 71);
    }
}
