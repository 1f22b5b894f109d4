//! Dirty tracking of the guest's own writes, by write protection at stage 2.
//!
//! An **epoch** lies between two checkpoints (snapshots, full or diff). It begins with all of RAM readable and executable, but not
//! writable, for the guest: one `hv_vm_protect` for the region. The first write to a clean part exits; its vCPU's thread marks the
//! part in the log and reopens it, and the instruction is executed again. How large the part is, block of 2 MiB or page of 16 KiB,
//! is fixed or chosen block by block by [`BlockController`]. Execution is allowed throughout. The host's writes (virtio DMA, used rings, loaders) mark the same log behind the accessor
//! ([`DirtyHook`](crate::memory::DirtyHook)).
//!
//! # Why no write is missing from the next diff
//!
//! Claim: whenever no vCPU runs and no device works, a page whose bytes changed since the epoch began has its bit set, or the
//! epoch's protection kept the change from happening.
//!
//! 1. *Mark before open.* A fault marks the part first and opens it afterwards. So while a page is writable, its bit is set. It
//!    stays set until a checkpoint.
//! 2. *Protect before take.* A checkpoint happens while no vCPU runs: a thread in the middle of a fault finishes marking and
//!    opening before it stands still, and its store comes after the checkpoint, where it faults again. The checkpoint protects RAM first and
//!    takes the bits afterwards. Should protecting fail, nothing was taken and the old epoch goes on.
//! 3. *Host writes* are marked after the bytes are there, and devices are quiesced at a checkpoint, so no write and its mark are
//!    on two sides of it.
//! 4. *A change of granule* moves no bits, since the log always has one for each 16 KiB: it only decides how many of them one fault marks,
//!    and exactly what was marked is opened.
//! 5. *Several vCPUs in one part* set the same bits and open it again; both are idempotent, and a part whose bit is set already is
//!    opened all the same (after a failed diff, bits of protected pages are set).
//! 6. *A diff that is still being read* while the guest runs on keeps the bytes of a page before it is opened
//!    ([`frozen`](crate::frozen)): the mark above is for the next diff, the kept bytes are for this one.
//! 7. *A failed diff* puts its bits back ([`Taken`]) while the guest runs on: bits are only added, so 1 still holds.
//!
//! # What counts as a write
//!
//! Stage 2 never denies reading or executing RAM that is mapped, so a permission fault is a write whatever else the syndrome
//! says, with one exception: cache maintenance (CM) stores nothing. Cleaning needs no write permission; `DC IVAC` may, and is
//! skipped, because every agent of this machine sees the same coherent memory. Reopening for it without a mark would lose
//! later stores. A fault on a table walk (S1PTW) is the update of a descriptor by hardware (access flag, dirty state), of data
//! accesses, of address translation instructions and of fetches alike: a write to the descriptor's page.
//!
//! # Not writes
//!
//! A page that a restore puts into place holds the bytes of the snapshot that the next diff continues: it is clean. It comes into
//! place without write permission ([`MappedRam::arrival`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use squib_snapshot::{BlockController, DirtyBitmap, GranuleSteps, PageGeometry, PageSet, TrackingGranule};

use crate::config::DirtyGranule;
use crate::error::{Error, Result};
use crate::hv::stage2::{MappedRam, Permission};
use crate::memory::GRANULE;

/// Block and page of what a fault opens.
const GEOMETRY: PageGeometry = PageGeometry::APPLE_SILICON;
const _: () = assert!(GEOMETRY.tracking_page_hot == GRANULE);

/// The tracker of one machine's RAM.
#[derive(Debug)]
pub struct WriteTracker {
    mapped: Arc<MappedRam>,
    log: Arc<DirtyBitmap>,
    granules: Granules,
    faults: AtomicU64,
}

#[derive(Debug)]
enum Granules {
    Fixed(TrackingGranule),
    Adaptive(BlockController),
}

impl WriteTracker {
    /// For RAM that is writable. The first checkpoint begins the first epoch: before it there is no snapshot that a diff could continue.
    pub fn new(mapped: Arc<MappedRam>, log: Arc<DirtyBitmap>, granule: DirtyGranule) -> WriteTracker {
        let granules = match granule {
            DirtyGranule::Block => Granules::Fixed(TrackingGranule::Coarse),
            DirtyGranule::Page => Granules::Fixed(TrackingGranule::Fine),
            DirtyGranule::Adaptive => Granules::Adaptive(BlockController::new(mapped.ram().size(), GEOMETRY)),
        };
        WriteTracker { mapped, log, granules, faults: AtomicU64::new(0) }
    }

    /// Answers a write fault at `offset`, which is mapped: marks the part around it, keeps what a snapshot still needs of it, then
    /// opens it. Called by several vCPUs at once, also for the same part. `whole`: all of RAM is mapped. While it is not, the part
    /// is one granule: a block could have holes, and `hv_vm_protect` refuses those.
    ///
    /// `false`: nothing was done, the guest must wait a little for the snapshot's writer.
    pub fn open(&self, offset: u64, whole: bool) -> Result<bool> {
        let ram = self.mapped.ram();
        if ram.freezer().is_full() {
            return Ok(false);
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        let granule = match &self.granules {
            _ if !whole => TrackingGranule::Fine,
            Granules::Fixed(granule) => *granule,
            Granules::Adaptive(blocks) => blocks.record_fault(offset),
        };
        let size = granule.page_size(GEOMETRY);
        let start = offset / size * size;
        let len = size.min(ram.size() - start);
        self.log.set_range_dirty(ram.base() + start, len);
        let keep = |source| Error::System { action: "keep pages of the guest for a snapshot".into(), source };
        ram.freezer().keep(ram, start, len).map_err(keep)?;
        self.mapped.protect(start, len, Permission::ReadWriteExec)?;
        Ok(true)
    }

    /// Begins a new epoch and takes out what was written in the last one. While no vCPU runs, devices rest and no page comes into place.
    /// `protect` takes write permission from everything that is mapped.
    pub fn checkpoint(&self, protect: impl FnOnce() -> Result<()>) -> Result<Taken> {
        self.mapped.set_arrival(Permission::ReadExec);
        protect()?;
        let taken = self.log.take();
        let pages = taken.pages().clone();
        taken.commit();
        let steps = match &self.granules {
            Granules::Fixed(_) => GranuleSteps::default(),
            Granules::Adaptive(blocks) => {
                blocks.next_epoch(&pages);
                blocks.steps()
            }
        };
        let faults = self.faults.swap(0, Ordering::Relaxed);
        Ok(Taken { log: Arc::clone(&self.log), pages, faults, steps, committed: false })
    }
}

/// The pages written in an epoch, on their way into a snapshot. Dropped before [`Taken::commit`], it makes them dirty again: a
/// snapshot that failed loses nothing.
#[derive(Debug)]
pub struct Taken {
    log: Arc<DirtyBitmap>,
    pages: PageSet,
    faults: u64,
    steps: GranuleSteps,
    committed: bool,
}

impl Taken {
    /// The pages.
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// Their size.
    pub fn bytes(&self) -> u64 {
        self.pages.len() * self.pages.page_size()
    }

    /// Write faults of the epoch.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Changes of granule so far.
    pub fn steps(&self) -> GranuleSteps {
        self.steps
    }

    /// The snapshot that holds the pages is durable.
    pub fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.committed {
            self.log.merge(&self.pages);
        }
    }
}
