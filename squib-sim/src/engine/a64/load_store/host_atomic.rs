//! Guest atomics as host atomics: what exclusives, LSE and ordered accesses are made of.
//!
//! Everything here is sequentially consistent, the strongest order any of these instructions asks for: an x86 host has no
//! weaker read-modify-write, and on an Arm host `SeqCst` becomes the guest's own acquire-release forms, which are RCsc as
//! the guest expects of its LDAR and STLR.

use std::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering,
};

use crate::engine::memory::Scalar;

/// Read-modify-write operations, numbered as `insn<15:12>` of the LSE atomics has them.
pub(super) mod rmw {
    pub const ADD: u32 = 0;
    pub const CLR: u32 = 1;
    pub const EOR: u32 = 2;
    pub const SET: u32 = 3;
    pub const SMAX: u32 = 4;
    pub const SMIN: u32 = 5;
    pub const UMAX: u32 = 6;
    pub const UMIN: u32 = 7;
    pub const SWP: u32 = 8;
}

/// A size that has host atomics. Values travel zero-extended in 64 bits.
pub(super) trait Atomic: Scalar {
    /// # Safety
    /// `ptr` is readable and naturally aligned.
    unsafe fn load_seq_cst(ptr: *mut Self) -> u64;

    /// Stores `new` if `expected` is there; answers what was there.
    ///
    /// # Safety
    /// `ptr` is readable, writable and naturally aligned.
    unsafe fn compare_exchange(ptr: *mut Self, expected: u64, new: u64) -> u64;

    /// Applies the operation, answers what was there.
    ///
    /// # Safety
    /// `ptr` is readable, writable and naturally aligned.
    unsafe fn fetch<const OP: u32>(ptr: *mut Self, operand: u64) -> u64;
}

macro_rules! atomics {
    ($($t:ty, $signed:ty, $unsigned_atomic:ident, $signed_atomic:ident;)*) => {$(
        impl Atomic for $t {
            #[inline(always)]
            unsafe fn load_seq_cst(ptr: *mut $t) -> u64 {
                // SAFETY: the caller's promise; guest memory is shared, and is accessed only by raw pointers and atomics.
                u64::from(unsafe { $unsigned_atomic::from_ptr(ptr) }.load(Ordering::SeqCst))
            }

            #[inline(always)]
            unsafe fn compare_exchange(ptr: *mut $t, expected: u64, new: u64) -> u64 {
                // SAFETY: as above.
                let cell = unsafe { $unsigned_atomic::from_ptr(ptr) };
                let (Ok(old) | Err(old)) =
                    cell.compare_exchange(expected as $t, new as $t, Ordering::SeqCst, Ordering::SeqCst);
                u64::from(old)
            }

            #[inline(always)]
            unsafe fn fetch<const OP: u32>(ptr: *mut $t, operand: u64) -> u64 {
                // SAFETY: as above.
                let (cell, signed) = unsafe { ($unsigned_atomic::from_ptr(ptr), $signed_atomic::from_ptr(ptr.cast())) };
                let value = operand as $t;
                u64::from(match OP {
                    rmw::ADD => cell.fetch_add(value, Ordering::SeqCst),
                    rmw::CLR => cell.fetch_and(!value, Ordering::SeqCst),
                    rmw::EOR => cell.fetch_xor(value, Ordering::SeqCst),
                    rmw::SET => cell.fetch_or(value, Ordering::SeqCst),
                    rmw::SMAX => signed.fetch_max(value.cast_signed(), Ordering::SeqCst).cast_unsigned(),
                    rmw::SMIN => signed.fetch_min(value.cast_signed(), Ordering::SeqCst).cast_unsigned(),
                    rmw::UMAX => cell.fetch_max(value, Ordering::SeqCst),
                    rmw::UMIN => cell.fetch_min(value, Ordering::SeqCst),
                    _ => cell.swap(value, Ordering::SeqCst),
                })
            }
        }
    )*};
}

atomics! {
    u8, i8, AtomicU8, AtomicI8;
    u16, i16, AtomicU16, AtomicI16;
    u32, i32, AtomicU32, AtomicI32;
    u64, i64, AtomicU64, AtomicI64;
}

