//! Loads and stores against translated memory: pages 0 to 6 of it are mapped for EL1 (1 for EL0 as well), 7 is not.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;

use super::{cpu, run};
use crate::engine::cpu::Cpu;
use crate::engine::op::{Next, slot};
use crate::stage2::Perms;

/// Where RAM is, in guest-virtual and in intermediate physical addresses.
const RAM: u64 = 0x4000_0000;
const SIZE: u64 = 0x10000;
/// The last mapped byte is the one in front.
const END: u64 = RAM + 0x7000;

struct Guest {
    cpu: Box<Cpu>,
    ram: *mut u8,
}

impl Guest {
    fn layout() -> Layout {
        Layout::from_size_align(SIZE as usize, 0x4000).unwrap()
    }

    fn new() -> Guest {
        let mut cpu = cpu();
        // SAFETY: the size is not zero.
        let ram = unsafe { alloc_zeroed(Guest::layout()) };
        let machine = Arc::clone(&cpu.machine);
        machine.stage2.map(ram, RAM, SIZE, Perms::from_flags(7).unwrap(), false).unwrap();
        cpu.sys.ttbr0 = RAM + 0xc000;
        // T0SZ = 25, EPD1, IPS = 40 bits; Normal memory; M, SA, SA0.
        (cpu.sys.tcr, cpu.sys.mair) = (25 | 1 << 23 | 2 << 32, 0xff);
        cpu.sys.sctlr = 1 | 1 << 3 | 1 << 4;
        let mut guest = Guest { cpu, ram };
        // Levels 1 and 2, then the pages: AF, inner shareable, EL1 read/write.
        guest.write(RAM + 0xc008, RAM + 0xd003);
        guest.write(RAM + 0xd000, RAM + 0xe003);
        for page in 0..7 {
            let user = if page == 1 { 1 << 6 } else { 0 };
            guest.write(RAM + 0xe000 + page * 8, (RAM + page * 0x1000) | 0x703 | user);
        }
        guest.cpu.refresh();
        guest
    }

    fn write(&mut self, at: u64, value: u64) {
        // SAFETY: inside `ram`, and the guest is not running.
        unsafe { self.ram.add((at - RAM) as usize).cast::<u64>().write_unaligned(value) }
    }

    fn read(&self, at: u64) -> u64 {
        // SAFETY: as in `write`.
        unsafe { self.ram.add((at - RAM) as usize).cast::<u64>().read_unaligned() }
    }

    /// Runs, and expects no exception.
    fn run(&mut self, words: &[u32]) {
        assert_eq!(run(&mut self.cpu, words), Next::Stop, "ESR {:x} FAR {:x}", self.cpu.sys.esr, self.cpu.sys.far);
    }

    /// Runs, and expects an exception to EL1 that leaves the general-purpose registers as they were. The answer is its class,
    /// the fault status code, and FAR_EL1.
    fn fault(&mut self, word: u32) -> (u64, u64, u64) {
        let before = self.cpu.x;
        assert_eq!(run(&mut self.cpu, &[word]), Next::Lookup, "{word:08x} does not fault");
        assert_eq!(self.cpu.x, before, "{word:08x} changes registers");
        (self.cpu.sys.esr >> 26, self.cpu.sys.esr & 0x3f, self.cpu.sys.far)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the vCPU does not run any more.
        unsafe { dealloc(self.ram, Guest::layout()) }
    }
}

/// In memory at [`AT`], and the same again behind it.
const VALUE: u64 = 0xf8e7_c6b5_d4a3_8291;
const AT: u64 = RAM + 0x100;

