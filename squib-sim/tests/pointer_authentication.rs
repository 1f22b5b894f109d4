//! Pointer authentication (Arm ARM D8.10). The code is implementation defined; what holds for every implementation is tested.

mod guest;

use applevisor::prelude::SysReg;
use dynasmrt::{DynasmLabelApi, dynasm};
use guest::{Assembler, DATA, Guest, assembler};

const KEYS: [(SysReg, SysReg); 5] = [
    (SysReg::APIAKEYLO_EL1, SysReg::APIAKEYHI_EL1),
    (SysReg::APIBKEYLO_EL1, SysReg::APIBKEYHI_EL1),
    (SysReg::APDAKEYLO_EL1, SysReg::APDAKEYHI_EL1),
    (SysReg::APDBKEYLO_EL1, SysReg::APDBKEYHI_EL1),
    (SysReg::APGAKEYLO_EL1, SysReg::APGAKEYHI_EL1),
];

fn keys(seed: u64) -> Vec<(SysReg, u64)> {
    let mut value = seed;
    let mut next = || {
        value = value.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        value
    };
    KEYS.iter().flat_map(|(lo, hi)| [(*lo, next()), (*hi, next())]).collect()
}

/// Runs `body` for 256 pointers: X3 is the pointer, X4 the modifier; each round X5 to X8 go to memory.
fn for_pointers(body: impl FnOnce(&mut Assembler)) -> Assembler {
    let mut ops = assembler();
    dynasm!(ops
        ; .arch aarch64
        ; movz x2, 256
        ; mov x9, x1
        ; ->round:
        ; add x3, x1, x2, lsl 3
        ; movz x4, 0x9e37, lsl 16
        ; movk x4, 0x79b9
        ; mul x4, x4, x2
    );
    body(&mut ops);
    dynasm!(ops
        ; .arch aarch64
        ; stp x5, x6, [x9], 16
        ; stp x7, x8, [x9], 16
        ; subs x2, x2, 1
        ; b.ne ->round
        ; hvc 0
    );
    ops
}

/// The four results of each pointer, with the pointer in front.
fn results(program: Assembler, keys: &[(SysReg, u64)]) -> Vec<[u64; 5]> {
    let guest = Guest::new(program);
    guest.run_with(keys);
    (0..256u64)
        .map(|round| {
            let at = |i: u64| guest.data(32 * round + 8 * i);
            [DATA + 8 * (256 - round), at(0), at(1), at(2), at(3)]
        })
        .collect()
}

macro_rules! sign_and_authenticate {
    ($($name:ident: $pac:tt $aut:tt $xpac:tt)*) => {$(
        #[test]
        fn $name() {
            let program = || for_pointers(|ops| dynasm!(ops
                ; .arch aarch64
                ; mov x5, x3
                ; $pac x5, x4
                ; mov x6, x5
                ; $aut x6, x4
                ; mov x7, x5
                ; $xpac x7
                // The wrong modifier.
                ; eor x10, x4, 1
                ; mov x8, x5
                ; $aut x8, x10
            ));
            let first = results(program(), &keys(1));
            for [pointer, signed, authenticated, stripped, wrong] in &first {
                // 39 bits of address (TCR_EL1.T0SZ), the sign above.
                assert_eq!(signed << 25, pointer << 25, "the address stays");
                assert_eq!((authenticated, stripped), (pointer, pointer));
                // Either the code of the other modifier is the same by chance, or the pointer is not canonical any more.
                assert!(wrong == pointer || wrong >> 39 != 0);
            }
            let signed = |[pointer, signed, ..]: &[u64; 5]| pointer != signed;
            assert!(first.iter().filter(|r| signed(r)).count() > 240, "most codes are not zero");
            let caught = |[pointer, _, _, _, wrong]: &[u64; 5]| pointer != wrong;
            assert!(first.iter().filter(|r| caught(r)).count() > 240, "most wrong modifiers are noticed");
            assert_eq!(first, results(program(), &keys(1)), "the same keys give the same codes");
            assert_ne!(first, results(program(), &keys(2)), "other keys give other codes");
        }
    )*};
}

sign_and_authenticate! {
    instruction_key_a: pacia autia xpaci
    instruction_key_b: pacib autib xpaci
    data_key_a: pacda autda xpacd
    data_key_b: pacdb autdb xpacd
}

#[test]
fn generic_codes_are_in_the_upper_half() {
    let program = || {
        for_pointers(|ops| {
            dynasm!(ops
                ; .arch aarch64
                ; pacga x5, x3, x4
                ; pacga x6, x3, x4
                ; pacga x7, x4, x3
                ; eor x10, x3, 1
                ; pacga x8, x10, x4
            )
        })
    };
    let first = results(program(), &keys(1));
    for [_, code, again, swapped, other] in &first {
        assert_eq!(code, again);
        assert_eq!([code, swapped, other].map(|code| *code as u32), [0; 3]);
    }
    assert!(first.iter().filter(|[_, code, _, swapped, other]| code != swapped && code != other).count() > 240);
    assert_ne!(first, results(program(), &keys(2)));
}

#[test]
fn signed_branches_and_loads_arrive() {
    let mut ops = assembler();
    dynasm!(ops
        ; .arch aarch64
        ; movz x0, 0
        ; mov sp, x1
        // RETAA after PACIASP.
        ; bl ->function
        ; add x0, x0, 1
        // BLRAA, BRAB, BRAAZ with signed targets.
        ; movz x4, 77
        ; adr x5, ->returning
        ; pacia x5, x4
        ; blraa x5, x4
        ; adr x5, >after
        ; pacib x5, x4
        ; brab x5, x4
        ; hvc 1
        ; after:
        ; add x0, x0, 4
        ; adr x5, >after
        ; paciza x5
        ; braaz x5
        ; hvc 1
        ; after:
        ; add x0, x0, 8
        // LDRAA with an offset, LDRAB with write-back.
        ; movz x6, 16
        ; str x6, [x1, 64]
        ; mov x5, x1
        ; pacdza x5
        ; ldraa x7, [x5, 64]
        ; add x0, x0, x7
        ; mov x5, x1
        ; pacdzb x5
        ; ldrab x7, [x5, 64]!
        ; add x0, x0, x7
        ; sub x5, x5, x1
        ; add x0, x0, x5
        ; hvc 0
        ; ->function:
        ; paciasp
        ; retaa
        ; ->returning:
        ; add x0, x0, 2
        ; ret
    );
    assert_eq!(Guest::new(ops).run_with(&keys(3)), 1 + 2 + 4 + 8 + 16 + 16 + 64);
}
