//! Draws test cases. A case is a pure function of seed, class and index.

use crate::case::{CODE_BASE, Case, READ_ONLY_BASE, SCRATCH_BASE, SCRATCH_LEN, SLOT, State, WINDOW_BASE, WINDOW_LEN};
use crate::encodings::{Class, Form, Row, beyond, bit, comparable, excluded, field, find, rows};
use crate::rng::Rng;
use crate::values;
use crate::words::{access_scale, access_size, aim, constant, pair_scale, predictable, sign_extend};

/// Instructions in a slot without the closing breakpoint.
const MAX_CODE: usize = SLOT / 4 - 1;
const CLREX: u32 = 0xd503_3f5f;
const DC_ZVA: u32 = 0xd50b_7420;
const MSR_FPCR_XZR: u32 = 0xd51b_441f;
const ADR: u32 = 0x1000_0000;
/// MOVK Xd, #imm, LSL #48.
const MOVK_TOP: u32 = 0xf2e0_0000;
/// Where a sequence counts the rounds of its loop, and the words it takes to go round.
const LOOP_COUNTER: u64 = SCRATCH_BASE + 0x100;
const LOOP_LEN: usize = 6;

/// What a run draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Draw {
    /// Data processing on general-purpose registers.
    Integer,
    /// Branches and loops, over data processing.
    Branch,
    /// Loads and stores, all addressing modes, faults included.
    Memory,
    /// Exclusives, acquire/release, LSE atomics.
    Atomic,
    /// Scalar floating point.
    Fp,
    /// AdvSIMD on integers.
    Simd,
    /// AdvSIMD on floating-point values.
    SimdFp,
    /// AES, SHA, PMULL.
    Crypto,
    /// Structure loads and stores.
    Structure,
    /// Flags, FPCR, FPSR, hints, barriers.
    System,
    /// DC ZVA among stores.
    Zva,
    /// Everything but DC ZVA.
    Mixed,
    /// One instruction word, allocated or not: only whether it is UNDEFINED is compared.
    Undefined,
    /// The same for every word of the system instruction space, one after the other, with X0 and with XZR.
    SystemSpace,
}

impl Draw {
    /// All of them.
    pub const ALL: [Draw; 14] = [
        Draw::Integer,
        Draw::Branch,
        Draw::Memory,
        Draw::Atomic,
        Draw::Fp,
        Draw::Simd,
        Draw::SimdFp,
        Draw::Crypto,
        Draw::Structure,
        Draw::System,
        Draw::Zva,
        Draw::Mixed,
        Draw::Undefined,
        Draw::SystemSpace,
    ];

    /// How many cases there are, of what is not drawn but walked.
    pub fn cases(self) -> Option<u64> {
        (self == Draw::SystemSpace).then_some(2 << 17)
    }

    /// Only whether a word is UNDEFINED is compared.
    pub fn only_undefined(self) -> bool {
        matches!(self, Draw::Undefined | Draw::SystemSpace)
    }

    fn classes(self) -> &'static [Class] {
        use Class::*;
        match self {
            Draw::Integer => &[Integer],
            Draw::Branch => &[Branch, Integer],
            Draw::Memory | Draw::Zva => &[Memory],
            Draw::Atomic => &[Atomic],
            Draw::Fp => &[Fp],
            Draw::Simd => &[Simd],
            Draw::SimdFp => &[SimdFp],
            Draw::Crypto => &[Crypto],
            Draw::Structure => &[Structure],
            Draw::System => &[System, System, Integer, Fp, SimdFp],
            Draw::Mixed | Draw::Undefined | Draw::SystemSpace => {
                &[Integer, Branch, Memory, Atomic, Fp, Simd, SimdFp, Crypto, Structure, System]
            }
        }
    }

    /// The CPU model of the reference. `max` has every feature of ours; pointer authentication is off on both sides, its
    /// values being implementation defined. Its DC ZVA blocks are 512 bytes in user mode, ours 64 as Apple's, like this
    /// other model's.
    pub fn cpu(self) -> &'static str {
        match self {
            Draw::Zva => "neoverse-n1",
            _ => "max,sve=off,sme=off,pauth=off",
        }
    }
}