#[test]
fn loads_in_every_size_extension_and_addressing_mode() {
    // Instruction, x2; x0, x1 afterwards.
    let table: &[(u32, u64, u64, u64)] = &[
        (0x3940_0020, 0, 0x91, AT),                              // ldrb w0, [x1]
        (0x3980_0020, 0, 0xffff_ffff_ffff_ff91, AT),             // ldrsb x0, [x1]
        (0x39c0_0020, 0, 0xffff_ff91, AT),                       // ldrsb w0, [x1]
        (0x7940_0020, 0, 0x8291, AT),                            // ldrh w0, [x1]
        (0x7980_0020, 0, 0xffff_ffff_ffff_8291, AT),             // ldrsh x0, [x1]
        (0x79c0_0020, 0, 0xffff_8291, AT),                       // ldrsh w0, [x1]
        (0xb940_0020, 0, 0xd4a3_8291, AT),                       // ldr w0, [x1]
        (0xb980_0020, 0, 0xffff_ffff_d4a3_8291, AT),             // ldrsw x0, [x1]
        (0xf940_0020, 0, VALUE, AT),                             // ldr x0, [x1]
        (0xf840_1020, 0, 0x91f8_e7c6_b5d4_a382, AT),             // ldur x0, [x1, #1]
        (0xf85f_f020, 0, 0xe7c6_b5d4_a382_9100, AT),             // ldur x0, [x1, #-1]
        (0x3862_6820, 6, 0xe7, AT),                              // ldrb w0, [x1, x2]
        (0x7862_d820, 0x7_ffff_ffff, 0, AT),                     // ldrh w0, [x1, w2, sxtw #1]
        (0xf862_4820, 0x7_0000_0004, 0xd4a3_8291_f8e7_c6b5, AT), // ldr x0, [x1, w2, uxtw]
        (0xb8a2_7820, 1, 0xffff_ffff_f8e7_c6b5, AT),             // ldrsw x0, [x1, x2, lsl #2]
        (0xf840_8420, 0, VALUE, AT + 8),                         // ldr x0, [x1], #8
        (0xf840_8c20, 0, VALUE, AT + 8),                         // ldr x0, [x1, #8]!
        (0xf840_0820, 0, VALUE, AT),                             // ldtr x0, [x1], by EL1 of a page that is EL0's
        (0xc8df_fc20, 0, VALUE, AT),                             // ldar x0, [x1]
        (0x38bf_c020, 0, 0x91, AT),                              // ldaprb w0, [x1]
    ];
    for &(word, x2, x0, x1) in table {
        let mut guest = Guest::new();
        let base = if word == 0xf840_0820 { 0x1000 } else { 0 };
        guest.write(AT + base, VALUE);
        guest.write(AT + base + 8, VALUE);
        (guest.cpu.x[0], guest.cpu.x[1], guest.cpu.x[2]) = (u64::MAX, AT + base, x2);
        guest.run(&[word]);
        assert_eq!((guest.cpu.x[0], guest.cpu.x[1] - base), (x0, x1), "{word:08x}");
    }
}

#[test]
fn stores() {
    // Instruction; the 16 bytes at AT afterwards, x1 - AT. Before, memory is all ones; x0 = VALUE, x2 = 2.
    let table: &[(u32, u128, i64)] = &[
        (0xf800_8c20, 0xf8e7_c6b5_d4a3_8291_ffff_ffff_ffff_ffff, 8), // str x0, [x1, #8]!
        (0xb81f_c420, 0xffff_ffff_ffff_ffff_ffff_ffff_d4a3_8291, -4), // str w0, [x1], #-4
        (0x3900_0c20, 0xffff_ffff_ffff_ffff_ffff_ffff_91ff_ffff, 0), // strb w0, [x1, #3]
        (0x7822_5820, 0xffff_ffff_ffff_ffff_ffff_8291_ffff_ffff, 0), // strh w0, [x1, w2, uxtw #1]
        (0x2900_0820, 0xffff_ffff_ffff_ffff_0000_0002_d4a3_8291, 0), // stp w0, w2, [x1]
        (0xa900_7c20, 0x0000_0000_0000_0000_f8e7_c6b5_d4a3_8291, 0), // stp x0, xzr, [x1]
        (0x889f_fc20, 0xffff_ffff_ffff_ffff_ffff_ffff_d4a3_8291, 0), // stlr w0, [x1]
        (0x3d80_0020, 0x1111_2222_3333_4444_5555_6666_7777_8888, 0), // str q0, [x1]
        (0x2d00_0420, 0xffff_ffff_ffff_ffff_ddee_ff00_7777_8888, 0), // stp s0, s1, [x1]
        (0xf900_0021, AT as u128 | (u64::MAX as u128) << 64, 0),     // str x1, [x1]
    ];
    for &(word, memory, moved) in table {
        let mut guest = Guest::new();
        guest.write(AT, u64::MAX);
        guest.write(AT + 8, u64::MAX);
        (guest.cpu.x[0], guest.cpu.x[1], guest.cpu.x[2]) = (VALUE, AT, 2);
        guest.cpu.v[0] = 0x1111_2222_3333_4444_5555_6666_7777_8888;
        guest.cpu.v[1] = 0x99aa_bbcc_ddee_ff00;
        guest.run(&[word]);
        let found = u128::from(guest.read(AT + 8)) << 64 | u128::from(guest.read(AT));
        assert_eq!((found, guest.cpu.x[1]), (memory, AT.wrapping_add_signed(moved)), "{word:08x}");
    }
}

