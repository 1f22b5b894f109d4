//! Entropy device (virtio 1.2 §5.4): fills every buffer it is given.

use std::fs::File;
use std::io::{self, Read, Write};

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Backend, Chain};
use crate::devices::blob;
use crate::error::{Error, Result};
use crate::memory::GuestMemory;

/// The most handed out for one request; a larger buffer is filled in part, which the protocol allows.
const REQUEST_MAX: usize = 64 << 10;
const VERSION: u16 = 1;

/// Where random bytes come from.
#[derive(Debug)]
pub enum Entropy {
    /// The operating system.
    System(File),
    /// SplitMix64 from a fixed seed: the same bytes every time, for deterministic machines. Its state is saved.
    Seeded(u64),
}

impl Entropy {
    /// The operating system's entropy.
    pub fn system() -> Result<Entropy> {
        let open = |source| Error::File { action: "open", path: "/dev/urandom".into(), source };
        Ok(Entropy::System(File::open("/dev/urandom").map_err(open)?))
    }

    /// Fills `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Entropy::System(file) => file.read_exact(buf),
            Entropy::Seeded(state) => {
                for chunk in buf.chunks_mut(8) {
                    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let mut z = *state;
                    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                    chunk.copy_from_slice(&(z ^ z >> 31).to_le_bytes()[..chunk.len()]);
                }
                Ok(())
            }
        }
    }
}

/// The device.
#[derive(Debug)]
pub struct Rng {
    entropy: Entropy,
}

impl Rng {
    /// A device handing out `entropy`.
    pub fn new(entropy: Entropy) -> Rng {
        Rng { entropy }
    }
}

impl Backend for Rng {
    fn kind(&self) -> &'static str {
        "virtio-rng"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> usize {
        1
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn execute(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> io::Result<u32> {
        let mut writer = chain.writer(memory).map_err(io::Error::other)?;
        let mut buf = vec![0; writer.available_bytes().min(REQUEST_MAX)];
        self.entropy.fill(&mut buf)?;
        writer.write_all(&buf)?;
        Ok(buf.len() as u32)
    }

    fn save(&self) -> Result<Vec<u8>> {
        let seed = match self.entropy {
            Entropy::System(_) => None,
            Entropy::Seeded(state) => Some(state),
        };
        blob::encode(self.kind(), VERSION, &seed)
    }

    fn restore(&mut self, blob: &[u8]) -> Result<()> {
        let saved: Option<u64> = blob::decode(self.kind(), VERSION, blob)?;
        if let (Entropy::Seeded(state), Some(saved)) = (&mut self.entropy, saved) {
            *state = saved;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_entropy_goes_on_where_it_was_saved() {
        let mut first = Rng::new(Entropy::Seeded(1));
        let mut buf = [0; 13];
        first.entropy.fill(&mut buf).unwrap();
        let mut second = Rng::new(Entropy::Seeded(1));
        second.restore(&first.save().unwrap()).unwrap();
        let (mut a, mut b) = ([0; 32], [0; 32]);
        first.entropy.fill(&mut a).unwrap();
        second.entropy.fill(&mut b).unwrap();
        assert_eq!(a, b);
        assert_ne!(a[..13], buf);
    }
}
