//! The table against a plain list of pages.

use super::*;
use proptest::prelude::*;

const PAGE: u64 = 0x4000;
const HOST: u64 = 0x7f00_0000_0000;
const RW: Perms = Perms(3);

fn stage2(config: Config) -> Stage2 {
    Stage2::new(&config, 36)
}

#[test]
fn a_block_splits_when_one_page_is_protected() {
    let stage2 = stage2(Config::default());
    let size = 8u64 << 30;
    stage2.map(HOST as *mut u8, 0x4000_0000, size, RW, false).unwrap();
    assert_eq!(stage2.protect(0x4000_0000 + 5 * PAGE, PAGE, Perms::READ), Ok(true));
    assert_eq!(stage2.protect(0x4000_0000 + 5 * PAGE, PAGE, Perms::READ), Ok(false));
    for (page, perms) in [(4, RW), (5, Perms::READ), (6, RW), (100_000, RW)] {
        let found = stage2.lookup(0x4000_0000 + page * PAGE + 0x1234).unwrap();
        assert_eq!(found, Stage2Page { host: (HOST + page * PAGE + 0x1000) as *mut u8, perms, hangs: false });
    }
    assert_eq!(stage2.lookup(0x4000_0000 - 1), None);
    assert_eq!(stage2.lookup(0x4000_0000 + size), None);
    assert_eq!(stage2.lookup(u64::MAX), None);
}

#[test]
fn ranges_are_checked() {
    let stage2 = stage2(Config::default());
    let host = HOST as *mut u8;
    for (ipa, size) in [(0x1000, PAGE), (PAGE, 0), (PAGE, 0x1000), (1 << 36, PAGE), (u64::MAX - PAGE + 1, PAGE)] {
        assert_eq!(stage2.map(host, ipa, size, RW, false), Err(Stage2Error::Misaligned), "{ipa:#x} {size:#x}");
        assert_eq!(stage2.unmap(ipa, size), Err(Stage2Error::Misaligned));
    }
    assert_eq!(stage2.map((HOST + 0x1000) as *mut u8, PAGE, PAGE, RW, false), Err(Stage2Error::Misaligned));
    stage2.map(host, PAGE, PAGE, RW, false).unwrap();
    assert_eq!(stage2.map(host, 0, 4 * PAGE, RW, false), Err(Stage2Error::Overlap));
    assert_eq!(stage2.unmap(0, 2 * PAGE), Err(Stage2Error::NotMapped));
    assert_eq!(stage2.protect(PAGE, 2 * PAGE, RW), Err(Stage2Error::NotMapped));
    assert_eq!(stage2.hole_around(8 * PAGE), (2 * PAGE, 1 << 36));
    assert_eq!(stage2.hole_around(0), (0, PAGE));
}

proptest! {
    /// The two-level table agrees with a plain list of pages, whatever the order of changes.
    #[test]
    fn agrees_with_a_flat_table(changes in prop::collection::vec((0u8..3, 0u64..40, 1u64..30, 0u8..8), 1..60)) {
        // Ranges around a block border, in steps of 1 MiB.
        const STEP: u64 = 1 << 20;
        let stage2 = stage2(Config::default());
        let mut flat = vec![None; 80];
        for (kind, start, length, perms) in changes {
            let (ipa, size) = (start * STEP, length * STEP);
            let range = start as usize..(start + length) as usize;
            let mapped = flat[range.clone()].iter().all(Option::is_some);
            match kind {
                0 => {
                    let host = HOST + u64::from(perms) * (1 << 32) + ipa;
                    let overlaps = flat[range.clone()].iter().any(Option::is_some);
                    prop_assert_eq!(stage2.is_mapped(ipa, size), overlaps);
                    let map = || stage2.map(host as *mut u8, ipa, size, Perms(perms), false);
                    if overlaps {
                        prop_assert_eq!(map(), Err(Stage2Error::Overlap));
                        stage2.clear(ipa, size);
                    }
                    prop_assert_eq!(map(), Ok(()));
                    for (page, slot) in flat[range].iter_mut().enumerate() {
                        *slot = Some((host + page as u64 * STEP, Perms(perms)));
                    }
                }
                1 => {
                    prop_assert_eq!(stage2.unmap(ipa, size).is_ok(), mapped);
                    if mapped {
                        flat[range].fill(None);
                    }
                }
                _ => {
                    prop_assert_eq!(stage2.protect(ipa, size, Perms(perms)).is_ok(), mapped);
                    if mapped {
                        flat[range].iter_mut().flatten().for_each(|slot| slot.1 = Perms(perms));
                    }
                }
            }
            for (page, expected) in flat.iter().enumerate() {
                for offset in [0, STEP - 0x1000] {
                    let found = stage2.lookup(page as u64 * STEP + offset).map(|page| (page.host as u64, page.perms));
                    prop_assert_eq!(found, expected.map(|(host, perms)| (host + offset, perms)));
                }
            }
        }
    }
}

/// Two vCPUs that look at the same time: what the one that began first saw does not undo what the other one saw later.
#[cfg(target_os = "linux")]
#[test]
fn an_older_look_at_the_hosts_memory_undoes_no_later_one() {
    let stage2 = stage2(Config { host_mprotect: true, ..Config::default() });
    let size = PAGE as usize;
    // SAFETY: a new mapping at an address of the system's choice, which nothing else uses.
    let host = unsafe {
        libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    assert_ne!(host, libc::MAP_FAILED);
    let protect = |protection| {
        // SAFETY: the mapping made above, which nobody touches.
        assert_eq!(unsafe { libc::mprotect(host, size, protection) }, 0);
    };
    stage2.follow(0, PAGE, host as u64);
    let followed = stage2.followed.as_ref().unwrap();
    let felt = || read(followed).at(0);
    let look = || {
        let (number, part) = read(followed).begin();
        (number, Protections::read(part))
    };
    let (readable, both) = (Perms::READ | Perms::EXEC, Perms::ALL);
    assert_eq!(felt(), readable);
    let (number, older) = look();
    protect(libc::PROT_READ | libc::PROT_WRITE);
    assert!(Followed::look(followed));
    assert_eq!(felt(), both);
    assert!(Followed::take(followed, number, older), "translations may still be older");
    assert_eq!(felt(), both);
    // The later one found nothing new, since it had been as before in the meantime.
    protect(libc::PROT_READ);
    let (number, older) = look();
    protect(libc::PROT_READ | libc::PROT_WRITE);
    assert!(!Followed::look(followed));
    assert!(Followed::take(followed, number, older));
    assert_eq!(felt(), both);
    // SAFETY: the mapping made above.
    assert_eq!(unsafe { libc::munmap(host, size) }, 0);
}
