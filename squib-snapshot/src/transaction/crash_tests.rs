//! The crash argument of the module, carried out: stop at every step, lose any part of what was not synced, fail every step
//! in every way, and look whether the old or the new pair is there, whole.

use std::io::ErrorKind;
use std::path::Path;

use super::sim::{Disk, Fault, SimFs};
use super::*;
use crate::memory::PageReader;
use crate::pair::{Contents, PairRequest, save_pair_on};
use crate::record::MachineRecord;
use crate::state::{GicState, MicrovmState, VcpuState};
use crate::state_file::StateFile;

const RAM: usize = 3 * 4096;

/// Where the two files go: into one directory, or into two.
#[derive(Clone, Copy, Debug)]
struct Places {
    state: &'static str,
    memory: &'static str,
}

const ONE_DIR: Places = Places { state: "/d/vm.snap", memory: "/d/vm.mem" };
const TWO_DIRS: Places = Places { state: "/s/vm.snap", memory: "/m/vm.mem" };

fn ram(fill: u8) -> Vec<u8> {
    let mut ram = vec![0; RAM];
    ram[..5000].fill(fill);
    ram
}

fn save(fs: &SimFs, places: Places, fill: u8) -> crate::Result<()> {
    let state = MicrovmState {
        vcpu_states: vec![VcpuState::new(fill.into())],
        gic_state: GicState::from_bytes(vec![fill]),
        ..MicrovmState::default()
    };
    save_pair_on(
        fs,
        &PairRequest {
            state_path: Path::new(places.state),
            memory_path: Path::new(places.memory),
            state: &state,
            machine: &MachineRecord::default(),
            memory: &ram(fill) as &dyn PageReader,
            ram_start: 0,
            ram_size: RAM as u64,
            contents: Contents::Full,
            block_size: 4096,
        },
    )
    .map(drop)
}

/// A disk with pair 1 on it.
fn old_disk(places: Places) -> Disk {
    let fs = SimFs::of(Disk::default());
    save(&fs, places, 1).unwrap();
    let mut disk = Disk::default();
    for name in [places.state, places.memory] {
        disk.put(name, &fs.read(name).unwrap());
    }
    disk
}

/// Recovers as a load does and returns which pair is there; panics if it is neither whole one.
fn loaded(fs: &SimFs, places: Places) -> u8 {
    recover_pair(fs, Path::new(places.state)).unwrap_or_else(|e| panic!("{e}: {:?}", fs.names()));
    let state = StateFile::from_slice(&fs.read(places.state).expect("a state is there")).expect("the state is whole");
    let memory = fs.read(places.memory).expect("a memory file is there");
    let fill = state.state().gic_state.bytes[0];
    assert!(memory == ram(fill), "the memory is not that of state {fill}: {:?}", fs.names());
    for (block, sum) in state.record().unwrap().memory.sums.iter() {
        let range = block as usize * 4096..(block as usize + 1) * 4096;
        assert_eq!(crate::digest::checksum(&memory[range]), sum);
    }
    fill
}

/// After a crash the pair loads; then the next save works and leaves nothing but its pair.
fn check_after_crash(disk: Disk, places: Places) -> u8 {
    let fs = SimFs::of(disk);
    let found = loaded(&fs, places);
    assert!(found == 1 || found == 2);
    assert_eq!(loaded(&fs, places), found, "recovery is done once");
    save(&fs, places, 3).unwrap();
    assert_eq!(loaded(&fs, places), 3);
    let mut expected = [places.state.to_string(), places.memory.to_string()];
    expected.sort();
    assert_eq!(fs.names(), expected, "the next save cleans up");
    found
}

fn steps_of_a_save(places: Places) -> usize {
    let fs = SimFs::of(old_disk(places));
    save(&fs, places, 2).unwrap();
    fs.steps()
}

#[test]
fn a_kill_at_any_step_leaves_the_old_or_the_new_pair() {
    for places in [ONE_DIR, TWO_DIRS] {
        let steps = steps_of_a_save(places);
        let mut found = Vec::new();
        for step in 0..steps {
            let fs = SimFs::with_fault(old_disk(places), step, Fault::Crash);
            let _ = save(&fs, places, 2);
            found.push(check_after_crash(fs.disk().after_kill(), places));
        }
        let switch = found.iter().position(|f| *f == 2).expect("some crash comes after the commit");
        assert!(found[..switch].iter().all(|f| *f == 1) && found[switch..].iter().all(|f| *f == 2), "{found:?}");
    }
}

