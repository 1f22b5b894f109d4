//! Memory objects and their mappings: the calls into the operating system that guest RAM rests on.
//!
//! A [`MemoryObject`] is anonymous, shared and has no name; a [`Mapping`] is one view of it (or a private view of a file), on a
//! 2 MiB boundary so that every 16 KiB granule the hypervisor maps is aligned on any host.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

/// What mappings are aligned to.
pub const MAPPING_ALIGN: usize = 2 << 20;

/// An anonymous shared memory object.
#[derive(Debug)]
pub struct MemoryObject {
    fd: File,
    len: usize,
}

impl MemoryObject {
    /// An object of `len` zero bytes; pages are allocated when first touched.
    pub fn new(len: usize) -> io::Result<MemoryObject> {
        let fd = File::from(create()?);
        fd.set_len(len as u64)?;
        Ok(MemoryObject { fd, len })
    }

    /// Reads by system call. Pages that were never touched read as zero and stay unallocated.
    #[cfg(target_os = "linux")]
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.fd.read_exact_at(buf, offset)
    }

    /// Writes by system call: of pages that were never touched, without a fault on each and without zeroing them first.
    #[cfg(target_os = "linux")]
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.fd.write_all_at(bytes, offset)
    }

    /// Whether no page of the range was ever touched. `false` where the system does not tell.
    pub fn is_hole(&self, offset: u64, len: u64) -> bool {
        is_hole(&self.fd, offset, len)
    }

    /// A readable and writable view of the whole object.
    pub fn map(&self) -> io::Result<Mapping> {
        Mapping::new(self.fd.as_raw_fd(), self.len, libc::MAP_SHARED, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// A view of the whole object that cannot be accessed until parts of it are opened.
    pub fn map_closed(&self) -> io::Result<Mapping> {
        Mapping::new(self.fd.as_raw_fd(), self.len, libc::MAP_SHARED, libc::PROT_NONE)
    }
}

/// Whether a range of a file is a hole. `false` where the system does not tell.
pub fn is_hole(file: &File, offset: u64, len: u64) -> bool {
    let (Ok(start), Some(end)) = (libc::off_t::try_from(offset), offset.checked_add(len)) else { return false };
    // SAFETY: plain call on an open file; it moves the file's offset, which nobody uses.
    let data = unsafe { libc::lseek(file.as_raw_fd(), start, libc::SEEK_DATA) };
    match u64::try_from(data) {
        Ok(data) => data >= end,
        // Behind the last data of the file.
        Err(_) => io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO),
    }
}

#[cfg(target_os = "linux")]
fn create() -> io::Result<OwnedFd> {
    // SAFETY: the name is a NUL-terminated string; the call has no other requirement.
    let fd = unsafe { libc::memfd_create(c"squib-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(not(target_os = "linux"))]
fn create() -> io::Result<OwnedFd> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let name = format!("/squib.{}.{}\0", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // SAFETY: `name` ends in NUL and outlives both calls.
        let fd = unsafe { libc::shm_open(name.as_ptr().cast(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::AlreadyExists {
                continue;
            }
            return Err(error);
        }
        // SAFETY: as above; from here on the object lives by its descriptor alone.
        unsafe { libc::shm_unlink(name.as_ptr().cast()) };
        // SAFETY: `fd` was just returned to us and nobody else owns it.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

/// One mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    addr: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address range owned by this value; nothing about it is bound to a thread. What is inside is only
// reached through volatile or atomic accesses, or through system calls.
unsafe impl Send for Mapping {}
// SAFETY: see `Send`; the methods hand out an address and a length only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A private, writable view of the first `len` bytes of `file`: writes stay in this process.
    pub fn private(file: &File, len: usize) -> io::Result<Mapping> {
        Mapping::new(file.as_raw_fd(), len, libc::MAP_PRIVATE, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn new(fd: i32, len: usize, flags: i32, protection: i32) -> io::Result<Mapping> {
        let room = len
            .checked_add(MAPPING_ALIGN)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "too large to map"))?;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, reserve, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = (base as usize).next_multiple_of(MAPPING_ALIGN);
        let head = start - base as usize;
        let tail = room - head - len;
        // SAFETY: `start..start + len` lies inside the reservation made above, which only this function knows.
        let addr = unsafe { libc::mmap(start as *mut _, len, protection, flags | libc::MAP_FIXED, fd, 0) };
        if addr == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // SAFETY: the whole reservation is ours and unused.
            unsafe { libc::munmap(base, room) };
            return Err(error);
        }
        // SAFETY: the two ends of the reservation around the mapping are ours and unused.
        unsafe {
            if head > 0 {
                libc::munmap(base, head);
            }
            if tail > 0 {
                libc::munmap((start + len) as *mut _, tail);
            }
        }
        let addr = NonNull::new(addr.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Mapping { addr, len })
    }

    /// Makes a part readable and writable.
    pub fn open(&self, offset: usize, len: usize) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range lies in this mapping (checked); more access to it invalidates nobody's assumptions, since what is
        // inside is only reached as the note on `Send` says.
        let result = unsafe { libc::mprotect(self.addr().add(offset).cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Where it starts.
    pub fn addr(&self) -> *mut u8 {
        self.addr.as_ptr()
    }

    /// How long it is.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is unmapped once, here; users borrow `self` or hold an `Arc` of its owner.
        unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len) };
    }
}
