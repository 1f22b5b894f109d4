//! State files whose checksums are right and whose contents no squib wrote: each is refused, or its guest runs into whatever it runs into,
//! and can be saved again. Nothing panics, on whatever thread.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use squib_host::{Machine, MachineConfig, RestoreConfig, SaveTarget};
use squib_snapshot::{
    DeviceState, MachineRecord, MicrovmState, RECORD_DEVICE_KIND, SNAPSHOT_VERSION_RECORD, Snapshot, SnapshotHdr,
    SnapshotRecord, StateFile, SysReg, arch_magic,
};

type Change = Box<dyn Fn(&mut MicrovmState, &mut MachineRecord)>;

fn change(f: impl Fn(&mut MicrovmState, &mut MachineRecord) + 'static) -> Change {
    Box::new(f)
}

/// One field at a time: those that something is computed from, and the blobs.
fn changes(original: &MicrovmState) -> Vec<(String, Change)> {
    let mut all: Vec<(String, Change)> = Vec::new();
    let mut add = |name: String, f: Change| all.push((name, f));
    for mib in [0, 31, 33, (1 << 20) + 1, 1 << 44, u64::MAX] {
        add(format!("{mib} MiB"), change(move |state, _| state.vm_info.mem_size_mib = mib));
    }
    for value in [0, 1 << 63, u64::MAX] {
        add(format!("pc {value:#x}"), change(move |state, _| state.vcpu_states[0].regs.pc = value));
        add(format!("sp {value:#x}"), change(move |state, _| state.vcpu_states[0].regs.sp = value));
        add(format!("pstate {value:#x}"), change(move |state, _| state.vcpu_states[0].regs.pstate = value));
        add(format!("counter {value:#x}"), change(move |_, machine| machine.clock.guest_counter = value));
        add(format!("instructions {value:#x}"), change(move |_, machine| machine.clock.instructions = value));
        add(format!("offset {value:#x}"), change(move |_, machine| machine.vcpus[0].vtimer_offset = value));
        add(format!("frequency {value:#x}"), change(move |_, machine| machine.host.counter_frequency = value));
        let place = [value, value.rotate_left(1)].map(u64::to_le_bytes).concat();
        let place = move |_: &mut MicrovmState, machine: &mut MachineRecord| {
            machine.blobs.insert("fdt".into(), place.clone());
        };
        add(format!("device tree at {value:#x}"), change(place));
        for register in [SysReg::SctlrEl1, SysReg::TcrEl1, SysReg::Ttbr1El1, SysReg::VbarEl1, SysReg::CntvCvalEl0] {
            let set = move |state: &mut MicrovmState, _: &mut MachineRecord| {
                state.vcpu_states[0].sys_regs.insert(register.as_encoded(), value);
            };
            add(format!("{} {value:#x}", register.name()), change(set));
        }
    }
    add("no registers".into(), change(|state, _| state.vcpu_states[0].sys_regs.clear()));
    add("a register of nobody".into(), change(|state, _| state.vcpu_states[0].sys_regs.extend([(u64::MAX, 0)])));
    add("no vCPU record".into(), change(|_, machine| machine.vcpus.clear()));
    for len in [1, original.gic_state.bytes.len() - 1, original.gic_state.bytes.len() + 1] {
        add(format!("GIC of {len} bytes"), change(move |state, _| state.gic_state.bytes.resize(len, 0xff)));
    }
    for (device, saved) in original.device_states.devices.iter().enumerate() {
        for at in (0..saved.blob.len()).step_by(7) {
            let cut = change(move |state, _| state.device_states.devices[device].blob.truncate(at));
            let flip = change(move |state, _| state.device_states.devices[device].blob[at] ^= 0xff);
            add(format!("{} of {at} bytes", saved.id), cut);
            add(format!("byte {at} of {}", saved.id), flip);
        }
    }
    all
}

/// As `squib_snapshot::save_pair` does (FORMAT.md), but not a byte of it is synced.
fn write_state(path: &Path, mut state: MicrovmState, record: &SnapshotRecord) {
    state.device_states.devices.push(DeviceState {
        kind: RECORD_DEVICE_KIND.into(),
        id: String::new(),
        mmio_slot: u32::MAX,
        blob: record.to_bytes(),
    });
    let header = SnapshotHdr { magic: arch_magic(), version: SNAPSHOT_VERSION_RECORD };
    let mut file = fs::File::create(path).unwrap();
    Snapshot { header, data: state }.save(&mut file).unwrap();
}

#[test]
fn no_field_of_a_state_makes_anything_panic() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let directory = tempfile::tempdir().unwrap();
    let target = |name: &str| SaveTarget {
        state: directory.path().join(format!("{name}.state")),
        memory: directory.path().join(format!("{name}.mem")),
    };
    let (original, forged, again) = (target("original"), directory.path().join("forged.state"), target("again"));
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare/replay.img");
    let config = MachineConfig { memory_mib: 32, ..MachineConfig::new(image) };
    let mut machine = Machine::boot(config).unwrap();
    machine.run(Some(Duration::from_millis(5))).unwrap();
    machine.snapshot(&original).unwrap();
    drop(machine);
    let file = StateFile::open(&original.state).unwrap();
    let record = file.record().unwrap();
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        said(panic);
    }));
    let (mut refused, mut restored) = (0, 0);
    for (name, change) in changes(file.state()) {
        let (mut state, mut record) = (file.state().clone(), record.clone());
        change(&mut state, &mut record.machine);
        state.gic_state.len = state.gic_state.bytes.len() as u64;
        write_state(&forged, state, &record);
        match Machine::restore(RestoreConfig::new(&forged, &original.memory)) {
            Err(_) => refused += 1,
            Ok(mut machine) => {
                restored += 1;
                // A vCPU in an illegal state is an error of the run, and its machine still one that can be saved.
                let _ = machine.run(Some(Duration::from_millis(1)));
                if name.starts_with("instructions") {
                    machine.snapshot(&again).unwrap();
                }
            }
        }
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "{name}");
    }
    assert!(refused > 10 && restored > 10, "{refused} refused, {restored} restored");
}
