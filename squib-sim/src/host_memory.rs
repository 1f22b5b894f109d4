//! What a guest sees of host memory: the object behind an address, not the address.
//!
//! The framework shares the memory *object* a host range shows at map time; later changes of the host's own mapping
//! (`mprotect`, `mmap(MAP_FIXED)`, `munmap`) do not reach the guest. To get the same on a host without such sharing, the
//! stand-in keeps a second mapping of the object, its own, in a window of address space that mirrors the guest's physical
//! address space: guest RAM that is contiguous for the guest is contiguous here, so neighbouring pages merge into one
//! kernel mapping even when they are handed over one at a time.
//!
//! * Linux: `mremap(address, 0, size)` duplicates a shared mapping. Private mappings cannot be duplicated; the guest then
//!   works on the host's own address, and a host that changes that mapping while the guest uses it is on its own.
//! * macOS: `mach_vm_remap` without copy shares any object, private ones too.

mod shown;

use std::ptr;
use std::sync::{Mutex, PoisonError};

pub use shown::Shown;

use crate::stage2::Perms;

/// How far beyond what was asked an object is duplicated, towards higher addresses: the pages that follow are then in place
/// when they are mapped, and do not become a mapping each.
#[cfg(target_os = "linux")]
const AHEAD: u64 = 1 << 30;

/// Why host memory cannot be given to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMemoryError {
    /// Some of the range is not mapped in this process, or it shows more than one object.
    NotOneObject,
    /// The system refused for lack of memory or mappings.
    NoResources,
}

/// The protection of a host range, of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostProtection {
    /// Readable throughout.
    Readable,
    /// Some of it is `PROT_NONE`.
    None,
}

/// A window of reserved address space, as large as the guest's physical address space.
pub struct Window {
    base: *mut u8,
    size: u64,
    known: Mutex<shown::Known>,
}

// SAFETY: the window is a range of addresses; what happens to it happens through system calls, which are atomic. Callers
// serialise changes to the same range.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves `size` bytes of addresses. `None` where the system has no room for that: everything then works on the host's
    /// own addresses.
    pub fn reserve(size: u64) -> Option<Window> {
        let length = usize::try_from(size).ok()?;
        // SAFETY: a new mapping at an address of the system's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_NONE, RESERVE_FLAGS, -1, 0) };
        (base != libc::MAP_FAILED).then(|| Window { base: base.cast(), size, known: Mutex::default() })
    }

    /// The address that stands for `ipa`.
    fn at(&self, ipa: u64) -> *mut u8 {
        // A pointer into the reserved range: callers check `ipa` against the IPA space, which is as large.
        self.base.wrapping_add(ipa as usize)
    }

    /// Makes the object behind `host..host + size` visible at `ipa` of the window. `hole_end` is the end of the unmapped IPA
    /// range around `ipa`: up to there the window is free. `shown` is what is known of the object.
    ///
    /// Returns the address the guest shall use, which is `host` itself for memory that cannot be duplicated, and the
    /// permissions the object allows.
    pub fn share(
        &self,
        host: *mut u8,
        shown: Option<Shown>,
        ipa: u64,
        size: u64,
        hole_end: u64,
    ) -> Result<(*mut u8, Perms), HostMemoryError> {
        let room = hole_end.min(self.size).saturating_sub(ipa);
        debug_assert!(room >= size);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.is_some_and(|shown| known.shows(ipa, size, &shown)) {
            return Ok((self.at(ipa), Perms::ALL));
        }
        known.forget(ipa, ipa + room);
        let (address, perms, len) = duplicate(host, self.at(ipa), size, room)?;
        if let Some(shown) = shown.filter(|_| address == self.at(ipa) && perms == Perms::ALL) {
            known.note(ipa, Shown { len, ..shown });
        }
        Ok((address, perms))
    }

    /// Gives the part of the window that stands for `start..end` back to the reserve.
    pub fn release(&self, start: u64, end: u64) {
        let (start, end) = (start.min(self.size), end.min(self.size));
        if start < end {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).forget(start, end);
            let length = (end - start) as usize;
            // SAFETY: replaces a part of the window, which is ours and which no stage-2 entry points into any more. Should
            // the call fail, the old mapping stays, which is harmless.
            unsafe {
                libc::mmap(self.at(start).cast(), length, libc::PROT_NONE, RESERVE_FLAGS | libc::MAP_FIXED, -1, 0)
            };
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the window was made by `reserve` with this size; the stage-2 table that pointed into it goes with it.
        unsafe { libc::munmap(self.base.cast(), self.size as usize) };
    }
}