/// Draws case `index`, to be run in slot `slot` of a batch.
pub fn draw(kind: Draw, seed: u64, index: u64, slot: usize) -> Case {
    let mut rng = Rng::new(seed, kind as u64, index);
    let mut state = State {
        x: std::array::from_fn(|_| values::integer(&mut rng)),
        sp: values::integer(&mut rng) & !15,
        pc: CODE_BASE + (slot * SLOT) as u64,
        nzcv: rng.word() & 0xf000_0000,
        fpcr: values::fpcr(&mut rng),
        fpsr: values::fpsr(&mut rng),
        v: std::array::from_fn(|_| values::vector(&mut rng)),
    };
    if kind.only_undefined() {
        // Whatever address such a word makes of its registers, the reference's own memory is not there.
        state.x = std::array::from_fn(|_| u64::MAX >> 16 << rng.below(16));
        state.sp = 0;
        let code = match kind {
            Draw::SystemSpace => Some(system_word(index)).filter(|word| !excluded(*word)).into_iter().collect(),
            _ => vec![undefined_word(&mut rng)],
        };
        return Case { state, window: vec![0; WINDOW_LEN], code };
    }
    let window = values::window(&mut rng);
    let code = Sequence { rng, kind, palette: 31, units: Vec::new(), len: 0 }.build();
    Case { state, window, code }
}

/// The system instruction space: op0, op1, CRn, CRm, op2 and the direction in 17 bits above Rt.
const SYSTEM_SPACE: (u32, u32) = (0xffc0_0000, 0xd500_0000);

/// Word `index` of the system instruction space.
fn system_word(index: u64) -> u32 {
    let rt = if index >> 17 & 1 == 0 { 0 } else { 31 };
    SYSTEM_SPACE.1 | (index as u32 & 0x1_ffff) << 5 | rt
}

/// A word that both sides are asked about: any, or one near an allocated encoding. What no row matches of the system
/// instruction space is left to [`Draw::SystemSpace`].
fn undefined_word(rng: &mut Rng) -> u32 {
    loop {
        let row = rng.pick(rows());
        let mut word = rng.word();
        match rng.below(4) {
            0 => {}
            1 => word = word & !0x1e00_0000 | row.value & 0x1e00_0000,
            _ => {
                word = word & !row.mask | row.value;
                for _ in 0..rng.below(4) {
                    word ^= 1 << rng.below(32);
                }
            }
        }
        let drawn = match find(word) {
            Some(row) => row.class != Class::Branch,
            None => word & SYSTEM_SPACE.0 != SYSTEM_SPACE.1,
        };
        if drawn && !excluded(word) {
            return word;
        }
    }
}

/// An UNDEFINED word, by both the table and the reference.
fn unallocated(rng: &mut Rng) -> u32 {
    loop {
        let word = undefined_word(rng);
        if find(word).is_none() && !beyond(word) {
            return word;
        }
    }
}

/// Instructions that belong together. Every unit sets up what it needs, so that a branch may skip any of them.
struct Unit {
    code: Vec<u32>,
    /// Its branch, and the ADR of a branch to a register, go to the start of another unit.
    target: Option<Target>,
}

#[derive(Clone, Copy)]
enum Target {
    /// The unit after this many others.
    Skip(usize),
    /// The unit with this number, which is not a later one.
    Back(usize),
}

impl Unit {
    fn straight(code: Vec<u32>) -> Unit {
        Unit { code, target: None }
    }
}

struct Sequence {
    rng: Rng,
    kind: Draw,
    /// Register numbers are taken modulo this plus one: few registers make dependencies and overlaps.
    palette: u32,
    units: Vec<Unit>,
    len: usize,
}

