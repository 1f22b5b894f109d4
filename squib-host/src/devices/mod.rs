//! Devices, and the bus that MMIO exits are answered from.

pub mod blob;
pub mod console;
pub mod pl011;
pub mod pl031;
pub mod virtio;

use std::fmt;
use std::sync::Arc;

use crate::error::Result;

/// A device with a frame of registers. Called from every vCPU's thread.
pub trait Device: Send + Sync + fmt::Debug {
    /// What class of device this is; also the `kind` of its saved state.
    fn kind(&self) -> &'static str;
    /// Reads a register of `size` bytes (1, 2, 4 or 8).
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Writes a register of `size` bytes (1, 2, 4 or 8).
    fn write(&self, offset: u64, size: u8, value: u64);
    /// The whole state. Only called while the device is quiesced and no vCPU runs.
    fn save(&self) -> Result<Vec<u8>>;
    /// Takes over a saved state. Only called before anything runs.
    fn restore(&self, blob: &[u8]) -> Result<()>;
    /// Stops whatever the device does on its own, at a point where its state is whole.
    fn quiesce(&self) {}
    /// Goes on after [`Device::quiesce`] or [`Device::restore`], and drives the interrupt line as the state says.
    fn resume(&self) {}
}

/// Where interrupt lines end.
pub trait InterruptController: Send + Sync {
    /// Drives the line of an SPI, given by INTID.
    fn set_spi(&self, intid: u32, level: bool);
}

/// One device's level-sensitive interrupt line.
#[derive(Clone)]
pub struct IrqLine {
    controller: Arc<dyn InterruptController>,
    intid: u32,
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.intid)
    }
}

impl IrqLine {
    /// The line of SPI `intid`.
    pub fn new(controller: Arc<dyn InterruptController>, intid: u32) -> Self {
        IrqLine { controller, intid }
    }

    /// Drives the line.
    pub fn set(&self, level: bool) {
        self.controller.set_spi(self.intid, level);
    }
}

/// A device and where it is.
#[derive(Debug)]
pub struct Attached {
    /// IPA of its frame.
    pub base: u64,
    /// Bytes of its frame.
    pub size: u64,
    /// Its slot, for virtio devices their mmio slot.
    pub slot: u32,
    /// Name, unique in the machine.
    pub id: String,
    /// The device.
    pub device: Arc<dyn Device>,
}

/// All devices of a machine.
#[derive(Debug, Default)]
pub struct Bus {
    attached: Vec<Attached>,
}

impl Bus {
    /// Adds a device.
    pub fn attach(&mut self, attached: Attached) {
        self.attached.push(attached);
    }

    /// The device whose frame holds `address`, and the offset in it.
    pub fn find(&self, address: u64) -> Option<(&Arc<dyn Device>, u64)> {
        self.attached.iter().find(|a| address.wrapping_sub(a.base) < a.size).map(|a| (&a.device, address - a.base))
    }

    /// All devices, in the order they were attached.
    pub fn iter(&self) -> impl Iterator<Item = &Attached> {
        self.attached.iter()
    }
}

/// An AMBA PrimeCell's identification registers: offsets 0xfe0 to 0xffc of its frame.
pub(crate) fn primecell_id(id: &[u8; 8], offset: u64) -> Option<u64> {
    (0xfe0..0x1000).contains(&offset).then(|| u64::from(id[(offset as usize - 0xfe0) / 4]))
}

#[cfg(test)]
pub(crate) mod testing {
    //! An interrupt controller that remembers.

    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use super::{InterruptController, IrqLine};

    #[derive(Default)]
    pub struct Lines(Mutex<BTreeMap<u32, bool>>);

    impl InterruptController for Lines {
        fn set_spi(&self, intid: u32, level: bool) {
            self.0.lock().unwrap().insert(intid, level);
        }
    }

    impl Lines {
        pub fn new() -> Arc<Lines> {
            Arc::new(Lines::default())
        }

        pub fn line(self: &Arc<Self>, intid: u32) -> IrqLine {
            IrqLine::new(self.clone(), intid)
        }

        pub fn level(&self, intid: u32) -> bool {
            self.0.lock().unwrap().get(&intid).copied().unwrap_or(false)
        }
    }
}