#[test]
fn pairs_and_the_stack() {
    let mut guest = Guest::new();
    guest.cpu.x[usize::from(slot::SP)] = AT + 16;
    (guest.cpu.x[0], guest.cpu.x[2], guest.cpu.x[1]) = (VALUE, 7, AT - 4);
    // stp x0, x2, [sp, #-16]!; ldp x3, x4, [sp], #16; ldpsw x5, x6, [x1, #4]; ldnp x7, x8, [x1, #-8] (unaligned)
    guest.run(&[0xa9bf_0be0, 0xa8c1_13e3, 0x6940_9825, 0xa87f_a027]);
    assert_eq!((guest.cpu.x[3], guest.cpu.x[4]), (VALUE, 7));
    assert_eq!(guest.cpu.x[usize::from(slot::SP)], AT + 16);
    assert_eq!((guest.cpu.x[5], guest.cpu.x[6]), (0xffff_ffff_d4a3_8291, 0xffff_ffff_f8e7_c6b5));
    assert_eq!((guest.cpu.x[7], guest.cpu.x[8]), (0, 0xd4a3_8291 << 32));
}

#[test]
fn fp_loads_clear_the_rest_of_the_register() {
    let mut guest = Guest::new();
    guest.write(AT + 16, VALUE);
    guest.write(AT + 24, 5);
    guest.cpu.x[1] = AT;
    guest.cpu.v = [u128::MAX; 32];
    // ldr d1, [x1, #16]; ldr b2, [x1, #16]; ldp q3, q4, [x1]
    guest.run(&[0xfd40_0821, 0x3d40_4022, 0xad40_1023]);
    assert_eq!(guest.cpu.v[1..5], [u128::from(VALUE), 0x91, 0, 5 << 64 | u128::from(VALUE)]);
}

#[test]
fn accesses_across_pages() {
    let mut guest = Guest::new();
    (guest.cpu.x[0], guest.cpu.x[2], guest.cpu.x[1]) = (VALUE, !VALUE, RAM + 0x1ffc);
    // stp x0, x2, [x1]; ldr x3, [x1]; ldr x4, [x1, #8]; stur x0, [x1, #1]; ldp x5, x6, [x1]
    guest.run(&[0xa900_0820, 0xf940_0023, 0xf940_0424, 0xf800_1020, 0xa940_1825]);
    assert_eq!((guest.cpu.x[3], guest.cpu.x[4]), (VALUE, !VALUE));
    assert_eq!((guest.cpu.x[5], guest.cpu.x[6]), (VALUE << 8 | 0x91, !VALUE & !0xff | 0xf8));
}

