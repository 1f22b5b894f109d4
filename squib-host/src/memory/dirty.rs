//! Host writes to guest RAM mark the same dirty bitmap that guest writes do.
//!
//! Every write through [`GuestMemory`](super::GuestMemory) (virtio DMA, used rings, loaders) passes a `vm_memory::Bitmap`; this is
//! ours. It marks before nobody: `vm-memory` calls it after the bytes are written, and a snapshot is only taken when devices
//! are quiesced, so a write and its mark are never on two sides of a snapshot.

use std::sync::Arc;

use squib_snapshot::DirtyBitmap;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

/// Marks ranges of one RAM region; without a bitmap it does nothing.
#[derive(Clone, Debug, Default)]
pub struct DirtyHook {
    bitmap: Option<Arc<DirtyBitmap>>,
    /// IPA of offset 0.
    base: u64,
}

impl DirtyHook {
    /// A hook for a region (or a part of one) that starts at IPA `base`.
    pub fn new(bitmap: Option<Arc<DirtyBitmap>>, base: u64) -> Self {
        DirtyHook { bitmap, base }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyHook {
    type S = DirtyHook;
}

impl BitmapSlice for DirtyHook {}

impl Bitmap for DirtyHook {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(bitmap) = &self.bitmap {
            bitmap.set_range_dirty(self.base + offset as u64, len as u64);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bitmap.as_ref().is_some_and(|b| b.is_dirty(self.base + offset as u64))
    }

    fn slice_at(&self, offset: usize) -> DirtyHook {
        DirtyHook { bitmap: self.bitmap.clone(), base: self.base + offset as u64 }
    }
}