impl Sequence {
    fn build(mut self) -> Vec<u32> {
        self.palette = self.rng.pick(&[31, 31, 7, 3]);
        // Some longer than a block of the engine can be.
        let count = 1 + if self.rng.one_in(16) { self.rng.below(MAX_CODE as u64) } else { self.rng.below(16) };
        let looping = matches!(self.kind, Draw::Branch | Draw::Mixed) && self.rng.one_in(2);
        if looping {
            let rounds = 1 + self.rng.below(4) as u32;
            self.push(loop_counter(rounds));
        }
        for _ in 0..count {
            let unit = self.unit();
            if self.len + unit.code.len() + LOOP_LEN > MAX_CODE {
                break;
            }
            self.push(unit);
        }
        if looping {
            let start = 1 + self.rng.below(self.units.len() as u64 - 1) as usize;
            let unit = self.repeat(start);
            self.push(unit);
        }
        self.link()
    }

    fn push(&mut self, unit: Unit) {
        self.len += unit.code.len();
        self.units.push(unit);
    }

    /// Goes back to a unit, as often as the counter of [`loop_counter`] says.
    fn repeat(&mut self, start: usize) -> Unit {
        let address = self.rng.below(31) as u32;
        let count = (address + 1 + self.rng.below(30) as u32) % 31;
        let mut code = constant(address, LOOP_COUNTER);
        // LDR, SUB, STR, CBNZ.
        code.extend([0xf940_0000 | address << 5 | count, 0xd100_0400 | count << 5 | count]);
        code.extend([0xf900_0000 | address << 5 | count, 0xb500_0000 | count]);
        Unit { code, target: Some(Target::Back(start)) }
    }

    /// Resolves branches and literal loads, and strings the units together.
    fn link(self) -> Vec<u32> {
        let starts: Vec<usize> = self
            .units
            .iter()
            .scan(0, |at, unit| {
                let start = *at;
                *at += unit.code.len();
                Some(start)
            })
            .collect();
        let mut code = Vec::with_capacity(self.len);
        for (i, unit) in self.units.iter().enumerate() {
            let target = unit.target.map(|target| match target {
                Target::Skip(skip) => starts.get(i + 1 + skip).copied().unwrap_or(self.len),
                Target::Back(start) => starts[start],
            });
            for word in &unit.code {
                let distance = target.map(|target| target as i64 - code.len() as i64);
                code.push(distance.map_or(*word, |distance| aim(*word, distance)));
            }
        }
        code
    }

    fn unit(&mut self) -> Unit {
        if self.kind == Draw::Zva && self.rng.one_in(2) {
            return self.zero_block();
        }
        if self.kind == Draw::Mixed && self.rng.one_in(100) {
            return Unit::straight(vec![unallocated(&mut self.rng)]);
        }
        let class = self.rng.pick(self.kind.classes());
        let of_class = |row: &&Row| row.class == class;
        let count = rows().iter().filter(of_class).count();
        let row = rows().iter().filter(of_class).nth(self.rng.below(count as u64) as usize);
        let row = row.expect("the number is below the count");
        match (row.form, class) {
            (Form::Branch, _) => self.branch(row),
            (Form::None, Class::System) => self.system(row),
            // QEMU 7.2 sets Z for a denormal that FPCR.FZ flushes (its issue 2375): compare without FZ.
            (Form::None, _) if row.name == "FJCVTZS" => Unit::straight(vec![MSR_FPCR_XZR, self.word(row)]),
            (Form::None, _) => Unit::straight(vec![self.word(row)]),
            (Form::Literal, _) => self.literal(row),
            _ if row.name.starts_with("STXR") || row.name.starts_with("STXP") => self.exclusive(row),
            _ => self.access(row),
        }
    }

    /// A random allocated word of the row.
    fn word(&mut self, row: &Row) -> u32 {
        loop {
            let mut word = self.rng.word() & !row.mask | row.value;
            for low in row.registers.into_iter().flatten() {
                let register = word >> low & 31;
                // 31 (ZR, SP) stays in the game.
                if register != 31 {
                    word = word & !(31 << low) | (register & self.palette) << low;
                }
            }
            if row.matches(word) && comparable(word) {
                return word;
            }
        }
    }

