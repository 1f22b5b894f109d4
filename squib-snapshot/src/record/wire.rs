//! The fields that a record's sections are made of: little-endian numbers, variable-length numbers, counted bytes and names.
//!
//! Every count is checked against the bytes that are there before anything is allocated for it.

use std::collections::BTreeMap;

use crate::error::{Result, SnapshotError};

/// Bytes being written.
pub(super) struct Out(pub(super) Vec<u8>);

impl Out {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    pub(super) fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    pub(super) fn u16(&mut self, v: u16) {
        self.bytes(&v.to_le_bytes());
    }
    pub(super) fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }
    pub(super) fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }
    /// Seven bits per byte, least significant first, the high bit set on all but the last.
    pub(super) fn varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.u8(v as u8 | 0x80);
            v >>= 7;
        }
        self.u8(v as u8);
    }
    pub(super) fn blob(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.bytes(bytes);
    }
    pub(super) fn named(&mut self, blobs: &BTreeMap<String, Vec<u8>>) {
        self.u32(blobs.len() as u32);
        for (name, bytes) in blobs {
            self.blob(name.as_bytes());
            self.blob(bytes);
        }
    }
    pub(super) fn section(&mut self, tag: &[u8; 4], fill: impl FnOnce(&mut Self)) {
        self.bytes(tag);
        self.u16(0);
        let length_at = self.0.len();
        self.u64(0);
        fill(self);
        let len = (self.0.len() - length_at - 8) as u64;
        self.0[length_at..length_at + 8].copy_from_slice(&len.to_le_bytes());
    }
}

/// Bytes still to be read, of the section that errors name.
pub(super) struct In<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) section: &'static str,
}

impl<'a> In<'a> {
    pub(super) fn error(&self, text: &str) -> SnapshotError {
        SnapshotError::Record(format!("{}: {text}", self.section))
    }
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(len).ok_or_else(|| self.error("is cut short"))?;
        self.bytes = rest;
        Ok(head)
    }
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or_else(|| self.error("is cut short"))?;
        self.bytes = rest;
        Ok(*head)
    }
    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(super) fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error(&format!("{other} is neither 0 nor 1"))),
        }
    }
    pub(super) fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number is longer than 64 bits"))
    }
    pub(super) fn len64(&mut self) -> Result<usize> {
        let len = self.u64()?;
        usize::try_from(len).map_err(|_| self.error("is cut short"))
    }
    /// A count of elements that take at least `least` bytes each.
    pub(super) fn count(&mut self, least: usize) -> Result<u32> {
        let count = self.u32()?;
        if (count as usize).saturating_mul(least) > self.bytes.len() {
            return Err(self.error(&format!("{count} elements do not fit")));
        }
        Ok(count)
    }
    pub(super) fn words(&mut self, count: u64) -> Result<Vec<u64>> {
        let len = usize::try_from(count.saturating_mul(8)).unwrap_or(usize::MAX);
        let bytes = self.take(len)?;
        Ok(bytes.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default())).collect())
    }
    pub(super) fn blob(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()?;
        self.take(len as usize)
    }
    pub(super) fn text(&mut self) -> Result<String> {
        let bytes = self.blob()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| self.error("a text is not UTF-8"))
    }
    pub(super) fn named(&mut self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut map = BTreeMap::new();
        for _ in 0..self.count(8)? {
            let name = self.text()?;
            let bytes = self.blob()?.to_vec();
            if map.contains_key(&name) {
                return Err(self.error(&format!("{name:?} appears twice")));
            }
            map.insert(name, bytes);
        }
        Ok(map)
    }
}