#[test]
fn a_power_loss_at_any_step_leaves_the_old_or_the_new_pair_whatever_is_lost() {
    for places in [ONE_DIR, TWO_DIRS] {
        let mut cases = 0;
        for step in 0..=steps_of_a_save(places) {
            let fs = SimFs::with_fault(old_disk(places), step, Fault::Crash);
            let _ = save(&fs, places, 2);
            let disk = fs.disk();
            // Every subset of the un-synced names; contents all lost, all kept, or a mixture that changes every time.
            let names = disk.pending_names();
            assert!(names <= 12, "{names} un-synced operations");
            for subset in 0u32..1 << names {
                for mode in 0..4 {
                    let mut bits = subset;
                    let mut in_order = move || {
                        let keep = bits & 1 == 1;
                        bits >>= 1;
                        keep
                    };
                    let mut seed = subset.wrapping_mul(0x9e37_79b9) ^ (step as u32) ^ (mode << 20) | 1;
                    let mut keep_data = move || {
                        seed ^= seed << 13;
                        seed ^= seed >> 17;
                        seed ^= seed << 5;
                        match mode {
                            0 => false,
                            1 => true,
                            _ => seed & 1 == 1,
                        }
                    };
                    check_after_crash(disk.after_power_loss(&mut in_order, &mut keep_data), places);
                    cases += 1;
                }
            }
        }
        assert!(cases > 400, "{cases}");
    }
}

#[test]
fn a_crash_during_recovery_is_recovered_from() {
    for places in [ONE_DIR, TWO_DIRS] {
        for step in 0..steps_of_a_save(places) {
            let fs = SimFs::with_fault(old_disk(places), step, Fault::Crash);
            let _ = save(&fs, places, 2);
            let disk = fs.disk();
            let whole = SimFs::of(disk.clone());
            recover_pair(&whole, Path::new(places.state)).unwrap();
            for again in 0..whole.steps() {
                let fs = SimFs::with_fault(disk.clone(), again, Fault::Crash);
                let _ = recover_pair(&fs, Path::new(places.state));
                let disk = fs.disk();
                for subset in 0u32..1 << disk.pending_names() {
                    let mut bits = subset;
                    let mut in_order = move || {
                        let keep = bits & 1 == 1;
                        bits >>= 1;
                        keep
                    };
                    check_after_crash(disk.after_power_loss(&mut in_order, &mut || false), places);
                }
            }
        }
    }
}

#[test]
fn every_step_may_fail_and_nothing_is_lost() {
    let kinds = [ErrorKind::StorageFull, ErrorKind::PermissionDenied, ErrorKind::Other];
    for places in [ONE_DIR, TWO_DIRS] {
        for step in 0..steps_of_a_save(places) {
            for fault in kinds.map(Fault::Error).into_iter().chain(kinds.map(Fault::Broken)) {
                let fs = SimFs::with_fault(old_disk(places), step, fault);
                let result = save(&fs, places, 2);
                let step_name = fs.log().get(step).cloned().unwrap_or_default();
                let after = SimFs::of(fs.disk().after_kill());
                let found = loaded(&after, places);
                match result {
                    Ok(()) => assert_eq!(found, 2, "{step_name} {fault:?}"),
                    Err(SnapshotError::CommitInterrupted { .. }) => assert_eq!(found, 2, "{step_name} {fault:?}"),
                    Err(_) => assert_eq!(found, 1, "{step_name} {fault:?}"),
                }
                if matches!((&result, fault), (Err(_), Fault::Error(_)))
                    && found == 1
                    && !step_name.starts_with("remove")
                {
                    let mut expected = [places.state.to_string(), places.memory.to_string()];
                    expected.sort();
                    let mut names = after.names();
                    names.retain(|n| !n.ends_with("squib-lock"));
                    assert_eq!(names, expected, "a failed save leaves nothing: {step_name} {fault:?}");
                }
                check_after_crash(fs.disk().after_power_loss(&mut || false, &mut || false), places);
                check_after_crash(fs.disk().after_power_loss(&mut || true, &mut || true), places);
            }
        }
    }
}

