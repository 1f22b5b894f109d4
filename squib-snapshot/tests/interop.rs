//! Runs the interoperability tests with the published crate. They are a package of their own (`interop/`), because two
//! packages of one name in a workspace make `cargo -p` ambiguous.

use std::path::Path;
use std::process::Command;

#[test]
#[cfg_attr(miri, ignore = "starts cargo")]
fn interoperates_with_the_published_crate() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop");
    let output = Command::new(env!("CARGO"))
        .args(["test", "--quiet", "--locked", "--manifest-path"])
        .arg(here.join("interop/Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .output()
        .expect("cargo starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("test result: ok. 6 passed"), "{out}\n{err}");
}
