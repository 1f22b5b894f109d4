//! Block device (virtio 1.2 §5.2) over a raw image file.
//!
//! A flush reaches the medium (`sync_data`, which is `F_FULLFSYNC` on Apple). Data passes through a bounce buffer, never by a
//! system call on guest RAM, so a page of guest RAM that is not there yet is met by an ordinary access and can be brought in.
//!
//! The image is locked while a machine has it: two writers, or a writer beside readers, are refused. A snapshot records the
//! image's length and modification time; a restore with the same image is refused when either differs, because the guest's
//! memory would not fit it. Naming an image at the restore overrides the check of the time.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::{Backend, Chain};
use crate::devices::blob;
use crate::error::{Error, Result};
use crate::files;
use crate::memory::GuestMemory;

const SECTOR: u64 = 512;
const BOUNCE: usize = 128 << 10;
/// Data segments of one request: the queue's size less header and status.
const SEG_MAX: u32 = 254;
/// Sectors one write-zeroes request may cover.
const WRITE_ZEROES_MAX: u32 = 1 << 16;
const VERSION: u16 = 1;

/// What a snapshot records of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The image.
    pub path: PathBuf,
    /// Opened for reading only.
    pub read_only: bool,
    /// Bytes.
    pub len: u64,
    /// Modification time, seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
}

impl DiskRecord {
    /// Reads the record out of a saved device state (transport and all), to learn which image to open.
    pub fn decode(backend_blob: &[u8]) -> Result<DiskRecord> {
        blob::decode("virtio-blk", VERSION, backend_blob)
    }
}

/// The device.
#[derive(Debug)]
pub struct Block {
    file: File,
    path: PathBuf,
    read_only: bool,
    sectors: u64,
    serial: String,
    bounce: Vec<u8>,
    /// The image was named at the restore: its modification time is not compared.
    overridden: bool,
}

impl Block {
    /// Opens and locks an image.
    pub fn open(path: &Path, read_only: bool, serial: String, overridden: bool) -> Result<Block> {
        let failed = |action| move |source| Error::File { action, path: path.into(), source };
        let file = files::open(File::options().read(true).write(!read_only), "open the disk", path)
            .map_err(|error| if read_only { error } else { writing_hint(error) })?;
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Config(format!(
                    "the disk {} is in use already; give each machine its own copy, or attach it read-only to all",
                    path.display()
                )));
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock the disk")(source)),
        }
        let len = file.metadata().map_err(failed("examine the disk"))?.len();
        if len == 0 || !len.is_multiple_of(SECTOR) {
            return Err(Error::Config(format!(
                "the disk {} is {len} bytes long; a raw image is a whole number of 512-byte sectors, at least one",
                path.display()
            )));
        }
        // A snapshot may be restored from another directory.
        let path = std::fs::canonicalize(path).map_err(failed("find the disk"))?;
        if path.to_str().is_none() {
            let text = "is not text (UTF-8), which a snapshot would have to record: give it another name";
            return Err(Error::Config(format!("the name of the disk {} {text}", path.display())));
        }
        Ok(Block { file, path, read_only, sectors: len / SECTOR, serial, bounce: vec![0; BOUNCE], overridden })
    }

    fn record(&self) -> Result<DiskRecord> {
        let failed = |source| Error::File { action: "examine the disk", path: self.path.clone(), source };
        let metadata = self.file.metadata().map_err(failed)?;
        Ok(DiskRecord {
            path: self.path.clone(),
            read_only: self.read_only,
            len: self.sectors * SECTOR,
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    /// Checks that `len` bytes from `sector` are on the disk, and gives the byte offset.
    fn range(&self, sector: u64, len: u64) -> io::Result<u64> {
        let offset = sector.checked_mul(SECTOR);
        let end = offset.and_then(|start| start.checked_add(len));
        match (offset, end) {
            (Some(offset), Some(end)) if end <= self.sectors * SECTOR && len.is_multiple_of(SECTOR) => Ok(offset),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "request is not on the disk")),
        }
    }

    fn read_into(&mut self, sector: u64, len: usize, out: &mut impl Write) -> io::Result<()> {
        let mut offset = self.range(sector, len as u64)?;
        let mut left = len;
        while left > 0 {
            let part = left.min(BOUNCE);
            self.file.read_exact_at(&mut self.bounce[..part], offset)?;
            out.write_all(&self.bounce[..part])?;
            offset += part as u64;
            left -= part;
        }
        Ok(())
    }

    fn write_from(&mut self, sector: u64, len: usize, data: &mut impl Read) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let mut offset = self.range(sector, len as u64)?;
        let mut left = len;
        while left > 0 {
            let part = left.min(BOUNCE);
            data.read_exact(&mut self.bounce[..part])?;
            self.file.write_all_at(&self.bounce[..part], offset)?;
            offset += part as u64;
            left -= part;
        }
        Ok(())
    }

    fn write_zeroes(&mut self, data: &mut impl Read, len: usize) -> io::Result<()> {
        for _ in 0..len / 16 {
            let mut segment = [0; 16];
            data.read_exact(&mut segment)?;
            let [sector, rest] =
                [0, 8].map(|at| u64::from_le_bytes(segment[at..at + 8].try_into().unwrap_or_default()));
            let sectors = rest & 0xffff_ffff;
            if sectors > u64::from(WRITE_ZEROES_MAX) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.write_from(sector, (sectors * SECTOR) as usize, &mut io::repeat(0))?;
        }
        Ok(())
    }
}

