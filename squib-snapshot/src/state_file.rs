//! Reading and writing state files of every version: the one place that knows which version means which bytes.
//!
//! Version 5.0 is the published form. Version 5.1 is the same with a [`SnapshotRecord`] in a reserved device record. A reader of
//! 5.0 refuses 5.1 by its version; this one reads both, for ever.

use std::path::{Path, PathBuf};

use semver::Version;

use crate::digest::checksum;
use crate::dirty::PageSet;
use crate::envelope::{
    Snapshot, SnapshotHdr, arch_magic, check_header, check_start, checked_body, crc64, read_limited,
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

impl AsRef<StateFile> for StateFile {
    fn as_ref(&self) -> &StateFile {
        self
    }
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
        check_start(body, &SNAPSHOT_VERSION_RECORD)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::PageSetBuilder;
    use crate::record::{BlockSums, ClockMode, ClockRecord, HostRecord, MachineRecord, MemoryRecord, VcpuRecord};
    use crate::state::{GicState, VcpuState};

    /// The machine of the golden files, with every field of the record in use.
    fn golden(diff: bool) -> (MicrovmState, SnapshotRecord) {
        let mut state = MicrovmState {
            vcpu_states: vec![VcpuState::new(0x8000_0000), VcpuState::new(0x8000_0001)],
            gic_state: GicState::from_bytes(vec![1, 2, 3]),
            ..MicrovmState::default()
        };
        state.vm_info.track_dirty_pages = true;
        state.device_states.devices =
            vec![DeviceState { kind: "virtio-rng".into(), id: "rng".into(), mmio_slot: 3, blob: vec![7; 5] }];
        let ram_size = 5 * (2 << 20) + 4096;
        let pages = diff.then(|| {
            let mut builder = PageSetBuilder::new(16384, 641);
            [(0, 1), (130, 2), (640, 1)].into_iter().for_each(|(first, count)| builder.push_run(first, count));
            builder.finish()
        });
        let sums = [(0, 0x1111), (1, 0x2222), (5, 0x3333)];
        let record = SnapshotRecord {
            identity: SnapshotId(*b"golden identity."),
            parent: diff.then_some(SnapshotId(*b"golden parent...")),
            memory: MemoryRecord { ram_start: 0x8000_0000, ram_size, pages, sums: BlockSums::new(2 << 20, 6, sums) },
            machine: MachineRecord {
                vcpus: vec![
                    VcpuRecord {
                        icc_regs: [(0xc230, 0xf0), (0xc667, 1)].into(),
                        vtimer_offset: 0x1234_5678_9abc,
                        vtimer_masked: true,
                        pending_fiq: true,
                        trap_debug_reg_accesses: true,
                        blobs: [("pmu".to_string(), vec![1, 2])].into(),
                        ..VcpuRecord::default()
                    },
                    VcpuRecord { pending_irq: true, trap_debug_exceptions: true, ..VcpuRecord::default() },
                ],
                host: HostRecord {
                    os: "macos".into(),
                    os_build: "24E248".into(),
                    cpu: "Apple M4".into(),
                    vmm: "squib 0.3.0".into(),
                    counter_frequency: 24_000_000,
                },
                clock: ClockRecord {
                    wall_clock_ns: 1_800_000_000_000_000_000,
                    guest_counter: 99,
                    mode: ClockMode::Deterministic,
                    instructions: 1234,
                },
                blobs: [("console".to_string(), vec![]), ("psci".to_string(), vec![9; 3])].into(),
            },
        };
        (state, record)
    }

    #[test]
    fn golden_files_of_version_5_1_are_written_and_read() {
        let files: [(bool, &[u8]); 2] = [
            (false, include_bytes!("../tests/data/v5.1-full.snap")),
            (true, include_bytes!("../tests/data/v5.1-diff.snap")),
        ];
        for (diff, bytes) in files {
            let (state, record) = golden(diff);
            let file = StateFile::from_slice(bytes).unwrap();
            assert_eq!(file.state(), &state);
            assert_eq!(file.record(), Some(&record));
            assert_eq!((file.version(), file.identity()), (&SNAPSHOT_VERSION_RECORD, record.identity));
            assert_eq!(file.parent().is_some(), diff);
            assert_eq!(encode(&state, &record).unwrap(), bytes);
            let text = record.human();
            assert!(text.contains("identity:            676f6c64656e206964656e746974792e"), "{text}");
            assert_eq!(text.contains("diff, 4 pages of 16384 bytes"), diff, "{text}");
            assert_eq!(record.to_json()["kind"], if diff { "diff" } else { "full" });
        }
    }

    #[test]
    fn version_5_0_readers_refuse_5_1_by_its_version() {
        let bytes = include_bytes!("../tests/data/v5.1-full.snap");
        let e = Snapshot::<MicrovmState>::load_from_slice(bytes).unwrap_err();
        assert_eq!(e.to_string(), "snapshot version 5.1.0 is incompatible with squib's 5.0.0");
    }

    #[test]
    fn versions_beyond_ours_and_broken_records_are_refused() {
        let (state, _) = golden(false);
        let file = |version: &str, state: &MicrovmState| {
            let header = SnapshotHdr { magic: arch_magic(), version: version.parse().unwrap() };
            let mut bytes = Vec::new();
            Snapshot { header, data: state.clone() }.save(&mut bytes).unwrap();
            StateFile::from_slice(&bytes)
        };
        assert!(matches!(file("5.2.0", &state), Err(SnapshotError::VersionMismatch { .. })));
        assert!(matches!(file("4.0.0", &state), Err(SnapshotError::VersionMismatch { .. })));
        assert!(matches!(file("5.1.0", &state), Err(SnapshotError::Record(_))), "a 5.1 file without its record");
        assert!(file("5.0.9", &state).unwrap().record().is_none());
        let mut broken = state;
        let blob = b"SQUIBREC\x01\0\0\0".to_vec();
        broken.device_states.devices.push(DeviceState {
            kind: RECORD_DEVICE_KIND.into(),
            id: String::new(),
            mmio_slot: u32::MAX,
            blob,
        });
        assert!(matches!(file("5.1.0", &broken), Err(SnapshotError::Record(t)) if t.contains("IDEN")));
        let (_, record) = golden(true);
        assert!(matches!(encode(&broken, &record), Err(SnapshotError::InvalidPath(_))), "the kind is reserved");
    }

    #[test]
    fn files_of_version_5_0_go_by_their_content() {
        let file = StateFile::from_slice(include_bytes!("../tests/data/v5.0-sample.snap")).unwrap();
        let other = StateFile::from_slice(include_bytes!("../tests/data/v5.0-default.snap")).unwrap();
        assert_ne!(file.identity(), other.identity());
        assert_eq!(file.identity().to_string().len(), 32);
        assert!(matches!(file.require_record("checksums"), Err(SnapshotError::NotRecorded { .. })));
        assert_eq!((file.parent(), file.pages(), file.path()), (None, None, Path::new("")));
    }

    #[test]
    fn a_state_that_could_not_be_read_back_is_not_written() {
        let (mut state, record) = golden(false);
        state.device_states.devices[0].blob = vec![0x5a; 10_000_000];
        state.device_states.devices[0].blob.iter_mut().enumerate().for_each(|(i, b)| *b = ((i * 7) >> 3) as u8);
        assert!(matches!(encode(&state, &record), Err(SnapshotError::SizeLimitExceeded { .. })));
    }
}
