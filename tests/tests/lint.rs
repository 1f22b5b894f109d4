//! `tests/lint.sh` finds what is wrong with a workflow or a script: each of these, alone, is enough.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const WORKFLOW: &str = r#"
name: ci
on:
  push:
    branches: [main]
jobs:
  first:
    runs-on: ubuntu-24.04
    steps:
      - uses: actions/checkout@v6
      - run: echo "${{ github.ref }}"
  second:
    needs: first
    runs-on: [self-hosted, macOS, ARM64]
    steps:
      - run: echo "$HOME"
"#;
const SCRIPT: &str = "#!/bin/sh\nset -eu\necho \"$1\"\n";

/// What the check says of these two files, if it finds something.
fn complaint(workflow: &str, script: &str) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    let workflows = directory.path().join(".github/workflows");
    fs::create_dir_all(&workflows).unwrap();
    fs::write(workflows.join("ci.yml"), workflow).unwrap();
    let run = directory.path().join("run");
    fs::write(&run, script).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    let lint = Path::new(env!("CARGO_MANIFEST_DIR")).join("lint.sh");
    let output = Command::new(lint).arg(directory.path()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (!output.status.success()).then_some(said)
}

#[test]
fn what_is_wrong_is_found() {
    assert_eq!(complaint(WORKFLOW, SCRIPT), None);
    for (right, wrong, words) in [
        ("runs-on: ubuntu-24.04", "run-on: ubuntu-24.04", "run-on"),
        ("runs-on: ubuntu-24.04", "runs-on: ubuntu-2404", "ubuntu-2404"),
        ("needs: first", "needs: frist", "frist"),
        ("github.ref", "github.reff", "reff"),
        ("branches: [main]", "branch: [main]", "branch"),
        ("checkout@v6", "checkout@v4", "node20"),
        ("checkout@v6", "checkout", "checkout"),
        ("\"$HOME\"", "$HOME/*", "SC2086"),
        ("jobs:", "jobs: [", "yml"),
    ] {
        let said = complaint(&WORKFLOW.replace(right, wrong), SCRIPT).unwrap_or_else(|| panic!("{wrong} is taken"));
        assert!(said.contains(words), "{wrong}: {said}");
    }
    for (wrong, words) in [("echo $1", "SC2086"), ("if true; then", "SC1073"), ("echo \"${undefined[0]}\"", "SC")] {
        let said = complaint(WORKFLOW, &SCRIPT.replace("echo \"$1\"", wrong)).unwrap_or_else(|| panic!("{wrong}"));
        assert!(said.contains(words), "{wrong}: {said}");
    }
    assert!(complaint(WORKFLOW, "no script").is_some_and(|said| said.contains("no scripts")));
}
