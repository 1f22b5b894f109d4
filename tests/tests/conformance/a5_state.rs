//! A5-09: interrupt controller states that other versions of the system made. One run sees one version, so the report keeps a state of each
//! that it meets, and every later run tries them all.

use std::fs;
use std::path::Path;

use crate::a5_gic::accepted;
use crate::asm::*;
use crate::guest::*;
use squib_tests::switches::{STATES, SYSTEM};

#[test]
fn a5_09_a_state_of_another_system_is_accepted_or_refused() {
    // Without the report, the test is its own earlier run.
    let own = tempfile::tempdir().unwrap();
    match (std::env::var_os(STATES), std::env::var(SYSTEM)) {
        (Some(states), Ok(system)) => tries(states.as_ref(), &system),
        _ => (0..2).for_each(|_| tries(own.path(), "here")),
    }
}

/// Tries the state of a machine of this run and those in `directory`, where it leaves one of `system` if there is none.
fn tries(directory: &Path, system: &str) {
    let guest = gic_guest(&[hvc(1)]);
    let mut state = guest.vm.gic_state_create().unwrap();
    let mut data = vec![0; state.size().unwrap()];
    state.get(&mut data).unwrap();
    let mut refused = !accepted(&mut state, &data);
    fs::create_dir_all(directory).unwrap();
    let mut kept: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    kept.sort();
    for path in &kept {
        let taken = accepted(&mut state, &fs::read(path).unwrap());
        let name = path.file_name().unwrap_or_default().display();
        probe(&format!("hv_gic_set_state of a state of {name}"), if taken { "accepted" } else { "refused" });
        refused |= !taken;
    }
    switch_is_on("gic-state-refused", refused);
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || ".,".contains(letter) { letter } else { '_' };
    let own = directory.join(system.chars().map(plain).collect::<String>());
    if !kept.contains(&own) {
        fs::write(own, data).unwrap();
    }
}
