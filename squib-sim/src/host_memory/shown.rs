//! What the host's mappings show, and what the window is known to show: where both are the same, nothing has to be mapped.
//!
//! Memory that comes page by page is handed over page by page. To duplicate the object for each of them costs two changes of the
//! address space, for which all threads that change it, too, have to wait. But the first duplicate reaches far ahead, and shows most of
//! the pages that follow. Linux 6.11 and later tell what a mapping shows (`PROCMAP_QUERY`), and so whether that is still the same
//! object, at the same place in it. Where the kernel does not tell, every page is duplicated.

use std::collections::BTreeMap;

/// A part of a memory object, behind a mapping that is shared and can be read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Device and inode. They name the object for as long as it is mapped anywhere.
    pub object: (u32, u32, u64),
    /// Where in the object.
    pub offset: u64,
    /// How much of it.
    pub len: u64,
}

impl Shown {
    /// What this process's mapping at `address` shows from there on. `None` also where that is not known.
    pub fn at(address: *const u8) -> Option<Shown> {
        shown(address as u64)
    }
}

/// Parts of the window, by IPA, and what they show.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<u64, Shown>);

impl Known {
    /// Whether `ipa..ipa + size` shows the first `size` bytes of `shown`.
    pub fn shows(&self, ipa: u64, size: u64, shown: &Shown) -> bool {
        self.0.range(..=ipa).next_back().is_some_and(|(&start, part)| {
            let before = ipa - start;
            part.object == shown.object
                && part.offset + before == shown.offset
                && before + size <= part.len
                && size <= shown.len
        })
    }

    /// From now on the window shows this at `ipa`.
    pub fn note(&mut self, ipa: u64, shown: Shown) {
        self.forget(ipa, ipa + shown.len);
        self.0.insert(ipa, shown);
    }

    /// Nothing is known any more of what a part of the window shows.
    pub fn forget(&mut self, start: u64, end: u64) {
        while let Some((&from, &part)) = self.0.range(..end).next_back().filter(|(from, part)| *from + part.len > start)
        {
            self.0.remove(&from);
            if from < start {
                self.0.insert(from, Shown { len: start - from, ..part });
            }
            let to = from + part.len;
            if to > end {
                let cut = end - from;
                self.0.insert(end, Shown { offset: part.offset + cut, len: to - end, ..part });
            }
        }
    }
}

#[cfg(target_os = "linux")]
use system::shown;

