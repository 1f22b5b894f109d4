//! What is saved of a virtio device: the transport's registers, where its queues are and how far they have come, and what the
//! backend adds.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use crate::devices::blob;
use crate::error::Result;

const VERSION: u16 = 1;

/// A device's state.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub driver_features: u64,
    pub queue_sel: u32,
    pub status: u32,
    pub interrupt_status: u32,
    pub queues: Vec<SavedQueue>,
    /// What [`Backend::save`](super::Backend::save) wrote.
    pub backend: Vec<u8>,
}

/// A queue, as its driver set it up, and the position in it.
#[derive(Serialize, Deserialize)]
pub struct SavedQueue {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl Saved {
    /// Its bytes, as those of a device of this kind.
    pub fn encode(&self, kind: &str) -> Result<Vec<u8>> {
        blob::encode(kind, VERSION, self)
    }

    /// The state of a device of this kind.
    pub fn decode(kind: &str, blob: &[u8]) -> Result<Saved> {
        blob::decode(kind, VERSION, blob)
    }
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> SavedQueue {
        SavedQueue {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl From<&SavedQueue> for QueueState {
    fn from(saved: &SavedQueue) -> QueueState {
        QueueState {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        }
    }
}

/// The backend's part of a saved device state.
pub fn backend_state(kind: &str, blob: &[u8]) -> Result<Vec<u8>> {
    Ok(Saved::decode(kind, blob)?.backend)
}

/// Guest physical address and length of each ring of a saved device of ours; nothing of what is not one.
pub fn rings(kind: &str, blob: &[u8]) -> Vec<(u64, u64)> {
    let saved = Saved::decode(kind, blob).ok();
    let queues = saved.into_iter().flat_map(|saved| saved.queues).filter(|queue| queue.ready);
    let rings = queues.flat_map(|queue| {
        // virtio 1.2 §2.7: sixteen bytes a descriptor; two (available) and eight (used) bytes an entry, and a few more.
        let size = u64::from(queue.size);
        [(queue.desc_table, 16 * size), (queue.avail_ring, 6 + 2 * size), (queue.used_ring, 6 + 8 * size)]
    });
    rings.collect()
}
