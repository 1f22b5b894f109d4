//! The subcommands that work on a snapshot's files alone: describe, verify, merge, recover. Their input is made with
//! squib-snapshot; no guest is involved.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use squib_snapshot::{
    Contents, DirtyBitmap, GicState, MachineRecord, MicrovmState, PairRequest, VcpuState, save_diff, save_pair,
};

const RAM: usize = 4 << 20;
const PAGE: usize = 16 << 10;

/// A full snapshot `base` and, on top of it, a diff `diff`, in a directory; and RAM as it was at the diff.
struct Fixture {
    directory: tempfile::TempDir,
    ram: Vec<u8>,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut state = MicrovmState {
            vcpu_states: vec![VcpuState::new(0), VcpuState::new(1)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        };
        state.vm_info.mem_size_mib = 4;
        state.vm_info.track_dirty_pages = true;
        let machine = MachineRecord::default();
        let mut ram: Vec<u8> = (0..RAM).map(|n| (n / PAGE) as u8).collect();
        let file = |name: &str| directory.path().join(name);
        let save = |name: &str, ram: &Vec<u8>, on_top_of: Option<(_, &DirtyBitmap)>| {
            let (state_path, memory_path) = (file(&format!("{name}.state")), file(&format!("{name}.mem")));
            let request = PairRequest {
                state_path: &state_path,
                memory_path: &memory_path,
                state: &state,
                machine: &machine,
                memory: ram,
                ram_start: 0x4000_0000,
                ram_size: RAM as u64,
                contents: Contents::Full,
                block_size: 0,
            };
            match on_top_of {
                None => save_pair(&request),
                Some((parent, dirty)) => save_diff(&request, parent, dirty),
            }
            .expect("saved")
            .identity
        };
        let base = save("base", &ram, None);
        let dirty = DirtyBitmap::new(0x4000_0000, RAM as u64, PAGE as u64).expect("a bitmap");
        ram[5 * PAGE + 7] = 0xee;
        dirty.set_dirty_by_index(5);
        save("diff", &ram, Some((base, &dirty)));
        Fixture { directory, ram }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn squib(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squib"));
        command.args(args).current_dir(self.directory.path()).output().expect("the program starts")
    }

    #[track_caller]
    fn expect(&self, args: &[&str], code: i32) -> (String, String) {
        let output = self.squib(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{err}");
        (out.into_owned(), err.into_owned())
    }

    #[track_caller]
    fn json(&self, args: &[&str], code: i32) -> serde_json::Value {
        let (out, _) = self.expect(&[args, &["--json"]].concat(), code);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).expect("readable");
    bytes[offset] ^= 0x10;
    fs::write(path, bytes).expect("writable");
}

#[test]
fn describe_tells_what_is_in_a_state_file() {
    let fixture = Fixture::new();
    assert_eq!(fixture.json(&["describe", "base.state"], 0)["vcpu_count"], 2);
    let (text, _) = fixture.expect(&["describe", "base.state"], 0);
    assert!(text.contains("vcpu_count:          2") && text.contains("mem_size_mib:        4"), "{text}");
    // A damaged one is described as far as it can be read, or refused with one line; never taken for sound.
    flip(&fixture.file("base.state"), 20);
    let output = fixture.squib(&["describe", "base.state", "--json"]);
    match output.status.code() {
        Some(0) => assert!(String::from_utf8_lossy(&output.stdout).contains("\"crc_ok\": false")),
        code => {
            assert_eq!(code, Some(1));
            assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
        }
    }
}

#[test]
fn verify_finds_a_flipped_bit_and_names_its_range() {
    let fixture = Fixture::new();
    assert_eq!(fixture.json(&["verify", "base.state", "base.mem"], 0)["ok"], true);
    fixture.expect(&["verify", "diff.state", "diff.mem"], 0);
    // Page 0 is zero, so a hole; page 200 is not. Both are covered.
    for offset in [100, 200 * PAGE] {
        flip(&fixture.file("base.mem"), offset);
        let report = fixture.json(&["verify", "base.state", "base.mem"], 1);
        let damaged = &report["damaged"][0];
        let (start, end) = (damaged["start"].as_u64().expect("start"), damaged["end"].as_u64().expect("end"));
        assert!((start..end).contains(&(offset as u64)), "{offset}: {report}");
        let (_, stderr) = fixture.expect(&["verify", "base.state", "base.mem"], 1);
        assert_eq!(stderr, "squib: error: base.mem is damaged: 1 of its blocks are not what was saved\n");
        flip(&fixture.file("base.mem"), offset);
    }
    fixture.expect(&["verify", "base.state", "base.mem"], 0);
    // A pair that does not belong together.
    fixture.expect(&["verify", "base.state", "diff.mem"], 1);
}

#[test]
fn merge_folds_the_diff_into_the_base() {
    let fixture = Fixture::new();
    let report = fixture.json(&["merge", "--base", "base.state", "--diff", "diff.state", "--out", "all.state"], 0);
    assert_eq!(report["diffs"], 1);
    assert!(fs::read(fixture.file("all.mem")).expect("the merged memory") == fixture.ram);
    fixture.expect(&["verify", "all.state", "all.mem"], 0);
    // In the wrong order it is refused, and nothing is written.
    fixture.expect(&["merge", "--base", "diff.state", "--diff", "base.state", "--out", "wrong.state"], 1);
    assert!(!fixture.file("wrong.state").exists() && !fixture.file("wrong.mem").exists());
    // In place, with files named one by one.
    fixture.expect(&["merge", "--base", "base.state,base.mem", "--diff", "diff.state", "--out", "base.state"], 0);
    assert!(fs::read(fixture.file("base.mem")).expect("the merged memory") == fixture.ram);
}

#[test]
fn recover_says_what_it_did() {
    let fixture = Fixture::new();
    assert_eq!(fixture.expect(&["recover", "."], 0).0, "nothing to do\n");
    let report = fixture.json(&["recover", "."], 0);
    for list in ["finished", "undone", "removed", "busy"] {
        assert_eq!(report[list], serde_json::json!([]), "{report}");
    }
}

#[test]
fn what_is_no_state_file_is_called_so() {
    let fixture = Fixture::new();
    fs::write(fixture.file("zeros"), [0; 4096]).expect("a file");
    fs::write(fixture.file("empty"), []).expect("a file");
    for (state, what) in
        [("base.mem", "CRC64 mismatch"), ("zeros", "magic mismatch (file: 0x0,"), ("empty", "too short")]
    {
        let (_, stderr) = fixture.expect(&["verify", state, "base.mem"], 1);
        assert!(stderr.starts_with(&format!("squib: error: {state}: snapshot ")), "{stderr}");
        assert!(stderr.contains(what) && stderr.ends_with("; the file is damaged or no state file\n"), "{stderr}");
    }
    let (_, stderr) = fixture.expect(&["verify", "base.state", "nowhere.mem"], 1);
    assert!(stderr.contains("nowhere.mem") && stderr.lines().count() == 1, "{stderr}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let fixture = Fixture::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_squib"))
        .args(["describe", "base.state"])
        .current_dir(fixture.file(""))
        .stdout(writer)
        .output()
        .expect("squib runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
