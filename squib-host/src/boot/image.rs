//! arm64 kernel images (Linux `Documentation/arch/arm64/booting.rst`): the raw `Image`, the same compressed, and the EFI
//! zboot wrapper that distributions ship.

use super::decompress::{Compression, KERNEL_MAX};

/// An unpacked `Image` and where its header wants it.
#[derive(Debug)]
pub struct KernelImage {
    /// The bytes to load.
    pub data: Vec<u8>,
    /// Offset of the load address from a 2 MiB boundary.
    pub text_offset: u64,
    /// Bytes from the load address that the kernel uses before it knows of any memory, BSS included.
    pub image_size: u64,
}

/// Size of the `Image` header.
const HEADER: usize = 64;
/// Kernels before 3.17 leave `image_size` zero and are loaded here.
const LEGACY_TEXT_OFFSET: u64 = 0x8_0000;

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

impl KernelImage {
    /// Recognises and unpacks a kernel file.
    pub fn parse(file: Vec<u8>) -> Result<KernelImage, String> {
        let mut data = file;
        // A zboot payload may itself be wrapped once; anything deeper is not a kernel.
        for _ in 0..3 {
            if let Some(compression) = Compression::detect(&data) {
                data = compression.unpack(&data)?;
            } else if data.get(4..8) == Some(b"zimg") {
                data = unpack_zboot(&data)?;
            } else {
                return Self::parse_raw(data);
            }
        }
        Err("it is compressed more than twice".into())
    }

    fn parse_raw(data: Vec<u8>) -> Result<KernelImage, String> {
        if data.len() < HEADER || &data[0x38..0x3c] != b"ARM\x64" {
            return Err(describe_foreign(&data));
        }
        if data.len() > KERNEL_MAX {
            return Err(format!("it is larger than {} MiB", KERNEL_MAX >> 20));
        }
        if let Some(len) = announced_len(&data).filter(|len| *len > data.len()) {
            return Err(format!("it is cut short: {} bytes of {len} or more are there", data.len()));
        }
        let text_offset = u64_at(&data, 0x8).unwrap_or(0);
        let image_size = u64_at(&data, 0x10).unwrap_or(0);
        let flags = u64_at(&data, 0x18).unwrap_or(0);
        if flags & 1 != 0 {
            return Err("it is a big-endian kernel; build it little-endian".into());
        }
        let (text_offset, image_size) =
            if image_size == 0 { (LEGACY_TEXT_OFFSET, data.len() as u64) } else { (text_offset, image_size) };
        if text_offset >= 2 << 20 || !text_offset.is_multiple_of(4) || image_size > KERNEL_MAX as u64 {
            return Err(format!("its header is damaged (text offset {text_offset:#x}, image size {image_size:#x})"));
        }
        let image_size = image_size.max(data.len() as u64);
        Ok(KernelImage { data, text_offset, image_size })
    }
}

/// How long an `Image` that is an EFI application too must be by its PE header: to the end of the last section in the file.
fn announced_len(data: &[u8]) -> Option<usize> {
    let header = data.starts_with(b"MZ").then(|| u32_at(data, 0x3c))?? as usize;
    match data.get(header..header + 4) {
        None => return Some(header + 4),
        Some(b"PE\0\0") => {}
        Some(_) => return None,
    }
    let (Some(sections), Some(optional)) = (u16_at(data, header + 6), u16_at(data, header + 20)) else {
        return Some(header + 22);
    };
    let table = header + 24 + usize::from(optional);
    let end = |section: usize| match (u32_at(data, table + 40 * section + 16), u32_at(data, table + 40 * section + 20))
    {
        (Some(size), Some(start)) => size as usize + start as usize,
        _ => table + 40 * (section + 1),
    };
    (0..usize::from(sections)).map(end).max()
}

/// EFI zboot (Linux `drivers/firmware/efi/libstub/zboot-header.S`): `MZ`, "zimg" at 4, payload offset at 8, size at 12,
/// name of the compression at 24.
fn unpack_zboot(data: &[u8]) -> Result<Vec<u8>, String> {
    let damaged = || "its EFI zboot header points outside the file".to_string();
    let start = u32_at(data, 8).ok_or_else(damaged)? as usize;
    let len = u32_at(data, 12).ok_or_else(damaged)? as usize;
    let payload = start.checked_add(len).and_then(|end| data.get(start..end)).ok_or_else(damaged)?;
    let name = data.get(24..56).ok_or_else(damaged)?;
    let name = name.split(|&b| b == 0).next().unwrap_or_default();
    Compression::from_zboot_name(&String::from_utf8_lossy(name))?.unpack(payload)
}

