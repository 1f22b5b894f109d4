//! A Debian root on an ext4 disk, through virtio-blk: its programs run, writes survive a snapshot in their middle, a
//! read-only disk stays as it is.

use std::fs;
use std::path::{Path, PathBuf};

use squib_tests::{QUICK_BOOT, Snapshot, Squib, image};

/// A guest whose commands run in the Debian root on `disk`.
fn debian(disk: &Path, extra: &str, commands: &str) -> Squib {
    let parameters = format!("{QUICK_BOOT} squib.root=/dev/vda {extra}");
    Squib::run_with("bookworm-cloud", &parameters, commands).timeout(240).option("--disk", disk)
}

fn copy_of_root(directory: &tempfile::TempDir) -> PathBuf {
    let copy = directory.path().join("root.ext4");
    fs::copy(image("debian-root/bookworm.ext4", "make root-disk"), &copy).expect("the disk is copied");
    copy
}

#[test]
fn debians_programs_run() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = copy_of_root(&directory);
    let commands = "apt --version; perl -e 'print 6*7, qq(\\n)'; python3 -c 'print(sum(range(1000)))'; \
                    cd /home || exit 1; tar -czf etc.tgz /etc 2>/dev/null && gzip -t etc.tgz && echo the archive is sound; \
                    echo squib | sha256sum; openssl speed -seconds 1 -bytes 1024 sha256 aes-128-cbc 2>/dev/null | tail -n 2; \
                    echo written >/home/mark";
    let outcome = debian(&disk, "", commands).outcome().expect(0);
    let outcome = outcome.expect_console("apt 2.").expect_console("\n42\n").expect_console("\n499500\n");
    let digest = "7732f6fb9b9b42da5faf8c420a2920f64912f99a9e5d78d2996f750472a8728d";
    let outcome = outcome.expect_console(digest).expect_console("\nsha256 ").expect_console("\naes-128-cbc ");
    outcome.expect_console("the archive is sound").expect_console("squib-guest: commands ended with 0");
    // What one guest wrote, the next one reads.
    debian(&disk, "", "cat /home/mark").outcome().expect(0).expect_console("written\n");
}

#[test]
fn a_read_only_disk_is_read_only() {
    let disk = image("debian-root/bookworm.ext4", "make root-disk");
    let before = fs::metadata(&disk).and_then(|data| data.modified()).expect("the disk's time");
    let read_only = PathBuf::from(format!("{},ro", disk.display()));
    let outcome = debian(
        &read_only,
        "squib.ro",
        "touch /home/x || echo refused; dd if=/dev/zero of=/dev/vda count=1 || echo refused too",
    );
    outcome.outcome().expect(0).expect_console("refused\n").expect_console("refused too\n");
    assert_eq!(fs::metadata(&disk).and_then(|data| data.modified()).expect("the disk's time"), before);
}

/// Frozen in the middle of disk writes; the restored guest finishes them and what it reads back is what it wrote.
#[test]
fn a_snapshot_in_the_middle_of_disk_writes_loses_none() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = copy_of_root(&directory);
    let snapshot = Snapshot::new(&directory, "writing");
    let commands = "cd /home || exit 1; for i in 1 2 3 4 5 6; do openssl rand 1000000 >r$i; sha256sum r$i >>sums; \
                    dd if=r$i of=c$i bs=64k conv=fsync 2>/dev/null; echo block $i; done; \
                    sync; echo 3 >/proc/sys/vm/drop_caches; sed 's/ r/ c/' sums | sha256sum -c --quiet && echo all is there";
    debian(&disk, "", commands).snapshot_on("block 3", &snapshot).outcome().expect(0);
    let outcome = Squib::restore(&snapshot).timeout(240).outcome().expect(0);
    outcome.expect_console("block 6").expect_console("all is there");
}

/// What `stress-ng` checks itself; every stressor, and one more time with a snapshot in its middle.
#[cfg(feature = "long")]
#[test]
fn stress_ng_verifies() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = copy_of_root(&directory);
    let snapshot = Snapshot::new(&directory, "stress");
    let commands = "for s in 'cpu 2 --cpu-method all' 'vm 1 --vm-bytes 64M' 'atomic 2' 'matrix 1' 'str 1'; do \
                    stress-ng --verify -t 20 --$s || echo stressor $s failed; done; \
                    stress-ng --verify -t 8 --cpu 2 --vm 1 --vm-bytes 32M & sleep 3; echo in the middle; \
                    wait $! && echo all stressors are done";
    let run = debian(&disk, "", commands).option("--cpus", "2").snapshot_on("in the middle", &snapshot);
    let console = run.outcome().expect(0).console + &Squib::restore(&snapshot).outcome().expect(0).console;
    assert!(console.contains("all stressors are done") && !console.contains("failed"), "{console}");
}

/// Four busy vCPUs: `stress-ng` checks itself on all of them while files are written and checked, and the snapshot is taken in
/// the middle of both.
#[cfg(feature = "long")]
#[test]
fn a_snapshot_on_four_busy_vcpus_loses_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = copy_of_root(&directory);
    let snapshot = Snapshot::new(&directory, "busy");
    let commands = "cd /home || exit 1; stress-ng --verify -t 30 --cpu 2 --vm 1 --vm-bytes 32M --atomic 1 --matrix 1 --str 1 & \
                    for i in 1 2 3 4 5 6; do openssl rand 1000000 >r$i; sha256sum r$i >>sums; \
                    dd if=r$i of=c$i bs=64k conv=fsync 2>/dev/null; echo block $i; done; \
                    sync; echo 3 >/proc/sys/vm/drop_caches; sed 's/ r/ c/' sums | sha256sum -c --quiet && echo all is there; \
                    wait $! && echo all stressors are done";
    let run = debian(&disk, "", commands).option("--cpus", "4").snapshot_on("block 3", &snapshot);
    let before = run.outcome().expect(0).console;
    assert!(!before.contains("all stressors are done"), "they were to be busy: {before}");
    let after = Squib::restore(&snapshot).timeout(240).outcome().expect(0);
    after.expect_console("block 6").expect_console("all is there").expect_console("all stressors are done");
}
