//! The static AArch64 Linux program that qemu runs: reads batches of cases, runs them, writes their outcomes.
//!
//! Everything happens in one signal handler. The program raises a breakpoint; its handler reads a batch and overwrites the
//! registers in the signal frame with the first case's, so that returning from the signal starts the case; the signal that
//! ends the case brings the handler back with the outcome in the frame. The program is assembled here, so that no cross
//! compiler is needed.

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, aarch64::Aarch64Relocation, dynasm};

use crate::case::{
    BATCH, CODE_BASE, CODE_LEN, FRAME_LEN, INPUT_LEN, OUTPUT_LEN, READ_ONLY_BASE, READ_ONLY_LEN, SCRATCH_BASE,
    SCRATCH_LEN, WINDOW_BASE, WINDOW_LEN,
};

const LOAD_ADDRESS: u64 = 0x40_0000;
const HEADER_LEN: usize = 64 + 56;

/// The runner's own data: one variable (the index of the running case), the alternate signal stack, both buffers.
const INDEX: u64 = 0x7000_0000;
const STACK: u64 = 0x7000_4000;
const STACK_LEN: u64 = 0x1_0000;
const INPUT: u64 = 0x7002_0000;
const OUTPUT: u64 = 0x7010_0000;
const DATA_LEN: u64 = 0x20_0000;

const SYS_READ: u32 = 63;
const SYS_WRITE: u32 = 64;
const SYS_EXIT: u32 = 93;
const SYS_SIGALTSTACK: u32 = 132;
const SYS_RT_SIGACTION: u32 = 134;
const SYS_MMAP: u32 = 222;

const SIGNALS: [u32; 5] = [4, 5, 7, 8, 11];
/// SA_SIGINFO, SA_ONSTACK, SA_NODEFER.
const SA_FLAGS: u64 = 0x4 | 0x0800_0000 | 0x4000_0000;
/// Offset of `struct sigcontext` in `struct ucontext`.
const SIGCONTEXT: u32 = 176;

type Assembler = VecAssembler<Aarch64Relocation>;

#[allow(clippy::useless_conversion, reason = "the macro converts whatever it is given")]
fn load_constant(ops: &mut Assembler, register: u8, value: u64) {
    dynasm!(ops; .arch aarch64; movz X(register), (value & 0xffff) as u32);
    for shift in [16u32, 32, 48] {
        let part = (value >> shift & 0xffff) as u32;
        if part != 0 {
            dynasm!(ops; .arch aarch64; movk X(register), part, lsl shift);
        }
    }
}

fn map(ops: &mut Assembler, address: u64, len: u64, protection: u64) {
    // MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS.
    for (register, value) in [(0, address), (1, len), (2, protection), (3, 0x32), (5, 0)] {
        load_constant(ops, register, value);
    }
    dynasm!(ops; .arch aarch64; movn x4, 0; movz x8, SYS_MMAP; svc 0);
}

/// Moves `len` bytes, a multiple of 16, from X12 to X11, both left behind the last byte.
fn copy(ops: &mut Assembler, len: usize) {
    load_constant(ops, 13, len as u64 / 16);
    dynasm!(ops
        ; .arch aarch64
        ; again:
        ; ldp x14, x15, [x12], 16
        ; stp x14, x15, [x11], 16
        ; subs x13, x13, 1
        ; b.ne <again
    );
}

/// Calls read or write until `len` bytes from `address` on are done; leaves by `->quit` at end of file.
fn transfer(ops: &mut Assembler, call: u32, fd: u32, address: u64, len: usize) {
    load_constant(ops, 19, address);
    load_constant(ops, 20, len as u64);
    dynasm!(ops
        ; .arch aarch64
        ; again:
        ; movz x0, fd
        ; mov x1, x19
        ; mov x2, x20
        ; movz x8, call
        ; svc 0
        ; cmp x0, 0
        ; b.le ->quit
        ; add x19, x19, x0
        ; subs x20, x20, x0
        ; b.ne <again
    );
}

