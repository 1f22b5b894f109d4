//! Where the framework's behaviour is unknown or contradicted, the machine must not depend on it: boot, stop, save, restore and
//! power-off with every switch of the stand-in in its other position.
#![cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]

use std::path::Path;
use std::time::Duration;

use squib_host::{
    ConsoleConfig, Error, Machine, MachineConfig, RestoreConfig, RunOutcome, SaveTarget, StopReason, Watch, WatchId,
};

/// Boots the bare guest, freezes it in its first line of output and lets a second machine finish it.
fn frozen_and_finished(directory: &Path) -> Result<RunOutcome, Error> {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare/replay.img");
    let watches = vec![Watch { id: WatchId(0), text: "hash".into() }];
    let console = ConsoleConfig { watches, ..ConsoleConfig::default() };
    let mut machine = Machine::boot(MachineConfig { memory_mib: 32, console, ..MachineConfig::new(image) })?;
    let patience = Some(Duration::from_secs(120));
    let outcome = machine.run(patience)?;
    assert!(matches!(outcome, RunOutcome::Stopped(StopReason::Watch(_))), "{outcome:?}");
    let target = SaveTarget { state: directory.join("vm.state"), memory: directory.join("vm.mem") };
    machine.snapshot(&target)?;
    drop(machine);
    Machine::restore(RestoreConfig::new(&target.state, &target.memory))?.run(patience)
}

#[test]
fn no_switch_matters_but_the_one_that_must() {
    let directory = tempfile::tempdir().unwrap();
    let with = |switch: &str| {
        let mut config = squib_sim::Config::default();
        config.apply(switch).unwrap();
        squib_sim::configure(config);
        frozen_and_finished(directory.path())
    };
    let presets = squib_sim::config::PRESETS.map(|(name, _)| name);
    for switch in squib_sim::Config::harmless().iter().map(String::as_str).chain([""]).chain(presets) {
        let outcome = with(switch).unwrap_or_else(|error| panic!("{switch}: {error}"));
        assert!(matches!(outcome, RunOutcome::PowerOff), "{switch}: {outcome:?}");
    }
    let refusal = with("gic-state-refused=on").unwrap_err();
    assert!(matches!(refusal, Error::Incompatible(_)), "{refusal}");
    assert!(refusal.to_string().contains("operating system"), "{refusal}");
    for (switch, words) in [
        ("hypervisor=denied", ["com.apple.security.hypervisor", "codesign --sign"]),
        ("hypervisor=missing", ["kern.hv_support", "SIM=1"]),
    ] {
        let refusal = with(switch).unwrap_err().to_string();
        assert!(words.iter().all(|word| refusal.contains(word)), "{switch}: {refusal}");
    }
}
