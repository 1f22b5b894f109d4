//! Handlers against recorded answers, and what faults leave behind.
//!
//! `known_answers.txt` holds, for every handler, instructions with the answers of an independent implementation, and the
//! seed that makes up the registers they start from.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;

use super::decode;
use crate::config::Config;
use crate::engine::cpu::Cpu;
use crate::engine::op::{Next, Op};
use crate::engine::run::Exit;
use crate::engine::shared::VcpuShared;
use crate::machine::Machine;
use crate::stage2::Perms;

/// Where RAM is. The MMU is off, so everything is Device memory: misaligned elements fault.
const RAM: u64 = 0x1000_0000;
const SIZE: usize = 0x4000;
/// So much of RAM is filled, and compared.
const DATA: usize = 256;

struct Bench {
    cpu: Box<Cpu>,
    ram: *mut u8,
}

impl Bench {
    fn layout() -> Layout {
        Layout::from_size_align(SIZE, SIZE).unwrap()
    }

    fn new() -> Bench {
        let machine = Arc::new(Machine::new(Config::default(), 36));
        // SAFETY: the size is not zero.
        let ram = unsafe { alloc_zeroed(Bench::layout()) };
        machine.stage2.map(ram, RAM, SIZE as u64, Perms::from_flags(3).unwrap(), false).unwrap();
        Bench { cpu: Cpu::new(machine, VcpuShared::new(0)), ram }
    }

    fn data(&mut self) -> &mut [u8] {
        // SAFETY: allocated in `new`; the vCPU does not run while the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.ram, DATA) }
    }

    /// Executes one instruction: whether it went on to the next, and else the address that faulted.
    fn run(&mut self, word: u32) -> Result<(), u64> {
        unsafe fn stop(_: &mut Cpu, _: *const Op) -> Next {
            Next::Taken
        }
        let op = decode(word).unwrap_or_else(|| panic!("{word:08x} is not decoded")).op;
        let ops = [op, Op::new(stop, 0)];
        // SAFETY: a block that ends with an op that ends it.
        match unsafe { (ops[0].run)(&mut self.cpu, ops.as_ptr()) } {
            Next::Taken => Ok(()),
            Next::Stop => match self.cpu.exit {
                Exit::Exception { far, .. } => Err(far),
                other => panic!("{word:08x}: {other:?}"),
            },
            _ => Err(self.cpu.sys.far),
        }
    }

    /// Fills registers and memory; X registers point into RAM for loads and stores.
    fn fill(&mut self, seed: u64, memory: bool) {
        let mut r = Random(seed);
        for i in 0..31 {
            let x = r.next();
            self.cpu.x[i] = match i {
                28 | 30 => 0,
                _ if memory => RAM + 0x40 + x % 8 * 16,
                _ => x >> (x & 63),
            };
        }
        for v in &mut self.cpu.v {
            *v = u128::from(r.chunk()) | u128::from(r.chunk()) << 64;
        }
        let (fpcr, fpsr) = (r.next() as u32, r.next() as u32);
        self.cpu.fpcr = if fpcr & 1 == 0 { 0 } else { fpcr & 0x07c8_0000 };
        self.cpu.fpsr = if fpsr & 1 == 0 { 0 } else { fpsr & 0x0800_009f };
        self.cpu.set_nzcv(r.next() as u32 & 15);
        for (i, byte) in self.data().iter_mut().enumerate() {
            *byte = (i * 37 + 11) as u8;
        }
    }

