//! Guest RAM: one memory object, two views.
//!
//! The **guest view** is what `hv_vm_map` is given and what device code reaches through `vm-memory`. The **fill view** is always
//! readable and writable and never given out: the loader of a snapshot writes through it and the writer of one reads through
//! it, whatever protection the guest view is under. A RAM that is a private mapping of a memory file has one view only, which
//! then serves as both.
//!
//! A lazy RAM starts absent: its guest view is `PROT_NONE`, and a [`Pager`](crate::pager) opens it page by page. The
//! accessor ([`RamRegion`]) makes every range present before it hands it out: all device and loader code goes through it,
//! so neither an access nor a system call meets an absent page.
//!
//! [`GuestMemory`] belongs to one thread. Whoever wants to touch the guest view, the main thread included, asks the RAM for one
//! ([`GuestRam::guest_memory`]), and with it the thread is registered with the net under the accessor, for as long as the
//! memory is held. It cannot be given to another thread (it is not `Send`): what threads share is the [`GuestRam`], which
//! does not reach the guest view. So a thread that may touch guest memory and is not registered does not compile.
//!
//! Guest RAM is shared with a running guest, so no reference to it is ever formed: all access is volatile
//! (`vm_memory::VolatileSlice`) or by system call.

mod bytes;
mod dirty;
pub(crate) mod object;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use squib_snapshot::DirtyBitmap;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestRegionCollection, GuestUsize, MemoryRegionAddress,
    VolatileSlice,
};

pub use dirty::DirtyHook;
use object::Mapping;
pub use object::MemoryObject;
pub use object::is_hole;

use crate::error::{Error, Result};
use crate::frozen::Freezer;
use crate::pager::{Net, PageStates, Pager, Registration};

/// Granule of stage-2 mappings and of everything that follows from them.
pub const GRANULE: u64 = 16 << 10;

const PAGER_GONE: &str = "guest memory is absent and its pager is gone";

/// Guest memory as device code sees it, on the thread that asked for it.
pub type GuestMemory = GuestRegionCollection<RamRegion>;

/// The RAM of one machine.
#[derive(Debug)]
pub struct GuestRam {
    base: u64,
    guest: Mapping,
    fill: Option<(MemoryObject, Mapping)>,
    dirty: Option<Arc<DirtyBitmap>>,
    freezer: Freezer,
    lazy: Option<Lazy>,
}

/// What a RAM that starts absent has besides.
#[derive(Debug)]
struct Lazy {
    states: Arc<PageStates>,
    /// Set once, before anything touches the RAM. The pager holds the RAM.
    pager: OnceLock<Weak<Pager>>,
    /// Catches what the accessor was not asked for. Set once, if at all, before any thread registers.
    net: OnceLock<Weak<Net>>,
    /// How often code of ours could not be given what it asked for.
    failures: AtomicU64,
    /// There are no mappings left to split the guest view.
    #[cfg(test)]
    scarce: std::sync::atomic::AtomicBool,
}

impl GuestRam {
    /// Zeroed RAM of `size` bytes at IPA `base`.
    pub fn new(base: u64, size: u64, track_dirty_pages: bool) -> Result<Arc<GuestRam>> {
        GuestRam::anonymous(base, size, track_dirty_pages, None)
    }

    /// RAM of `size` bytes at IPA `base`, all of it absent until a pager that is made for it brings it.
    pub fn absent(base: u64, size: u64, track_dirty_pages: bool) -> Result<Arc<GuestRam>> {
        let states = |source| Error::System { action: format!("keep the states of {} MiB", size >> 20), source };
        let lazy = Lazy {
            states: Arc::new(PageStates::absent(size).map_err(states)?),
            pager: OnceLock::new(),
            net: OnceLock::new(),
            failures: AtomicU64::new(0),
            #[cfg(test)]
            scarce: Default::default(),
        };
        GuestRam::anonymous(base, size, track_dirty_pages, Some(lazy))
    }

    fn anonymous(base: u64, size: u64, track_dirty_pages: bool, lazy: Option<Lazy>) -> Result<Arc<GuestRam>> {
        let allocate = |source| Error::System { action: format!("allocate {} MiB of guest RAM", size >> 20), source };
        let object = MemoryObject::new(to_usize(size)?).map_err(allocate)?;
        let guest = if lazy.is_some() { object.map_closed() } else { object.map() }.map_err(allocate)?;
        let fill = object.map().map_err(allocate)?;
        Ok(Arc::new(GuestRam {
            base,
            guest,
            fill: Some((object, fill)),
            dirty: dirty_bitmap(base, size, track_dirty_pages)?,
            freezer: Freezer::default(),
            lazy,
        }))
    }

