//! What `squib` says where it may not use the hypervisor, or where there is none: on a Mac a matter of the signature and of the machine,
//! on the stand-in a switch.
#![cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]

use std::process::Command;

#[track_caller]
fn refused(switch: &str, words: &[&str]) {
    let kernel = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-images/bare/crash.img");
    let mut squib = Command::new(env!("CARGO_BIN_EXE_squib"));
    let output = squib.args(["run", "--memory", "32", "--kernel", kernel]).env("SQUIB_SIM", switch).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{switch}: {said}");
    for word in words {
        assert!(said.contains(word), "{switch}: '{word}' is missing in: {said}");
    }
}

#[test]
fn a_program_without_the_entitlement_is_told_what_signs_it() {
    refused(
        "hypervisor=denied",
        &["entitlement com.apple.security.hypervisor", "`codesign --sign - --force --entitlements "],
    );
}

#[test]
fn without_a_hypervisor_the_software_one_is_named() {
    refused("hypervisor=missing", &["kern.hv_support", "`--features sim`", "`make build SIM=1`"]);
}
