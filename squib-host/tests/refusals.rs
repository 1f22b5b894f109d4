//! Sound snapshots that this host cannot honour are refused with the reason, and a chain takes only what continues it. The guest is a
//! bare one, in this very process.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use squib_host::{ChainWriter, Machine, MachineConfig, RestoreConfig, SaveTarget};
use squib_snapshot::{
    Contents, DeviceState, MachineRecord, MicrovmState, MmdsState, PairRequest, StateFile, save_pair,
};

/// One virtual machine per process: the tests of this file take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

/// The guest that hashes and prints for a while.
fn boot(track_dirty_pages: bool) -> Machine {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare/replay.img");
    Machine::boot(MachineConfig { memory_mib: 32, track_dirty_pages, ..MachineConfig::new(image) }).unwrap()
}

fn target(directory: &Path, name: &str) -> SaveTarget {
    SaveTarget { state: directory.join(format!("{name}.state")), memory: directory.join(format!("{name}.mem")) }
}

#[test]
fn what_this_host_cannot_honour_is_refused_with_the_reason() {
    type Change = fn(&mut MicrovmState, &mut MachineRecord);
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let (original, changed) = (target(directory.path(), "original"), target(directory.path(), "changed"));
    boot(false).snapshot(&original).unwrap();
    let file = StateFile::open(&original.state).unwrap();
    let memory = fs::read(&original.memory).unwrap();
    let restore = |change: Change| {
        let (mut state, mut machine) = (file.state().clone(), file.record().unwrap().machine.clone());
        change(&mut state, &mut machine);
        save_pair(&PairRequest {
            state_path: &changed.state,
            memory_path: &changed.memory,
            state: &state,
            machine: &machine,
            memory: &memory,
            ram_start: 0x4000_0000,
            ram_size: memory.len() as u64,
            contents: Contents::Full,
            block_size: 0,
        })
        .unwrap();
        Machine::restore(RestoreConfig::new(&changed.state, &changed.memory)).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(restore(|_, _| {}), Ok(()));
    let changes: [(Change, &str); 6] = [
        (|state, _| state.mmds_state = Some(MmdsState { data_json: "{}".into(), token_ttl_seconds: None }), "metadata"),
        (|state, _| state.vcpu_states[0].mpidr = 0x8000_0101, "MPIDR_EL1 0x80000101"),
        (|_, machine| machine.host.counter_frequency /= 2, "counter runs at"),
        (|state, _| state.device_states.devices.retain(|device| device.id != "rtc0"), "rtc0"),
        (|state, _| state.device_states.devices[0].blob.truncate(1), "cannot be restored"),
        (
            |state, _| {
                let (kind, id) = ("sound".into(), "sound0".into());
                state.device_states.devices.push(DeviceState { kind, id, mmio_slot: 40, blob: Vec::new() });
            },
            "sound sound0",
        ),
    ];
    for (change, words) in changes {
        let error = restore(change).expect_err(words);
        assert!(error.contains(words), "'{words}' is missing in: {error}");
    }
}

#[test]
fn a_chain_takes_only_what_continues_it() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let chain = directory.path().join("chain");
    let error = ChainWriter::open(&chain, &boot(false)).unwrap_err().to_string();
    assert!(error.contains("--track-dirty-pages") && !chain.exists(), "{error}");

    let mut machine = boot(true);
    let mut writer = ChainWriter::open(&chain, &machine).unwrap();
    assert_eq!(writer.checkpoint(&mut machine).unwrap(), None, "it stood still before, and does");
    machine.resume().unwrap();
    assert!(writer.checkpoint(&mut machine).unwrap().is_some_and(|pause| pause > Duration::ZERO));
    let (files, report) = writer.finish().unwrap().unwrap();
    assert_eq!(
        (files, writer.links()),
        (SaveTarget { state: chain.join("0001.state"), memory: chain.join("0001.mem") }, 2)
    );
    assert!(report.total >= report.capture && report.total > Duration::ZERO);
    // A snapshot elsewhere takes the dirty pages away, so the next diff would not continue the chain.
    machine.snapshot(&target(directory.path(), "elsewhere")).unwrap();
    let error = writer.checkpoint(&mut machine).unwrap_err().to_string();
    assert!(error.contains("outside") && writer.links() == 2, "{error}");
    drop(machine);
    drop(writer);
    // Another machine has nothing to do with it.
    let error = ChainWriter::open(&chain, &boot(true)).unwrap_err().to_string();
    assert!(error.contains("does not continue"), "{error}");
}