    /// RAM that is a private view of the first `size` bytes of a memory file.
    pub fn map_file(base: u64, size: u64, file: &File, track_dirty_pages: bool) -> Result<Arc<GuestRam>> {
        let map = |source| Error::System { action: format!("map {} MiB of the memory file", size >> 20), source };
        let guest = Mapping::private(file, to_usize(size)?).map_err(map)?;
        Ok(Arc::new(GuestRam {
            base,
            guest,
            fill: None,
            dirty: dirty_bitmap(base, size, track_dirty_pages)?,
            freezer: Freezer::default(),
            lazy: None,
        }))
    }

    /// IPA of the first byte.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.guest.len() as u64
    }

    /// Host address of the guest view, for `hv_vm_map`.
    pub fn guest_view(&self) -> *mut u8 {
        self.guest.addr()
    }

    /// The bitmap that both guest and host writes mark, when dirty pages are tracked.
    pub fn dirty(&self) -> Option<&Arc<DirtyBitmap>> {
        self.dirty.as_ref()
    }

    /// The pages that a snapshot still needs as they are.
    pub fn freezer(&self) -> &Freezer {
        &self.freezer
    }

    /// The states of the pages of a RAM that started absent.
    pub fn states(&self) -> Option<&Arc<PageStates>> {
        self.lazy.as_ref().map(|lazy| &lazy.states)
    }

    /// Makes a pager known to its RAM, once.
    pub fn set_pager(&self, pager: Weak<Pager>) {
        if let Some(lazy) = &self.lazy {
            // A RAM has one pager, which sets itself when it is made.
            let _ = lazy.pager.set(pager);
        }
    }

    /// Makes the net under the accessor known, once.
    pub fn set_net(&self, net: Weak<Net>) {
        if let Some(lazy) = &self.lazy {
            // Set once, by the machine's builder.
            let _ = lazy.net.set(net);
        }
    }

    /// The pager, as long as something is missing.
    fn pager(&self) -> Option<Arc<Pager>> {
        let lazy = self.lazy.as_ref().filter(|lazy| lazy.states.missing() > 0)?;
        lazy.pager.get().and_then(Weak::upgrade)
    }

    /// Whether no page of a range is absent, or the range is not inside RAM.
    fn is_here(&self, offset: u64, len: u64) -> bool {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size());
        !inside || self.lazy.as_ref().is_none_or(|lazy| lazy.states.all_present(offset, len))
    }

    /// Makes a range of the guest view accessible to this process. Its bytes must be complete. For the pager.
    pub fn open(&self, offset: u64, len: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.lazy.as_ref().is_some_and(|lazy| lazy.scarce.load(Ordering::Relaxed)) && len < 2 << 20 {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.guest.open(offset as usize, len as usize)
    }

    /// From now on the guest view cannot be split any more.
    #[cfg(test)]
    pub fn make_mappings_scarce(&self) {
        if let Some(lazy) = &self.lazy {
            lazy.scarce.store(true, Ordering::Relaxed);
        }
    }

    /// Whether no page of a range was ever filled or touched. `false` where the system does not tell.
    pub fn is_hole(&self, offset: u64, len: u64) -> bool {
        self.fill.as_ref().is_some_and(|(object, _)| object.is_hole(offset, len))
    }

    /// Makes a range present that this process is going to touch, or pass to a system call.
    fn make_present(&self, offset: u64, len: u64) -> io::Result<()> {
        let Some(lazy) = self.lazy.as_ref().filter(|lazy| !lazy.states.all_present(offset, len)) else { return Ok(()) };
        let result = match self.pager() {
            Some(pager) => pager.make_present(offset, len),
            // The last page may have come in this very moment.
            None if lazy.states.missing() == 0 => return Ok(()),
            None => Err(io::Error::other(PAGER_GONE)),
        };
        result.inspect_err(|_| {
            lazy.failures.fetch_add(1, Ordering::AcqRel);
        })
    }

    /// Guest memory for code that runs on the calling thread. As long as it is held, a touch that the accessor was not asked for
    /// brings its page all the same.
    pub fn guest_memory(self: &Arc<Self>) -> Result<GuestMemory> {
        let bitmap = DirtyHook::new(self.dirty.clone(), self.base);
        let region = RamRegion { _registration: self.register()?, ram: Arc::clone(self), bitmap };
        GuestMemory::from_regions(vec![region]).map_err(|e| Error::Config(format!("guest memory: {e}")))
    }

    /// Registers the calling thread with the net; `None` where there is nothing to catch.
    fn register(&self) -> Result<Option<Registration>> {
        let net = self.lazy.as_ref().and_then(|lazy| lazy.net.get()?.upgrade());
        net.map(|net| net.register_current_thread()).transpose()
    }

    /// How often code of ours could not be given guest memory because its source failed. A device that meets an error and finds
    /// this changed has not met its driver's fault.
    pub fn failures(&self) -> u64 {
        self.lazy.as_ref().map_or(0, |lazy| lazy.failures.load(Ordering::Acquire))
    }

    fn fill_view(&self) -> VolatileSlice<'_> {
        let view = self.fill.as_ref().map_or(&self.guest, |(_, view)| view);
        // SAFETY: the mapping is `len` bytes of readable and writable memory and lives as long as `self`; everyone else reaches
        // it by volatile access or as the guest does.
        unsafe { VolatileSlice::new(view.addr(), view.len()) }
    }

    /// Copies bytes at `offset` out of RAM, through the fill view.
    pub fn read_fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some((object, _)) = &self.fill {
            // The same bytes, but untouched pages are not brought into being just to be found zero.
            return object.read_at(offset, buf);
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.fill_view().read_slice(buf, offset).map_err(io::Error::other)
    }

    /// Copies bytes into RAM at `offset`, through the fill view. No dirty page is marked.
    pub fn write_fill(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some((object, _)) = self.fill.as_ref().filter(|_| bytes.len() as u64 <= GRANULE) {
            if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size()) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            return object.write_at(offset, bytes);
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        // All or nothing: a slice would be written as far as it fits.
        let part = self.fill_view().subslice(offset, bytes.len()).map_err(io::Error::other)?;
        part.write_slice(bytes, 0).map_err(io::Error::other)
    }
}

