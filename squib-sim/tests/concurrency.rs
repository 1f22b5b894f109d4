//! Several vCPUs on one memory: atomics that lose nothing, and the orderings the architecture promises (Arm ARM B2.3).

mod guest;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use guest::{Assembler, DATA, Guest, assembler};

const VCPUS: u64 = 4;

/// Loop header: X2 counts `rounds` down. The body leaves X0 to X2 alone.
fn repeat(rounds: u32, body: impl FnOnce(&mut Assembler)) -> Assembler {
    let mut ops = assembler();
    dynasm!(ops; .arch aarch64; movz x2, rounds & 0xffff; movk x2, rounds >> 16, lsl 16; ->round:);
    body(&mut ops);
    dynasm!(ops; .arch aarch64; subs x2, x2, 1; b.ne ->round; hvc 0);
    ops
}

/// Waits until all `count` vCPUs are here.
fn meet(ops: &mut Assembler, count: u32) {
    dynasm!(ops
        ; .arch aarch64
        ; movz x9, 1
        ; ldaddal x9, x10, [x1]
        ; wait:
        ; ldar x10, [x1]
        ; cmp x10, count
        ; b.lo <wait
    );
}

#[test]
fn increments_by_every_kind_of_atomic_add_up() {
    const ROUNDS: u32 = 60_000;
    let program = repeat(ROUNDS, |ops| {
        dynasm!(ops
            ; .arch aarch64
            ; movz x9, 1
            // LDADD; one cache line each.
            ; ldadd x9, x10, [x1]
            // LDXR, STXR of 64 bits.
            ; add x11, x1, 64
            ; again:
            ; ldxr x10, [x11]
            ; add x10, x10, 1
            ; stxr w12, x10, [x11]
            ; cbnz w12, <again
            // LDAXR, STLXR of 32 bits, next to a word that must not change.
            ; add x11, x1, 128
            ; again:
            ; ldaxr w10, [x11]
            ; add w10, w10, 1
            ; stlxr w12, w10, [x11]
            ; cbnz w12, <again
            // CAS of 64 bits.
            ; add x11, x1, 192
            ; ldr x10, [x11]
            ; again:
            ; add x12, x10, 1
            ; mov x13, x10
            ; casal x10, x12, [x11]
            ; cmp x10, x13
            ; b.ne <again
            // LDADDB and LDADDH in neighbouring bytes, each wrapping without a carry into the next.
            ; add x11, x1, 256
            ; ldaddb w9, w10, [x11]
            ; add x11, x11, 2
            ; ldaddalh w9, w10, [x11]
            // LDXRB, STXRB.
            ; add x11, x1, 320
            ; again:
            ; ldxrb w10, [x11]
            ; add w10, w10, 1
            ; stxrb w12, w10, [x11]
            ; cbnz w12, <again
        );
    });
    let guest = Guest::new(program);
    guest.run(VCPUS);
    let total = VCPUS * u64::from(ROUNDS);
    assert_eq!([guest.data(0), guest.data(64), guest.data(128), guest.data(192)], [total; 4]);
    assert_eq!(guest.data(256), (total & 0xffff) << 16 | total & 0xff);
    assert_eq!(guest.data(320), total & 0xff);
}

#[test]
fn pairs_of_128_bits_change_as_one() {
    const ROUNDS: u32 = 60_000;
    // A pair (a, 3a). Odd vCPUs use LDXP and STXP, even ones CASP; both count at DATA + 64 how often they saw something else.
    let program = repeat(ROUNDS, |ops| {
        dynasm!(ops
            ; .arch aarch64
            ; tbz x0, 0, >casp
            ; again:
            ; ldaxp x4, x5, [x1]
            ; add x6, x4, 1
            ; add x7, x5, 3
            ; stlxp w12, x6, x7, [x1]
            ; cbnz w12, <again
            ; b >check
            ; casp:
            ; ldp x4, x5, [x1]
            ; again:
            ; add x6, x4, 1
            ; add x7, x5, 3
            ; mov x10, x4
            ; mov x11, x5
            ; caspal x4, x5, x6, x7, [x1]
            ; cmp x4, x10
            ; ccmp x5, x11, 0, eq
            ; b.ne <again
            ; check:
            ; add x8, x4, x4, lsl 1
            ; movz x9, 1
            ; add x11, x1, 64
            ; cmp x8, x5
            ; b.eq >good
            ; ldadd x9, x10, [x11]
            ; good:
        );
    });
    let guest = Guest::new(program);
    guest.run(VCPUS);
    assert_eq!(guest.data(64), 0, "a pair was seen torn");
    let total = VCPUS * u64::from(ROUNDS);
    assert_eq!([guest.data(0), guest.data(8)], [total, 3 * total]);
}

