//! Draws accesses: tables, controls, addresses.

use super::IMAGE;
use super::program::{SCTLR, TCR_TTBR1};
use crate::rng::Rng;

/// The translation tables of the accesses: one for each level.
pub(super) const TABLES: u64 = IMAGE + 0x40_0000;
const TABLE_LEN: u64 = 0x1_0000;
/// What the accesses reach.
pub(super) const TARGET: u64 = IMAGE + 0x60_0000;
pub(super) const TARGET_LEN: usize = 0x4000;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident)*) => {
        /// What is done with an address.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Operation { $($(#[$doc])* $name),* }

        impl Operation {
            /// All of them, in order.
            pub const ALL: &[Operation] = &[$(Operation::$name),*];
        }
    };
}

operations! {
    /// LDR
    Load
    /// STR
    Store
    /// LDTR
    LoadUnprivileged
    /// STTR
    StoreUnprivileged
    /// LDXR
    LoadExclusive
    /// LDAR
    LoadAcquire
    /// STLRH
    StoreRelease
    /// LDADD
    Add
    /// LDRB
    Byte
    /// LDP
    Pair
    /// DC ZVA
    Zero
    /// PRFM
    Prefetch
    /// AT S1E1R
    TranslateRead
    /// AT S1E1W
    TranslateWrite
    /// AT S1E0R
    TranslateReadEl0
    /// AT S1E0W
    TranslateWriteEl0
    /// BR
    Execute
    /// ERET to EL0
    ExecuteEl0
}

impl Operation {
    /// Reports in PAR_EL1 instead of accessing.
    pub fn translates(self) -> bool {
        use Operation::*;
        matches!(self, TranslateRead | TranslateWrite | TranslateReadEl0 | TranslateWriteEl0)
    }

    fn executes(self) -> bool {
        matches!(self, Operation::Execute | Operation::ExecuteEl0)
    }
}

/// One access.
#[derive(Clone, Debug)]
pub struct Access {
    /// What.
    pub operation: Operation,
    /// Where.
    pub address: u64,
    /// PSTATE.PAN, as its register has it.
    pub pan: u32,
    /// TCR_EL1, the half of TTBR0.
    pub tcr: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// Physical addresses of the descriptors of the walk; unused ones are out of the way.
    pub slots: [u64; 4],
    /// The descriptors.
    pub descriptors: [u64; 4],
}

/// Level of the last lookup is 3; a level resolves `bits` bits above the `granule` bits of the page.
struct Geometry {
    granule: u32,
    bits: u32,
    start: u32,
    size: u32,
}

impl Geometry {
    fn draw(rng: &mut Rng) -> Geometry {
        let granule = rng.pick(&[12, 14]);
        let bits = granule - 3;
        // TxSZ 16 to 39: what every implementation has.
        let size = 64 - (16 + rng.below(24) as u32);
        let start = 4 - (size - granule).div_ceil(bits);
        Geometry { granule, bits, start, size }
    }

    fn shift(&self, level: u32) -> u32 {
        self.granule + (3 - level) * self.bits
    }

    fn index(&self, address: u64, level: u32) -> u64 {
        let above = if level == self.start { self.size - self.shift(level) } else { self.bits };
        address >> self.shift(level) & ((1 << above) - 1)
    }

    /// Blocks exist at levels 1 and 2 with 4 KiB pages, at level 2 with 16 KiB pages.
    fn has_blocks(&self, level: u32) -> bool {
        level == 2 || (level == 1 && self.granule == 12)
    }
}