    fn branch(&mut self, row: &Row) -> Unit {
        let word = self.word(row);
        let target = Some(Target::Skip(self.rng.below(4) as usize));
        if field(word, 31, 25) != 0b110_1011 {
            return Unit { code: vec![word], target };
        }
        let register = match field(word, 9, 5) {
            31 => 30,
            other => other,
        };
        let word = word & !0x3e0 | register << 5;
        // Rarely somewhere else: memory that is not executable, or not there, or not at a multiple of four.
        if self.rng.one_in(64) {
            let stray = self.rng.pick(&[WINDOW_BASE, SCRATCH_BASE + SCRATCH_LEN as u64, CODE_BASE + 2]);
            return Unit::straight([constant(register, stray), vec![word]].concat());
        }
        let mut code = vec![ADR | register];
        if self.rng.one_in(4) {
            // The top byte of a target is ignored, like that of a data address.
            code.push(MOVK_TOP | (self.rng.word() & 0xff) << 13 | register);
        }
        code.push(word);
        Unit { code, target }
    }

    /// A load of the case's own code.
    fn literal(&mut self, row: &Row) -> Unit {
        let word = self.word(row) & !(0x7_ffff << 5);
        let target = self.rng.below(MAX_CODE as u64 - 4) as i64 - self.len as i64;
        Unit::straight(vec![word | (target as u32 & 0x7_ffff) << 5])
    }

    fn system(&mut self, row: &Row) -> Unit {
        let word = self.word(row);
        let register = field(word, 4, 0);
        let set = |value: u64| match register {
            31 => Vec::new(),
            _ => constant(register, value),
        };
        let code = match row.name {
            // Only the bits that have a meaning: the others are RES0 here, and partly not in the reference (AArch32).
            "MSR FPCR" => [set(u64::from(values::fpcr(&mut self.rng))), vec![word]].concat(),
            "MSR FPSR" => [set(u64::from(self.rng.word() & values::FPSR_BITS)), vec![word]].concat(),
            // Not part of the state a case starts from: written before it is read.
            "MRS TPIDR_EL0" => vec![word & !(1 << 21) & !31 | self.rng.below(32) as u32, word],
            _ => vec![word],
        };
        Unit::straight(code)
    }

    fn zero_block(&mut self) -> Unit {
        let register = self.rng.below(31) as u32;
        let address = WINDOW_BASE + self.rng.below(WINDOW_LEN as u64);
        let mut code = constant(register, address);
        code.push(DC_ZVA | register);
        Unit::straight(code)
    }

    /// A load, store or atomic, with its base (and index) register made to fit.
    fn access(&mut self, row: &Row) -> Unit {
        let word = loop {
            let word = self.word(row);
            if predictable(row, word) {
                break word;
            }
        };
        let size = access_size(row, word);
        let target = self.target(row, size);
        let mut code = Vec::new();
        let (base, index) = (field(word, 9, 5), field(word, 20, 16));
        let offset = match row.form {
            Form::Scaled => i64::from(field(word, 21, 10)) << access_scale(word),
            Form::Imm9 if field(word, 11, 10) != 1 => sign_extend(field(word, 20, 12), 9),
            Form::Pair if field(word, 24, 23) != 1 => sign_extend(field(word, 21, 15), 7) << pair_scale(word),
            Form::Register => {
                let shift = if bit(word, 12) { access_scale(word) } else { 0 };
                let value = if index == 31 { 0 } else { self.index_value(word, index, &mut code) };
                value << shift
            }
            _ => 0,
        };
        self.base(base, index, target.wrapping_sub(offset as u64), &mut code);
        code.push(word);
        Unit::straight(code)
    }

