//! The bare program: makes one access after the other, each under its own tables and controls, and records what happened.
//!
//! It runs in the upper half of the address space (TTBR1, fixed tables), so that the lower half is free for the accesses.

use std::path::Path;

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, aarch64::Aarch64Relocation, dynasm};

use super::draw::{Access, Operation, TABLES, TARGET, TARGET_LEN};
use super::{ACCESSES, IMAGE, IMAGE_LEN};

/// Bytes of an access's input and output record.
const INPUT_RECORD: usize = 128;
pub(super) const RECORD_LEN: usize = 64;
/// Bytes of all output records.
pub(super) const OUTPUT_LEN: usize = ACCESSES * RECORD_LEN;

const KERNEL_TABLES: u64 = IMAGE + 0x10_0000;
const BOOT_TABLE: u64 = KERNEL_TABLES + 0x2000;
const PATH: u64 = IMAGE + 0x20_0000;
const INPUT: u64 = IMAGE + 0x20_1000;
pub(super) const OUTPUT: u64 = IMAGE + 0x2c_0000;
/// Upper-half address of the image.
const HIGH: u64 = 0xffff_ff80_0000_0000;

/// SCTLR_EL1: M, C, I and the bits that are RES1 in ARMv8.0 (SPAN is for the accesses to choose).
pub(super) const SCTLR: u64 = 0x3050_0800 | 1 | 1 << 2 | 1 << 12;
// TCR_EL1 between accesses, and the TTBR1 half always: 39 bits, 4 KiB granule, shareable write-back walks; EPD0.
const TCR_EPD0: u64 = 25 | EPD0 | 1 << 8 | 1 << 10 | 3 << 12 | TCR_TTBR1;
const EPD0: u64 = 1 << 7;
pub(super) const TCR_TTBR1: u64 = 25 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
/// Normal write-back memory.
const MAIR: u64 = 0xff;

const BLOCK: u64 = 1 << 10 | 3 << 8 | 1;
const READ_ONLY: u64 = 2 << 6;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
/// `SVC #7`: what the target memory is full of.
const SVC_7: u32 = 0xd400_00e1;

/// A system register (op0 = 3, op1 = 0) as the assembler wants it.
const fn register(crn: u32, crm: u32, op2: u32) -> u32 {
    1 << 14 | crn << 7 | crm << 3 | op2
}
const SCTLR_EL1: u32 = register(1, 0, 0);
const TTBR0_EL1: u32 = register(2, 0, 0);
const TTBR1_EL1: u32 = register(2, 0, 1);
const TCR_EL1: u32 = register(2, 0, 2);
const SPSR_EL1: u32 = register(4, 0, 0);
const ELR_EL1: u32 = register(4, 0, 1);
const PAN: u32 = register(4, 2, 3);
const ESR_EL1: u32 = register(5, 2, 0);
const FAR_EL1: u32 = register(6, 0, 0);
const PAR_EL1: u32 = register(7, 4, 0);
const MAIR_EL1: u32 = register(10, 2, 0);
const VBAR_EL1: u32 = register(12, 0, 0);

type Assembler = VecAssembler<Aarch64Relocation>;

fn high(address: u64) -> u64 {
    address - IMAGE + HIGH
}

fn load(ops: &mut Assembler, register: u8, value: u64) {
    for (i, shift) in [0u32, 16, 32, 48].into_iter().enumerate() {
        let part = (value >> shift) as u32 & 0xffff;
        let word = if i == 0 { 0xd280_0000 } else { 0xf280_0000 | (i as u32) << 21 };
        dynasm!(ops; .arch aarch64; .u32 word | part << 5 | u32::from(register));
    }
}