/// Says what else can be done with an image that must not be written to.
fn writing_hint(error: Error) -> Error {
    match error {
        Error::File { action, path, source }
            if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
        {
            let text =
                format!("{source}; a disk that the guest only reads is attached read-only (`,ro` after its name)");
            Error::File { action, path, source: io::Error::new(source.kind(), text) }
        }
        other => other,
    }
}

impl Backend for Block {
    fn kind(&self) -> &'static str {
        "virtio-blk"
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE;
        always | if self.read_only { 1 << VIRTIO_BLK_F_RO } else { 1 << VIRTIO_BLK_F_WRITE_ZEROES }
    }

    fn queues(&self) -> usize {
        1
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_blk_config: capacity, size_max, seg_max, geometry, blk_size, topology, writeback, ..., and from
        // offset 48 max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap.
        let mut config = vec![0; 60];
        config[0..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        config[48..52].copy_from_slice(&WRITE_ZEROES_MAX.to_le_bytes());
        config[52..56].copy_from_slice(&1u32.to_le_bytes());
        config
    }

    fn execute(&mut self, memory: &GuestMemory, chain: Chain<'_>) -> io::Result<u32> {
        let mut reader = chain.clone().reader(memory).map_err(io::Error::other)?;
        let mut writer = chain.writer(memory).map_err(io::Error::other)?;
        // struct virtio_blk_req: type, reserved, sector; data; one byte of status at the very end.
        let mut header = [0; 16];
        reader.read_exact(&mut header)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..16].try_into().unwrap_or_default());
        let room = writer.available_bytes().checked_sub(1);
        let room = room.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no room for the status"))?;
        let mut status = writer.split_at(room).map_err(io::Error::other)?;

        let len = reader.available_bytes();
        let result = match kind {
            VIRTIO_BLK_T_IN => self.read_into(sector, room, &mut writer),
            VIRTIO_BLK_T_OUT => self.write_from(sector, len, &mut reader),
            VIRTIO_BLK_T_FLUSH => self.file.sync_data(),
            VIRTIO_BLK_T_GET_ID => {
                let mut id = [0; 20];
                let serial = &self.serial.as_bytes()[..self.serial.len().min(20)];
                id[..serial.len()].copy_from_slice(serial);
                writer.write_all(&id[..room.min(20)])
            }
            VIRTIO_BLK_T_WRITE_ZEROES => self.write_zeroes(&mut reader, len),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let code = match &result {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(e) if e.kind() == io::ErrorKind::Unsupported => VIRTIO_BLK_S_UNSUPP,
            Err(error) => {
                tracing::warn!(disk = %self.path.display(), kind, sector, %error, "a disk request failed");
                VIRTIO_BLK_S_IOERR
            }
        };
        status.write_all(&[code as u8])?;
        // Only a read (or the id) writes data. A request that failed may have written some.
        Ok(writer.bytes_written() as u32 + 1)
    }

    fn save(&self) -> Result<Vec<u8>> {
        blob::encode(self.kind(), VERSION, &self.record()?)
    }

    fn restore(&mut self, blob: &[u8]) -> Result<()> {
        let saved = DiskRecord::decode(blob)?;
        let path = self.path.display().to_string();
        let refuse = |reason: String| Err(Error::DeviceState { device: format!("the disk {path}"), reason });
        if saved.len != self.sectors * SECTOR {
            return refuse(format!("the image is {} bytes long now, it was {}", self.sectors * SECTOR, saved.len));
        }
        if saved.read_only != self.read_only {
            return refuse("it was attached with the other read-only setting".into());
        }
        if !self.overridden && self.record()?.modified != saved.modified {
            return refuse(
                "the image has been modified since the snapshot, so the guest's memory no longer fits it; \
                 restore with a copy made at the time of the snapshot"
                    .into(),
            );
        }
        Ok(())
    }
}
