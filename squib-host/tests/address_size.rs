//! RAM beyond what the default IPA size reaches: 36 bits on the stand-in, and on the Macs that are known.

use std::path::Path;
use std::time::Duration;

use squib_host::{Error, Machine, MachineConfig, RunOutcome};

/// The bare guest, which uses little of its RAM: the rest is never there.
fn boot(memory_mib: u64) -> Result<RunOutcome, Error> {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare/replay.img");
    let mut machine = Machine::boot(MachineConfig { memory_mib, ..MachineConfig::new(image) })?;
    machine.run(Some(Duration::from_secs(120)))
}

#[test]
fn more_ram_than_36_bits_reach_gets_the_largest_size_or_a_plain_refusal() {
    // With the devices below it even this RAM ends beyond 36 bits.
    const MEMORY_MIB: u64 = 64 << 10;
    match boot(MEMORY_MIB) {
        Ok(outcome) => assert!(matches!(outcome, RunOutcome::PowerOff), "{outcome:?}"),
        // A Mac whose largest size is the default.
        Err(Error::Config(refusal)) => is_plain(&refusal),
        Err(error) => panic!("{error}"),
    }
    #[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
    {
        let mut config = squib_sim::Config::default();
        config.apply("max-ipa=36").unwrap();
        squib_sim::configure(config);
        match boot(MEMORY_MIB) {
            Err(Error::Config(refusal)) => is_plain(&refusal),
            other => panic!("{other:?}"),
        }
        // One MiB below the border is possible.
        assert!(matches!(boot(MEMORY_MIB - 1024 - 1), Ok(RunOutcome::PowerOff)));
    }
}

/// The refusal has the size, what it needs, and what there is.
fn is_plain(refusal: &str) {
    assert!(refusal.starts_with("65536 MiB of RAM need 37 address bits; this host offers 36"), "{refusal}");
}
