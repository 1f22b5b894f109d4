//! The scripts of `squib-cli/macos/`, with stand-ins for the Mac's commands first on `PATH`: what each says, leaves alone and changes. And those
//! of `guest-images/` that a Mac needs, with no other programs than a Mac has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Signs by appending a line to the program, and shows that line; refuses where a file `refuse` lies beside itself.
const CODESIGN: &str = r#"
for program; do :; done
case $1 in
--display) tail -n 1 "$program" | grep '^signed: ' ;;
--sign)
    [ ! -e "$(dirname "$0")/refuse" ] || { echo "resource fork not allowed" >&2; exit 1; }
    [ "$2 $3 $4" = "- --force --entitlements" ] || { echo "unexpected: $*" >&2; exit 2; }
    echo "signed: $(grep -o 'com.apple.security[.a-z]*' "$5")" >>"$program"
    echo "$program: replacing existing signature" >&2
    ;;
esac
"#;

/// A Mac as far as these scripts look at one.
struct Mac(TempDir);

impl Mac {
    fn new(system: &str, machine: &str, version: &str, hv_support: &str) -> Mac {
        let mac = Mac(tempfile::tempdir().unwrap());
        mac.command("uname", &format!("case $1 in -s) echo {system} ;; -m) echo {machine} ;; *) exit 1 ;; esac"));
        mac.command("sw_vers", &format!("[ \"$1\" = -productVersion ] && echo {version}"));
        mac.command("sysctl", &format!("[ \"$1 $2\" = '-n kern.hv_support' ] && {hv_support}"));
        mac.command("codesign", CODESIGN);
        mac
    }

    fn apple_silicon() -> Mac {
        Mac::new("Darwin", "arm64", "15.6.1", "echo 1")
    }

    fn command(&self, name: &str, body: &str) {
        executable(&self.0.path().join(name), body);
    }

    /// A program to sign, which says what it was called with.
    fn program(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        executable(&path, "echo \"ran: $*\"; exit 7");
        path
    }

    fn run(&self, script: &str, arguments: &[&Path]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../squib-cli/macos").join(script);
        let path = format!("{}:/usr/bin:/bin", self.0.path().display());
        Command::new(script).args(arguments).env("PATH", path).output().unwrap()
    }

    /// What `check.sh` says, if it refuses.
    fn check(&self) -> Option<String> {
        let output = self.run("check.sh", &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(i32::from(!said.is_empty())), "{said}");
        assert!(output.stdout.is_empty() && said.lines().count() < 2, "{said}");
        Some(said).filter(|said| !said.is_empty())
    }

    /// No half-signed copy is left behind.
    #[track_caller]
    fn is_clean(&self) {
        let mut names = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.all(|name| !name.to_string_lossy().contains("signing")));
    }
}