    /// FNV-1a over everything an instruction can change.
    fn digest(&mut self) -> u64 {
        let words = self.cpu.x[..31].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let vectors = self.cpu.v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let bytes = [words, vectors, self.data().to_vec()].concat();
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the vCPU does not run any more.
        unsafe { dealloc(self.ram, Bench::layout()) }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number of a format with `f` fraction bits out of `bits`, often a special one.
    fn float(&mut self, bits: u32, f: u32) -> u64 {
        let (x, fraction, max) = (self.next(), (1 << f) - 1, (1u64 << (bits - 1 - f)) - 1);
        let bias = max / 2;
        let exponent = match x % 11 {
            0 => 0,
            1 => 1,
            2 => max - 1,
            3 => max,
            4 => bias + u64::from(f) - 1,
            5 => bias + 2,
            6 => bias + 1,
            7 => bias - 1,
            8 => bias - 2,
            9 => (x >> 16) & max,
            _ => bias,
        };
        let fraction = match (x >> 8) % 6 {
            0 => 0,
            1 => 1,
            2 => 1 << (f - 1),
            3 => fraction,
            _ => self.next() & fraction,
        };
        (x >> 63) << (bits - 1) | exponent << f | fraction
    }

    /// 64 bits that are numbers of one format, small integers, or anything.
    fn chunk(&mut self) -> u64 {
        match self.next() % 5 {
            0 => self.float(64, 52),
            1 => self.float(32, 23) | self.float(32, 23) << 32,
            2 => (0..4).fold(0, |v, _| v << 16 | self.float(16, 10)),
            3 => self.next() & self.next() & self.next(),
            _ => self.next(),
        }
    }
}

/// The group of loads and stores.
fn is_memory(word: u32) -> bool {
    word >> 25 & 7 != 7
}

#[test]
fn every_handler_gives_the_recorded_answers() {
    let mut bench = Bench::new();
    let mut count = 0;
    for line in include_str!("known_answers.txt").lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |i: usize| u128::from_str_radix(fields[i], 16).expect(line);
        let word = hex(0) as u32;
        bench.fill(hex(1) as u64, is_memory(word));
        assert_eq!(bench.run(word), Ok(()), "{line}");
        let got = (bench.cpu.v[(word & 31) as usize], bench.cpu.fpsr, bench.cpu.nzcv(), bench.digest());
        assert_eq!(got, (hex(2), hex(3) as u32, hex(4) as u32, hex(5) as u64), "{line}\ngot {got:x?}");
        count += 1;
    }
    assert!(count > 1000, "{count} answers");
}

#[test]
fn a_fault_leaves_the_registers_alone() {
    // Instruction, x1, and the address that faults, if any.
    let end = RAM + SIZE as u64;
    let table = [
        (0x4c40_7820, RAM + 2, Some(RAM + 2)), // ld1 {v0.4s}, [x1]
        (0x4c40_7020, RAM + 2, None),          // ld1 {v0.16b}, [x1]: bytes are always aligned
        (0x4cdf_a020, end - 24, Some(end)),    // ld1 {v0.16b, v1.16b}, [x1], #32
        (0x4cdf_8420, end - 24, Some(end)),    // ld2 {v0.8h, v1.8h}, [x1], #32
        (0x4cc2_2020, end - 24, Some(end)),    // ld1 {v0.16b-v3.16b}, [x1], x2
        (0x4c9f_a020, RAM - 8, Some(RAM - 8)), // st1 {v0.16b, v1.16b}, [x1], #32
        (0x0dff_e420, end - 4, Some(end)),     // ld4r {v0.4h-v3.4h}, [x1], #8
        (0x4dc2_c820, end - 4, None),          // ld1r {v0.4s}, [x1], x2
        (0x0d40_1421, end - 1, None),          // ld1 {v1.b}[5], [x1]
        (0x0d20_4020, end - 1, Some(end - 1)), // st2 {v0.h, v1.h}[0], [x1]
    ];
    let mut bench = Bench::new();
    for (word, base, far) in table {
        bench.fill(1, true);
        bench.cpu.x[1] = base;
        let before = bench.digest();
        assert_eq!(bench.run(word).err(), far, "{word:08x}");
        assert_eq!(bench.digest() == before, far.is_some(), "{word:08x}");
    }
}

#[test]
fn extensions_that_are_not_there_are_unallocated() {
    for word in [
        0xce60_8000,           // sha512h
        0xce00_0000,           // eor3 (FEAT_SHA3)
        0xce40_8000,           // sm3tt1a
        0xcec0_8400,           // sm4e
        0x0e20_ec00,           // fmlal (FEAT_FHM)
        0x6e40_ec00,           // bfmmla (FEAT_BF16)
        0x4e80_a400,           // smmla (FEAT_I8MM)
        0x1e28_4000,           // frint32z (FEAT_FRINTTS)
        0x1e63_4000,           // bfcvt
        0x4e70_c800,           // fmaxnmv of half precision with bit 22 set
        0x2f00_fc00,           // modified immediate, op 1, cmode 1111, o2 1
        0x0ee0_8400,           // add of 64-bit lanes in 64 bits
        0x0c40_7020 | 1 << 16, // ld1 without post-index, Rm not zero
        0x1eae_0000,           // fmov x0, v0.d[1] with sf clear
    ] {
        assert!(decode(word).is_none(), "{word:08x} is decoded");
    }
}