/// Stores the 16 bytes `new` if `expected` is there, in one atomic step; answers what was there.
///
/// # Safety
/// `ptr` is readable, writable and 16-byte aligned.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn compare_exchange_u128(ptr: *mut u128, expected: u128, new: u128) -> u128 {
    unsafe fn with_cmpxchg16b(ptr: *mut u128, expected: u128, new: u128) -> u128 {
        let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
        // SAFETY: the caller's promise. The compiler keeps RBX for itself, so it is borrowed for the instruction.
        unsafe {
            std::arch::asm!(
                "xchg {new_low}, rbx",
                "lock cmpxchg16b [rdi]",
                "mov rbx, {new_low}",
                in("rdi") ptr,
                new_low = inout(reg) new as u64 => _,
                in("rcx") (new >> 64) as u64,
                inout("rax") low,
                inout("rdx") high,
                options(nostack),
            );
        }
        u128::from(high) << 64 | u128::from(low)
    }

    /// For the first x86-64 processors, which do not have the instruction: atomic among vCPUs' 16-byte accesses only.
    unsafe fn with_lock(ptr: *mut u128, expected: u128, new: u128) -> u128 {
        static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _guard = LOCK.lock();
        // SAFETY: the caller's promise.
        unsafe {
            let old = ptr.read_volatile();
            if old == expected {
                ptr.write_volatile(new);
            }
            old
        }
    }

    // SAFETY: the caller's promise, and the feature has been detected.
    unsafe {
        if std::arch::is_x86_feature_detected!("cmpxchg16b") {
            with_cmpxchg16b(ptr, expected, new)
        } else {
            with_lock(ptr, expected, new)
        }
    }
}

/// Stores the 16 bytes `new` if `expected` is there, in one atomic step; answers what was there.
///
/// # Safety
/// `ptr` is readable, writable and 16-byte aligned.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn compare_exchange_u128(ptr: *mut u128, expected: u128, new: u128) -> u128 {
    let (mut low, mut high): (u64, u64);
    // SAFETY: the caller's promise. What was read is written back when it differs from `expected`, because only a successful
    // store-exclusive makes the 16 bytes read one value.
    unsafe {
        std::arch::asm!(
            "2:",
            "ldaxp {low}, {high}, [{ptr}]",
            "cmp {low}, {expected_low}",
            "ccmp {high}, {expected_high}, #0, eq",
            "csel {out_low}, {new_low}, {low}, eq",
            "csel {out_high}, {new_high}, {high}, eq",
            "stlxp {status:w}, {out_low}, {out_high}, [{ptr}]",
            "cbnz {status:w}, 2b",
            ptr = in(reg) ptr,
            low = out(reg) low,
            high = out(reg) high,
            expected_low = in(reg) expected as u64,
            expected_high = in(reg) (expected >> 64) as u64,
            new_low = in(reg) new as u64,
            new_high = in(reg) (new >> 64) as u64,
            out_low = out(reg) _,
            out_high = out(reg) _,
            status = out(reg) _,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_answer_the_old_value_and_store_the_new() {
        fn run<T: Atomic, const OP: u32>(start: T, operand: u64) -> (u64, u64) {
            let mut cell = start;
            // SAFETY: `cell` is aligned and ours.
            let old = unsafe { T::fetch::<OP>(&raw mut cell, operand) };
            // SAFETY: as above.
            (old, unsafe { T::load_seq_cst(&raw mut cell) })
        }
        assert_eq!(run::<u8, { rmw::ADD }>(0xff, 2), (0xff, 1));
        assert_eq!(run::<u16, { rmw::CLR }>(0xffff, 0x0f0f), (0xffff, 0xf0f0));
        assert_eq!(run::<u32, { rmw::EOR }>(0xffff_0000, 0xff00_ff00), (0xffff_0000, 0x00ff_ff00));
        assert_eq!(run::<u64, { rmw::SET }>(1, 1 << 63), (1, 1 << 63 | 1));
        assert_eq!(run::<u8, { rmw::SMAX }>(0x80, 1), (0x80, 1));
        assert_eq!(run::<u8, { rmw::SMIN }>(0x80, 1), (0x80, 0x80));
        assert_eq!(run::<u8, { rmw::UMAX }>(0x80, 1), (0x80, 0x80));
        assert_eq!(run::<u8, { rmw::UMIN }>(0x80, 1), (0x80, 1));
        assert_eq!(run::<u32, { rmw::SWP }>(5, 0x1_0000_0007), (5, 7));
    }

    #[test]
    fn compare_exchange_of_16_bytes() {
        let (a, b) = (0x1111_2222_3333_4444_5555_6666_7777_8888, 0x99aa_bbcc_ddee_ff00_0102_0304_0506_0708);
        let mut cell: u128 = a;
        // SAFETY: `cell` is aligned and ours.
        unsafe {
            assert_eq!(compare_exchange_u128(&raw mut cell, b, 0), a);
            assert_eq!(cell, a);
            assert_eq!(compare_exchange_u128(&raw mut cell, a, b), a);
        }
        assert_eq!(cell, b);
    }
}
