//! Code that changes: what a guest wrote and made visible (DC CVAU, IC IVAU, DSB, ISB) is what it then executes.

mod guest;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use guest::{ALIAS, Assembler, CODE, Guest, assembler};

const ROUNDS: u32 = 500;

/// Makes 16 bytes of code at X3 visible.
fn publish(ops: &mut Assembler) {
    dynasm!(ops
        ; .arch aarch64
        ; dc cvau, x3
        ; dsb ish
        ; ic ivau, x3
        ; dsb ish
        ; isb
    );
}

/// A guest that writes `MOVZ X0, #n; RET` (in X4, and with two NOPs behind it in Q4) for n = 1, 2, ... to X3 and calls it.
/// X0 counts the calls that answered something else.
fn patch_and_call(page: u32, store: impl FnOnce(&mut Assembler)) {
    let mut ops = assembler();
    dynasm!(ops
        ; .arch aarch64
        ; movz x20, 0
        ; movz x2, 1
        // The function, in the page of this loop or in one of its own.
        ; adr x3, ->function
        ; add x3, x3, page, lsl 12
        // MOVZ X0, #0; RET; NOP; NOP.
        ; movz x15, 0xd280, lsl 16
        ; movk x15, 0x03c0, lsl 32
        ; movk x15, 0xd65f, lsl 48
        ; movz x16, 0x201f
        ; movk x16, 0xd503, lsl 16
        ; orr x16, x16, x16, lsl 32
        ; ->round:
        ; add x4, x15, x2, lsl 5
        ; fmov d4, x4
        ; mov v4.d[1], x16
    );
    store(&mut ops);
    publish(&mut ops);
    dynasm!(ops
        ; .arch aarch64
        ; blr x3
        ; cmp x0, x2
        ; cinc x20, x20, ne
        ; add x2, x2, 1
        ; cmp x2, ROUNDS
        ; b.ne ->round
        ; mov x0, x20
        ; hvc 0
        ; .align 64
        ; ->function:
        ; .bytes [0; 16]
    );
    assert_eq!(Guest::new(ops).run(1), [0], "calls ran old code");
}

macro_rules! stores {
    ($($name:ident: { $($code:tt)* })*) => {$(
        #[test]
        fn $name() {
            for page in [0, 1, 64] {
                patch_and_call(page, |ops| { dynasm!(ops; .arch aarch64; $($code)*); });
            }
        }
    )*};
}

stores! {
    code_written_by_str: { str x4, [x3] }
    code_written_by_stp: { stp x4, x16, [x3] }
    code_written_by_bytes: { str x4, [x3]; strb w4, [x3]; lsr w5, w4, 8; strb w5, [x3, 1] }
    code_written_by_a_vector: { str q4, [x3] }
    code_written_by_a_structure_store: { st1 {v4.d2}, [x3] }
    code_written_by_store_release: { stlr x4, [x3] }
    code_written_by_store_exclusive: { again:; ldxr x5, [x3]; stxr w5, x4, [x3]; cbnz w5, <again }
    code_written_by_store_exclusive_pair: {
        again:; ldxp x5, x6, [x3]; stxp w5, x4, x16, [x3]; cbnz w5, <again
    }
    code_written_by_swp: { swp x4, x5, [x3] }
    code_written_by_cas: { ldr x5, [x3]; cas x5, x4, [x3] }
    code_written_by_ldset: { ldr x5, [x3]; eor x5, x5, x4; ldeor x5, x6, [x3] }
    code_zeroed_and_written: { dc zva, x3; str x4, [x3] }
    code_written_by_unaligned_stores: { str x4, [x3]; lsr x5, x4, 8; stur x5, [x3, 1]; lsr x5, x4, 56; strb w5, [x3, 7] }
}

#[test]
fn code_written_through_another_address() {
    let mut ops = assembler();
    dynasm!(ops
        ; .arch aarch64
        ; movz x20, 0
        ; movz x2, 1
        ; adr x3, ->function
        ; movz x5, (ALIAS >> 16) as u32, lsl 16
        ; add x5, x5, x3
        ; ->round:
        ; movz w4, 0xd280, lsl 16
        ; orr w4, w4, w2, lsl 5
        ; str w4, [x5]
        ; dc cvau, x5
        ; dsb ish
        ; ic ialluis
        ; dsb ish
        ; isb
        ; blr x3
        ; cmp x0, x2
        ; cinc x20, x20, ne
        // And the other way: written here, called there.
        ; add w4, w4, 32
        ; str w4, [x3]
        ; dc cvau, x3
        ; dsb ish
        ; ic ialluis
        ; dsb ish
        ; isb
        ; blr x5
        ; sub x0, x0, 1
        ; cmp x0, x2
        ; cinc x20, x20, ne
        ; add x2, x2, 1
        ; cmp x2, ROUNDS
        ; b.ne ->round
        ; mov x0, x20
        ; hvc 0
        ; .align 64
        ; ->function:
        ; .u32 0xd280_0000
        ; ret
    );
    assert_eq!(Guest::new(ops).run(1), [0], "calls ran old code");
}

#[test]
fn the_next_instruction_is_the_new_one() {
    let mut ops = assembler();
    dynasm!(ops
        ; .arch aarch64
        ; movz x20, 0
        ; movz x2, 1
        ; adr x3, ->next
        ; ->round:
        ; movz w4, 0xd280, lsl 16
        ; orr w4, w4, w2, lsl 5
        ; str w4, [x3]
    );
    publish(&mut ops);
    dynasm!(ops
        ; .arch aarch64
        ; ->next:
        ; movz x0, 0
        ; cmp x0, x2
        ; cinc x20, x20, ne
        ; add x2, x2, 1
        ; cmp x2, ROUNDS
        ; b.ne ->round
        ; mov x0, x20
        ; hvc 0
    );
    assert_eq!(Guest::new(ops).run(1), [0], "the instruction behind the ISB was old");
}

#[test]
fn code_of_one_vcpu_changed_by_another() {
    let mut ops = assembler();
    dynasm!(ops
        ; .arch aarch64
        ; movz x20, 0
        ; movz x2, 0
        ; movz x15, 0xd280, lsl 16
        ; adr x3, ->function
        ; cbnz x0, ->caller
        ; ->writer:
        ; add x2, x2, 1
        ; add w4, w15, w2, lsl 5
        ; str w4, [x3]
        ; dc cvau, x3
        ; dsb ish
        ; ic ivau, x3
        ; dsb ish
        ; stlr x2, [x1]
        ; cmp x2, ROUNDS
        ; b.ne ->writer
        ; movz x0, 0
        ; hvc 0
        // Calls must answer at least the number that was announced before.
        ; ->caller:
        ; ldar x2, [x1]
        ; isb
        ; blr x3
        ; cmp x0, x2
        ; cinc x20, x20, lo
        ; cmp x2, ROUNDS
        ; b.ne ->caller
        ; mov x0, x20
        ; hvc 0
        ; .align 64
        ; ->function:
        ; .u32 0xd280_0000
        ; ret
    );
    assert_eq!(Guest::new(ops).run(2), [0; 2], "a call ran code older than announced");
    assert_eq!(CODE & 0xffff, 0, "the program starts a page, as the tests of one page assume");
}