/// The image: program, tables, accesses, target memory. `output` is where the reference writes its records.
pub(super) fn image(accesses: &[Access], output: &Path) -> Vec<u8> {
    assert!(accesses.len() <= ACCESSES);
    let mut image = vec![0; IMAGE_LEN];
    let mut put = |address: u64, bytes: &[u8]| {
        let at = (address - IMAGE) as usize;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(IMAGE, &program(output.as_os_str().len() as u64));
    put(PATH, output.as_os_str().as_encoded_bytes());
    put(KERNEL_TABLES, &((KERNEL_TABLES + 0x1000) | 3).to_le_bytes());
    for (i, flags) in [READ_ONLY | UXN, PXN | UXN, PXN | UXN].into_iter().enumerate() {
        let descriptor = (IMAGE + ((i as u64) << 21)) | flags | BLOCK;
        put(KERNEL_TABLES + 0x1000 + 8 * i as u64, &descriptor.to_le_bytes());
    }
    // One block for the moment between the two views.
    put(BOOT_TABLE + 8 * (IMAGE >> 30), &(IMAGE >> 30 << 30 | READ_ONLY | UXN | BLOCK).to_le_bytes());
    put(INPUT - 8, &(accesses.len() as u64).to_le_bytes());
    for (i, access) in accesses.iter().enumerate() {
        let operation = access.operation as u64;
        let mut words =
            vec![access.tcr | TCR_TTBR1, access.sctlr, TABLES, access.address, operation, access.pan.into()];
        for (slot, descriptor) in access.slots.iter().zip(access.descriptors) {
            words.extend([high(*slot), descriptor]);
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        put(INPUT + (i * INPUT_RECORD) as u64, &bytes);
    }
    put(TARGET, &SVC_7.to_le_bytes().repeat(TARGET_LEN / 4));
    image
}

fn program(path_len: u64) -> Vec<u8> {
    let mut ops = Assembler::new(IMAGE as usize);
    boot(&mut ops);
    main_loop(&mut ops);
    finish(&mut ops, path_len);
    operations(&mut ops);
    vectors(&mut ops);
    ops.finalize().expect("every label of the program is defined and in range")
}

/// Turns translation on and goes up. X0 says who runs it: 0 the reference, 1 the engine.
fn boot(ops: &mut Assembler) {
    load(ops, 27, HIGH.wrapping_sub(IMAGE));
    load(ops, 9, MAIR);
    load(ops, 10, TCR_EPD0 & !EPD0);
    load(ops, 11, KERNEL_TABLES);
    load(ops, 13, BOOT_TABLE);
    load(ops, 12, SCTLR);
    dynasm!(ops
        ; .arch aarch64
        ; mov x28, x0
        ; msr MAIR_EL1, x9
        ; msr TCR_EL1, x10
        ; msr TTBR1_EL1, x11
        ; msr TTBR0_EL1, x13
        ; adr x9, ->vectors
        ; add x9, x9, x27
        ; msr VBAR_EL1, x9
        ; isb
        ; tlbi vmalle1
        ; dsb ish
        ; isb
        ; msr SCTLR_EL1, x12
        ; isb
        ; adr x9, ->high
        ; add x9, x9, x27
        ; br x9
        ; ->high:
    );
}

/// X19 to X22: SCTLR and TCR between accesses, input, output; X23 counts down; X14 to X17 take the effect.
fn main_loop(ops: &mut Assembler) {
    load(ops, 19, SCTLR);
    load(ops, 24, TCR_EPD0);
    load(ops, 20, high(INPUT));
    load(ops, 21, high(OUTPUT));
    dynasm!(ops
        ; .arch aarch64
        ; ldur x23, [x20, -8]
        ; ->round:
        ; cbz x23, ->finish
        ; ldp x4, x5, [x20, 48]
        ; str x5, [x4]
        ; ldp x4, x5, [x20, 64]
        ; str x5, [x4]
        ; ldp x4, x5, [x20, 80]
        ; str x5, [x4]
        ; ldp x4, x5, [x20, 96]
        ; str x5, [x4]
        ; ldp x0, x1, [x20]
        ; ldp x2, x3, [x20, 16]
        ; ldp x4, x5, [x20, 32]
        ; dsb ish
        ; msr TTBR0_EL1, x2
        ; msr TCR_EL1, x0
        ; msr SCTLR_EL1, x1
        ; isb
        ; tlbi vmalle1
        ; dsb ish
        ; isb
        ; movz x14, 0
        ; movz x15, 0
        ; movz x16, 0
        ; movz x17, 0
        ; msr PAR_EL1, xzr
        ; adr x9, ->operations
        ; add x9, x9, x4, lsl 5
        ; cbz x5, >clear
        ; msr PAN, x5
        ; clear:
        ; isb
        ; br x9
        ; ->done:
        ; msr PAN, xzr
        ; msr TCR_EL1, x24
        ; msr SCTLR_EL1, x19
        ; isb
        ; stp x14, x15, [x21]
        ; stp x16, x17, [x21, 16]
        ; ldr x4, [x20, 48]
        ; ldr x6, [x4]
        ; ldr x5, [x20, 64]
        ; ldr x7, [x5]
        ; stp x6, x7, [x21, 32]
        ; ldr x4, [x20, 80]
        ; ldr x6, [x4]
        ; ldr x5, [x20, 96]
        ; ldr x7, [x5]
        ; stp x6, x7, [x21, 48]
        // Clean tables for the next one.
        ; str xzr, [x4]
        ; str xzr, [x5]
        ; ldr x4, [x20, 48]
        ; str xzr, [x4]
        ; ldr x4, [x20, 64]
        ; str xzr, [x4]
        ; dsb ish
        ; tlbi vmalle1
        ; dsb ish
        ; isb
        ; add x20, x20, INPUT_RECORD as u32
        ; add x21, x21, RECORD_LEN as u32
        ; sub x23, x23, 1
        ; b ->round
    );
}

/// `HVC #0` on the engine; on the reference semihosting writes the records to the file and exits.
fn finish(ops: &mut Assembler, path_len: u64) {
    dynasm!(ops
        ; .arch aarch64
        ; ->finish:
        ; cbz x28, >reference
        ; hvc 0
        ; reference:
        // Semihosting takes virtual addresses: a block of parameters where the counts of the input were.
    );
    load(ops, 1, high(INPUT));
    load(ops, 2, high(PATH));
    load(ops, 3, path_len);
    load(ops, 4, high(OUTPUT));
    load(ops, 5, OUTPUT_LEN as u64);
    dynasm!(ops
        ; .arch aarch64
        // SYS_OPEN, mode 5 (wb); SYS_WRITE; SYS_EXIT.
        ; movz x6, 5
        ; stp x2, x6, [x1]
        ; str x3, [x1, 16]
        ; movz x0, 1
        ; hlt 0xf000
        ; stp x0, x4, [x1]
        ; str x5, [x1, 16]
        ; movz x0, 5
        ; hlt 0xf000
        ; movz x6, 0x26
        ; movk x6, 2, lsl 16
        ; stp x6, xzr, [x1]
        ; movz x0, 0x18
        ; hlt 0xf000
        ; b ->finish
    );
}

/// Eight instructions each, in the order of [`Operation`]; the address is in X3.
fn operations(ops: &mut Assembler) {
    dynasm!(ops; .arch aarch64; .align 64; ->operations:);
    for operation in Operation::ALL {
        let before = ops.offset().0;
        match operation {
            Operation::Load => dynasm!(ops; .arch aarch64; ldr x16, [x3]),
            Operation::Store => dynasm!(ops; .arch aarch64; str x14, [x3]),
            Operation::LoadUnprivileged => dynasm!(ops; .arch aarch64; ldtr x16, [x3]),
            Operation::StoreUnprivileged => dynasm!(ops; .arch aarch64; sttr x14, [x3]),
            Operation::LoadExclusive => dynasm!(ops; .arch aarch64; ldxr x16, [x3]; clrex),
            Operation::LoadAcquire => dynasm!(ops; .arch aarch64; ldar w16, [x3]),
            Operation::StoreRelease => dynasm!(ops; .arch aarch64; stlrh w14, [x3]),
            Operation::Add => dynasm!(ops; .arch aarch64; ldadd x14, x16, [x3]),
            Operation::Byte => dynasm!(ops; .arch aarch64; ldrb w16, [x3]),
            Operation::Pair => dynasm!(ops; .arch aarch64; ldp x16, x6, [x3]),
            Operation::Zero => dynasm!(ops; .arch aarch64; dc zva, x3),
            Operation::Prefetch => dynasm!(ops; .arch aarch64; prfm 0, [x3, xzr]),
            Operation::TranslateRead => dynasm!(ops; .arch aarch64; at s1e1r, x3; isb; mrs x16, PAR_EL1),
            Operation::TranslateWrite => dynasm!(ops; .arch aarch64; at s1e1w, x3; isb; mrs x16, PAR_EL1),
            Operation::TranslateReadEl0 => dynasm!(ops; .arch aarch64; at s1e0r, x3; isb; mrs x16, PAR_EL1),
            Operation::TranslateWriteEl0 => dynasm!(ops; .arch aarch64; at s1e0w, x3; isb; mrs x16, PAR_EL1),
            Operation::Execute => dynasm!(ops; .arch aarch64; br x3),
            Operation::ExecuteEl0 => dynasm!(ops
                ; .arch aarch64
                ; movz x9, 0x3c0
                ; msr ELR_EL1, x3
                ; msr SPSR_EL1, x9
                ; eret
            ),
        }
        dynasm!(ops; .arch aarch64; b ->done);
        while ops.offset().0 < before + 32 {
            dynasm!(ops; .arch aarch64; nop);
        }
        assert_eq!(ops.offset().0, before + 32, "{operation:?}");
    }
}

/// Every exception ends its access.
fn vectors(ops: &mut Assembler) {
    dynasm!(ops; .arch aarch64; .align 2048; ->vectors:);
    for _ in 0..16 {
        dynasm!(ops
            ; .arch aarch64
            ; mrs x14, ESR_EL1
            ; mrs x15, FAR_EL1
            ; mrs x17, PAN
            ; adr x9, ->done
            ; msr ELR_EL1, x9
            ; movz x9, 0x3c5
            ; msr SPSR_EL1, x9
            ; eret
            ; .align 128
        );
    }
}
