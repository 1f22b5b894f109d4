//! Exception messages, byte by byte: `mach_exception_raise_state` of `mach/mach_exc.defs` (subsystem 2405), request 2406, reply 2506.
//!
//! ```text
//! request                          reply                            error reply
//!  0 header                         0 header                         0 header
//! 24 NDR record                    24 NDR record                    24 NDR record
//! 32 exception       i32           32 RetCode        i32            32 RetCode    i32
//! 36 codeCnt         u32 = 2       36 flavor         i32            36 (end)
//! 40 code            i64 x 2       40 new_stateCnt   u32
//! 56 flavor          i32           44 new_state      u32 x n
//! 60 old_stateCnt    u32
//! 64 old_state       u32 x n
//! ```
//!
//! All of it is 4-byte packed and in the order of the host. `mach2` declares the 32-bit form only (`exc.defs`), whose layout is another.
//! The state goes back as it came: the faulting thread executes its instruction again.

use super::sys::*;

/// `mach_exception_raise_state`.
pub const REQUEST_ID: mach_msg_id_t = 2406;
/// Of every MIG routine, the reply's id is the request's plus this.
pub const REPLY_ID: mach_msg_id_t = REQUEST_ID + 100;
/// Ends a receiving thread. Not an id of any subsystem of Mach's.
pub const STOP_ID: mach_msg_id_t = 0x5371_7562;

/// Bytes of a message header.
pub const HEADER: usize = size_of::<mach_msg_header_t>();
const NDR: usize = 24;
const EXCEPTION: usize = 32;
const CODE_COUNT: usize = 36;
const CODE: usize = 40;
const STATE_COUNT: usize = 60;
/// Bytes of a request without its state.
pub const REQUEST_STATE: usize = 64;
const RETURN_CODE: usize = 32;
/// Bytes of a reply that carries an error and nothing else (`mig_reply_error_t`).
pub const ERROR_REPLY: usize = 36;
/// Bytes of a reply without its state.
pub const REPLY_STATE: usize = 44;

/// `mach_msg_max_trailer_t`.
const TRAILER_MAX: usize = 68;
/// Room for the largest request there can be and the largest trailer.
pub const BUFFER: usize = REQUEST_STATE + 4 * THREAD_STATE_MAX as usize + TRAILER_MAX;

/// Integers in the order of this host, ASCII, IEEE floating point (`mach/ndr.h`).
pub const NDR_RECORD: [u8; 8] = [0, 0, 0, 0, cfg!(target_endian = "little") as u8, 0, 0, 0];

/// Where messages are received, and replies made in place.
#[repr(C, align(8))]
pub struct Buffer([u8; BUFFER]);

/// What a received message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A thread waits for a verdict.
    Exception(Exception),
    /// The pager asks the thread to end.
    Stop,
    /// Neither: to be answered with this error.
    Foreign(kern_return_t),
}

/// What an exception message says that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// `EXC_*`.
    pub exception: exception_type_t,
    /// For `EXC_BAD_ACCESS`: what the virtual memory system said, a `kern_return_t`.
    pub reason: i64,
    /// For `EXC_BAD_ACCESS`: the address.
    pub address: u64,
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer([0; BUFFER])
    }
}

impl Buffer {
    /// Where `mach_msg` reads and writes: [`BUFFER`] bytes.
    pub fn as_mut_ptr(&mut self) -> *mut mach_msg_header_t {
        self.0.as_mut_ptr().cast()
    }