const RESERVE_FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Shares the object behind `host` at `at`, `size` bytes and up to `room`. Where it is then, what it allows, and how much it is.
#[cfg(target_os = "linux")]
fn duplicate(host: *mut u8, at: *mut u8, size: u64, room: u64) -> Result<(*mut u8, Perms, u64), HostMemoryError> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let mut length = size.max(room.min(AHEAD)) as usize;
    // SAFETY: an old size of 0 leaves the source as it is; the target lies in our window, in a part no stage-2 entry points
    // into (`room` bytes), so replacing it takes memory from nobody. The duplicate may reach beyond the end of the object:
    // nothing is mapped there at stage 2.
    let mut new = unsafe { libc::mremap(host.cast(), 0, length, flags, at) };
    if new == libc::MAP_FAILED && length != size as usize {
        length = size as usize;
        // SAFETY: as above.
        new = unsafe { libc::mremap(host.cast(), 0, length, flags, at) };
    }
    if new == libc::MAP_FAILED {
        return match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EFAULT) => Err(HostMemoryError::NotOneObject),
            // EINVAL: the mapping is private. Its pages belong to this address and to no other.
            Some(libc::EINVAL) => Ok((host, Perms::ALL, size)),
            _ => Err(HostMemoryError::NoResources),
        };
    }
    // The duplicate has the protection the host's mapping has now; the guest's is stage 2's business alone.
    for (protection, perms) in [
        (libc::PROT_READ | libc::PROT_WRITE, Perms::ALL),
        // An object opened read-only cannot be written by the guest either.
        (libc::PROT_READ, Perms::READ | Perms::EXEC),
    ] {
        // SAFETY: changes the protection of our own duplicate.
        if unsafe { libc::mprotect(new, length, protection) } == 0 {
            return Ok((new.cast(), perms, length as u64));
        }
    }
    Err(HostMemoryError::NoResources)
}

