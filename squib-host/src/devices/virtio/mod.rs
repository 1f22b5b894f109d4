//! Virtio devices: a transport that every device shares, and what each of them does with a request.

pub mod block;
pub mod mmio;
pub mod rng;
pub mod saved;

#[cfg(test)]
mod tests;

use std::io;

use virtio_queue::DescriptorChain;

use crate::error::Result;
use crate::memory::GuestMemory;

/// A request, as the queue hands it over.
pub type Chain<'a> = DescriptorChain<&'a GuestMemory>;

/// What a virtio device is, apart from its transport.
pub trait Backend: Send {
    /// Class name, the `kind` of its saved state.
    fn kind(&self) -> &'static str;
    /// Virtio device id (virtio 1.2 §5).
    fn device_id(&self) -> u32;
    /// Feature bits beside those of the transport and the ring.
    fn features(&self) -> u64;
    /// Number of queues.
    fn queues(&self) -> usize;
    /// The device's configuration space.
    fn config(&self) -> Vec<u8>;
    /// Executes one request and answers with the number of bytes written into it. An error means that the driver broke the
    /// protocol, so that no status could be given: the device then asks to be reset.
    fn execute(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> io::Result<u32>;
    /// What must survive beside the transport's state.
    fn save(&self) -> Result<Vec<u8>>;
    /// Takes over what [`Backend::save`] wrote.
    fn restore(&mut self, blob: &[u8]) -> Result<()>;
}
