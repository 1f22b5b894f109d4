//! The command-line contract that needs no guest: exit codes, plain errors, help that teaches.

use std::process::{Command, Output};

fn squib(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_squib")).args(args).output().expect("the program starts")
}

#[track_caller]
fn expect(args: &[&str], code: i32, words: &[&str]) {
    let output = squib(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: '{word}' is missing in: {stderr}");
    }
}

#[test]
fn wrong_usage_is_2() {
    expect(&[], 2, &["Usage"]);
    expect(&["boot"], 2, &["boot"]);
    expect(&["run"], 2, &["--kernel"]);
    expect(&["run", "--kernel", "k", "--cpus", "0"], 2, &["--cpus"]);
    expect(&["run", "--kernel", "k", "--memory", "0"], 2, &["--memory"]);
    expect(&["run", "--kernel", "k", "--timeout=-1"], 2, &["--timeout"]);
    expect(&["run", "--kernel", "k", "--disk", ",ro"], 2, &["--disk"]);
    expect(&["run", "--kernel", "k", "--snapshot-on", ""], 2, &["empty"]);
    expect(&["restore", "--state", "s"], 2, &["--memory-file"]);
    let uffd = ["restore", "--state", "s", "--memory-file", "m", "--backend", "uffd"];
    expect(&uffd, 2, &["--backend-path"]);
    expect(&["restore", "--state", "s", "--backend-path", "p"], 2, &["--backend uffd"]);
    expect(&["restore", "--state", "s", "--backend", "uffd"], 2, &["--backend-path"]);
    expect(&["restore", "--state", "s", "--memory-file", "m", "--at", "3"], 2, &["--at"]);
    expect(&["page-server", "--memory-file", "m", "--diff", "d.state", "--listen", "s"], 2, &["--state"]);
}

#[test]
fn options_that_do_not_go_together_are_2() {
    expect(&["run", "--kernel", "k", "--snapshot-on", "x"], 2, &["--state", "--memory-file"]);
    expect(&["run", "--kernel", "k", "--snapshot-on", "x", "--state", "s"], 2, &["--memory-file"]);
    expect(&["run", "--kernel", "k", "--state", "s", "--memory-file", "m"], 2, &["--snapshot-on"]);
    let after = ["run", "--kernel", "k", "--state", "s", "--memory-file", "m", "--snapshot-after-instructions", "5"];
    expect(&after, 2, &["--clock deterministic"]);
    for option in ["--stats", "--no-stream"] {
        expect(&["restore", "--state", "s", "--memory-file", "m", option], 2, &[option, "--backend file or uffd"]);
    }
    let around = ["restore", "--state", "s", "--memory-file", "m", "--fault-around", "4"];
    expect(&around, 2, &["--fault-around", "--backend file or uffd"]);
    expect(&["restore", "--state", "s", "--memory-file", "m", "--fault-around", "0"], 2, &["--fault-around"]);
    let timeout = ["restore", "--state", "s", "--memory-file", "m", "--backend", "file", "--backend-timeout", "5"];
    expect(&timeout, 2, &["--backend-timeout", "--backend uffd"]);
    let restore = ["restore", "--state", "s", "--memory-file", "m", "--snapshot-on", "x"];
    expect(&restore, 2, &["--state-out", "--memory-out"]);
    // What another option would make meaningless is not passed over.
    for option in [["--at", "1"], ["--chain-out", "c"]] {
        expect(&[&restore[..], &["--state-out", "t", "--memory-out", "n"], &option].concat(), 2, &[option[0]]);
    }
    expect(&["restore", "--chain", "c", "--diff", "d.state"], 2, &["--diff"]);
    let run = ["run", "--kernel", "k", "--snapshot-on", "x", "--state", "s", "--memory-file", "m"];
    expect(&[&run[..], &["--chain", "c"]].concat(), 2, &["--chain"]);
}

#[test]
fn a_missing_file_is_one_plain_line_that_names_it() {
    for args in [
        &["run", "--kernel", "/nonexistent/Image"][..],
        &["restore", "--state", "/nonexistent/state", "--memory-file", "/nonexistent/mem"],
        &["describe", "/nonexistent/state"],
        &["verify", "/nonexistent/vm.state", "/nonexistent/vm.mem"],
        &["merge", "--base", "/nonexistent/a.state", "--diff", "/nonexistent/b.state", "--out", "/nonexistent/c.state"],
        &["recover", "/nonexistent/directory"],
    ] {
        let output = squib(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("squib: error: ") && stderr.contains("/nonexistent/"), "{stderr}");
    }
}

#[test]
fn every_help_shows_examples() {
    for command in [
        &["run"][..],
        &["restore"],
        &["describe"],
        &["verify"],
        &["merge"],
        &["recover"],
        &["page-server"],
        &["demo"],
        &["bench", "boot"],
        &["bench", "restore"],
        &[],
    ] {
        let output = squib(&[command, &["--help"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(text.contains("Examples:") && text.contains("squib "), "{command:?}: {text}");
    }
}

#[test]
fn a_missing_guest_says_how_to_get_one() {
    for args in [&["demo"][..], &["bench", "boot", "--qemu", "true"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_squib"))
            .args(args)
            .env("SQUIB_GUEST_CACHE", "/nonexistent")
            .output()
            .expect("the program starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("make guest"), "{stderr}");
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_squib")).arg("demo").env_clear().output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("--kernel and --initrd"), "{stderr}");
}