fn executable(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_signed(program: &Path) -> bool {
    fs::read_to_string(program).unwrap().ends_with("\nsigned: com.apple.security.hypervisor\n")
}

#[test]
fn a_mac_that_has_everything_is_not_talked_to() {
    for version in ["15.0", "15.6.1", "26.1"] {
        assert_eq!(Mac::new("Darwin", "arm64", version, "echo 1").check(), None, "{version}");
    }
    assert_eq!(Mac::new("Linux", "x86_64", "", "exit 1").check(), None);
}

#[test]
fn what_a_mac_lacks_is_said_with_the_way_out() {
    for (mac, words) in [
        (Mac::new("Darwin", "x86_64", "15.6.1", "echo 1"), "no Apple silicon"),
        (Mac::new("Darwin", "arm64", "14.7.2", "echo 1"), "macOS 14.7.2 is too old"),
        (Mac::new("Darwin", "arm64", "9.9", "echo 1"), "macOS 9.9 is too old"),
        (Mac::new("Darwin", "arm64", "15.6.1", "echo 0"), "no hypervisor (kern.hv_support is 0"),
        // The name is not known: older than hypervisors on arm64.
        (Mac::new("Darwin", "arm64", "15.6.1", "exit 1"), "no hypervisor (kern.hv_support is 0"),
    ] {
        let said = mac.check().expect("refused");
        assert!(said.contains(words) && said.contains("add SIM=1 to the make command"), "{said}");
    }
}

#[test]
fn a_shell_under_rosetta_is_told_from_a_mac_with_an_intel_processor() {
    let mac = Mac::new("Darwin", "x86_64", "15.6.1", "echo 1");
    mac.command("sysctl", "[ \"$1 $2\" = '-n sysctl.proc_translated' ] && echo 1");
    let said = mac.check().expect("refused");
    assert!(said.contains("Rosetta") && said.contains("arch -arm64"), "{said}");
}

#[test]
fn programs_are_signed_once() {
    let mac = Mac::apple_silicon();
    let programs = [mac.program("one"), mac.program("with a space"), mac.program("three")];
    let arguments = [&*programs[0], &*programs[1], &*programs[2]];
    let output = mac.run("sign.sh", &arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    assert!(programs.iter().all(|program| is_signed(program)));
    assert!(programs.iter().all(|program| program.metadata().unwrap().permissions().mode() & 0o111 == 0o111));
    let before = programs.each_ref().map(|program| fs::read(program).unwrap());
    assert!(mac.run("sign.sh", &arguments).status.success());
    assert_eq!(before, programs.each_ref().map(|program| fs::read(program).unwrap()), "left alone");
    mac.is_clean();
}

#[test]
fn a_program_that_cannot_be_signed_stays_as_it_was() {
    let mac = Mac::apple_silicon();
    let program = mac.program("program");
    let before = fs::read(&program).unwrap();
    fs::write(mac.0.path().join("refuse"), "").unwrap();
    for script in ["sign.sh", "run-signed.sh"] {
        let output = mac.run(script, &[&program]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty(), "it is not run");
        for words in ["cannot be signed", "xcode-select --install", "resource fork not allowed"] {
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(fs::read(&program).unwrap(), before);
    }
    let missing = mac.run("sign.sh", &[&mac.0.path().join("missing")]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no such file"));
    mac.is_clean();
}

#[test]
fn without_apples_tools_it_says_where_they_come_from() {
    let mac = Mac::apple_silicon();
    let program = mac.program("program");
    mac.command("codesign", "echo 'xcrun: error: invalid active developer path' >&2; exit 1");
    let said = text(&mac.run("sign.sh", &[&program]).stderr);
    assert!(said.contains("xcode-select --install") && said.contains("invalid active developer path"), "{said}");
    assert!(!is_signed(&program));
}

#[test]
fn the_runner_signs_and_becomes_the_program() {
    let mac = Mac::apple_silicon();
    let directory = mac.0.path().join("a directory");
    fs::create_dir(&directory).unwrap();
    let program = mac.program("a directory/program");
    for _ in 0..2 {
        let output = mac.run("run-signed.sh", &[&program, Path::new("--exact"), Path::new("two words")]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(7), "ran: --exact two words\n".to_owned()));
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        assert!(is_signed(&program));
    }
}

/// Cargo finds the runner, and the runner is a program.
#[test]
fn cargo_is_told_of_the_runner() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let config = fs::read_to_string(root.join(".cargo/config.toml")).unwrap();
    let runner = config.lines().find_map(|line| line.strip_prefix("runner = \"")?.strip_suffix('"')).unwrap();
    assert!(config.contains("[target.aarch64-apple-darwin]"));
    assert_eq!(root.join(runner).metadata().unwrap().permissions().mode() & 0o111, 0o111);
}

/// What is signed with is a property list, with that one entitlement and no other.
#[test]
fn the_entitlements_are_a_property_list() {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../squib-cli/macos/squib.entitlements");
    let program = "import plistlib, sys; print(plistlib.load(open(sys.argv[1], 'rb')))";
    let output = Command::new("python3").args(["-c", program]).arg(list).output().unwrap();
    assert_eq!(text(&output.stdout), "{'com.apple.security.hypervisor': True}\n", "{}", text(&output.stderr));
}

/// Programs that macOS and Apple's command line tools bring and `guest-images/` may use. No `apt-get`, `dpkg-deb`, `ar`, `xz`, `flock`, `nproc`.
const OF_A_MAC: [&str; 27] = [
    "awk", "basename", "cat", "chmod", "cksum", "cmp", "cp", "cut", "dirname", "find", "grep", "head", "ln", "mkdir",
    "mktemp", "mv", "printf", "rm", "sed", "sh", "sort", "tail", "tar", "touch", "tr", "uname", "wc",
];

/// Debian packages as mirrors have them: a kernel with a module that is compressed with xz, and busybox.
const PACKAGES: &str = r#"
import io, lzma, sys, tarfile
def deb(name, files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with open(name, "wb") as out:
        out.write(b"!<arch>\n")
        for member, data in (("debian-binary", b"2.0\n"), ("data.tar.xz", packed.getvalue())):
            out.write(f"{member:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2))
deb("kernel.deb", {"./boot/vmlinuz-6.1": b"a kernel", "./lib/modules/6.1/virtio_blk.ko.xz": lzma.compress(b"a module")})
deb("busybox.deb", {"./bin/busybox": b"a busybox"})
print(sys.executable)
"#;

#[test]
fn guests_come_from_packages_with_nothing_but_what_a_mac_has() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let packages = Command::new("python3").args(["-c", PACKAGES]).current_dir(&directory).output().unwrap();
    assert!(packages.status.success(), "{}", text(&packages.stderr));
    fs::create_dir(at("bin")).unwrap();
    let link = |program: &Path, name: &str| std::os::unix::fs::symlink(program, at("bin").join(name)).unwrap();
    link(Path::new(text(&packages.stdout).trim()), "python3");
    for name in OF_A_MAC {
        let places = ["/usr/bin", "/bin", "/usr/sbin"].map(|place| Path::new(place).join(name));
        link(places.iter().find(|place| place.exists()).unwrap_or_else(|| panic!("no {name}")), name);
    }
    let fetch = |variables: &[(&str, PathBuf)]| {
        let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/fetch.sh"));
        let script = script.env_clear().env("PATH", at("bin")).env("SQUIB_GUEST_CACHE", at("cache"));
        script.envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap()
    };
    let nothing = fetch(&[]);
    assert_eq!(nothing.status.code(), Some(1));
    for way in ["no apt", "SQUIB_GUEST_KERNEL", "SQUIB_DEBIAN_MIRROR"] {
        assert!(text(&nothing.stderr).contains(way), "{}", text(&nothing.stderr));
    }
    let files = [("SQUIB_GUEST_KERNEL", at("kernel.deb")), ("SQUIB_GUEST_BUSYBOX", at("busybox.deb"))];
    // The second time it is there already.
    for variables in [&files[..], &[]] {
        let output = fetch(variables);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let guest = at("cache/bookworm-cloud");
        let printed = format!("{0}/Image\n{0}/initramfs.cpio\n", guest.display());
        assert_eq!(text(&output.stdout), printed);
        assert_eq!(fs::read(guest.join("Image")).unwrap(), b"a kernel");
        assert_eq!(fs::read(guest.join("modules/virtio_blk.ko")).unwrap(), b"a module");
        let initramfs = fs::read(guest.join("initramfs.cpio")).unwrap();
        for part in ["a busybox", "a module", "lib/modules/order"] {
            assert!(initramfs.windows(part.len()).any(|bytes| bytes == part.as_bytes()), "no {part}");
        }
    }
}
