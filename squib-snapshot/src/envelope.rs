//! The envelope of a state file: header, data, CRC-64 trailer.
//!
//! A file is the bitcode encoding of a [`Snapshot`] followed by the CRC-64 (Redis/"Jones" variant) of those bytes,
//! little-endian. The trailer is checked before anything is decoded, and then magic and version before the data: both
//! stand at fixed places ([`peek_header`]), so that a file of another version is refused as such whatever its data are.

use std::io::{self, Read, Write};

use crc_fast::{CrcAlgorithm, Digest};
use semver::Version;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Result, SnapshotError};

/// Magic of aarch64 snapshots.
pub const SNAPSHOT_MAGIC_AARCH64: u64 = 0x0710_1984_AAAA_0000;

/// Version that [`Snapshot::new`] stamps and the newest that [`Snapshot::load`] accepts. Files with identity, checksums
/// and page sets are [`SNAPSHOT_VERSION_RECORD`](crate::SNAPSHOT_VERSION_RECORD); [`load`](crate::load()) and
/// [`StateFile`](crate::StateFile) read both.
pub const SNAPSHOT_VERSION: Version = Version::new(5, 0, 0);

/// Largest state file that is read, trailer included.
pub const SNAPSHOT_DESERIALIZATION_BYTES_LIMIT: usize = 10_000_000;

const TRAILER: usize = 8;

/// Magic of the architecture squib snapshots: aarch64, whatever this program runs on.
#[must_use]
pub const fn arch_magic() -> u64 {
    SNAPSHOT_MAGIC_AARCH64
}

/// First part of every state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHdr {
    /// [`SNAPSHOT_MAGIC_AARCH64`].
    pub magic: u64,
    /// Version of the format of the data.
    pub version: Version,
}

/// A header and the data it describes.
///
/// ```
/// use squib_snapshot::{MicrovmState, Snapshot};
/// let mut file = Vec::new();
/// Snapshot::new(MicrovmState::default()).save(&mut file)?;
/// assert_eq!(file.len(), 37);
/// let back: Snapshot<MicrovmState> = Snapshot::load(&mut file.as_slice())?;
/// assert_eq!(back.data, MicrovmState::default());
/// # Ok::<(), squib_snapshot::SnapshotError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot<Data> {
    /// Magic and version.
    pub header: SnapshotHdr,
    /// The payload.
    pub data: Data,
}

impl<Data> Snapshot<Data> {
    /// Wraps `data` with the magic and version of this build.
    #[must_use]
    pub fn new(data: Data) -> Self {
        Self { header: SnapshotHdr { magic: arch_magic(), version: SNAPSHOT_VERSION }, data }
    }

    /// The stored version.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.header.version
    }
}

impl<Data: Serialize> Snapshot<Data> {
    /// Writes body and trailer. Does not flush.
    ///
    /// # Errors
    /// [`SnapshotError::Bitcode`] if the data cannot be encoded, [`SnapshotError::Io`] if the writer fails.
    pub fn save<W: Write>(&self, writer: &mut W) -> Result<()> {
        let body = bitcode::serialize(self)?;
        let mut writer = Crc64Writer::new(writer);
        writer.write_all(&body)?;
        let crc = writer.checksum();
        writer.into_inner().write_all(&crc.to_le_bytes())?;
        Ok(())
    }
}

impl<Data: DeserializeOwned> Snapshot<Data> {
    /// Reads a whole file, at most [`SNAPSHOT_DESERIALIZATION_BYTES_LIMIT`] bytes of it.
    ///
    /// # Errors
    /// [`SnapshotError::SizeLimitExceeded`], [`SnapshotError::Io`], and those of [`Self::load_from_slice`].
    pub fn load<R: Read>(reader: &mut R) -> Result<Self> {
        Self::load_from_slice(&read_limited(reader)?)
    }

    /// Checks the trailer and decodes what stands before it.
    ///
    /// # Errors
    /// [`SnapshotError::SizeLimitExceeded`], [`SnapshotError::TooShort`], [`SnapshotError::CrcMismatch`], and those of
    /// [`Self::load_without_crc_check`], in this order.
    pub fn load_from_slice(buf: &[u8]) -> Result<Self> {
        Self::load_without_crc_check(checked_body(buf)?)
    }

