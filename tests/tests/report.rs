//! `conformance-report` over a suite that crashes, hangs and fails: one test's end takes nothing from the others.

// On a Mac the report signs the suite first, which is no program here.
#![cfg(not(target_os = "macos"))]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};
use squib_tests::turn;

/// A suite as the report calls one: `--list`, or `--exact NAME ...`.
const SUITE: &str = r#"#!/bin/sh
case $1 in
--list)
    for test in a1_09_passes a1_10_is_killed a1_11_crashes a1_12_aborts a2_13_hangs a3_06_fails a4_01_finds switches::no of_no_fact; do
        echo "module::$test: test"
    done
    echo "switches::not_here: test"
    exit ;;
esac
case $2 in
*killed) kill -KILL $$ ;;
*crashes) echo "probe: before: the crash"; kill -SEGV $$ ;;
*aborts) kill -ABRT $$ ;;
*hangs) echo "switch: busy=3"; echo "thread 'one' panicked at file.rs:2:
  the others wait for it" >&2; exec sleep 600 ;;
*fails) echo "thread 'x' panicked at file.rs:1:
  it is wrong" >&2; exit 101 ;;
*finds) echo "test module::a4_01_finds ... probe: granule: 4 KiB"; echo "switch: granule=4k"
    case $SQUIB_CONFORMANCE_STATES,$SQUIB_CONFORMANCE_SYSTEM in */conformance,?*) ;; *) exit 1 ;; esac ;;
*of_no_fact) echo "thread 'y' panicked at file.rs:3:
  nor is this" >&2; exit 101 ;;
*not_here) exit 1 ;;
esac
"#;

#[test]
fn a_test_that_crashes_or_hangs_leaves_the_others() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("suite"), SUITE).unwrap();
    fs::set_permissions(at("suite"), fs::Permissions::from_mode(0o755)).unwrap();
    let built = json!({ "target": { "name": "conformance" }, "executable": at("suite") });
    fs::write(at("build.json"), format!("{built}\n")).unwrap();
    let mut report = Command::new(env!("CARGO_BIN_EXE_conformance-report"));
    let output = report.arg(at("build.json")).arg(directory.path()).arg("5").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));

    let json: Value = serde_json::from_slice(&fs::read(at("report.json")).unwrap()).unwrap();
    let markdown = fs::read_to_string(at("report.md")).unwrap();
    for (fact, verdict, found) in [
        ("A1-09", "confirmed", ""),
        ("A1-10", "refuted", "SIGKILL"),
        ("A1-11", "refuted", "SIGSEGV"),
        ("A1-11", "refuted", "before: the crash"),
        ("A1-12", "refuted", "SIGABRT"),
        ("A2-13", "refuted", "did not end within 5 s: thread 'one' panicked at file.rs:2: the others wait for it"),
        ("A3-06", "refuted", "panicked at file.rs:1: it is wrong"),
        ("A4-01", "probed", "granule: 4 KiB"),
        ("A4-05", "untested", ""),
    ] {
        let row = json["facts"].as_array().unwrap().iter().find(|row| row["fact"] == fact).unwrap();
        assert_eq!(row["verdict"], verdict, "{row}");
        assert!(row["details"].to_string().contains(found), "{row}");
        let row = markdown.lines().find(|line| line.starts_with(&format!("| {fact} | {verdict} |"))).unwrap();
        assert!(row.contains(found), "{row}");
    }
    assert_eq!(json["SQUIB_SIM"], "busy=3,granule=4k", "said before the end counts");
    let last = markdown.lines().last().unwrap();
    assert!(last.ends_with("SQUIB_SIM=busy=3,granule=4k"), "{last}");
    assert_eq!(json["tests"].as_array().unwrap().len(), 9, "all but the switches' own");
    for text in [said.as_ref(), markdown.as_str()] {
        assert!(text.contains("2 tests of no single fact, 1 failed"), "{text}");
        assert!(text.contains("module::of_no_fact: thread 'y' panicked at file.rs:3: nor is this"), "{text}");
    }
    for verdict in ["*confirmed*", "*refuted*", "*probed*", "*elsewhere*", "*untested*"] {
        assert!(markdown.contains(verdict), "the report does not explain {verdict}");
    }
}

#[test]
fn a_wrong_call_says_what_is_right() {
    let _turn = turn();
    for arguments in [&["x"][..], &["x", "y", "soon"], &["x", "y", "1", "z"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_conformance-report")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("usage: conformance-report BUILD_MESSAGES"));
    }
}
