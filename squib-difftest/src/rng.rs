//! A small deterministic generator: the same seed gives the same cases on every host and in every version.

use std::hash::{BuildHasher, RandomState};

/// A seed for a run that was given none, short enough to be typed.
pub fn any_seed() -> u64 {
    RandomState::new().hash_one(0) & 0xffff_ffff
}

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator for one case.
    pub fn new(seed: u64, class: u64, index: u64) -> Rng {
        let mut rng = Rng(seed);
        for part in [class, index] {
            rng.0 = rng.next().wrapping_add(part.wrapping_mul(0xd6e8_feb8_6659_fd93));
        }
        rng.next();
        rng
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait, reason = "not an iterator: it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 32 random bits.
    pub fn word(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of the items.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}