    fn word(&self, at: usize) -> u32 {
        self.0[at..at + 4].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word))
    }

    fn long(&self, at: usize) -> i64 {
        self.0[at..at + 8].first_chunk().map_or(0, |long| i64::from_ne_bytes(*long))
    }

    fn put(&mut self, at: usize, word: u32) {
        self.0[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    /// Whether rights or memory came along in the body.
    pub fn is_complex(&self) -> bool {
        self.word(0) & MACH_MSGH_BITS_COMPLEX != 0
    }

    /// Takes the right to reply out of the header: its name and disposition.
    pub fn take_reply_port(&mut self) -> ReplyPort {
        let reply = ReplyPort { name: self.word(8), disposition: self.word(0) & MACH_MSGH_BITS_REMOTE_MASK };
        self.put(0, self.word(0) & !MACH_MSGH_BITS_REMOTE_MASK);
        self.put(8, MACH_PORT_NULL);
        reply
    }

    /// What was received.
    pub fn read(&self) -> Incoming {
        let (size, id) = (self.word(4) as usize, self.word(20) as mach_msg_id_t);
        match id {
            STOP_ID if size == HEADER && !self.is_complex() => return Incoming::Stop,
            REQUEST_ID => {}
            _ => return Incoming::Foreign(MIG_BAD_ID),
        }
        let count = self.word(STATE_COUNT);
        let sound = !self.is_complex()
            && size >= REQUEST_STATE
            && self.0[NDR..NDR + 8] == NDR_RECORD
            && self.word(CODE_COUNT) == 2
            && count <= THREAD_STATE_MAX
            && size == REQUEST_STATE + 4 * count as usize;
        if !sound {
            return Incoming::Foreign(MIG_BAD_ARGUMENTS);
        }
        Incoming::Exception(Exception {
            exception: self.word(EXCEPTION) as exception_type_t,
            reason: self.long(CODE),
            address: self.long(CODE + 8) as u64,
        })
    }

    /// Turns a request that [`Buffer::read`] found sound into the reply: the verdict, and the state as it came. Its size.
    pub fn reply(&mut self, to: ReplyPort, verdict: kern_return_t) -> usize {
        let (flavor, count) = (self.word(STATE_COUNT - 4), self.word(STATE_COUNT));
        let state = 4 * count as usize;
        self.0.copy_within(REQUEST_STATE..REQUEST_STATE + state, REPLY_STATE);
        self.put(36, flavor);
        self.put(40, count);
        self.finish(to, verdict, REPLY_ID, REPLY_STATE + state)
    }

    /// Turns whatever was received into a reply that says `error`. Its size.
    pub fn refuse(&mut self, to: ReplyPort, error: kern_return_t) -> usize {
        let id = (self.word(20) as mach_msg_id_t).wrapping_add(REPLY_ID - REQUEST_ID);
        self.finish(to, error, id, ERROR_REPLY)
    }

    /// Writes the message that ends a receiving thread of `port`. Its size.
    pub fn stop(&mut self, port: mach_port_t) -> usize {
        self.header(MACH_MSG_TYPE_COPY_SEND, port, STOP_ID, HEADER)
    }

    fn finish(&mut self, to: ReplyPort, verdict: kern_return_t, id: mach_msg_id_t, size: usize) -> usize {
        self.0[NDR..NDR + 8].copy_from_slice(&NDR_RECORD);
        self.put(RETURN_CODE, verdict as u32);
        self.header(to.disposition, to.name, id, size)
    }

    fn header(&mut self, bits: mach_msg_bits_t, remote: mach_port_t, id: mach_msg_id_t, size: usize) -> usize {
        for (at, word) in [bits, size as u32, remote, MACH_PORT_NULL, MACH_PORT_NULL, id as u32].into_iter().enumerate()
        {
            self.put(4 * at, word);
        }
        size
    }
}

/// The right to answer one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyPort {
    /// Its name.
    pub name: mach_port_t,
    /// `MACH_MSG_TYPE_MOVE_SEND_ONCE` (or `MOVE_SEND`, if that is what the sender gave).
    disposition: mach_msg_bits_t,
}

impl ReplyPort {
    /// Whether the sender waits for an answer, as far as one can tell.
    pub fn is_valid(self) -> bool {
        self.name != MACH_PORT_NULL && self.name != MACH_PORT_DEAD
    }
}

#[cfg(test)]
#[path = "tests/message.rs"]
mod tests;
