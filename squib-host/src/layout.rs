//! The guest physical address space: where everything is, and which interrupt belongs to whom.
//!
//! | IPA | size | what |
//! |---|---|---|
//! | `0x0800_0000` | 64 KiB | GIC distributor |
//! | `0x0801_0000` | 64 KiB | GIC MSI frame (configured so that the framework keeps GIC accesses to itself; nothing sends MSIs) |
//! | `0x0900_0000` | 4 KiB | PL011 UART |
//! | `0x0901_0000` | 4 KiB | PL031 real-time clock |
//! | `0x0a00_0000` | 32 × 4 KiB | virtio-mmio slots |
//! | `0x1000_0000` | up to 512 MiB | GIC redistributors (128 KiB a vCPU; the framework reserves about 32 MiB) |
//! | `0x3800_0000` | 16 KiB | a page that measures the counter before the guest runs, then nothing |
//! | `0x4000_0000` | up to 1 TiB | RAM |
//!
//! Everything below RAM is never mapped at stage 2, so an access there is an MMIO exit. Interrupts: SPI `n` has INTID `32 + n`.

/// GIC distributor.
pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
/// GIC MSI frame.
pub const GIC_MSI_FRAME: u64 = 0x0801_0000;
/// GIC redistributors.
pub const GIC_REDISTRIBUTORS: u64 = 0x1000_0000;
/// End of the room for GIC redistributors.
pub const GIC_REDISTRIBUTORS_END: u64 = 0x3000_0000;
/// Bytes of one redistributor: its RD and SGI frames.
pub const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Bytes of the distributor's frame.
pub const GIC_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// INTID of SPI 0.
pub const SPI_BASE: u32 = 32;

/// PL011 UART.
pub const UART: u64 = 0x0900_0000;
/// PL011's SPI.
pub const UART_SPI: u32 = 1;
/// PL031 real-time clock.
pub const RTC: u64 = 0x0901_0000;
/// Bytes of a device's register frame.
pub const DEVICE_SIZE: u64 = 0x1000;

/// First virtio-mmio slot.
pub const VIRTIO: u64 = 0x0a00_0000;
/// Number of virtio-mmio slots.
pub const VIRTIO_SLOTS: u32 = 32;
/// SPI of virtio-mmio slot 0; slot `n` has `VIRTIO_SPI + n`.
pub const VIRTIO_SPI: u32 = 16;

/// Number of INTIDs at the top of the SPI range set aside for MSIs.
pub const MSI_INTIDS: u32 = 64;

/// Where the two instructions run that measure the counter.
pub const PROBE: u64 = 0x3800_0000;

/// Start of RAM.
pub const RAM_BASE: u64 = 0x4000_0000;
/// The most RAM a machine can have.
pub const RAM_MAX: u64 = 1 << 40;
/// The most vCPUs a machine can have.
pub const VCPU_MAX: u32 = 32;

/// Base of virtio-mmio slot `slot`.
pub const fn virtio_base(slot: u32) -> u64 {
    VIRTIO + slot as u64 * DEVICE_SIZE
}

/// MPIDR_EL1 of vCPU `index`: 16 processing elements to a cluster, the most one SGI target list can address.
pub const fn mpidr(index: u32) -> u64 {
    0x8000_0000 | ((index as u64 >> 4) << 8) | (index as u64 & 0xf)
}

/// The affinity fields of an MPIDR value, as PSCI and the device tree's `reg` use them.
pub const fn affinity(mpidr: u64) -> u64 {
    mpidr & 0xff_00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap() {
        let mut regions = [
            (GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_SIZE),
            (GIC_MSI_FRAME, 0x1_0000),
            (UART, DEVICE_SIZE),
            (RTC, DEVICE_SIZE),
            (VIRTIO, u64::from(VIRTIO_SLOTS) * DEVICE_SIZE),
            (GIC_REDISTRIBUTORS, GIC_REDISTRIBUTORS_END - GIC_REDISTRIBUTORS),
            (PROBE, 0x4000),
            (RAM_BASE, RAM_MAX),
        ];
        regions.sort();
        for pair in regions.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:#x} runs into {:#x}", pair[0].0, pair[1].0);
        }
        assert!(u64::from(VCPU_MAX) * GIC_REDISTRIBUTOR_SIZE <= GIC_REDISTRIBUTORS_END - GIC_REDISTRIBUTORS);
    }

    #[test]
    fn affinities_are_distinct_and_sgi_addressable() {
        let all: std::collections::BTreeSet<u64> = (0..VCPU_MAX).map(|n| affinity(mpidr(n))).collect();
        assert_eq!(all.len(), VCPU_MAX as usize);
        assert!(all.iter().all(|a| a & 0xff < 16));
    }
}
