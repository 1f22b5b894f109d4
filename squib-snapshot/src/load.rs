//! Reading a state file back, and describing one to a person.

use std::path::{Path, PathBuf};

use semver::Version;

use crate::envelope::{SNAPSHOT_VERSION, arch_magic, read_limited};
use crate::error::{Result, SnapshotError};
use crate::fs::open_regular;
use crate::record::SNAPSHOT_VERSION_RECORD;
use crate::state::MicrovmState;
use crate::state_file::StateFile;

/// A state that was read and found fit to run.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedSnapshot {
    /// The machine.
    pub state: MicrovmState,
    /// Version of the file it came from.
    pub source_version: Version,
}

/// Loads a state file of any version, after finishing a commit that a crash interrupted. Where the memory file is expected by
/// convention and the state knows its length, a file of another length is refused; the whole pair is checked by
/// [`Pair::open`](crate::Pair::open) and [`Pair::verify`](crate::Pair::verify).
///
/// # Errors
/// [`SnapshotError::Io`] if the file cannot be read, those of [`StateFile::open`], [`SnapshotError::Incompatible`] and
/// [`SnapshotError::PairMismatch`].
pub fn load(state_path: &Path) -> Result<LoadedSnapshot> {
    let file = StateFile::open(state_path)?;
    file.state().verify_compatible()?;
    if let (Some(record), Some(memory)) = (file.record(), inferred_memory_path(state_path))
        && let Ok(metadata) = memory.metadata()
        && metadata.is_file()
        && metadata.len() != record.memory.ram_size
    {
        let (found, expected) = (metadata.len(), record.memory.ram_size);
        let reason = format!("it has {found} bytes, the state was saved with {expected} bytes of RAM");
        return Err(SnapshotError::PairMismatch { state: state_path.to_path_buf(), memory, reason });
    }
    let source_version = file.version().clone();
    Ok(LoadedSnapshot { state: file.into_parts().0, source_version })
}

/// Where the memory file of a state is by convention: the state path with its last extension replaced by `mem`, whatever it was;
/// `None` if it has none.
///
/// ```
/// use std::path::Path;
/// use squib_snapshot::inferred_memory_path;
/// assert_eq!(inferred_memory_path(Path::new("a/vm.snap")).unwrap(), Path::new("a/vm.mem"));
/// ```
#[must_use]
pub fn inferred_memory_path(state_path: &Path) -> Option<PathBuf> {
    state_path.extension().map(|_| state_path.with_extension("mem"))
}

/// What a state file says, for people and for tools.
#[derive(Debug, Clone)]
pub struct SnapshotDescription {
    /// The file described.
    pub state_path: PathBuf,
    /// Its magic.
    pub magic: u64,
    /// Its version.
    pub version: Version,
    /// Newest version of this kind of file that this build writes.
    pub expected_version: Version,
    /// Number of vCPUs.
    pub vcpu_count: usize,
    /// RAM in MiB.
    pub mem_size_mib: u64,
    /// Whether the machine tracks dirty pages.
    pub track_dirty_pages: bool,
    /// Kind, id and slot of each device.
    pub devices: Vec<(String, String, u32)>,
    /// Whether the machine has a metadata service.
    pub mmds_present: bool,
    /// Where the memory file is by convention: the state path with its extension replaced by `mem`.
    pub inferred_memory_path: Option<PathBuf>,
    /// Whether something is there.
    pub inferred_memory_exists: bool,
    /// Its length in bytes.
    pub inferred_memory_size: Option<u64>,
    /// Whether the checksum of the state file is right.
    pub crc_ok: bool,
}

