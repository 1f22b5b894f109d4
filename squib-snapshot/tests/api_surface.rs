//! Names every item of the published interface with the signature its callers rely on, so that none can be lost or
//! changed without this file failing to compile.

#![allow(clippy::type_complexity)] // Signatures are spelled out: that is the point.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use semver::Version;
use serde::Serialize;
use serde::de::DeserializeOwned;
use squib_snapshot as s;

/// Every item is at the root of the crate, and in the module that it belongs to.
mod both_places {
    macro_rules! places {
        ($($module:ident { $($name:ident)* })*) => {
            $(mod $module {
                #[allow(unused_imports)] // That they can be imported is the test.
                use squib_snapshot::{$($name,)*};
                mod inside {
                    #[allow(unused_imports)]
                    use squib_snapshot::$module::{$($name,)*};
                }
            })*
        };
    }
    places! {
        error { SnapshotError Result }
        atomic { TEMP_SUFFIX check_same_filesystem derive_temp_path UnlinkOnDrop AtomicWriter }
        dirty {
            DEFAULT_STEP_DOWN_THRESHOLD ADAPTIVE_WINDOW TrackingGranule DirtyBitmap AdaptiveController TrackedRegion
        }
        envelope {
            SNAPSHOT_MAGIC_AARCH64 SNAPSHOT_VERSION SNAPSHOT_DESERIALIZATION_BYTES_LIMIT arch_magic SnapshotHdr Snapshot
            Crc64Writer
        }
        state {
            GpRegs FpSimdRegs PsciVcpuState VcpuState GicState MmdsState VmInfo DeviceState DeviceStates MicrovmState
        }
        memory { MemorySnapshotKind PageReader VecPageReader MemoryWriter }
        save { SnapshotKind SaveRequest SaveReport save }
        load { LoadedSnapshot load SnapshotDescription describe }
        vcpu_save {
            VcpuSnapshotSource VcpuRestoreTarget GicSnapshotSource GicRestoreTarget MmdsSnapshotSource MmdsRestoreTarget
            capture_vcpu_state restore_vcpu_state normalized_psci_state
        }
    }
}

type R<T> = Result<T, s::SnapshotError>;

fn debug<T: Debug>() {}
fn clone_eq<T: Debug + Clone + PartialEq>() {}
fn copy_eq<T: Debug + Copy + Eq>() {}
fn wire<T: Debug + Clone + PartialEq + Serialize + DeserializeOwned>() {}
fn shared<T: Send + Sync + Unpin>() {}

#[test]
fn error_module() {
    use s::error::SnapshotError as E;
    fn error<T: std::error::Error + Display + Debug + Send + Sync + 'static>() {}
    error::<E>();
    let _: s::error::Result<(), E> = s::Result::<()>::Ok(());
    let v = || Version::new(5, 0, 0);
    let io = || io::Error::other("x");
    let all = [
        E::QuiesceTimeout,
        E::MagicMismatch { found: 0, expected: 0 },
        E::VersionMismatch { found: v(), expected: v() },
        E::CrcMismatch,
        E::TooShort,
        E::Incompatible,
        E::AtomicCommitFailed(io()),
        E::AtomicCommitCrossFs { dest: PathBuf::new(), temp_dir: PathBuf::new() },
        E::InvalidPath(String::new()),
        E::Bitcode(String::new()),
        E::SizeLimitExceeded { limit: 0 },
        E::MemoryIo(io()),
        E::Io(io()),
        E::Capture(String::new()),
    ];
    let message: fn(&E) -> String = E::wire_message;
    assert!(all.iter().all(|e| message(e) == e.to_string()));
    assert!(matches!(E::from(io()), E::Io(_)));
    let bitcode_error = bitcode::deserialize::<String>(&[]).unwrap_err();
    let text = bitcode_error.to_string();
    assert!(matches!(E::from(bitcode_error), E::Bitcode(t) if t == text));
}