#[test]
fn faults_change_nothing() {
    const DATA_ABORT: u64 = 0x25;
    const SP_ALIGNMENT: u64 = 0x26;
    let (translation, permission, alignment) = (0x07, 0x0f, 0x21);
    // Instruction, x1; class, status, FAR.
    let table: &[(u32, u64, u64, u64, u64)] = &[
        (0xf840_8420, END, DATA_ABORT, translation, END),     // ldr x0, [x1], #8
        (0xf800_8c20, END - 8, DATA_ABORT, translation, END), // str x0, [x1, #8]!
        (0xf940_0020, END - 4, DATA_ABORT, translation, END), // ldr x0, [x1], its second half
        (0xa940_0820, END - 8, DATA_ABORT, translation, END), // ldp x0, x2, [x1], its second register
        (0xa9bf_0820, END + 8, DATA_ABORT, translation, END), // stp x0, x2, [x1, #-16]!, its second register
        (0xf840_0820, AT, DATA_ABORT, permission, AT),        // ldtr x0, [x1], not EL0's
        (0xc8df_fc20, AT + 4, DATA_ABORT, alignment, AT + 4), // ldar x0, [x1]
        (0x889f_fc20, AT + 2, DATA_ABORT, alignment, AT + 2), // stlr w0, [x1]
        (0xc85f_7c20, AT + 1, DATA_ABORT, alignment, AT + 1), // ldxr x0, [x1]
        (0xc87f_9023, AT + 8, DATA_ABORT, alignment, AT + 8), // ldaxp x3, x4, [x1]
        (0xf820_0022, AT + 4, DATA_ABORT, alignment, AT + 4), // ldadd x0, x2, [x1]
        (0x4824_7c26, AT + 8, DATA_ABORT, alignment, AT + 8), // casp x4, x5, x6, x7, [x1]
        (0xf940_03e0, 0, SP_ALIGNMENT, 0, 0),                 // ldr x0, [sp]
        (0xa9bf_0be0, 0, SP_ALIGNMENT, 0, 0),                 // stp x0, x2, [sp, #-16]!
    ];
    for &(word, x1, class, status, far) in table {
        let mut guest = Guest::new();
        guest.cpu.x[1] = x1;
        guest.cpu.x[usize::from(slot::SP)] = AT + 8;
        assert_eq!(guest.fault(word), (class, status, far), "{word:08x} at {x1:x}");
    }
}

#[test]
fn exclusives() {
    let mut guest = Guest::new();
    guest.write(AT, VALUE);
    (guest.cpu.x[1], guest.cpu.x[3]) = (AT, 42);
    // ldxr x0, [x1]; stxr w2, x3, [x1]; and once more without a load.
    guest.run(&[0xc85f_7c20, 0xc802_7c23]);
    assert_eq!((guest.cpu.x[0], guest.cpu.x[2], guest.read(AT)), (VALUE, 0, 42));
    guest.cpu.x[3] = 43;
    guest.run(&[0xc802_7c23]);
    assert_eq!((guest.cpu.x[2], guest.read(AT)), (1, 42));
    // Somebody else writes in between.
    guest.run(&[0xc85f_7c20]);
    guest.write(AT, 44);
    guest.run(&[0xc802_7c23]);
    assert_eq!((guest.cpu.x[2], guest.read(AT)), (1, 44));
    // Another address.
    guest.run(&[0xc85f_7c20, 0x9100_2021, 0xc802_7c23]);
    assert_eq!((guest.cpu.x[2], guest.read(AT), guest.read(AT + 8)), (1, 44, 0));
    // Byte: ldxrb w0, [x1]; stxrb w2, w3, [x1]
    (guest.cpu.x[1], guest.cpu.x[3]) = (AT + 1, 0x777);
    guest.run(&[0x085f_7c20, 0x0802_7c23]);
    assert_eq!((guest.cpu.x[0], guest.cpu.x[2], guest.read(AT)), (0, 0, 0x772c));
}

#[test]
fn exclusive_pairs() {
    let mut guest = Guest::new();
    guest.write(AT, VALUE);
    guest.write(AT + 8, 1);
    (guest.cpu.x[1], guest.cpu.x[5], guest.cpu.x[6]) = (AT, 0x55_0000_0005, 0x66_0000_0006);
    // ldaxp x3, x4, [x1]; stlxp w2, x5, x6, [x1]
    guest.run(&[0xc87f_9023, 0xc822_9825]);
    assert_eq!((guest.cpu.x[3], guest.cpu.x[4], guest.cpu.x[2]), (VALUE, 1, 0));
    assert_eq!((guest.read(AT), guest.read(AT + 8)), (0x55_0000_0005, 0x66_0000_0006));
    // ldxp w3, w4, [x1]; stxp w2, w5, w6, [x1]
    guest.run(&[0x887f_1023, 0x8822_1825]);
    assert_eq!((guest.cpu.x[3], guest.cpu.x[4], guest.cpu.x[2]), (5, 0x55, 0));
    assert_eq!((guest.read(AT), guest.read(AT + 8)), (0x6_0000_0005, 0x66_0000_0006));
    // The second half of a pair changes in between.
    guest.run(&[0xc87f_9023]);
    guest.write(AT + 8, 9);
    guest.run(&[0xc822_9825]);
    assert_eq!((guest.cpu.x[2], guest.read(AT), guest.read(AT + 8)), (1, 0x6_0000_0005, 9));
}

