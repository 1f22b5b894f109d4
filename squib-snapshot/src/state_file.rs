//! Reading and writing state files of every version: the one place that knows which version means which bytes.
//!
//! Version 5.0 is the published form. Version 5.1 is the same with a [`SnapshotRecord`] in a reserved device record. A reader of
//! 5.0 refuses 5.1 by its version; this one reads both, for ever.

use std::path::{Path, PathBuf};

use semver::Version;

use crate::digest::checksum;
use crate::dirty::PageSet;
use crate::envelope::{
    Snapshot, SnapshotHdr, arch_magic, check_header, checked_body, crc64, peek_header, read_limited,
};
use crate::error::{Result, SnapshotError, at};
use crate::fs::{RealFs, open_regular};
use crate::identity::SnapshotId;
use crate::record::{RECORD_DEVICE_KIND, SNAPSHOT_VERSION_RECORD, SnapshotRecord};
use crate::state::{DeviceState, MicrovmState};
use crate::transaction::recover_pair;

/// A state file of any version, decoded.
///
/// ```
/// use squib_snapshot::{MicrovmState, Snapshot, StateFile};
/// let mut bytes = Vec::new();
/// Snapshot::new(MicrovmState::default()).save(&mut bytes)?;
/// let file = StateFile::from_slice(&bytes)?;
/// assert!(file.record().is_none(), "version 5.0");
/// # Ok::<(), squib_snapshot::SnapshotError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct StateFile {
    path: PathBuf,
    version: Version,
    identity: SnapshotId,
    state: MicrovmState,
    record: Option<SnapshotRecord>,
}

impl StateFile {
    /// Reads a file, after finishing a commit that a crash interrupted.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if it cannot be read, those of [`Self::from_slice`], and those of recovery.
    pub fn open(path: &Path) -> Result<Self> {
        recover_pair(&RealFs, path)?;
        Self::open_as_is(path)
    }

    /// Reads a file as it stands.
    pub(crate) fn open_as_is(path: &Path) -> Result<Self> {
        let mut file = open_regular(path)?;
        let bytes = read_limited(&mut file).map_err(|e| match e {
            SnapshotError::Io(e) => SnapshotError::Io(at("read", path)(e)),
            other => other,
        })?;
        let mut state_file = Self::from_slice(&bytes)?;
        state_file.path = path.to_path_buf();
        Ok(state_file)
    }

    /// Decodes the bytes of a file. The trailer is checked first, then magic and version, then the rest.
    ///
    /// # Errors
    /// Those of [`Snapshot::load_from_slice`]; [`SnapshotError::Record`] if a 5.1 record is malformed.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        Self::from_body(checked_body(bytes)?)
    }

    /// Decodes a body whose trailer is not looked at.
    pub(crate) fn from_body(body: &[u8]) -> Result<Self> {
        if let Some(header) = peek_header(body) {
            check_header(&header, &SNAPSHOT_VERSION_RECORD)?;
        }
        crate::bounded::check_totals(body)?;
        let snapshot: Snapshot<MicrovmState> = bitcode::deserialize(body)?;
        check_header(&snapshot.header, &SNAPSHOT_VERSION_RECORD)?;
        let mut state = snapshot.data;
        let record = match snapshot.header.version.minor {
            0 => None,
            _ => Some(take_record(&mut state)?),
        };
        // A 5.0 file has no name of its own: it goes by its content.
        let identity = record.as_ref().map_or_else(|| content_identity(body), |r| r.identity);
        Ok(Self { path: PathBuf::new(), version: snapshot.header.version, identity, state, record })
    }

    /// Where it was read from; empty for [`Self::from_slice`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Which snapshot it is. A file of version 5.0 is identified by its content.
    #[must_use]
    pub fn identity(&self) -> SnapshotId {
        self.identity
    }

    /// The machine.
    #[must_use]
    pub fn state(&self) -> &MicrovmState {
        &self.state
    }

    /// What version 5.1 adds; `None` for 5.0.
    #[must_use]
    pub fn record(&self) -> Option<&SnapshotRecord> {
        self.record.as_ref()
    }

    /// The record, or an error that says what a 5.0 file cannot offer.
    ///
    /// # Errors
    /// [`SnapshotError::NotRecorded`].
    pub fn require_record(&self, what: &'static str) -> Result<&SnapshotRecord> {
        self.record.as_ref().ok_or_else(|| SnapshotError::NotRecorded {
            path: self.path.clone(),
            version: self.version.clone(),
            what,
        })
    }

    /// The snapshot this one continues; `None` for a full one.
    #[must_use]
    pub fn parent(&self) -> Option<SnapshotId> {
        self.record.as_ref().and_then(|r| r.parent)
    }

    /// The pages in the memory file of a diff; `None` for a full snapshot.
    #[must_use]
    pub fn pages(&self) -> Option<&PageSet> {
        self.record.as_ref().and_then(|r| r.memory.pages.as_ref())
    }

    /// Splits into machine and record.
    #[must_use]
    pub fn into_parts(self) -> (MicrovmState, Option<SnapshotRecord>) {
        (self.state, self.record)
    }
}

/// The bytes of a version 5.1 file.
pub(crate) fn encode(state: &MicrovmState, record: &SnapshotRecord) -> Result<Vec<u8>> {
    if state.device_states.devices.iter().any(|d| d.kind == RECORD_DEVICE_KIND) {
        return Err(SnapshotError::InvalidPath(format!("the device kind {RECORD_DEVICE_KIND} is reserved")));
    }
    let mut data = state.clone();
    data.device_states.devices.push(DeviceState {
        kind: RECORD_DEVICE_KIND.into(),
        id: String::new(),
        mmio_slot: u32::MAX,
        blob: record.to_bytes(),
    });
    let header = SnapshotHdr { magic: arch_magic(), version: SNAPSHOT_VERSION_RECORD };
    let mut bytes = bitcode::serialize(&Snapshot { header, data })?;
    bytes.extend(crc64(&bytes).to_le_bytes());
    let limit = crate::envelope::SNAPSHOT_DESERIALIZATION_BYTES_LIMIT;
    if bytes.len() > limit {
        return Err(SnapshotError::SizeLimitExceeded { limit });
    }
    Ok(bytes)
}

fn take_record(state: &mut MicrovmState) -> Result<SnapshotRecord> {
    match state.device_states.devices.pop() {
        Some(last) if last.kind == RECORD_DEVICE_KIND => SnapshotRecord::from_bytes(&last.blob),
        _ => Err(SnapshotError::Record("the state says version 5.1 and has no record".into())),
    }
}

fn content_identity(body: &[u8]) -> SnapshotId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&crc64(body).to_be_bytes());
    id[8..].copy_from_slice(&checksum(body).to_be_bytes());
    SnapshotId(id)
}