#[test]
fn atomic_module() {
    let _: &str = s::atomic::TEMP_SUFFIX;
    assert_eq!(s::TEMP_SUFFIX, ".tmp");
    let _: fn(&Path, &Path) -> R<()> = s::atomic::check_same_filesystem;
    let derive: fn(&Path) -> PathBuf = s::derive_temp_path;
    assert_eq!(derive(Path::new("x.snap")), Path::new("x.snap.tmp"));
    let _: fn(PathBuf) -> s::UnlinkOnDrop = s::atomic::UnlinkOnDrop::new;
    let _: fn(&mut s::UnlinkOnDrop) = s::UnlinkOnDrop::disarm;
    let _: for<'a> fn(&'a s::UnlinkOnDrop) -> Option<&'a Path> = s::UnlinkOnDrop::path;
    let _: fn(&Path) -> R<s::AtomicWriter> = s::atomic::AtomicWriter::open;
    let _: [for<'a> fn(&'a s::AtomicWriter) -> &'a Path; 2] = [s::AtomicWriter::temp_path, s::AtomicWriter::dest_path];
    let _: for<'a> fn(&'a mut s::AtomicWriter) -> &'a mut File = s::AtomicWriter::file_mut;
    let _: fn(s::AtomicWriter) -> R<()> = s::AtomicWriter::commit;
    fn writer<T: io::Write + Debug>() {}
    writer::<s::AtomicWriter>();
    debug::<s::UnlinkOnDrop>();
}

#[test]
fn dirty_module() {
    const _: u32 = s::dirty::DEFAULT_STEP_DOWN_THRESHOLD;
    const _: Duration = s::dirty::ADAPTIVE_WINDOW;
    assert_eq!((s::DEFAULT_STEP_DOWN_THRESHOLD, s::ADAPTIVE_WINDOW), (32, Duration::from_millis(100)));
    copy_eq::<s::dirty::TrackingGranule>();
    const COARSE: u64 = s::TrackingGranule::Coarse.page_size(s::PageGeometry::APPLE_SILICON);
    assert_eq!((COARSE, s::TrackingGranule::Fine.page_size(s::PageGeometry::APPLE_SILICON)), (2 << 20, 16384));

    type B = s::dirty::DirtyBitmap;
    let _: fn(u64, u64, u64) -> R<B> = B::new;
    let _: [fn(&B) -> u64; 4] = [B::ram_start, B::ram_size, B::page_size, B::page_count];
    const fn constant(b: &B) -> (u64, u64, u64, u64) {
        (b.ram_start(), b.ram_size(), b.page_size(), b.page_count())
    }
    assert_eq!(constant(&B::new(4096, 4097, 4096).unwrap()), (4096, 4097, 4096, 2));
    let _: fn(&B) -> u32 = B::page_shift;
    let _: fn(&B, u64) -> Option<u64> = B::page_index_of;
    let _: [fn(&B, u64) -> bool; 4] = [B::set_dirty, B::set_dirty_by_index, B::is_dirty, B::is_dirty_by_index];
    let _: fn(&B) -> Vec<u64> = B::drain;
    let _: fn(&B, fn(u64)) = B::drain_into::<fn(u64)>;
    let _: fn(&B, &B) -> R<()> = B::fold_into_finer;

    type C = s::dirty::AdaptiveController;
    let _: fn(u64) -> C = C::new;
    let _: fn(u64, u32) -> C = C::with_threshold;
    let _: [fn(&C) -> s::TrackingGranule; 2] = [C::granule, C::tick];
    let _: fn(&C, u64) = C::record_fault;
    assert_eq!(C::default().granule(), s::TrackingGranule::Coarse);

    type T = s::dirty::TrackedRegion;
    let _: fn(u64, u64, s::PageGeometry) -> R<T> = T::new;
    let _: fn(u64, u64, s::PageGeometry, u32) -> R<T> = T::with_threshold;
    let _: fn(&T) -> Arc<B> = T::bitmap;
    let _: [fn(&T) -> s::TrackingGranule; 2] = [T::granule, T::tick_adaptive];
    let _: fn(&T, u64) -> bool = T::mark_dirty;
    debug::<(B, C, T)>();
}

