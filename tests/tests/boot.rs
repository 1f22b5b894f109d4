//! Real kernels boot to a busybox shell, and every way a run can end has its exit code.

use squib_tests::{QUICK_BOOT, Squib, USER_SPACE, image};

#[track_caller]
fn boots(guest: &str, cpus: u32) {
    Squib::run(guest, "echo there are $(nproc) processors")
        .option("--cpus", cpus.to_string())
        .outcome()
        .expect(0)
        .expect_console(USER_SPACE)
        .expect_console(&format!("there are {cpus} processors"))
        .expect_console("squib-guest: powering off");
}

#[test]
fn bookworm_boots_on_one_vcpu() {
    boots("bookworm-cloud", 1);
}

#[test]
fn bookworm_boots_on_two_vcpus() {
    boots("bookworm-cloud", 2);
}

#[test]
fn bookworm_boots_on_four_vcpus() {
    boots("bookworm-cloud", 4);
}

#[test]
fn trixie_boots() {
    boots("trixie-cloud", 1);
}

#[test]
fn sid_boots() {
    boots("sid-cloud", 2);
}

#[test]
fn a_large_machine_boots() {
    Squib::new("run")
        .option("--kernel", image("bookworm-cloud/Image", "make guest"))
        .option("--initrd", image("bookworm-cloud/initramfs.cpio", "make guest"))
        .option("--cmdline", format!("{QUICK_BOOT} run=\"echo $(nproc) processors; grep MemTotal /proc/meminfo\""))
        .option("--memory", "8192")
        .option("--cpus", "8")
        .outcome()
        .expect(0)
        .expect_console("8 processors")
        .expect_console("MemTotal:        81");
}

#[cfg(feature = "long")]
#[test]
fn every_kernel_boots_on_one_two_and_four_vcpus() {
    for suite in ["bookworm", "trixie", "sid"] {
        for flavour in ["cloud", "generic"] {
            for cpus in [1, 2, 4] {
                boots(&format!("{suite}-{flavour}"), cpus);
            }
        }
    }
    for cpus in [1, 2, 4] {
        boots("minimal", cpus);
    }
}

/// Without `console=` the device tree's `stdout-path` says where the console is; the shell on it takes what is typed.
#[test]
fn the_shell_answers_on_a_console_that_only_the_device_tree_names() {
    let outcome = Squib::new("run")
        .option("--kernel", image("bookworm-cloud/Image", "make guest"))
        .option("--initrd", image("bookworm-cloud/initramfs.cpio", "make guest"))
        .option("--cmdline", QUICK_BOOT.replace("console=ttyAMA0 ", ""))
        .typed("squib-guest# ", "echo $((6 * 7)) is the answer\nexit\n")
        .outcome()
        .expect(0);
    assert!(outcome.console.contains("\n42 is the answer\n"), "{outcome:?}");
}

#[test]
fn exit_on_ends_with_0_and_the_text_is_the_last_word() {
    let outcome =
        Squib::run("bookworm-cloud", "echo before; echo enough; echo after").option("--exit-on", "enough").outcome();
    let outcome = outcome.expect(0).expect_console("before\n");
    assert!(outcome.console.ends_with("enough"), "{outcome:?}");
}

#[test]
fn a_timeout_ends_with_124() {
    let outcome = Squib::run("bookworm-cloud", "sleep 1000").timeout(1).outcome().expect(124);
    assert_eq!(outcome.stderr, "squib: timed out after 1.00 s\n");
}

#[test]
fn json_events_tell_how_it_went() {
    let outcome = Squib::run("bookworm-cloud", "true").arg("--json").outcome().expect(0);
    assert_eq!(outcome.event("end")["reason"], "power-off", "{outcome:?}");
    assert!(outcome.event("running")["after_us"].is_u64(), "{outcome:?}");
}

#[test]
fn reset_is_not_an_error() {
    let outcome = Squib::run("bookworm-cloud", "reboot -f").arg("--json").outcome().expect(0);
    assert_eq!(outcome.event("end")["reason"], "reset", "{outcome:?}");
}