    /// Decodes a body that has no trailer, or whose trailer is known to be wrong.
    ///
    /// # Errors
    /// [`SnapshotError::SizeLimitExceeded`]; [`SnapshotError::MagicMismatch`] and [`SnapshotError::VersionMismatch`] where
    /// the header can be read; [`SnapshotError::Bitcode`] if the rest is not a `Data`.
    pub fn load_without_crc_check(data_buf: &[u8]) -> Result<Self> {
        check_size(data_buf)?;
        check_start(data_buf, &SNAPSHOT_VERSION)?;
        // What a machine's state may announce is limited; other data are the caller's own affair.
        if std::any::type_name::<Data>() == std::any::type_name::<crate::MicrovmState>() {
            crate::bounded::check_totals(data_buf)?;
        }
        let snapshot: Self = bitcode::deserialize(data_buf)?;
        check_header(&snapshot.header, &SNAPSHOT_VERSION)?;
        Ok(snapshot)
    }
}

/// Reads magic and version of a state file without decoding, or knowing the type of, the rest. `None` if the bytes do
/// not begin like a state file. Neither magic nor version are judged.
///
/// ```
/// use squib_snapshot::{Snapshot, peek_header, SNAPSHOT_VERSION};
/// let mut file = Vec::new();
/// Snapshot::new("any data at all").save(&mut file)?;
/// assert_eq!(peek_header(&file).unwrap().version, SNAPSHOT_VERSION);
/// assert_eq!(peek_header(b"not a snapshot"), None);
/// # Ok::<(), squib_snapshot::SnapshotError>(())
/// ```
#[must_use]
pub fn peek_header(buf: &[u8]) -> Option<SnapshotHdr> {
    // One u64 column of one value (packing byte 0: as is), then one string column: length byte, text.
    let (packing, rest) = buf.split_first()?;
    let (magic, rest) = rest.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first()?;
    if *packing != 0 || *len == 255 {
        return None;
    }
    let text = std::str::from_utf8(rest.get(..usize::from(*len))?).ok()?;
    Some(SnapshotHdr { magic: u64::from_le_bytes(*magic), version: text.parse().ok()? })
}

/// What can be told before anything is decoded: a foreign magic, zeros included, and a version that is not for this reader.
pub(crate) fn check_start(body: &[u8], newest: &Version) -> Result<()> {
    if let Some(header) = peek_header(body) {
        return check_header(&header, newest);
    }
    match body.split_first_chunk::<9>() {
        Some(([0, magic @ ..], _)) if u64::from_le_bytes(*magic) != arch_magic() => {
            Err(SnapshotError::MagicMismatch { found: u64::from_le_bytes(*magic), expected: arch_magic() })
        }
        _ => Ok(()),
    }
}

/// Magic must be ours; the major version that of `newest`, the minor not above it.
pub(crate) fn check_header(header: &SnapshotHdr, newest: &Version) -> Result<()> {
    if header.magic != arch_magic() {
        return Err(SnapshotError::MagicMismatch { found: header.magic, expected: arch_magic() });
    }
    if header.version.major != newest.major || header.version.minor > newest.minor {
        return Err(SnapshotError::VersionMismatch { found: header.version.clone(), expected: newest.clone() });
    }
    Ok(())
}

fn check_size(buf: &[u8]) -> Result<()> {
    if buf.len() > SNAPSHOT_DESERIALIZATION_BYTES_LIMIT {
        return Err(SnapshotError::SizeLimitExceeded { limit: SNAPSHOT_DESERIALIZATION_BYTES_LIMIT });
    }
    Ok(())
}

/// The bytes before the trailer, if the trailer is theirs.
pub(crate) fn checked_body(buf: &[u8]) -> Result<&[u8]> {
    check_size(buf)?;
    let (body, trailer) = buf.split_last_chunk::<TRAILER>().ok_or(SnapshotError::TooShort)?;
    if crc64(body) != u64::from_le_bytes(*trailer) {
        return Err(SnapshotError::CrcMismatch);
    }
    Ok(body)
}

/// Reads to the end, but never more than one byte beyond the limit.
pub(crate) fn read_limited<R: Read>(reader: &mut R) -> Result<Vec<u8>> {
    let mut buf = Vec::new();
    reader.take(SNAPSHOT_DESERIALIZATION_BYTES_LIMIT as u64 + 1).read_to_end(&mut buf)?;
    check_size(&buf)?;
    Ok(buf)
}

/// CRC-64/REDIS: polynomial 0xad93d23594c935a9, reflected, initial value and final xor 0.
pub(crate) fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Redis, bytes)
}

/// Passes bytes on and keeps the CRC-64 of those the inner writer accepted.
///
/// ```
/// use squib_snapshot::Crc64Writer;
/// use std::io::Write;
/// let mut w = Crc64Writer::new(Vec::new());
/// w.write_all(b"123456789")?;
/// assert_eq!(w.checksum(), 0xe9c6_d914_c4b8_d9ca);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Crc64Writer<W> {
    inner: W,
    digest: Digest,
}