#[test]
fn envelope_module() {
    const _: (u64, Version, usize) = (
        s::envelope::SNAPSHOT_MAGIC_AARCH64,
        s::envelope::SNAPSHOT_VERSION,
        s::envelope::SNAPSHOT_DESERIALIZATION_BYTES_LIMIT,
    );
    const MAGIC: u64 = s::arch_magic();
    assert_eq!((MAGIC, s::SNAPSHOT_MAGIC_AARCH64), (0x0710_1984_AAAA_0000, MAGIC));
    assert_eq!((s::SNAPSHOT_VERSION, s::SNAPSHOT_DESERIALIZATION_BYTES_LIMIT), (Version::new(5, 0, 0), 10_000_000));
    wire::<s::envelope::SnapshotHdr>();
    wire::<s::envelope::Snapshot<u64>>();
    let header: s::save::Header = s::SnapshotHdr { magic: 1, version: Version::new(1, 2, 3) };
    let snapshot = s::Snapshot { header, data: 5u64 };
    assert_eq!(snapshot.version(), &Version::new(1, 2, 3));
    type S = s::Snapshot<u64>;
    let _: fn(u64) -> S = S::new;
    let _: fn(&S, &mut Vec<u8>) -> R<()> = S::save::<Vec<u8>>;
    let _: fn(&mut File) -> R<S> = S::load::<File>;
    let _: [fn(&[u8]) -> R<S>; 2] = [S::load_from_slice, S::load_without_crc_check];
    type W = s::envelope::Crc64Writer<Vec<u8>>;
    let _: fn(Vec<u8>) -> W = W::new;
    let _: fn(&W) -> u64 = W::checksum;
    let _: fn(W) -> Vec<u8> = W::into_inner;
    fn writer<T: io::Write + Debug>() {}
    writer::<W>();
}

#[test]
fn state_module() {
    fn rich<T: Debug + Clone + Default + Eq + Serialize + DeserializeOwned>() {}
    rich::<s::state::GpRegs>();
    rich::<s::state::FpSimdRegs>();
    rich::<s::state::PsciVcpuState>();
    rich::<s::state::GicState>();
    rich::<s::state::MmdsState>();
    rich::<s::state::VmInfo>();
    rich::<s::state::DeviceStates>();
    wire::<s::state::VcpuState>();
    wire::<s::state::DeviceState>();
    wire::<s::state::MicrovmState>();
    copy_eq::<s::PsciVcpuState>();
    assert_eq!(s::PsciVcpuState::default(), s::PsciVcpuState::Off);
    let _ = [s::PsciVcpuState::On, s::PsciVcpuState::OnPending];

    let vcpu = s::VcpuState {
        mpidr: 7,
        regs: s::GpRegs { x: [0; 31], sp: 0, pc: 0, pstate: 0 },
        fp_regs: s::FpSimdRegs { v: [[0; 2]; 32], fpsr: 0, fpcr: 0 },
        sys_regs: BTreeMap::<u64, u64>::new(),
        psci_state: s::PsciVcpuState::Off,
    };
    assert_eq!(vcpu, s::VcpuState::new(7));
    let gic = s::GicState { len: 2, bytes: vec![1, 2] };
    assert_eq!(gic, s::GicState::from_bytes(vec![1, 2]));
    let mmds = s::MmdsState { data_json: "1".into(), token_ttl_seconds: None };
    assert_eq!(mmds, s::MmdsState::with_data(&serde_json::json!(1), None).unwrap());
    let _: Result<serde_json::Value, serde_json::Error> = mmds.data_value();
    let device = s::DeviceState { kind: "k".into(), id: "i".into(), mmio_slot: 0, blob: vec![] };
    let devices: s::DeviceStates = s::DeviceStates::from_devices([device]);
    let state = s::MicrovmState {
        vm_info: s::VmInfo {
            mem_size_mib: 1,
            smt: false,
            cpu_template: String::new(),
            kernel_image_path: String::new(),
            initrd_path: None,
            boot_args: String::new(),
            track_dirty_pages: false,
        },
        vcpu_states: vec![vcpu],
        device_states: s::DeviceStates { devices: devices.devices },
        gic_state: gic,
        mmds_state: Some(mmds),
    };
    let verify: fn(&s::MicrovmState) -> R<()> = s::MicrovmState::verify_compatible;
    verify(&state).unwrap();
    let _ = s::MicrovmState::default();
}

struct Zeroes;