#[cfg(target_os = "macos")]
fn duplicate(host: *mut u8, at: *mut u8, size: u64, _room: u64) -> Result<(*mut u8, Perms, u64), HostMemoryError> {
    use mach2::kern_return::{KERN_INVALID_ADDRESS, KERN_SUCCESS};
    use mach2::traps::mach_task_self;
    use mach2::vm_statistics::{VM_FLAGS_FIXED, VM_FLAGS_OVERWRITE};

    let (mut address, mut current, mut maximum) = (at as u64, 0, 0);
    // SAFETY: source and target task are this one; the target lies in our window, in a part no stage-2 entry points into;
    // the results go to locals.
    let result = unsafe {
        mach2::vm::mach_vm_remap(
            mach_task_self(),
            &mut address,
            size,
            0,
            VM_FLAGS_FIXED | VM_FLAGS_OVERWRITE,
            mach_task_self(),
            host as u64,
            0,
            &mut current,
            &mut maximum,
            mach2::vm_inherit::VM_INHERIT_NONE,
        )
    };
    match result {
        KERN_SUCCESS => {}
        KERN_INVALID_ADDRESS => return Err(HostMemoryError::NotOneObject),
        _ => return Err(HostMemoryError::NoResources),
    }
    let protection = maximum & (libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: changes the protection of our own duplicate.
    if unsafe { libc::mprotect(at.cast(), size as usize, protection) } != 0 {
        return Err(HostMemoryError::NoResources);
    }
    let write = if protection & libc::PROT_WRITE != 0 { Perms::WRITE } else { Perms::NONE };
    Ok((at, Perms::READ | Perms::EXEC | write, size))
}

/// Allocates `size` bytes of zeroed memory that can be shared with a guest, aligned to `alignment`.
pub fn allocate(size: usize, alignment: usize) -> Option<*mut u8> {
    let padded = size.checked_add(alignment)?;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the system's choice.
    let base = unsafe { libc::mmap(ptr::null_mut(), padded, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    let base = base.cast::<u8>();
    let skip = base.align_offset(alignment);
    let start = base.wrapping_add(skip);
    let tail = padded - skip - size;
    // SAFETY: cuts the unaligned ends off the mapping just made; nobody knows them yet. Both are whole pages, since base,
    // size and alignment are.
    unsafe {
        if skip != 0 {
            libc::munmap(base.cast(), skip);
        }
        if tail != 0 {
            libc::munmap(start.wrapping_add(size).cast(), tail);
        }
    }
    Some(start)
}

/// Gives memory from [`allocate`] back.
///
/// # Safety
/// `address` and `size` are those of one [`allocate`] call, and the memory is not used any more.
pub unsafe fn deallocate(address: *mut u8, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(address.cast(), size) };
}

pub use protection::Protections;

#[cfg(target_os = "linux")]
mod protection {
    use std::ops::Range;
    use std::ptr;

    use super::{HostMemoryError, HostProtection};
    use crate::stage2::Perms;

    /// Hosts protect by the granule, and map by it: one granule shows one object.
    const GRANULE: usize = 0x4000;

    /// One line of `/proc/self/maps`.
    #[derive(Debug)]
    struct Mapping<'a> {
        start: u64,
        end: u64,
        perms: Perms,
        shared: bool,
        offset: u64,
        /// Device and inode; no file: `00:00 0`.
        object: (&'a str, &'a str),
    }

    impl Mapping<'_> {
        fn continues(&self, before: &Mapping) -> bool {
            let anonymous = !self.shared && self.object.1 == "0";
            self.start == before.end
                && self.shared == before.shared
                && self.object == before.object
                && (anonymous || self.offset == before.offset + (before.end - before.start))
        }
    }

    /// `start-end rwxp offset device inode name`.
    fn parse(line: &str) -> Option<Mapping<'_>> {
        let mut words = line.split(' ');
        let (start, end) = words.next()?.split_once('-')?;
        let flags = words.next()?.as_bytes();
        let offset = words.next()?;
        let object = (words.next()?, words.next()?);
        let mut perms = Perms::NONE;
        for (flag, granted) in [(b'r', Perms::READ), (b'w', Perms::WRITE), (b'x', Perms::EXEC)] {
            if flags.contains(&flag) {
                perms = perms | granted;
            }
        }
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Mapping {
            start: number(start)?,
            end: number(end)?,
            perms,
            shared: flags.contains(&b's'),
            offset: number(offset)?,
            object,
        })
    }

    /// How often the list is read again while it changes.
    const TRIES: u32 = 8;

    fn maps() -> String {
        std::fs::read_to_string("/proc/self/maps").unwrap_or_default()
    }

    /// The list as it was at one moment, if one without changes can be found: the kernel gives it out in pieces, and what other threads
    /// do to their mappings in between tears it.
    fn settled_maps() -> String {
        let mut last = maps();
        for _ in 0..TRIES {
            let again = maps();
            if again == last {
                break;
            }
            last = again;
        }
        last
    }

    /// The protection of a part of the process's address space, at one moment.
    #[derive(Debug, Default)]
    pub struct Protections {
        ranges: Vec<(u64, u64, Perms)>,
        /// What the system said of them: what protects, and what is mapped.
        said: String,
    }

    impl Protections {
        /// As it is now.
        pub fn read(part: Range<u64>) -> Protections {
            let mut now = Protections::default();
            for line in settled_maps().lines() {
                if let Some(found) = parse(line).filter(|found| found.start < part.end && found.end > part.start) {
                    now.ranges.push((found.start, found.end, found.perms));
                    now.said.push_str(line);
                }
            }
            now
        }

        /// Whether nothing of it is any different than it was.
        pub fn is_as(&self, before: &Protections) -> bool {
            self.said == before.said
        }

        /// The protection at `address`; `None` if nothing is mapped there.
        pub fn at(&self, address: u64) -> Option<Perms> {
            let index = self.ranges.partition_point(|&(_, end, _)| end <= address);
            self.ranges.get(index).filter(|&&(start, ..)| start <= address).map(|&(.., perms)| perms)
        }

        /// The protection of a range now.
        pub fn probe(address: *const u8, size: usize) -> Result<HostProtection, HostMemoryError> {
            // The common case when memory comes page by page; whether a longer range is of one object, only the list tells.
            if size <= GRANULE && readable(address) {
                return Ok(HostProtection::Readable);
            }
            // A torn list shows gaps where there are none.
            let mut tries = (0..TRIES).map(|_| Protections::look(address, size));
            tries.find(Result::is_ok).unwrap_or(Err(HostMemoryError::NotOneObject))
        }

        fn look(address: *const u8, size: usize) -> Result<HostProtection, HostMemoryError> {
            let (start, end) = (address as u64, address as u64 + size as u64);
            let mut answer = HostProtection::Readable;
            let mut before: Option<Mapping> = None;
            let maps = maps();
            for mapping in maps.lines().filter_map(parse).filter(|mapping| mapping.end > start) {
                match &before {
                    None if mapping.start > start => return Err(HostMemoryError::NotOneObject),
                    Some(before) if mapping.start > before.end => return Err(HostMemoryError::NotOneObject),
                    Some(before) if !mapping.continues(before) => return Err(HostMemoryError::NotOneObject),
                    _ => {}
                }
                if !mapping.perms.readable() {
                    answer = HostProtection::None;
                }
                if mapping.end >= end {
                    return Ok(answer);
                }
                before = Some(mapping);
            }
            Err(HostMemoryError::NotOneObject)
        }
    }

    /// Whether a granule can be read, tried without touching it: the kernel does the reading, and answers EFAULT.
    fn readable(address: *const u8) -> bool {
        let mut byte = 0u8;
        let remote = libc::iovec { iov_base: address.cast_mut().cast(), iov_len: 1 };
        let local = libc::iovec { iov_base: ptr::from_mut(&mut byte).cast(), iov_len: 1 };
        // SAFETY: reads one byte of this process into `byte`; an address that cannot be read makes the call fail.
        unsafe { libc::process_vm_readv(std::process::id() as i32, &local, 1, &remote, 1, 0) == 1 }
    }
}