fn to_usize(size: u64) -> Result<usize> {
    usize::try_from(size)
        .map_err(|_| Error::Config(format!("{size} bytes of RAM do not fit this host's address space")))
}

fn dirty_bitmap(base: u64, size: u64, track: bool) -> Result<Option<Arc<DirtyBitmap>>> {
    if !track {
        return Ok(None);
    }
    let bitmap = DirtyBitmap::new(base, size, GRANULE).map_err(|e| Error::Config(e.to_string()))?;
    Ok(Some(Arc::new(bitmap)))
}

/// The RAM as a `vm-memory` region over the guest view, for one thread.
#[derive(Debug)]
pub struct RamRegion {
    /// Keeps the region, and all that holds it, on the thread that is registered.
    _registration: Option<Registration>,
    ram: Arc<GuestRam>,
    bitmap: DirtyHook,
}

impl GuestMemoryRegion for RamRegion {
    type B = DirtyHook;

    fn len(&self) -> GuestUsize {
        self.ram.size()
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.ram.base)
    }

    fn bitmap(&self) -> DirtyHook {
        self.bitmap.clone()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, DirtyHook>, GuestMemoryError> {
        let start = usize::try_from(offset.0).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        let end = start.checked_add(count).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        if end > self.ram.guest.len() {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        self.ram.make_present(offset.0, count as u64).map_err(GuestMemoryError::IOError)?;
        // Whether the slice is for writing nobody says: one that is not keeps a page too many.
        self.ram.freezer.keep(&self.ram, offset.0, count as u64).map_err(GuestMemoryError::IOError)?;
        // SAFETY: `start..end` is inside the guest view (checked above), which lives as long as the region and is accessible
        // there (present); all other users access it volatilely or as the guest does.
        Ok(unsafe {
            VolatileSlice::with_bitmap(self.ram.guest.addr().add(start), count, self.bitmap.slice_at(start), None)
        })
    }
}

/// The snapshot writer reads RAM through the fill view, and what is absent from its source. Without its pager what is absent cannot
/// be had: in the fill view it is zero.
impl squib_snapshot::PageReader for GuestRam {
    fn read_at(&self, offset_from_ram_start: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.pager() {
            Some(pager) => pager.read(offset_from_ram_start, buf),
            None if self.is_here(offset_from_ram_start, buf.len() as u64) => self.read_fill(offset_from_ram_start, buf),
            None => Err(io::Error::other(PAGER_GONE)),
        }
    }

    fn is_known_zero(&self, offset_from_ram_start: u64, len: u64) -> bool {
        match self.pager() {
            Some(pager) => pager.is_known_zero(offset_from_ram_start, len),
            None => self.is_here(offset_from_ram_start, len) && self.is_hole(offset_from_ram_start, len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const BASE: u64 = 0x4000_0000;

    /// Guest memory stays on the thread that asked for it, and so was registered. Were it `Send` or `Sync`, the calls below would have two
    /// implementations to choose from, and this would not compile.
    const _: fn() = || {
        trait StaysHere<A> {
            fn check() {}
        }
        impl<T> StaysHere<()> for T {}
        impl<T: Send> StaysHere<u8> for T {}
        impl<T: Sync> StaysHere<u16> for T {}
        <GuestMemory as StaysHere<_>>::check();
        <VolatileSlice<'_, DirtyHook> as StaysHere<_>>::check();
    };

    #[test]
    fn both_views_show_the_same_bytes() {
        let ram = GuestRam::new(BASE, 4 << 20, false).unwrap();
        let memory = ram.guest_memory().unwrap();
        memory.write_slice(b"seen from both sides", GuestAddress(BASE + 0x12345)).unwrap();
        let mut buf = [0; 20];
        ram.read_fill(0x12345, &mut buf).unwrap();
        assert_eq!(&buf, b"seen from both sides");
        assert_eq!(ram.guest_view() as u64 % GRANULE, 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn ram_that_was_never_touched_is_known_to_be_zero() {
        use squib_snapshot::PageReader;
        let ram = GuestRam::new(BASE, 64 << 20, false).unwrap();
        ram.guest_memory().unwrap().write_obj(1u8, GuestAddress(BASE + (40 << 20))).unwrap();
        assert!(ram.is_known_zero(0, 40 << 20));
        assert!(!ram.is_known_zero(39 << 20, 2 << 20));
        assert!(ram.is_known_zero(44 << 20, 20 << 20));
        let mut byte = [0];
        ram.read_fill(40 << 20, &mut byte).unwrap();
        assert_eq!(byte, [1]);
    }

    #[test]
    fn accesses_outside_ram_are_errors() {
        let ram = GuestRam::new(BASE, 1 << 20, false).unwrap();
        let memory = ram.guest_memory().unwrap();
        assert!(memory.write_slice(&[0; 2], GuestAddress(BASE + (1 << 20) - 1)).is_err());
        assert!(memory.read_obj::<u8>(GuestAddress(BASE - 1)).is_err());
        assert!(ram.read_fill(1 << 20, &mut [0]).is_err());
    }

    #[test]
    fn host_writes_mark_every_page_they_touch() {
        let ram = GuestRam::new(BASE, 1 << 20, true).unwrap();
        let memory = ram.guest_memory().unwrap();
        memory.write_slice(&vec![1; 2 * GRANULE as usize], GuestAddress(BASE + GRANULE / 2)).unwrap();
        memory.write_obj(7u64, GuestAddress(BASE + 5 * GRANULE)).unwrap();
        assert_eq!(ram.dirty().unwrap().drain(), vec![0, 1, 2, 5]);
    }

    #[test]
    fn a_private_mapping_leaves_the_file_alone_and_a_copy_equals_it() {
        let path = std::env::temp_dir().join(format!("squib-ram-test-{}", std::process::id()));
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(&vec![0xab; 64 << 10]).unwrap();
        let mapped = GuestRam::map_file(BASE, 64 << 10, &file, false).unwrap();
        mapped.guest_memory().unwrap().write_obj(0u8, GuestAddress(BASE)).unwrap();
        let copied = GuestRam::new(BASE, 64 << 10, false).unwrap();
        copied.write_fill(0, &vec![0xab; 64 << 10]).unwrap();
        assert!(copied.write_fill(32 << 10, &vec![0; 33 << 10]).is_err());
        let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        mapped.read_fill(0, &mut a).unwrap();
        copied.read_fill(0, &mut b).unwrap();
        assert_eq!((a[0], b[0]), (0, 0xab));
        assert!(a[1..] == b[1..]);
    }
}