impl s::PageReader for Zeroes {
    fn read_at(&self, _offset_from_ram_start: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
}

#[test]
fn memory_module() {
    copy_eq::<s::memory::MemorySnapshotKind>();
    let _ = [s::MemorySnapshotKind::Full, s::MemorySnapshotKind::Diff];
    let _: fn(Vec<u8>) -> s::memory::VecPageReader = s::VecPageReader::new;
    let _: for<'a> fn(&'a mut s::VecPageReader) -> &'a mut [u8] = s::VecPageReader::bytes_mut;
    let _: &dyn s::memory::PageReader = &Zeroes;
    type W = s::memory::MemoryWriter;
    let _: fn(&Path, u64, u64) -> R<W> = W::open;
    let _: [fn(&W) -> u64; 2] = [W::ram_size, W::page_size];
    let _: fn(&mut W, &Zeroes) -> R<()> = W::write_full::<Zeroes>;
    let _: fn(&mut W, &Zeroes, &s::DirtyBitmap) -> R<u64> = W::write_diff::<Zeroes>;
    let _: fn(W) -> R<()> = W::commit;
    debug::<(W, s::VecPageReader)>();

    let reader = s::VecPageReader::new(vec![1; 4]);
    let read = |offset, len| s::PageReader::read_at(&reader, offset, &mut vec![0; len]).unwrap_err();
    assert_eq!(
        (read(1, 4).kind(), read(1, 4).to_string()),
        (io::ErrorKind::UnexpectedEof, "read past end of memory".into())
    );
    assert_eq!(
        (read(u64::MAX, 2).kind(), read(u64::MAX, 2).to_string()),
        (io::ErrorKind::InvalidInput, "offset overflow".into())
    );
}

