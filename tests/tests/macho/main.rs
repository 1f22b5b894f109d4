//! Looks into the Mach-O executables that `make macos` has linked, and says which.
//!
//! `SQUIB_MACHO` and `SQUIB_MACHO_SIM` name files with cargo's messages (`--message-format=json`) of a build for
//! `aarch64-apple-darwin` without and with feature `sim`. Nothing is skipped: without them, or when a listed program is not
//! there, the tests fail.

mod headers;
mod image;

use std::collections::BTreeSet;
use std::path::Path;

use disarm64::{InsnDisplay, decoder};
use image::Image;
use serde_json::Value;

const FRAMEWORK: &str = "/System/Library/Frameworks/Hypervisor.framework/";
/// `PLATFORM_MACOS` of `mach-o/loader.h`.
const PLATFORM_MACOS: u32 = 1;
const SET_SIMD: &str = "_hv_vcpu_set_simd_fp_reg";
/// `MOV W1, #51`: the second argument of `fcntl` is `F_FULLFSYNC` (`sys/fcntl.h`).
const W1_IS_F_FULLFSYNC: u32 = 0x5280_0661;
/// These packages are about the stand-in, and link it with or without the feature.
const OF_THE_STAND_IN: [&str; 2] = ["squib-sim", "squib-difftest"];

/// A linked program: the package it is from, its target's name, and what is in it.
struct Program {
    package: String,
    name: String,
    image: Image,
}

/// Cargo's messages, in the file that `variable` names.
fn messages(variable: &str) -> String {
    let list = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run `make macos`"));
    std::fs::read_to_string(&list).unwrap_or_else(|error| panic!("{list}: {error}"))
}

/// Every program of the build whose messages `variable` names.
fn programs(variable: &str) -> Vec<Program> {
    let messages = messages(variable);
    let messages = messages.lines().map(|line| serde_json::from_str::<Value>(line).expect("cargo writes JSON"));
    let found: Vec<Program> = messages.filter_map(|message| program(&message)).collect();
    assert!(!found.is_empty(), "{variable} lists no program");
    found
}

fn program(message: &Value) -> Option<Program> {
    let path = Path::new(message["executable"].as_str()?);
    let image = Image::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // path+file:///.../squib-host#0.3.0, or path+file:///.../tests#squib-tests@0.3.0
    let id = message["package_id"].as_str()?.rsplit('/').next()?;
    let (directory, rest) = id.split_once('#')?;
    let package = rest.split_once('@').map_or(directory, |(name, _)| name).to_owned();
    let (kind, target) = (message["target"]["kind"][0].as_str()?, message["target"]["name"].as_str()?);
    let harness = kind != "test" && message["profile"]["test"] == true;
    let name = format!("{package}, {kind} {target}{}", if harness { " as a test" } else { "" });
    Some(Program { package, name, image })
}

fn text(code: u32) -> String {
    decoder::decode(code).map_or_else(|| format!("{code:#010x}"), |instruction| instruction.display_at(0).to_string())
}

/// Whether the instruction is `LDR Q0, [Xn]`.
fn loads_q0(code: u32) -> bool {
    code & 0xffff_fc1f == 0x3dc0_0000
}

/// Every call of `hv_vcpu_set_simd_fp_reg` must come right after the load of its vector argument; returns how many there are.
fn check_simd_calls(program: &Program) -> usize {
    let image = &program.image;
    let Some(entry) = image.entry(SET_SIMD) else { return 0 };
    let calls = image.branches_to(entry);
    for &call in &calls {
        let before = image.instructions(call - 4, 1)[0];
        assert!(
            loads_q0(before),
            "{}: {call:#x} calls {SET_SIMD} after `{}`, not after a load of q0",
            program.name,
            text(before)
        );
    }
    calls.len()
}

/// Nothing syncs through calls that leave data in the drive's cache, and `squib` makes the one that does not. The call is in Rust's
/// standard library, which comes compiled, so its few instructions are the same in every build.
fn check_syncs(program: &Program) {
    let image = &program.image;
    for weaker in ["_fsync", "_fdatasync", "_sync"] {
        assert!(!image.imports.contains_key(weaker), "{}: calls {weaker}", program.name);
    }
    if program.name == "squib-cli, bin squib" {
        let calls = image.branches_to(image.entry("_fcntl").expect("squib calls fcntl"));
        let full = calls.iter().filter(|&&call| image.instructions(call - 8, 2).contains(&W1_IS_F_FULLFSYNC)).count();
        assert!(full > 0, "none of {} calls of fcntl is for F_FULLFSYNC", calls.len());
        println!("{}: {full} calls of fcntl for F_FULLFSYNC", program.name);
    }
}

fn check_system(program: &Program) {
    let image = &program.image;
    assert_eq!(image.platform, PLATFORM_MACOS, "{}: platform", program.name);
    assert_eq!(image.minimum_system, (15, 0), "{}: minimum macOS", program.name);
}

#[test]
fn framework_is_linked_and_every_hv_function_bound_to_it() {
    let mut everything = BTreeSet::new();
    for program in programs("SQUIB_MACHO").iter().filter(|p| !OF_THE_STAND_IN.contains(&p.package.as_str())) {
        check_system(program);
        check_syncs(program);
        let image = &program.image;
        let used = image.hypervisor_imports();
        for &function in &used {
            let library = &image.imports[function];
            assert!(library.starts_with(FRAMEWORK), "{}: {function} is bound to {library}", program.name);
        }
        assert_eq!(image.hypervisor_definitions(), BTreeSet::new(), "{}: defined inside", program.name);
        let calls = check_simd_calls(program);
        println!("{}: {} functions of the framework, q0 loaded before {calls} calls", program.name, used.len());
        if program.name == "squib-cli, bin squib" {
            assert!(calls > 0, "squib sets vector registers");
        }
        everything.extend(used.into_iter().map(str::to_owned));
    }
    for function in ["_hv_vm_create", "_hv_vm_map", "_hv_vcpu_run", "_hv_gic_create", "_hv_gic_set_state", SET_SIMD] {
        assert!(everything.contains(function), "nothing calls {function}");
    }
}

#[test]
fn sim_defines_every_hv_function_inside() {
    let programs = programs("SQUIB_MACHO_SIM");
    let squib = programs.iter().find(|program| program.name == "squib-cli, bin squib").expect("squib is among them");
    for program in &programs {
        check_system(program);
        check_syncs(program);
        let image = &program.image;
        assert_eq!(image.hypervisor_imports(), BTreeSet::new(), "{}: bound to a library", program.name);
        let calls = check_simd_calls(program);
        println!(
            "{}: {} functions inside, q0 loaded before {calls} calls",
            program.name,
            image.hypervisor_definitions().len()
        );
    }
    let image = &squib.image;
    assert!(image.hypervisor_definitions().contains("_hv_vcpu_run"));
    assert!(check_simd_calls(squib) > 0, "squib sets vector registers");
    // The stand-in takes the value from where the caller puts it.
    let entry = image.entry(SET_SIMD).expect("defined inside");
    let first: Vec<String> = image.instructions(entry, 4).iter().map(|&code| text(code)).collect();
    assert!(first.iter().any(|line| line.starts_with("str") && line.contains("q0")), "{SET_SIMD}: {first:?}");
}