fn describe_foreign(data: &[u8]) -> String {
    match data {
        [0x7f, b'E', b'L', b'F', ..] => "it is an ELF file; give arch/arm64/boot/Image instead of vmlinux".into(),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "it is compressed with xz; unpack it first".into(),
        _ if data.get(0x202..0x206) == Some(b"HdrS") => "it is an x86 kernel; an arm64 one is needed".into(),
        _ => "it is not an arm64 kernel Image (no ARM\\x64 magic at 0x38)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(len: usize) -> Vec<u8> {
        let mut data = vec![0x5a; len];
        data[8..16].copy_from_slice(&0u64.to_le_bytes());
        data[16..24].copy_from_slice(&0x20_0000u64.to_le_bytes());
        data[24..32].copy_from_slice(&0xau64.to_le_bytes());
        data[0x38..0x3c].copy_from_slice(b"ARM\x64");
        data
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn zboot(payload: &[u8], name: &str) -> Vec<u8> {
        let mut data = vec![0; 0x200];
        data[..2].copy_from_slice(b"MZ");
        data[4..8].copy_from_slice(b"zimg");
        data[8..12].copy_from_slice(&0x200u32.to_le_bytes());
        data[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        data[24..24 + name.len()].copy_from_slice(name.as_bytes());
        data.extend_from_slice(payload);
        data
    }

    #[test]
    fn every_wrapping_unpacks_to_the_same_image() {
        let raw = image(100_000);
        let mut gz = gzip(&raw);
        gz.extend_from_slice(&[1, 2, 3, 4]);
        for file in [raw.clone(), gz, zstd(&raw), zboot(&gzip(&raw), "gzip"), zboot(&zstd(&raw), "zstd22")] {
            let kernel = KernelImage::parse(file).unwrap();
            assert_eq!(kernel.data, raw);
            assert_eq!((kernel.text_offset, kernel.image_size), (0, 0x20_0000));
        }
    }

    #[test]
    fn a_header_without_a_size_is_an_old_kernel() {
        let mut raw = image(4096);
        raw[16..24].fill(0);
        let kernel = KernelImage::parse(raw).unwrap();
        assert_eq!((kernel.text_offset, kernel.image_size), (LEGACY_TEXT_OFFSET, 4096));
    }

    #[test]
    fn a_kernel_that_is_cut_short_is_told_by_its_sections() {
        // MZ, the PE header at 0x40 with two sections and no optional header; the second section ends at 3000.
        let mut raw = image(3000);
        raw[..2].copy_from_slice(b"MZ");
        raw[0x3c..0x40].copy_from_slice(&0x40u32.to_le_bytes());
        raw[0x40..0x44].copy_from_slice(b"PE\0\0");
        raw[0x46..0x48].copy_from_slice(&2u16.to_le_bytes());
        raw[0x54..0x56].copy_from_slice(&0u16.to_le_bytes());
        for (section, size, start) in [(0x58, 1000u32, 500u32), (0x80, 1000, 2000)] {
            raw[section + 16..section + 20].copy_from_slice(&size.to_le_bytes());
            raw[section + 20..section + 24].copy_from_slice(&start.to_le_bytes());
        }
        assert_eq!(KernelImage::parse(raw.clone()).unwrap().data, raw);
        for len in [2999, 2001, 0x90, 0x50, 0x42, 0x40] {
            let error = KernelImage::parse(raw[..len].to_vec()).unwrap_err();
            assert!(error.contains("cut short") && error.contains(&format!("{len} bytes")), "{len}: {error}");
        }
        // No EFI application: nothing tells how long it must be.
        raw[0x40] = 0;
        KernelImage::parse(raw[..2000].to_vec()).unwrap();
    }

    #[test]
    fn what_is_not_a_kernel_is_named() {
        let refusal = |data: Vec<u8>| KernelImage::parse(data).unwrap_err();
        assert!(refusal(vec![]).contains("not an arm64 kernel"));
        assert!(refusal(b"\x7fELF and more".to_vec()).contains("ELF"));
        assert!(refusal(vec![0x1f, 0x8b, 8, 0, 0]).contains("gzip"));
        assert!(refusal(zstd(&[0; 10])[..8].to_vec()).contains("zstd"));
        assert!(refusal(zboot(&[0; 4], "lzma")).contains("lzma"));
        let mut cut = zboot(&gzip(&image(4096)), "gzip");
        cut.truncate(0x210);
        assert!(refusal(cut).contains("outside the file"));
        let mut big_endian = image(4096);
        big_endian[24] = 1;
        assert!(refusal(big_endian).contains("big-endian"));
        let mut odd = image(4096);
        odd[8] = 1;
        assert!(refusal(odd).contains("header is damaged"));
        assert!(refusal(gzip(&gzip(&gzip(&gzip(&image(100)))))).contains("more than twice"));
    }
}