#[test]
fn save_and_load_modules() {
    copy_eq::<s::save::SnapshotKind>();
    copy_eq::<s::save::SaveReport>();
    let _ = s::SaveReport { kind: s::SnapshotKind::Full, pages_written: 0 };
    let request = s::save::SaveRequest {
        state_path: Path::new("s"),
        memory_path: Path::new("m"),
        kind: s::SnapshotKind::Diff,
        state: s::MicrovmState::default(),
        memory: &Zeroes,
        ram_size: 0u64,
        memory_page_size: 16384u64,
        dirty: None::<&s::DirtyBitmap>,
    };
    let save: fn(s::SaveRequest<'_, Zeroes>) -> R<s::SaveReport> = s::save::save::<Zeroes>;
    assert!(
        matches!(save(request), Err(s::SnapshotError::InvalidPath(t)) if t == "Diff snapshot requested but vm_info.track_dirty_pages is false")
    );
    debug::<s::SaveRequest<'static, s::VecPageReader>>();

    clone_eq::<s::load::LoadedSnapshot>();
    let _ = s::LoadedSnapshot { state: s::MicrovmState::default(), source_version: s::SNAPSHOT_VERSION };
    let _: fn(&Path) -> R<s::LoadedSnapshot> = s::load::load;
    let _: fn(&Path) -> R<s::SnapshotDescription> = s::load::describe;
    let _: fn(&s::load::SnapshotDescription) -> serde_json::Value = s::SnapshotDescription::to_json;
    let _: fn(&s::SnapshotDescription) -> String = s::SnapshotDescription::human;
    fn fields(d: s::SnapshotDescription) -> impl Sized {
        let path: (PathBuf, Option<PathBuf>, bool, Option<u64>) =
            (d.state_path, d.inferred_memory_path, d.inferred_memory_exists, d.inferred_memory_size);
        let header: (u64, Version, Version, bool) = (d.magic, d.version, d.expected_version, d.crc_ok);
        let devices: Vec<(String, String, u32)> = d.devices;
        let machine: (usize, u64, bool, bool) = (d.vcpu_count, d.mem_size_mib, d.track_dirty_pages, d.mmds_present);
        (path, header, devices, machine)
    }
    let _ = fields;
}

struct Host;

impl s::vcpu_save::VcpuSnapshotSource for Host {
    fn mpidr(&self) -> u64 {
        0
    }
    fn read_gp_regs(&self) -> R<s::GpRegs> {
        Ok(s::GpRegs::default())
    }
    fn read_fp_simd(&self) -> R<s::FpSimdRegs> {
        Ok(s::FpSimdRegs::default())
    }
    fn read_sys_reg(&self, _reg: s::SysReg) -> R<Option<u64>> {
        Ok(None)
    }
    fn psci_state(&self) -> s::PsciVcpuState {
        s::PsciVcpuState::On
    }
}

impl s::vcpu_save::VcpuRestoreTarget for Host {
    fn write_gp_regs(&mut self, _regs: &s::GpRegs) -> R<()> {
        Ok(())
    }
    fn write_fp_simd(&mut self, _regs: &s::FpSimdRegs) -> R<()> {
        Ok(())
    }
    fn write_sys_reg(&mut self, _reg: s::SysReg, _value: u64) -> R<()> {
        Ok(())
    }
    fn set_psci_state(&mut self, _state: s::PsciVcpuState) -> R<()> {
        Ok(())
    }
}

impl s::vcpu_save::GicSnapshotSource for Host {
    fn capture(&self) -> R<Vec<u8>> {
        Ok(vec![1])
    }
}

impl s::vcpu_save::GicRestoreTarget for Host {
    fn restore(&mut self, _data: &[u8]) -> R<()> {
        Ok(())
    }
}

impl s::vcpu_save::MmdsSnapshotSource for Host {
    fn capture(&self) -> R<Option<s::MmdsState>> {
        Ok(None)
    }
}

impl s::vcpu_save::MmdsRestoreTarget for Host {
    fn restore(&mut self, _state: Option<&s::MmdsState>) -> R<()> {
        Ok(())
    }
}

#[test]
fn vcpu_save_module() {
    let capture: fn(&Host) -> R<s::VcpuState> = s::vcpu_save::capture_vcpu_state::<Host>;
    let restore: fn(&mut Host, &s::VcpuState, u32) -> R<()> = s::vcpu_save::restore_vcpu_state::<Host>;
    let state = capture(&Host).unwrap();
    restore(&mut Host, &state, 0).unwrap();
    let normalized: fn(u32) -> s::PsciVcpuState = s::vcpu_save::normalized_psci_state;
    assert_eq!([normalized(0), normalized(1)], [s::PsciVcpuState::On, s::PsciVcpuState::Off]);
    let _: (&dyn s::VcpuSnapshotSource, &mut dyn s::VcpuRestoreTarget) = (&Host, &mut Host);
    let _: (&dyn s::GicSnapshotSource, &mut dyn s::GicRestoreTarget) = (&Host, &mut Host);
    let _: (&dyn s::MmdsSnapshotSource, &mut dyn s::MmdsRestoreTarget) = (&Host, &mut Host);
}

#[test]
fn sibling_types() {
    fn geometry<T: Debug + Copy>() {}
    geometry::<s::PageGeometry>();
    let g = s::PageGeometry { host_page: 1, hvf_stage2_granule: 2, tracking_page_default: 4, tracking_page_hot: 2 };
    assert_eq!(g.host_page + g.hvf_stage2_granule + g.tracking_page_default + g.tracking_page_hot, 9);
    fn hash<T: std::hash::Hash + Copy + Eq + Debug>() {}
    hash::<s::SysReg>();
    let _: fn(s::SysReg) -> u64 = s::SysReg::as_encoded;
    let _: fn(u64) -> Option<s::SysReg> = s::SysReg::from_encoded;
    const ALL: &[s::SysReg] = s::SysReg::all();
    assert_eq!(s::SysReg::OsdlrEl1.as_encoded(), 47);
    assert!(ALL.len() > 47);
}

#[test]
fn auto_traits() {
    use std::panic::{RefUnwindSafe, UnwindSafe};
    shared::<s::SnapshotError>();
    shared::<(s::AtomicWriter, s::UnlinkOnDrop, s::DirtyBitmap, s::AdaptiveController, s::TrackedRegion)>();
    shared::<(s::Snapshot<u64>, s::Crc64Writer<Vec<u8>>, s::MicrovmState, s::MemoryWriter, s::VecPageReader)>();
    shared::<(s::SaveRequest<'static, s::VecPageReader>, s::LoadedSnapshot, s::SnapshotDescription, s::SysReg)>();
    fn unwind<T: UnwindSafe + RefUnwindSafe>() {}
    unwind::<(s::AtomicWriter, s::UnlinkOnDrop, s::DirtyBitmap, s::Snapshot<u64>, s::Crc64Writer<Vec<u8>>)>();
    unwind::<(s::MicrovmState, s::MemoryWriter, s::VecPageReader, s::LoadedSnapshot, s::SnapshotDescription)>();
    unwind::<s::SaveRequest<'static, s::VecPageReader>>();
}