#[test]
fn a_spin_lock_keeps_plain_accesses_apart() {
    const ROUNDS: u32 = 40_000;
    let program = repeat(ROUNDS, |ops| {
        dynasm!(ops
            ; .arch aarch64
            ; movz w9, 1
            ; again:
            ; ldaxr w10, [x1]
            ; cbnz w10, <again
            ; stxr w12, w9, [x1]
            ; cbnz w12, <again
            // Two counters, the second by a read that another holder would disturb.
            ; ldr x13, [x1, 64]
            ; ldr x14, [x1, 128]
            ; add x13, x13, 1
            ; str x13, [x1, 64]
            ; add x14, x14, 1
            ; str x14, [x1, 128]
            ; stlr wzr, [x1]
        );
    });
    let guest = Guest::new(program);
    guest.run(VCPUS);
    let total = VCPUS * u64::from(ROUNDS);
    assert_eq!([guest.data(0), guest.data(64), guest.data(128)], [0, total, total]);
}

#[test]
fn a_lock_free_stack_loses_no_node() {
    const ROUNDS: u32 = 60_000;
    // Node n of vCPU c is at DATA + 0x10000 + (c * ROUNDS + n) * 16; its second word is that number plus one.
    let program = repeat(ROUNDS, |ops| {
        dynasm!(ops
            ; .arch aarch64
            ; movz x9, ROUNDS
            ; madd x9, x9, x0, x2
            ; add x10, x1, 16, lsl 12
            ; sub x11, x9, 1
            ; add x10, x10, x11, lsl 4
            ; str x9, [x10, 8]
            ; again:
            ; ldxr x11, [x1]
            ; str x11, [x10]
            ; stlxr w12, x10, [x1]
            ; cbnz w12, <again
        );
    });
    let guest = Guest::new(program);
    guest.run(VCPUS);
    let nodes = VCPUS * u64::from(ROUNDS);
    let mut seen = vec![false; nodes as usize];
    let mut node = guest.data(0);
    while node != 0 {
        let number = guest.data(node - DATA + 8) as usize - 1;
        assert!(!std::mem::replace(&mut seen[number], true), "node {number} is in the list twice");
        node = guest.data(node - DATA);
    }
    assert_eq!(seen.iter().filter(|seen| !**seen).count(), 0, "nodes were lost");
}

/// One vCPU publishes numbers, the other must never see a number before the data behind it. X0 counts when it does.
fn message_passing(publish: impl FnOnce(&mut Assembler), receive: impl FnOnce(&mut Assembler)) {
    const MESSAGES: u32 = 1_000_000;
    let mut ops = assembler();
    dynasm!(ops
        ; .arch aarch64
        ; mov x20, x0
        ; movz x0, 0
        ; add x3, x1, 64
        ; add x4, x1, 128
        ; movz x5, MESSAGES & 0xffff
        ; movk x5, MESSAGES >> 16, lsl 16
        ; movz x6, 0
    );
    meet(&mut ops, 2);
    dynasm!(ops
        ; .arch aarch64
        ; cbnz x20, ->reader
        ; ->writer:
        ; add x6, x6, 1
        ; str x6, [x3]
    );
    publish(&mut ops);
    dynasm!(ops
        ; .arch aarch64
        ; cmp x6, x5
        ; b.ne ->writer
        ; hvc 0
        ; ->reader:
    );
    receive(&mut ops);
    dynasm!(ops
        ; .arch aarch64
        ; cmp x8, x7
        ; cinc x0, x0, lo
        ; cmp x7, x5
        ; b.ne ->reader
        ; hvc 0
    );
    assert_eq!(Guest::new(ops).run(2), [0, 0], "data was older than the message that announced it");
}