impl<W: Write> Crc64Writer<W> {
    /// Starts with checksum 0.
    pub fn new(writer: W) -> Self {
        Self { inner: writer, digest: Digest::new(CrcAlgorithm::Crc64Redis) }
    }
}

impl<W> Crc64Writer<W> {
    /// CRC-64 of the bytes accepted so far.
    #[must_use]
    pub fn checksum(&self) -> u64 {
        self.digest.finalize()
    }

    /// Gives the inner writer back.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for Crc64Writer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let accepted = self.inner.write(buf)?;
        self.digest.update(&buf[..accepted]);
        Ok(accepted)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MicrovmState;

    fn bytes<T: Serialize>(snapshot: &Snapshot<T>) -> Vec<u8> {
        let mut out = Vec::new();
        snapshot.save(&mut out).unwrap();
        out
    }

    fn with_version(v: Version) -> Vec<u8> {
        bytes(&Snapshot { header: SnapshotHdr { magic: arch_magic(), version: v }, data: 7u64 })
    }

    #[test]
    fn versions_follow_the_rule() {
        for ok in [Version::new(5, 0, 0), Version::new(5, 0, 99), "5.0.1-pre+meta".parse().unwrap()] {
            assert_eq!(Snapshot::<u64>::load_from_slice(&with_version(ok.clone())).unwrap().version(), &ok);
        }
        for bad in [Version::new(5, 1, 0), Version::new(4, 0, 0), Version::new(6, 0, 0)] {
            let e = Snapshot::<u64>::load_from_slice(&with_version(bad.clone())).unwrap_err();
            assert!(
                matches!(e, SnapshotError::VersionMismatch { found, expected } if found == bad && expected == SNAPSHOT_VERSION)
            );
        }
    }

    #[test]
    fn a_newer_version_is_named_even_if_its_data_cannot_be_decoded() {
        let e = Snapshot::<MicrovmState>::load_from_slice(&with_version(Version::new(5, 7, 0))).unwrap_err();
        assert!(matches!(e, SnapshotError::VersionMismatch { .. }), "{e}");
    }

    #[test]
    fn any_magic_is_refused_small_ones_too() {
        for magic in [0, 5, 0x0710_1984_8664_0000] {
            let file = bytes(&Snapshot { header: SnapshotHdr { magic, version: SNAPSHOT_VERSION }, data: 7u64 });
            let e = Snapshot::<u64>::load_from_slice(&file).unwrap_err();
            assert!(matches!(e, SnapshotError::MagicMismatch { found, .. } if found == magic), "{e}");
        }
    }

    #[test]
    fn an_all_zero_file_passes_the_crc_and_is_refused_all_the_same() {
        for len in [8, 9, 17, 37, 521, 4096, 100_000] {
            let file = vec![0; len];
            assert!(checked_body(&file).is_ok());
            let e = Snapshot::<MicrovmState>::load_from_slice(&file).unwrap_err();
            assert!(matches!(e, SnapshotError::MagicMismatch { .. } | SnapshotError::Bitcode(_)), "{len}: {e}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes to checksum, without the processor's help")]
    fn limits_come_first() {
        let limit = SNAPSHOT_DESERIALIZATION_BYTES_LIMIT;
        assert!(matches!(
            Snapshot::<u64>::load_from_slice(&vec![1; limit + 1]),
            Err(SnapshotError::SizeLimitExceeded { limit: l }) if l == limit
        ));
        assert!(matches!(Snapshot::<u64>::load_from_slice(&vec![1; limit]), Err(SnapshotError::CrcMismatch)));
        assert!(matches!(Snapshot::<u64>::load_from_slice(&[0; 7]), Err(SnapshotError::TooShort)));
        let endless = &mut io::repeat(1);
        assert!(matches!(Snapshot::<u64>::load(endless), Err(SnapshotError::SizeLimitExceeded { .. })));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = bytes(&Snapshot::new(MicrovmState::default()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Snapshot::<MicrovmState>::load_from_slice(&bad), Err(SnapshotError::CrcMismatch)));
        }
    }

    #[test]
    fn the_writer_counts_only_what_was_accepted() {
        struct OneByte(Vec<u8>);
        impl Write for OneByte {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                self.0.extend(buf.first());
                Ok(buf.len().min(1))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut w = Crc64Writer::new(OneByte(Vec::new()));
        assert_eq!(w.checksum(), 0);
        assert_eq!(w.write(b"123456789").unwrap(), 1);
        assert_eq!(w.checksum(), crc64(b"1"));
        w.write_all(b"23456789").unwrap();
        w.flush().unwrap();
        assert_eq!(w.checksum(), 0xe9c6_d914_c4b8_d9ca);
        assert_eq!(w.into_inner().0, b"123456789");
    }
}