#[test]
fn compare_and_swap() {
    // Instruction, x0 (compared), memory; x0 and memory afterwards. x2 = 0x1234 is the new value.
    let table: &[(u32, u64, u64, u64, u64)] = &[
        (0xc8a0_7c22, VALUE, VALUE, VALUE, 0x1234),                // cas x0, x2, [x1]
        (0xc8a0_7c22, 1, VALUE, VALUE, VALUE),                     // cas x0, x2, [x1]
        (0x08e0_fc22, 0xfff91, VALUE, 0x91, VALUE & !0xff | 0x34), // casalb w0, w2, [x1]
    ];
    for &(word, x0, memory, x0_after, memory_after) in table {
        let mut guest = Guest::new();
        guest.write(AT, memory);
        (guest.cpu.x[0], guest.cpu.x[1], guest.cpu.x[2]) = (x0, AT, 0x1234);
        guest.run(&[word]);
        assert_eq!((guest.cpu.x[0], guest.read(AT)), (x0_after, memory_after), "{word:08x}");
    }
    let mut guest = Guest::new();
    guest.write(AT, 1);
    guest.write(AT + 8, 2);
    guest.cpu.x[1] = AT;
    guest.cpu.x[4..8].copy_from_slice(&[1, 2, 3, 4]);
    // casp x4, x5, x6, x7, [x1], twice: the second finds 3, 4
    guest.run(&[0x4824_7c26, 0x4824_7c26]);
    assert_eq!((guest.cpu.x[4], guest.cpu.x[5], guest.read(AT), guest.read(AT + 8)), (3, 4, 3, 4));
    // caspal w4, w5, w6, w7, [x1] (finds 3, 0)
    guest.cpu.x[5] = 0xff_0000_0000;
    guest.run(&[0x0864_fc26]);
    assert_eq!((guest.cpu.x[4], guest.cpu.x[5], guest.read(AT)), (3, 0, 4 << 32 | 3));
}

#[test]
fn atomic_arithmetic_answers_the_old_value() {
    // Instruction, x0; memory afterwards. Memory was VALUE.
    let table: &[(u32, u64, u64)] = &[
        (0xf820_0022, 1, VALUE + 1),                       // ldadd x0, x2, [x1]
        (0xf820_1022, 0xff, VALUE & !0xff),                // ldclr x0, x2, [x1]
        (0xf820_2022, u64::MAX, !VALUE),                   // ldeor x0, x2, [x1]
        (0x78e0_8022, 0x7_1234, VALUE & !0xffff | 0x1234), // swpalh w0, w2, [x1]
        (0x3820_5022, 1, VALUE),                           // ldsminb w0, w2, [x1]
        (0xb860_6022, 0xffff_ffff, VALUE | 0xffff_ffff),   // ldumaxl w0, w2, [x1]
    ];
    for &(word, x0, memory) in table {
        let mut guest = Guest::new();
        guest.write(AT, VALUE);
        (guest.cpu.x[0], guest.cpu.x[1]) = (x0, AT);
        guest.run(&[word]);
        let size = 8 << (word >> 30);
        assert_eq!((guest.read(AT), guest.cpu.x[2]), (memory, VALUE & u64::MAX >> (64 - size)), "{word:08x}");
    }
    // stadd w0, [x1]: the old value goes nowhere.
    let mut guest = Guest::new();
    (guest.cpu.x[0], guest.cpu.x[1]) = (5, AT);
    guest.run(&[0xb820_003f]);
    assert_eq!((guest.read(AT), guest.cpu.x[usize::from(slot::ZR)]), (5, 0));
}

#[test]
fn prefetch_of_nothing_is_nothing() {
    let mut guest = Guest::new();
    guest.cpu.x[1] = END;
    guest.run(&[0xf980_0020]);
}