fn program() -> Vec<u8> {
    let mut ops = Assembler::new((LOAD_ADDRESS as usize) + HEADER_LEN);
    map(&mut ops, INDEX, DATA_LEN, 3);
    map(&mut ops, SCRATCH_BASE, SCRATCH_LEN as u64, 3);
    map(&mut ops, READ_ONLY_BASE, READ_ONLY_LEN as u64, 1);
    map(&mut ops, CODE_BASE, CODE_LEN as u64, 7);
    // The data area begins as zeroes: build `stack_t` and `struct kernel_sigaction` in it.
    load_constant(&mut ops, 9, INPUT);
    load_constant(&mut ops, 10, STACK);
    load_constant(&mut ops, 11, STACK_LEN);
    load_constant(&mut ops, 12, SA_FLAGS);
    dynasm!(ops
        ; .arch aarch64
        ; str x10, [x9]
        ; str x11, [x9, 16]
        ; mov x0, x9
        ; movz x1, 0
        ; movz x8, SYS_SIGALTSTACK
        ; svc 0
        ; adr x10, ->handler
        ; str x10, [x9, 32]
        ; str x12, [x9, 40]
    );
    for signal in SIGNALS {
        dynasm!(ops
            ; .arch aarch64
            ; movz x0, signal
            ; add x1, x9, 32
            ; movz x2, 0
            ; movz x3, 8
            ; movz x8, SYS_RT_SIGACTION
            ; svc 0
        );
    }
    load_constant(&mut ops, 9, INDEX);
    load_constant(&mut ops, 10, BATCH as u64);
    dynasm!(ops; .arch aarch64; str x10, [x9]; brk 0);

    // handler(x0 = signal, x1 = siginfo, x2 = ucontext); x21 = sigcontext.
    dynasm!(ops; .arch aarch64; ->handler:);
    load_constant(&mut ops, 9, INDEX);
    load_constant(&mut ops, 10, OUTPUT_LEN as u64);
    load_constant(&mut ops, 11, OUTPUT);
    dynasm!(ops
        ; .arch aarch64
        ; add x21, x2, SIGCONTEXT
        ; ldr x22, [x9]
        ; cmp x22, BATCH as u32
        ; b.eq ->refill
        ; madd x11, x22, x10, x11
        ; str x0, [x11], 16
        ; mov x12, x21
    );
    copy(&mut ops, FRAME_LEN);
    load_constant(&mut ops, 12, WINDOW_BASE);
    copy(&mut ops, WINDOW_LEN);
    dynasm!(ops
        ; .arch aarch64
        ; add x22, x22, 1
        ; cmp x22, BATCH as u32
        ; b.ne ->next
    );
    transfer(&mut ops, SYS_WRITE, 1, OUTPUT, BATCH * OUTPUT_LEN);
    dynasm!(ops; .arch aarch64; ->refill:);
    transfer(&mut ops, SYS_READ, 0, CODE_BASE, CODE_LEN);
    transfer(&mut ops, SYS_READ, 0, INPUT, BATCH * INPUT_LEN);
    dynasm!(ops; .arch aarch64; movz x22, 0; ->next:);
    load_constant(&mut ops, 9, INDEX);
    load_constant(&mut ops, 10, INPUT_LEN as u64);
    load_constant(&mut ops, 12, INPUT);
    dynasm!(ops
        ; .arch aarch64
        ; str x22, [x9]
        ; madd x12, x22, x10, x12
        ; mov x11, x21
    );
    copy(&mut ops, FRAME_LEN);
    load_constant(&mut ops, 11, WINDOW_BASE);
    copy(&mut ops, WINDOW_LEN);
    dynasm!(ops
        ; .arch aarch64
        ; ret
        ; ->quit:
        ; movz x0, 0
        ; movz x8, SYS_EXIT
        ; svc 0
    );
    ops.finalize().expect("every label of the runner is defined and in range")
}

/// The program as an ELF file: one header, one loadable segment.
pub fn elf() -> Vec<u8> {
    let code = program();
    let len = (HEADER_LEN + code.len()) as u64;
    let mut file = Vec::new();
    // ELF64, little-endian, version 1; executable, AArch64.
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&[2, 0, 183, 0, 1, 0, 0, 0]);
    for value in [LOAD_ADDRESS + HEADER_LEN as u64, 64, 0] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(&[0; 4]);
    for value in [64u16, 56, 1, 64, 0, 0] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    file.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for value in [0, LOAD_ADDRESS, LOAD_ADDRESS, len, len, 0x1000] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    debug_assert_eq!(file.len(), HEADER_LEN);
    file.extend_from_slice(&code);
    file
}