#[cfg(target_os = "macos")]
mod protection {
    use std::ptr;

    use mach2::kern_return::KERN_SUCCESS;
    use mach2::vm_region::{VM_REGION_BASIC_INFO_64, vm_region_basic_info_64};

    use super::{HostMemoryError, HostProtection};
    use crate::stage2::Perms;

    /// Which parts of the process's address space are mapped how: asked of the kernel each time.
    #[derive(Debug, Default)]
    pub struct Protections(());

    /// The region at or behind `address`: start, end, protection.
    fn region(address: u64) -> Option<(u64, u64, Perms)> {
        let (mut start, mut size, mut object) = (address, 0, 0);
        let mut info = vm_region_basic_info_64::default();
        let mut count = vm_region_basic_info_64::count();
        // SAFETY: all results go to locals; `info` is what the flavor asks for, and `count` its size in words.
        let result = unsafe {
            mach2::vm::mach_vm_region(
                mach2::traps::mach_task_self(),
                &mut start,
                &mut size,
                VM_REGION_BASIC_INFO_64,
                ptr::from_mut(&mut info).cast(),
                &mut count,
                &mut object,
            )
        };
        let perms = Perms::from_flags(u64::from(info.protection as u32 & 7))?;
        (result == KERN_SUCCESS).then_some((start, start + size, perms))
    }

    impl Protections {
        /// As it is whenever it is asked.
        pub fn read(_part: std::ops::Range<u64>) -> Protections {
            Protections(())
        }

        /// Nothing is known of what it was.
        pub fn is_as(&self, _before: &Protections) -> bool {
            false
        }

        /// The protection at `address`; `None` if nothing is mapped there.
        pub fn at(&self, address: u64) -> Option<Perms> {
            region(address).filter(|&(start, ..)| start <= address).map(|(.., perms)| perms)
        }

        /// The protection of a range now.
        pub fn probe(address: *const u8, size: usize) -> Result<HostProtection, HostMemoryError> {
            let end = address as u64 + size as u64;
            let mut answer = HostProtection::Readable;
            let mut at = address as u64;
            while at < end {
                let (start, to, perms) = region(at).ok_or(HostMemoryError::NotOneObject)?;
                if start > at {
                    return Err(HostMemoryError::NotOneObject);
                }
                if !perms.readable() {
                    answer = HostProtection::None;
                }
                at = to;
            }
            Ok(answer)
        }
    }
}