    /// Where the access goes: inside the window, often over the page boundary in its middle, rarely where it faults: over
    /// either end of the scratch memory, or to read-only memory.
    fn target(&mut self, row: &Row, size: u64) -> u64 {
        // QEMU 7.2 does not check the alignment of LDAPR; the architecture wants it like that of LDAR (AccType_ORDERED).
        let aligned = row.class == Class::Atomic && (row.name == "LDAPR" || !self.rng.one_in(64));
        let target = match self.rng.below(64) {
            0 => match self.rng.below(3) {
                0 if aligned => SCRATCH_BASE + SCRATCH_LEN as u64 + self.rng.below(32),
                0 => SCRATCH_BASE + SCRATCH_LEN as u64 - size + 1 + self.rng.below(32),
                1 => SCRATCH_BASE - 1 - self.rng.below(32),
                _ => READ_ONLY_BASE + self.rng.below(64) * size,
            },
            1..16 => WINDOW_BASE + WINDOW_LEN as u64 / 2 - self.rng.below(size + 1),
            _ => WINDOW_BASE + self.rng.below(WINDOW_LEN as u64 - size + 1),
        };
        if aligned { target - target % size } else { target }
    }

    /// Loads the index register of a register-offset access; its effective value, before the shift.
    fn index_value(&mut self, word: u32, register: u32, code: &mut Vec<u32>) -> i64 {
        let (signed, wide) = (bit(word, 15), bit(word, 13));
        let mut value = self.rng.below(64) as i64;
        if (signed || wide) && self.rng.one_in(2) {
            value = -value - 1;
        }
        code.extend(constant(register, value as u64));
        if !wide {
            // What is above bit 31 must not matter.
            code.push(MOVK_TOP | (self.rng.word() & 0xffff) << 5 | register);
        }
        value
    }

    /// Sets the base register, sometimes with a tag in the top byte, which is ignored.
    fn base(&mut self, base: u32, index: u32, address: u64, code: &mut Vec<u32>) {
        let tag = if self.rng.one_in(4) { self.rng.below(256) << 56 } else { 0 };
        let address = address & !(0xff << 56) | tag;
        if base != 31 {
            return code.extend(constant(base, address));
        }
        let helper = (0..31).map(|_| self.rng.below(31) as u32).find(|r| *r != index).unwrap_or(index ^ 1);
        code.extend(constant(helper, address));
        code.push(0x9100_001f | helper << 5);
    }

    /// A load-exclusive, at most two instructions on registers, and the store-exclusive that belongs to it.
    fn exclusive(&mut self, row: &Row) -> Unit {
        let store = loop {
            let word = self.word(row);
            if predictable(row, word) {
                break word;
            }
        };
        let base = field(store, 9, 5);
        let size = access_size(row, store);
        let mut code = Vec::new();
        let target = self.target(row, size);
        self.base(base, 32, target, &mut code);
        if self.rng.one_in(8) {
            code.push(CLREX);
        } else {
            let pair = bit(store, 21);
            let mut other = || loop {
                let r = self.rng.below(32) as u32;
                if r != base {
                    break r;
                }
            };
            let (t, mut u) = (other(), if pair { other() } else { 31 });
            if pair && u == t {
                u = (0..31).find(|r| *r != t && *r != base).expect("31 registers, two taken");
            }
            let acquire = (self.rng.below(2) as u32) << 15;
            code.push(store & 0xc020_0000 | 0x085f_0000 | acquire | u << 10 | base << 5 | t);
        }
        let add = rows().iter().find(|row| row.name == "ADD/SUB (shifted)").expect("the table has it");
        for _ in 0..self.rng.below(3) {
            let word = self.word(add);
            if field(word, 4, 0) != base {
                code.push(word);
            }
        }
        if self.rng.one_in(8) {
            code.push(CLREX);
        }
        code.push(store);
        Unit::straight(code)
    }
}

/// Starts the counter of the loop that a sequence may have: it is in memory outside the window, out of reach of the rest.
fn loop_counter(rounds: u32) -> Unit {
    let code = [constant(0, LOOP_COUNTER), constant(1, u64::from(rounds)), vec![0xf900_0001]].concat();
    Unit::straight(code)
}
