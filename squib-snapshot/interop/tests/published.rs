//! Both directions with the published crate: what it writes loads here, what we write in version 5.0 loads there, and a
//! newer file is refused there by its version.

use std::io::Cursor;
use std::path::Path;

use squib_snapshot as ours;
use squib_snapshot_published as published;

macro_rules! sample {
    ($krate:ident) => {{
        use $krate::*;
        let mut first = VcpuState::new(0x8000_0000);
        first.regs.x = std::array::from_fn(|i| i as u64);
        first.regs.sp = 0x8123_4560;
        first.regs.pc = 0x8020_0000;
        first.regs.pstate = 0x3c5;
        first.fp_regs.v[0] = [0xAABB_CCDD_EEFF_0011, 0x1234_5678_9ABC_DEF0];
        first.fp_regs.fpcr = 0x0700_0000;
        first.sys_regs = [(1, 0x30C5_0838), (10, 0xFFFF_8000_1000_0800)].into();
        first.psci_state = PsciVcpuState::On;
        let mut second = VcpuState::new(1);
        second.sys_regs = [(1, 0x30D0_0800)].into();
        let device = |kind: &str, id: &str, mmio_slot, blob: &[u8]| DeviceState {
            kind: kind.into(),
            id: id.into(),
            mmio_slot,
            blob: blob.to_vec(),
        };
        MicrovmState {
            vm_info: VmInfo {
                mem_size_mib: 256,
                smt: false,
                cpu_template: "V1N1".into(),
                kernel_image_path: "/k".into(),
                initrd_path: Some("/i".into()),
                boot_args: "console=ttyAMA0".into(),
                track_dirty_pages: true,
            },
            vcpu_states: vec![first, second],
            device_states: DeviceStates::from_devices([
                device("virtio-block", "rootfs", 0, &[0xa1, 0xa2, 0xa3, 0xa4]),
                device("virtio-net", "eth0", 1, &[0xb1, 0xb2]),
            ]),
            gic_state: GicState::from_bytes((0..16).collect()),
            mmds_state: Some(MmdsState::with_data(&serde_json::json!({"a": 1}), Some(3600)).unwrap()),
        }
    }};
}

#[test]
fn both_crates_write_the_same_bytes_and_read_each_other() {
    let (mut here, mut there) = (Vec::new(), Vec::new());
    ours::Snapshot::new(sample!(ours)).save(&mut here).unwrap();
    published::Snapshot::new(sample!(published)).save(&mut there).unwrap();
    assert_eq!(here, there);
    assert_eq!(here, include_bytes!("../../tests/data/v5.0-sample.snap"));
    let back = ours::Snapshot::<ours::MicrovmState>::load(&mut Cursor::new(&there)).unwrap();
    assert_eq!(back.data, sample!(ours));
    let back = published::Snapshot::<published::MicrovmState>::load(&mut Cursor::new(&here)).unwrap();
    assert_eq!(back.data, sample!(published));
}

#[test]
fn a_default_state_is_the_golden_file() {
    let mut bytes = Vec::new();
    ours::Snapshot::new(ours::MicrovmState::default()).save(&mut bytes).unwrap();
    assert_eq!(bytes, include_bytes!("../../tests/data/v5.0-default.snap"));
}

#[test]
fn small_golden_files() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut number = Vec::new();
    ours::Snapshot::new(0x1122_3344_5566_7788_u64).save(&mut number).unwrap();
    assert_eq!(hex(number), "000000aaaa8419100705352e302e30008877665544332211104ee1e12e5907bf");
    let mut unit = Vec::new();
    ours::Snapshot::new(()).save(&mut unit).unwrap();
    assert_eq!(hex(unit), "000000aaaa8419100705352e302e30f5007310459319f5");
}

fn pair(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    (dir.join("vm.snap"), dir.join("vm.mem"))
}

#[test]
fn diffs_of_both_are_the_same_files() {
    macro_rules! diff {
        ($krate:ident, $dir:expr) => {{
            let (state_path, memory_path) = pair($dir);
            let dirty = $krate::DirtyBitmap::new(0x8000_0000, 65536, 16384).unwrap();
            dirty.set_dirty(0x8000_4001);
            let saved = $krate::save($krate::SaveRequest {
                state_path: &state_path,
                memory_path: &memory_path,
                kind: $krate::SnapshotKind::Diff,
                state: sample!($krate),
                memory: &$krate::VecPageReader::new((0..65536u32).map(|i| (i / 256) as u8).collect()),
                ram_size: 65536,
                memory_page_size: 4096,
                dirty: Some(&dirty),
            })
            .unwrap();
            let files = [&state_path, &memory_path].map(|path| std::fs::read(path).unwrap());
            (files, saved.pages_written, dirty.drain(), ours::load(&state_path).unwrap().state)
        }};
    }
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, published) = (diff!(ours, here.path()), diff!(published, there.path()));
    assert_eq!((ours.1, &ours.2), (4, &vec![1]));
    assert!(ours == published);
}

#[test]
fn pairs_saved_by_one_load_in_the_other() {
    let ram: Vec<u8> = (0..65536u32).map(|i| (i / 4096) as u8).collect();
    let dir = tempfile::tempdir().unwrap();

    let (state_path, memory_path) = pair(dir.path());
    published::save(published::SaveRequest {
        state_path: &state_path,
        memory_path: &memory_path,
        kind: published::SnapshotKind::Full,
        state: sample!(published),
        memory: &published::VecPageReader::new(ram.clone()),
        ram_size: 65536,
        memory_page_size: 16384,
        dirty: None,
    })
    .unwrap();
    assert_eq!(ours::load(&state_path).unwrap().state, sample!(ours));
    let described = ours::describe(&state_path).unwrap();
    assert_eq!(described.human(), published::describe(&state_path).unwrap().human());
    assert_eq!(described.to_json(), published::describe(&state_path).unwrap().to_json());

    ours::save(ours::SaveRequest {
        state_path: &state_path,
        memory_path: &memory_path,
        kind: ours::SnapshotKind::Full,
        state: sample!(ours),
        memory: &ours::VecPageReader::new(ram.clone()),
        ram_size: 65536,
        memory_page_size: 16384,
        dirty: None,
    })
    .unwrap();
    assert_eq!(published::load(&state_path).unwrap().state, sample!(published));
    assert_eq!(std::fs::read(&memory_path).unwrap(), ram);
}

#[test]
fn the_published_crate_refuses_a_newer_file_by_its_version() {
    for bytes in
        [&include_bytes!("../../tests/data/v5.1-full.snap")[..], include_bytes!("../../tests/data/v5.1-diff.snap")]
    {
        let e = published::Snapshot::<published::MicrovmState>::load(&mut Cursor::new(bytes)).unwrap_err();
        assert_eq!(e.to_string(), "snapshot version 5.1.0 is incompatible with squib's 5.0.0");
    }
}