#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::sync::OnceLock;

    use super::Shown;

    /// `struct procmap_query` of `linux/fs.h`.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        size: u64,
        query_flags: u64,
        query_addr: u64,
        vma_start: u64,
        vma_end: u64,
        vma_flags: u64,
        vma_page_size: u64,
        vma_offset: u64,
        inode: u64,
        dev_major: u32,
        dev_minor: u32,
        vma_name_size: u32,
        build_id_size: u32,
        vma_name_addr: u64,
        build_id_addr: u64,
    }

    /// `_IOWR('f', 17, struct procmap_query)`.
    const PROCMAP_QUERY: u64 = 0xc000_0000 | (size_of::<Query>() as u64) << 16 | 0x66 << 8 | 17;
    /// `PROCMAP_QUERY_VMA_READABLE`, `_WRITABLE` and `_SHARED`.
    const READ_WRITE_SHARED: u64 = 1 | 2 | 8;

    /// The list of mappings, and whose it is.
    fn maps() -> Option<&'static File> {
        static MAPS: OnceLock<Option<(u32, File)>> = OnceLock::new();
        let open = || Some((std::process::id(), File::open("/proc/self/maps").ok()?));
        let (pid, file) = MAPS.get_or_init(open).as_ref()?;
        // A forked child has inherited its parent's.
        (*pid == std::process::id()).then_some(file)
    }

    pub fn shown(address: u64) -> Option<Shown> {
        let mut query = Query { size: size_of::<Query>() as u64, query_addr: address, ..Query::default() };
        // SAFETY: the kernel reads and writes one `Query`, whose size it is told.
        let result = unsafe { libc::ioctl(maps()?.as_raw_fd(), PROCMAP_QUERY as _, &mut query) };
        let usable = result == 0
            && query.vma_flags & READ_WRITE_SHARED == READ_WRITE_SHARED
            && query.inode != 0
            && (query.vma_start..query.vma_end).contains(&address);
        usable.then(|| Shown {
            object: (query.dev_major, query.dev_minor, query.inode),
            offset: query.vma_offset + (address - query.vma_start),
            len: query.vma_end - address,
        })
    }

    #[cfg(test)]
    mod tests {
        use std::ptr;

        use super::super::super::{Window, allocate};
        use super::*;
        use crate::stage2::Perms;

        const PAGE: usize = 0x4000;

        /// Where the kernel does not tell, the answer is `None` each time, which everybody can live with.
        #[test]
        fn the_answer_is_the_mapping_or_none() {
            let memory = allocate(4 * PAGE, PAGE).unwrap();
            let told = shown(memory as u64).is_some();
            let at = |page: usize| shown(memory as u64 + (page * PAGE) as u64);
            let place = |shown: Option<Shown>| shown.map(|shown| (shown.object, shown.offset));
            let next = at(0).map(|first| (first.object, first.offset + 2 * PAGE as u64));
            assert_eq!((place(at(2)), at(2).is_some()), (next, told));
            assert!(at(0).is_none_or(|first| first.len >= 4 * PAGE as u64));
            let other = shown(allocate(PAGE, PAGE).unwrap() as u64);
            assert_eq!(other.zip(at(0)).map(|(other, first)| other.object == first.object), told.then_some(false));
            for protection in [libc::PROT_NONE, libc::PROT_READ] {
                // SAFETY: memory of this test's own, to which no reference exists.
                assert_eq!(unsafe { libc::mprotect(memory.add(PAGE).cast(), PAGE, protection) }, 0);
                assert_eq!(at(1), None, "{protection}");
            }
            let private = map(ptr::null_mut(), libc::MAP_PRIVATE);
            assert_eq!((shown(private as u64), shown(0)), (None, None));
        }

        fn map(at: *mut u8, flags: i32) -> *mut u8 {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_ANONYMOUS | flags);
            // SAFETY: a new mapping at an address of the kernel's choice, or in the place of memory of a test's own.
            let at = unsafe { libc::mmap(at.cast(), PAGE, protection, flags, -1, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            at.cast()
        }

        /// The first page's duplicate reaches over the others: those that still show the same object are in place, one that was
        /// replaced meanwhile is shared anew.
        #[test]
        fn the_window_shows_what_the_host_maps_when_it_is_shared() {
            let memory = allocate(4 * PAGE, PAGE).unwrap();
            let window = Window::reserve(1 << 30).unwrap();
            let at = |page: usize| memory.wrapping_add(page * PAGE);
            let share = |page: usize| {
                let ipa = (page * PAGE) as u64;
                window.share(at(page), Shown::at(at(page)), ipa, PAGE as u64, 1 << 30).unwrap()
            };
            let told = Shown::at(memory).is_some();
            let known = |page: usize| {
                let known = window.known.lock().unwrap();
                Shown::at(at(page)).is_some_and(|shown| known.shows((page * PAGE) as u64, PAGE as u64, &shown))
            };
            assert!(!known(0));
            share(0);
            assert_eq!((known(1), known(2)), (told, told));
            map(at(1), libc::MAP_SHARED | libc::MAP_FIXED);
            assert!(!known(1));
            for page in [1, 2, 3] {
                // SAFETY: memory of this test's own, and the window's view of it, to which no references exist.
                let seen = unsafe {
                    at(page).write_volatile(page as u8);
                    let (guest, perms) = share(page);
                    assert_eq!((guest, perms), (window.at((page * PAGE) as u64), Perms::ALL));
                    guest.write_volatile(guest.read_volatile() + 10);
                    at(page).read_volatile()
                };
                assert_eq!(seen, page as u8 + 10, "one object, seen from both sides");
            }
            window.release(0, 4 * PAGE as u64);
            assert!((0..4).all(|page| !known(page)));
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn shown(_address: u64) -> Option<Shown> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: (u32, u32, u64) = (0, 1, 77);

    fn part(offset: u64, len: u64) -> Shown {
        Shown { object: OBJECT, offset, len }
    }

    #[test]
    fn only_the_same_place_of_the_same_object_is_known() {
        let mut known = Known::default();
        known.note(0x1000, part(0x8000, 0x4000));
        assert!(known.shows(0x1000, 0x4000, &part(0x8000, 0x4000)));
        assert!(known.shows(0x2000, 0x1000, &part(0x9000, 0x9000)));
        let other = Shown { object: (0, 1, 78), ..part(0x8000, 0x4000) };
        for (ipa, size, shown) in [
            (0x1000, 0x1000, other),
            (0x1000, 0x1000, part(0x9000, 0x4000)),
            (0x1000, 0x5000, part(0x8000, 0x9000)),
            (0x1000, 0x2000, part(0x8000, 0x1000)),
            (0, 0x1000, part(0x7000, 0x1000)),
            (0x5000, 0x1000, part(0xc000, 0x1000)),
        ] {
            assert!(!known.shows(ipa, size, &shown), "{ipa:#x} {size:#x} {shown:x?}");
        }
    }

    #[test]
    fn what_is_replaced_or_released_is_forgotten_and_the_rest_stays() {
        let mut known = Known::default();
        known.note(0, part(0, 0x8000));
        known.note(0x2000, part(0x10_0000, 0x1000));
        assert!(known.shows(0x1000, 0x1000, &part(0x1000, 0x1000)));
        assert!(known.shows(0x2000, 0x1000, &part(0x10_0000, 0x1000)));
        assert!(!known.shows(0x2000, 0x1000, &part(0x2000, 0x1000)));
        assert!(known.shows(0x3000, 0x5000, &part(0x3000, 0x5000)));
        known.forget(0x1800, 0x7000);
        assert!(known.shows(0, 0x1800, &part(0, 0x1800)) && known.shows(0x7000, 0x1000, &part(0x7000, 0x1000)));
        for ipa in [0x1800, 0x2000, 0x3000, 0x6000] {
            assert!(!known.shows(ipa, 0x800, &part(ipa, 0x800)), "{ipa:#x}");
        }
        known.forget(0, u64::MAX);
        assert!(known.0.is_empty());
    }
}
