//! The device tree: only what exists, because a kernel reads (and checksums) every byte of it early in boot.
//!
//! Bindings: Linux `Documentation/devicetree/bindings`. The MSI frame is not described: nothing here can send an MSI.

use squib_snapshot::MachineRecord;
use vm_fdt::FdtWriter;

use crate::error::{Error, Result};
use crate::layout;

const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 2;
const GIC_SPI: u32 = 0;
const GIC_PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// PPI numbers of the secure, non-secure, virtual and hypervisor timers (INTIDs 29, 30, 27, 26).
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
/// The UART's reference clock, Hz.
const UART_CLOCK: u32 = 24_000_000;

/// Name of the blob in a snapshot's machine record that says where the tree lies.
const RECORD: &str = "fdt";

/// Where a machine's device tree lies in its RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// IPA of its first byte.
    pub ipa: u64,
    /// Bytes.
    pub len: u64,
}

impl Place {
    /// Puts it into a snapshot's record: IPA and length, little-endian.
    pub fn record(self, record: &mut MachineRecord) {
        record.blobs.insert(RECORD.into(), [self.ipa.to_le_bytes(), self.len.to_le_bytes()].concat());
    }

    /// What a snapshot's record says. `None` for a snapshot that does not say: it only hastens a restore.
    pub fn recorded(record: &MachineRecord) -> Option<Place> {
        let (ipa, len) = record.blobs.get(RECORD)?.split_first_chunk()?;
        Some(Place { ipa: u64::from_le_bytes(*ipa), len: u64::from_le_bytes(len.try_into().ok()?) })
    }
}

/// What the tree describes.
#[derive(Debug)]
pub struct FdtConfig<'a> {
    /// Bytes of RAM at [`layout::RAM_BASE`].
    pub ram_size: u64,
    /// MPIDR_EL1 of each vCPU, boot vCPU first.
    pub mpidrs: &'a [u64],
    /// Redistributor regions: base and size.
    pub redistributors: &'a [(u64, u64)],
    /// Occupied virtio-mmio slots.
    pub virtio_slots: &'a [u32],
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Start and end of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// Entropy for the kernel's own generator.
    pub rng_seed: [u8; 32],
    /// Entropy for the kernel's placement.
    pub kaslr_seed: u64,
}

/// Builds the blob.
pub fn build(config: &FdtConfig<'_>) -> Result<Vec<u8>> {
    write(config).map_err(|e| Error::Fdt(e.to_string()))
}

fn write(config: &FdtConfig<'_>) -> Result<Vec<u8>, vm_fdt::Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
    fdt.property_string("compatible", "squib,microvm")?;
    fdt.property_string("model", "squib microVM")?;
    chosen(&mut fdt, config)?;

    let memory = fdt.begin_node(&format!("memory@{:x}", layout::RAM_BASE))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[layout::RAM_BASE, config.ram_size])?;
    fdt.end_node(memory)?;

    cpus(&mut fdt, config)?;

    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;

    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts: Vec<u32> = TIMER_PPIS.iter().flat_map(|&ppi| [GIC_PPI, ppi, LEVEL_HIGH]).collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)?;

    gic(&mut fdt, config)?;
    devices(&mut fdt, config)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> Result<(), vm_fdt::Error> {
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", config.cmdline)?;
    fdt.property_string("stdout-path", &format!("/pl011@{:x}", layout::UART))?;
    if let Some((start, end)) = config.initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.property("rng-seed", &config.rng_seed)?;
    fdt.property_u64("kaslr-seed", config.kaslr_seed)?;
    fdt.end_node(chosen)
}

fn cpus(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> Result<(), vm_fdt::Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for &mpidr in config.mpidrs {
        let affinity = layout::affinity(mpidr);
        let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", affinity)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

fn gic(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> Result<(), vm_fdt::Error> {
    let gic = fdt.begin_node(&format!("intc@{:x}", layout::GIC_DISTRIBUTOR))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_phandle(PHANDLE_GIC)?;
    let mut reg = vec![layout::GIC_DISTRIBUTOR, layout::GIC_DISTRIBUTOR_SIZE];
    reg.extend(config.redistributors.iter().flat_map(|&(base, size)| [base, size]));
    fdt.property_u32("#redistributor-regions", config.redistributors.len() as u32)?;
    fdt.property_array_u64("reg", &reg)?;
    fdt.end_node(gic)
}

fn devices(fdt: &mut FdtWriter, config: &FdtConfig<'_>) -> Result<(), vm_fdt::Error> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", UART_CLOCK)?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(clock)?;

    let uart = fdt.begin_node(&format!("pl011@{:x}", layout::UART))?;
    fdt.property_string_list("compatible", vec!["arm,pl011".into(), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &[layout::UART, layout::DEVICE_SIZE])?;
    fdt.property_array_u32("interrupts", &[GIC_SPI, layout::UART_SPI, LEVEL_HIGH])?;
    fdt.property_array_u32("clocks", &[PHANDLE_CLOCK, PHANDLE_CLOCK])?;
    fdt.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
    fdt.end_node(uart)?;

    let rtc = fdt.begin_node(&format!("pl031@{:x}", layout::RTC))?;
    fdt.property_string_list("compatible", vec!["arm,pl031".into(), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &[layout::RTC, layout::DEVICE_SIZE])?;
    fdt.property_array_u32("clocks", &[PHANDLE_CLOCK])?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(rtc)?;

    for &slot in config.virtio_slots {
        let base = layout::virtio_base(slot);
        let node = fdt.begin_node(&format!("virtio_mmio@{base:x}"))?;
        fdt.property_string("compatible", "virtio,mmio")?;
        fdt.property_array_u64("reg", &[base, layout::DEVICE_SIZE])?;
        fdt.property_array_u32("interrupts", &[GIC_SPI, layout::VIRTIO_SPI + slot, LEVEL_HIGH])?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(node)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> FdtConfig<'static> {
        FdtConfig {
            ram_size: 512 << 20,
            mpidrs: &[0x8000_0000, 0x8000_0001],
            redistributors: &[(0x1000_0000, 0x4_0000)],
            virtio_slots: &[0, 3],
            cmdline: "console=ttyAMA0 root=/dev/vda",
            initrd: Some((0x4400_0000, 0x4480_0000)),
            rng_seed: [7; 32],
            kaslr_seed: 1,
        }
    }

    #[test]
    fn the_tree_is_small_and_names_what_exists() {
        let blob = build(&config()).unwrap();
        assert_eq!(&blob[..4], &[0xd0, 0x0d, 0xfe, 0xed]);
        assert!(blob.len() < 4096, "{} bytes", blob.len());
        let text = String::from_utf8_lossy(&blob);
        for name in
            ["cpu@1", "virtio_mmio@a003000", "pl011@9000000", "console=ttyAMA0 root=/dev/vda", "linux,initrd-end"]
        {
            assert!(text.contains(name), "{name}");
        }
        assert!(!text.contains("cpu@2") && !text.contains("virtio_mmio@a001000"));
    }

    #[test]
    fn its_place_is_recorded() {
        let (place, mut record) = (Place { ipa: 0x4220_0000, len: 3210 }, MachineRecord::default());
        assert_eq!(Place::recorded(&record), None);
        place.record(&mut record);
        assert_eq!(Place::recorded(&record), Some(place));
        record.blobs.insert(RECORD.into(), vec![1; 15]);
        assert_eq!(Place::recorded(&record), None);
    }

    #[test]
    fn a_command_line_with_a_nul_is_refused() {
        assert!(build(&FdtConfig { cmdline: "a\0b", ..config() }).is_err());
    }
}