#[test]
fn message_passing_with_release_and_acquire() {
    message_passing(
        |ops| dynasm!(ops; .arch aarch64; stlr x6, [x4]),
        |ops| dynasm!(ops; .arch aarch64; ldar x7, [x4]; ldr x8, [x3]),
    );
    message_passing(
        |ops| dynasm!(ops; .arch aarch64; swpl x6, x9, [x4]),
        |ops| dynasm!(ops; .arch aarch64; ldapr x7, [x4]; ldr x8, [x3]),
    );
}

#[test]
fn message_passing_with_barriers_and_dependencies() {
    message_passing(
        |ops| dynasm!(ops; .arch aarch64; dmb ishst; str x6, [x4]),
        |ops| dynasm!(ops; .arch aarch64; ldr x7, [x4]; dmb ishld; ldr x8, [x3]),
    );
    message_passing(
        |ops| dynasm!(ops; .arch aarch64; dmb ish; str x6, [x4]),
        |ops| dynasm!(ops; .arch aarch64; ldr x7, [x4]; eor x9, x7, x7; ldr x8, [x3, x9]),
    );
}

/// Store buffering: each vCPU writes the next number to its own place and then reads the other's. When both orders are kept,
/// it cannot be that each reads a number from before the other's write. Every read is recorded, and all pairs are checked.
///
/// The two must really run at once for a defect to show, so there are several attempts.
fn store_buffering(write_then_read: impl Fn(&mut Assembler)) {
    (0..5).for_each(|_| store_buffering_once(&write_then_read));
}

fn store_buffering_once(write_then_read: impl Fn(&mut Assembler)) {
    const ROUNDS: usize = 500_000;
    const LOG: u64 = 0x1_0000;
    const LOG_LEN: u64 = 0x20_0000;
    let mut ops = assembler();
    dynasm!(ops
        ; .arch aarch64
        // X3 mine, X4 the other's, X11 the log.
        ; add x3, x1, 64
        ; add x4, x1, 128
        ; cmp x0, 0
        ; csel x5, x3, x4, eq
        ; csel x4, x4, x3, eq
        ; mov x3, x5
        ; add x11, x1, (LOG >> 12) as u32, lsl 12
        ; add x11, x11, x0, lsl LOG_LEN.ilog2()
        ; movz x5, (ROUNDS & 0xffff) as u32
        ; movk x5, (ROUNDS >> 16) as u32, lsl 16
        ; movz x6, 0
    );
    meet(&mut ops, 2);
    dynasm!(ops; .arch aarch64; ->round:; add x6, x6, 1);
    write_then_read(&mut ops);
    dynasm!(ops
        ; .arch aarch64
        ; str w7, [x11], 4
        ; cmp x6, x5
        ; b.ne ->round
        ; hvc 0
    );
    let guest = Guest::new(ops);
    guest.run(2);
    let mine = guest.words(LOG, ROUNDS);
    let theirs = guest.words(LOG + LOG_LEN, ROUNDS);
    for (i, seen) in mine.iter().enumerate() {
        // The first of the other's writes that my read number `i` did not see, if there was one.
        if let Some(answer) = theirs.get(*seen as usize) {
            assert!(*answer > i as u32, "write {} and write {} missed each other", i + 1, seen + 1);
        }
    }
}

#[test]
fn store_buffering_with_barriers() {
    store_buffering(|ops| dynasm!(ops; .arch aarch64; str x6, [x3]; dmb ish; ldr x7, [x4]));
    store_buffering(|ops| dynasm!(ops; .arch aarch64; str x6, [x3]; dsb sy; ldr x7, [x4]));
}

#[test]
fn store_buffering_with_release_and_acquire() {
    // A load-acquire is ordered after an earlier store-release of the same PE (RCsc).
    store_buffering(|ops| dynasm!(ops; .arch aarch64; stlr x6, [x3]; ldar x7, [x4]));
    store_buffering(|ops| {
        dynasm!(ops
            ; .arch aarch64
            ; again:
            ; ldxr x8, [x3]
            ; stlxr w9, x6, [x3]
            ; cbnz w9, <again
            ; ldar x7, [x4]
        );
    });
}