/// Draws access `index`.
pub fn draw(seed: u64, index: u64) -> Access {
    let mut rng = Rng::new(seed, 0x7ab1e, index);
    let geometry = Geometry::draw(&mut rng);
    let operation = rng.pick(Operation::ALL);
    let leaf = loop {
        let level = rng.pick(&[1, 2, 3, 3]).max(geometry.start);
        if level == 3 || geometry.has_blocks(level) {
            break level;
        }
    };
    let offset = match rng.below(4) {
        0 if !operation.executes() => rng.below(4080),
        _ => rng.below(500) * 8,
    };
    let physical = TARGET + rng.below(TARGET_LEN as u64 >> 12 << 12 >> 12) * 4096 + offset;
    let low = (1u64 << geometry.shift(leaf)) - 1;
    let mut address = rng.next() & ((1 << geometry.size) - 1) & !low | physical & low;
    let tbi = rng.below(2);
    match rng.below(16) {
        // An address out of the range, and one with a tag.
        0 => address |= 1 << (geometry.size + rng.below(u64::from(55 - geometry.size)) as u32),
        1..4 => address |= rng.below(256) << 56,
        _ => {}
    }
    let mut access = Access {
        operation,
        address,
        pan: if rng.one_in(3) { 1 << 22 } else { 0 },
        tcr: tcr(&mut rng, &geometry, tbi),
        sctlr: SCTLR | sctlr(&mut rng),
        slots: std::array::from_fn(|i| TABLES + 4 * TABLE_LEN + 8 * i as u64),
        descriptors: [0; 4],
    };
    for level in geometry.start..=leaf {
        let table = TABLES + u64::from(level - geometry.start) * TABLE_LEN;
        access.slots[level as usize] = table + 8 * geometry.index(address, level);
        access.descriptors[level as usize] = if level == leaf {
            leaf_descriptor(&mut rng, level, physical & !low, table + TABLE_LEN, operation)
        } else {
            table_descriptor(&mut rng, table + TABLE_LEN)
        };
    }
    access
}

fn tcr(rng: &mut Rng, geometry: &Geometry, tbi: u64) -> u64 {
    let granule = if geometry.granule == 12 { 0 } else { 2 };
    let mut tcr = u64::from(64 - geometry.size) | 1 << 8 | 1 << 10 | 3 << 12 | granule << 14 | tbi << 37;
    // IPS 32 or 40 bits; HA, HD; HPD0; EPD0.
    tcr |= rng.pick(&[0, 2]) << 32;
    tcr |= rng.pick(&[0, 0, 1 << 39, 3 << 39, 1 << 40]);
    if rng.one_in(4) {
        tcr |= 1 << 41;
    }
    if rng.one_in(32) {
        tcr |= 1 << 7;
    }
    debug_assert_eq!(tcr & TCR_TTBR1, 0);
    tcr
}

/// SCTLR_EL1: A, WXN, SPAN.
fn sctlr(rng: &mut Rng) -> u64 {
    let bits = rng.next() & rng.next();
    bits & (1 << 1 | 1 << 19) | rng.next() & 1 << 23
}

/// An output or next-level address, rarely one beyond 40 bits.
fn beyond(rng: &mut Rng) -> u64 {
    if rng.one_in(24) { 1 << (40 + rng.below(8)) } else { 0 }
}

fn table_descriptor(rng: &mut Rng, next: u64) -> u64 {
    // PXNTable, XNTable, APTable.
    let limits = (rng.next() & rng.next() & rng.next()) & (0xf << 59);
    let kind = if rng.one_in(32) { 2 * rng.below(2) } else { 3 };
    next | beyond(rng) | limits | kind
}

fn leaf_descriptor(rng: &mut Rng, level: u32, output: u64, next: u64, operation: Operation) -> u64 {
    let kind = match (rng.below(24), level) {
        (0, _) => rng.below(4),
        (_, 3) => 3,
        _ => 1,
    };
    // UXN, PXN, DBM, software bits; nG, SH, AP.
    let mut attributes = rng.next() & (0xf << 55 | 0x3 << 53 | 1 << 51 | 1 << 11 | 0x3 << 8 | 0x3 << 6);
    if rng.one_in(2) {
        attributes &= !(0x3 << 53);
    }
    if !rng.one_in(6) {
        attributes |= 1 << 10;
    }
    // With DBM and TCR_EL1.HD the Arm ARM's S1CheckPermissions takes AP[2] as 0 for all accesses, so that memory that EL0 could
    // make writable is not executable at EL1; QEMU 7.2 does so for stores alone. (Nor does it check the alignment of accesses to
    // Device memory, so all memory here is Normal.)
    if operation.executes() {
        attributes &= !(1 << 51);
    }
    // What is a table by mistake leads to an empty one.
    let output = if kind == 3 && level < 3 { next } else { output };
    output | beyond(rng) | attributes | kind
}