#[test]
fn interrupted_and_short_writes_are_continued() {
    let steps = steps_of_a_save(ONE_DIR);
    let mut hit = 0;
    for step in 0..steps {
        for fault in [Fault::Interrupted, Fault::Short] {
            let fs = SimFs::with_fault(old_disk(ONE_DIR), step, fault);
            save(&fs, ONE_DIR, 2).unwrap();
            assert_eq!(loaded(&fs, ONE_DIR), 2);
            hit += usize::from(fs.log()[step].starts_with("write"));
        }
    }
    assert!(hit >= 4, "writes were among the steps");
}

#[test]
fn a_first_save_that_dies_leaves_no_half_pair() {
    for step in 0..steps_of_a_save(ONE_DIR) {
        let fs = SimFs::with_fault(Disk::default(), step, Fault::Crash);
        let _ = save(&fs, ONE_DIR, 2);
        let after = SimFs::of(fs.disk().after_power_loss(&mut || true, &mut || false));
        recover_pair(&after, Path::new(ONE_DIR.state)).unwrap();
        let there = [ONE_DIR.state, ONE_DIR.memory].map(|n| after.read(n).is_some());
        assert!(there == [false, false] || (there == [true, true] && loaded(&after, ONE_DIR) == 2), "{there:?}");
    }
}

#[test]
fn recovering_a_directory_cleans_it_and_a_removed_memory_file_undoes_the_commit() {
    let steps = steps_of_a_save(TWO_DIRS);
    let mut undone = 0;
    for step in 0..steps {
        let fs = SimFs::with_fault(old_disk(TWO_DIRS), step, Fault::Crash);
        let _ = save(&fs, TWO_DIRS, 2);
        let after = SimFs::of(fs.disk().after_kill());
        // Only the memory's directory is recovered first: what it cannot know of is removed.
        recover_directory(&after, Path::new("/m")).unwrap();
        let report = recover_directory(&after, Path::new("/s")).unwrap();
        undone += report.undone.len();
        loaded(&after, TWO_DIRS);
        assert!(recover_directory(&after, Path::new("/s")).unwrap().is_clean());
        assert!(
            !after.names().iter().any(|n| n.contains(".new") || n.contains("journal") || n.contains("lock")),
            "{:?}",
            after.names()
        );
    }
    assert!(undone > 0);
}

#[test]
fn a_merge_that_dies_or_fails_leaves_the_old_or_the_new_pair() {
    let dir = tempfile::tempdir().unwrap();
    let state = |fill: u8| {
        let mut state = MicrovmState {
            vcpu_states: vec![VcpuState::new(fill.into())],
            gic_state: GicState::from_bytes(vec![fill]),
            ..MicrovmState::default()
        };
        state.vm_info.track_dirty_pages = true;
        state
    };
    let link = |name: &str, fill: u8, contents| {
        let (state_path, memory_path) = (dir.path().join(name), dir.path().join(format!("{name}.mem")));
        let report = crate::save_pair(&PairRequest {
            state_path: &state_path,
            memory_path: &memory_path,
            state: &state(fill),
            machine: &MachineRecord::default(),
            memory: &ram(fill) as &dyn PageReader,
            ram_start: 0,
            ram_size: RAM as u64,
            contents,
            block_size: 4096,
        });
        (report.unwrap().identity, crate::Pair::open(&state_path, &memory_path).unwrap())
    };
    let (parent, base) = link("base", 9, Contents::Full);
    let pages = crate::PageSet::from_pages(4096, 3, [0, 1]);
    let (_, diff) = link("diff", 2, Contents::Diff { parent, pages: &pages });
    let chain = crate::Chain::from_pairs(base, vec![diff]).unwrap();
    let merge = |fs: &SimFs, places: Places| {
        crate::merge::merge_on(fs, &chain, Path::new(places.state), Path::new(places.memory))
    };
    for places in [ONE_DIR, TWO_DIRS] {
        let whole = SimFs::of(old_disk(places));
        merge(&whole, places).unwrap();
        assert_eq!(loaded(&whole, places), 2);
        for step in 0..whole.steps() {
            let fs = SimFs::with_fault(old_disk(places), step, Fault::Crash);
            let _ = merge(&fs, places);
            check_after_crash(fs.disk().after_kill(), places);
            check_after_crash(fs.disk().after_power_loss(&mut || false, &mut || false), places);
            check_after_crash(fs.disk().after_power_loss(&mut || true, &mut || true), places);
            let fs = SimFs::with_fault(old_disk(places), step, Fault::Error(ErrorKind::StorageFull));
            let failed = merge(&fs, places).is_err();
            let found = check_after_crash(fs.disk().after_kill(), places);
            assert!(failed || found == 2);
        }
    }
}