/// Describes a state file, even one whose checksum is wrong.
///
/// # Errors
/// [`SnapshotError::Io`] if the file cannot be read, [`SnapshotError::SizeLimitExceeded`], and what the decoding of a body
/// raises.
pub fn describe(state_path: &Path) -> Result<SnapshotDescription> {
    let bytes = read_limited(&mut open_regular(state_path)?)?;
    let (file, crc_ok) = match StateFile::from_slice(&bytes) {
        Ok(file) => (file, true),
        Err(SnapshotError::CrcMismatch) => (StateFile::from_body(&bytes[..bytes.len().saturating_sub(8)])?, false),
        Err(e) => return Err(e),
    };
    let version = file.version().clone();
    let expected_version = if version.minor == 0 { SNAPSHOT_VERSION } else { SNAPSHOT_VERSION_RECORD };
    let state = file.into_parts().0;
    let inferred = inferred_memory_path(state_path);
    let metadata = inferred.as_ref().and_then(|p| p.metadata().ok());
    Ok(SnapshotDescription {
        state_path: state_path.to_path_buf(),
        magic: arch_magic(),
        version,
        expected_version,
        vcpu_count: state.vcpu_states.len(),
        mem_size_mib: state.vm_info.mem_size_mib,
        track_dirty_pages: state.vm_info.track_dirty_pages,
        devices: state.device_states.devices.into_iter().map(|d| (d.kind, d.id, d.mmio_slot)).collect(),
        mmds_present: state.mmds_state.is_some(),
        inferred_memory_exists: metadata.is_some(),
        inferred_memory_size: metadata.map(|m| m.len()),
        inferred_memory_path: inferred,
        crc_ok,
    })
}

impl SnapshotDescription {
    /// An object with the fields' names as keys.
    pub fn to_json(&self) -> serde_json::Value {
        let path = |p: &PathBuf| p.to_string_lossy().into_owned();
        let devices: Vec<_> = self
            .devices
            .iter()
            .map(|(kind, id, slot)| serde_json::json!({"kind": kind, "id": id, "mmio_slot": slot}))
            .collect();
        serde_json::json!({
            "state_path": path(&self.state_path),
            "magic": format!("{:#018x}", self.magic),
            "version": self.version.to_string(),
            "expected_version": self.expected_version.to_string(),
            "vcpu_count": self.vcpu_count,
            "mem_size_mib": self.mem_size_mib,
            "track_dirty_pages": self.track_dirty_pages,
            "devices": devices,
            "mmds_present": self.mmds_present,
            "inferred_memory_path": self.inferred_memory_path.as_ref().map(path),
            "inferred_memory_exists": self.inferred_memory_exists,
            "inferred_memory_size": self.inferred_memory_size,
            "crc_ok": self.crc_ok,
        })
    }

    /// Text for a terminal.
    pub fn human(&self) -> String {
        let mut text = format!("snapshot: {}\n", self.state_path.display());
        let mut line = |label: &str, value: String| text.push_str(&format!("  {:<21}{value}\n", format!("{label}:")));
        line("magic", format!("{:#018x}", self.magic));
        line("version", self.version.to_string());
        if self.version != self.expected_version {
            line("expected (squib)", self.expected_version.to_string());
        }
        line("vcpu_count", self.vcpu_count.to_string());
        line("mem_size_mib", self.mem_size_mib.to_string());
        line("track_dirty_pages", self.track_dirty_pages.to_string());
        line("devices", self.devices.len().to_string());
        for (kind, id, slot) in &self.devices {
            text.push_str(&format!("    - {kind}: {id} (slot {slot})\n"));
        }
        let mut line = |label: &str, value: String| text.push_str(&format!("  {:<21}{value}\n", format!("{label}:")));
        line("mmds_present", self.mmds_present.to_string());
        if let Some(path) = &self.inferred_memory_path {
            let status = match (self.inferred_memory_exists, self.inferred_memory_size) {
                (false, _) => "(MISSING)".to_string(),
                (true, Some(size)) => format!("({size} bytes)"),
                (true, None) => "(present)".to_string(),
            };
            line("memory file", format!("{} {status}", path.display()));
        }
        line("crc_ok", if self.crc_ok { "yes" } else { "NO" }.to_string());
        text
    }
}
