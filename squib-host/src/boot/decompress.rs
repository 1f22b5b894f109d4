//! Compressed kernels: recognised by their magic, unpacked with a bound, so that a small file cannot fill the host's memory.

use std::io::Read;

/// No kernel is larger than this; a stream that unpacks to more is refused.
pub const KERNEL_MAX: usize = 512 << 20;

/// A compression format we can unpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Recognises a stream by its first bytes.
    pub fn detect(data: &[u8]) -> Option<Compression> {
        match data {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The format by the name an EFI zboot header gives it.
    pub fn from_zboot_name(name: &str) -> Result<Compression, String> {
        match name {
            "gzip" => Ok(Compression::Gzip),
            "zstd22" | "zstd" => Ok(Compression::Zstd),
            other => Err(format!("its payload is compressed with `{other}`; gzip and zstd are understood")),
        }
    }

    /// Unpacks the whole stream. Bytes after its end are ignored (kernel builds append the size).
    pub fn unpack(self, data: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        match self {
            Compression::Gzip => {
                let mut decoder = flate2::bufread::GzDecoder::new(data).take(KERNEL_MAX as u64 + 1);
                decoder.read_to_end(&mut out).map_err(|e| format!("its gzip stream is damaged: {e}"))?;
            }
            Compression::Zstd => {
                let damaged = |e: &dyn std::fmt::Display| format!("its zstd stream is damaged: {e}");
                let mut decoder =
                    ruzstd::decoding::StreamingDecoder::new(data).map_err(|e| damaged(&e))?.take(KERNEL_MAX as u64 + 1);
                decoder.read_to_end(&mut out).map_err(|e| damaged(&e))?;
            }
        }
        if out.len() > KERNEL_MAX {
            return Err(format!("it unpacks to more than {} MiB", KERNEL_MAX >> 20));
        }
        Ok(out)
    }
}
