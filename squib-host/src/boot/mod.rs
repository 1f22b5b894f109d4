//! Loading: where kernel, device tree and initial RAM disk go, and the bytes put there.
//!
//! From the start of RAM: the kernel (with room for its BSS), the device tree on the next 2 MiB boundary, the initial RAM
//! disk behind it. All three are within the 1 GiB window the boot protocol asks for, whatever the size of RAM.

mod decompress;
pub mod fdt;
mod image;

use std::ffi::c_void;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::{Error, Result};
use crate::files;
use crate::layout::RAM_BASE;
use crate::memory::GuestMemory;
use decompress::KERNEL_MAX;
use image::KernelImage;

/// Room for the device tree.
const FDT_MAX: u64 = 64 << 10;
const FDT_ALIGN: u64 = 2 << 20;

/// What has been loaded, and where the device tree must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// IPA of the first instruction.
    pub entry: u64,
    /// IPA of the device tree.
    pub fdt: u64,
    /// Start and end of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
}

/// Loads the kernel and the initial RAM disk into RAM of `ram_size` bytes.
pub fn load(memory: &GuestMemory, ram_size: u64, kernel: &Path, initrd: Option<&Path>) -> Result<Loaded> {
    let image = KernelImage::parse(files::read("read the kernel", kernel, KERNEL_MAX as u64)?)
        .map_err(|reason| Error::Kernel { path: kernel.into(), reason })?;
    let initrd = initrd.map(|path| read_initrd(path, ram_size)).transpose()?;
    let place = |what: &str, needed: u64| {
        if needed <= ram_size {
            return Ok(());
        }
        let mib = needed.div_ceil(1 << 20);
        Err(Error::Config(format!("{what} needs at least {mib} MiB of RAM; the machine has {} MiB", ram_size >> 20)))
    };

    let entry = RAM_BASE + image.text_offset;
    let fdt = (entry + image.image_size).next_multiple_of(FDT_ALIGN);
    place("this kernel", fdt + FDT_MAX - RAM_BASE)?;
    write(memory, "the kernel", entry, &image.data)?;
    forget_instructions(memory, entry, image.data.len());

    let initrd = match initrd {
        None => None,
        Some(data) => {
            let start = fdt + FDT_MAX;
            let end = start + data.len() as u64;
            place("this kernel with this initial RAM disk", end - RAM_BASE)?;
            write(memory, "the initial RAM disk", start, &data)?;
            Some((start, end))
        }
    };
    Ok(Loaded { entry, fdt, initrd })
}

fn read_initrd(path: &Path, ram_size: u64) -> Result<Vec<u8>> {
    let data = files::read("read the initial RAM disk", path, ram_size.max(KERNEL_MAX as u64))?;
    if data.is_empty() {
        return Err(Error::Config(format!("the initial RAM disk {} is empty", path.display())));
    }
    Ok(data)
}

/// Puts the device tree where [`load`] left room for it.
pub fn load_fdt(memory: &GuestMemory, loaded: &Loaded, blob: &[u8]) -> Result<()> {
    if blob.len() as u64 > FDT_MAX {
        return Err(Error::Fdt(format!("{} bytes, more than the {FDT_MAX} set aside", blob.len())));
    }
    write(memory, "the device tree", loaded.fdt, blob)
}

fn write(memory: &GuestMemory, what: &'static str, address: u64, data: &[u8]) -> Result<()> {
    memory.write_slice(data, GuestAddress(address)).map_err(|_| Error::GuestMemory {
        what,
        address,
        len: data.len() as u64,
    })
}

/// The boot protocol wants no instruction cache to have anything older of where the kernel is. The data caches have nothing to be written
/// back for: what the host has stored, the guest's first fetches and loads find, with its MMU still off.
fn forget_instructions(memory: &GuestMemory, address: u64, len: usize) {
    if let Ok(kernel) = memory.get_slice(GuestAddress(address), len) {
        // SAFETY: mapped memory of this process, `len` bytes of it, which was just written and is only named.
        unsafe { sys_icache_invalidate(kernel.ptr_guard().as_ptr().cast_mut().cast(), len) };
    }
}

#[cfg(all(target_arch = "aarch64", target_vendor = "apple"))]
unsafe extern "C" {
    fn sys_icache_invalidate(start: *mut c_void, len: usize);
}

/// The stand-in keeps no instructions of what was never executed.
#[cfg(not(all(target_arch = "aarch64", target_vendor = "apple")))]
unsafe fn sys_icache_invalidate(_start: *mut c_void, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;

    fn kernel_file(name: &str, image_size: u64) -> std::path::PathBuf {
        let mut data = vec![0; 4096];
        data[16..24].copy_from_slice(&image_size.to_le_bytes());
        data[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let path = std::env::temp_dir().join(format!("squib-boot-{}-{name}", std::process::id()));
        std::fs::write(&path, data).unwrap();
        path
    }

    #[test]
    fn parts_do_not_overlap_and_fit() {
        let kernel = kernel_file("fit", 5 << 20);
        let ram = GuestRam::new(RAM_BASE, 16 << 20, false).unwrap();
        let memory = ram.guest_memory().unwrap();
        let loaded = load(&memory, ram.size(), &kernel, Some(&kernel)).unwrap();
        std::fs::remove_file(kernel).unwrap();
        assert_eq!(loaded.entry, RAM_BASE);
        assert_eq!(loaded.fdt, RAM_BASE + (6 << 20));
        assert_eq!(loaded.initrd, Some((loaded.fdt + FDT_MAX, loaded.fdt + FDT_MAX + 4096)));
        load_fdt(&memory, &loaded, &[1, 2, 3]).unwrap();
        assert_eq!(memory.read_obj::<[u8; 3]>(GuestAddress(loaded.fdt)).unwrap(), [1, 2, 3]);
        assert!(load_fdt(&memory, &loaded, &vec![0; FDT_MAX as usize + 1]).is_err());
    }

    #[test]
    fn too_little_ram_is_said_with_the_amount_needed() {
        let kernel = kernel_file("small", 20 << 20);
        let ram = GuestRam::new(RAM_BASE, 16 << 20, false).unwrap();
        let error = load(&ram.guest_memory().unwrap(), ram.size(), &kernel, None).unwrap_err().to_string();
        std::fs::remove_file(kernel).unwrap();
        assert!(error.contains("at least 21 MiB"), "{error}");
    }
}
