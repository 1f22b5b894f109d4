//! Peak memory: of saves and merges, whatever the guest's size, and of decoding files made to hurt. Linux only, because
//! the peak is read from `/proc`; one test per process would be needed to run more than one at a time, so there is one.
#![cfg(target_os = "linux")]

use std::io;

use squib_snapshot::*;

const MIB: u64 = 1 << 20;

/// Most memory this process ever had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A large RAM that is computed, not stored: one page in eight is not zero.
struct Computed;

impl PageReader for Computed {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        for (i, page) in buf.chunks_mut(4096).enumerate() {
            let number = offset / 4096 + i as u64;
            if number % 8 == 3 {
                page[..8].copy_from_slice(&number.to_le_bytes());
            }
        }
        Ok(())
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads /proc")]
fn memory_stays_bounded() {
    if let Some(dir) = std::env::var_os(MAKE_HOSTILE) {
        return make_hostile(std::path::Path::new(&dir));
    }
    // In memory where that is possible: a disk would prove no more, and takes long to give so many small extents back.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut state = MicrovmState {
        vcpu_states: vec![VcpuState::new(0)],
        gic_state: GicState::from_bytes(vec![1]),
        ..MicrovmState::default()
    };
    state.vm_info.track_dirty_pages = true;
    let size = 256 * MIB;
    let save = |name: &str, contents| {
        let request = PairRequest {
            state_path: &path(&format!("{name}.snap")),
            memory_path: &path(&format!("{name}.mem")),
            state: &state,
            machine: &MachineRecord::default(),
            memory: &Computed,
            ram_start: 0,
            ram_size: size,
            contents,
            block_size: 0,
        };
        save_pair(&request).unwrap()
    };
    // Everything that is loaded once is loaded before the first measurement.
    save("warm", Contents::Full);
    let before = peak();
    let base = save("base", Contents::Full);
    let pages = PageSet::from_pages(16384, size / 16384, (0..size / 16384).filter(|p| p % 3 == 0));
    save("diff", Contents::Diff { parent: base.identity, pages: &pages });
    let chain = Chain::open((path("base.snap"), path("base.mem")), &[(path("diff.snap"), path("diff.mem"))]).unwrap();
    merge(&chain, &path("out.snap"), &path("out.mem")).unwrap();
    let used = peak() - before;
    assert!(used < 64 << 20, "saves and a merge took {used} bytes");

    // One bit or less per element in the file, many bytes each in memory, announced by the megabyte. Making them takes that
    // memory, so another process does it.
    let maker = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory_stays_bounded"])
        .env(MAKE_HOSTILE, dir.path())
        .output()
        .unwrap();
    assert!(maker.status.success(), "{maker:?}");
    for n in 0..3 {
        let file = std::fs::read(path(&format!("hostile{n}"))).unwrap();
        let before = peak();
        assert!(StateFile::from_slice(&file).is_err());
        assert!(Snapshot::<MicrovmState>::load_from_slice(&file).is_err());
        let used = peak() - before;
        assert!(used <= (8 << 20) + 8 * file.len() as u64, "decoding {} hostile bytes took {used}", file.len());
    }
}

/// In the environment of the process that writes the hostile files: where to.
const MAKE_HOSTILE: &str = "SQUIB_TEST_MAKE_HOSTILE";

fn make_hostile(dir: &std::path::Path) {
    let device = DeviceState { kind: String::new(), id: String::new(), mmio_slot: 0, blob: vec![] };
    let mut devices = MicrovmState::default();
    devices.device_states.devices = vec![device; 2 << 20];
    let mut registers = MicrovmState { vcpu_states: vec![VcpuState::new(0); 900], ..MicrovmState::default() };
    registers.vcpu_states.iter_mut().for_each(|v| v.sys_regs = (0..2000).map(|r| (r, 0)).collect());
    let vcpus = MicrovmState { vcpu_states: vec![VcpuState::new(0); 30_000], ..MicrovmState::default() };
    for (n, state) in [devices, registers, vcpus].into_iter().enumerate() {
        let mut file = std::fs::File::create(dir.join(format!("hostile{n}"))).unwrap();
        Snapshot::new(state).save(&mut file).unwrap();
    }
}
