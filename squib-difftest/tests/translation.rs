//! Random accesses under random translation tables, on the engine and on `qemu-system-aarch64`: no difference.
//!
//! For more: `cargo run --release -p squib-difftest --bin translation -- --seconds 600`.
#![cfg(target_os = "linux")]

use std::path::Path;

use squib_difftest::rng;
use squib_difftest::translation::{self, ACCESSES};

#[test]
fn the_translation_regimes_agree() {
    let seed = rng::any_seed();
    let (mut stories, mut kinds) = (String::new(), 0);
    for round in 0..10 {
        let count = ACCESSES as u64;
        let comparison = translation::compare(Path::new("qemu-system-aarch64"), seed, round * count, count)
            .expect("both sides answer; qemu-system-aarch64 comes with Debian's qemu-system-arm");
        for (index, story) in comparison.different {
            stories += &format!("seed {seed}, access {index}: {story}");
        }
        kinds = kinds.max(comparison.syndromes.len());
    }
    assert!(stories.is_empty(), "{stories}");
    assert!(kinds > 20, "seed {seed}: only {kinds} syndromes were met");
}
