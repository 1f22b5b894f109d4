// A guest that writes to RAM in every way there is, each in a page (16 KiB) of its own, and does to other pages what only looks
// like writing. Prints `ready`, does all of it once, prints `done`, and switches itself off.
//
// Pages from DATA on: 0 to 11, 20 and 21 are written; 12 to 19 and 22 are not. The tables L3_FETCH, L3_LOAD and L3_STORE are written by the
// hardware's updates of the access flag and the dirty state.

        .arch armv8.2-a
        .include "header.inc"
        .set    DATA, 0x41000000        // 16 MiB into RAM
        .set    PAGE, 0x4000
        .set    L3_FETCH, DATA + 32 * PAGE
        .set    L3_LOAD, DATA + 36 * PAGE
        .set    L3_STORE, DATA + 40 * PAGE
        .set    L2, DATA + 44 * PAGE
        .set    L1, DATA + 48 * PAGE
        .set    WINDOW, 0x80000000      // 2 MiB of addresses for each third-level table
        .set    RET, 0xd65f03c0

        // Descriptors: inner shareable, attribute 0 (Normal), valid.
        .set    NORMAL_PAGE, 0x303      // without access flag
        .set    AF, 0x400
        .set    READ_ONLY, 0x80

        .macro  load    reg, value
        movz    \reg, #((\value) & 0xffff)
        movk    \reg, #((\value) >> 16 & 0xffff), lsl #16
        .endm

        // \reg := address of a page from DATA on.
        .macro  page    reg, number
        load    \reg, (DATA + (\number) * PAGE)
        .endm

        // Stores \value (in 32 bits) to \address.
        .macro  poke    address, value
        load    x0, \address
        load    x1, \value
        str     x1, [x0]
        .endm

image_start:
        image_header

start:
        movz    x0, #0x30, lsl #16
        msr     cpacr_el1, x0
        poke    (DATA + 17 * PAGE), RET
        poke    (DATA + 18 * PAGE), RET
        // One gigabyte of devices, one of RAM, one of windows.
        poke    L1, 0x405                                       // attribute 1
        poke    (L1 + 8), (0x40000000 + 0x301 + AF)
        poke    (L1 + 16), (L2 + 3)
        poke    L2, (L3_FETCH + 3)
        poke    (L2 + 8), (L3_LOAD + 3)
        poke    (L2 + 16), (L3_STORE + 3)
        poke    L3_FETCH, (DATA + 18 * PAGE + NORMAL_PAGE)
        poke    L3_LOAD, (DATA + 19 * PAGE + NORMAL_PAGE)
        load    x0, L3_STORE
        load    x1, (DATA + 20 * PAGE + NORMAL_PAGE + AF + READ_ONLY)
        orr     x1, x1, #(1 << 51)                              // DBM
        str     x1, [x0]

        mov     x0, #0xff                                       // attribute 0 Normal, 1 Device
        msr     mair_el1, x0
        load    x0, 0x803519                                    // T0SZ 25, write-back, inner shareable, EPD1
        movk    x0, #0x181, lsl #32                             // 36 bits, HA, HD
        msr     tcr_el1, x0
        load    x0, L1
        msr     ttbr0_el1, x0
        isb
        tlbi    vmalle1
        dsb     sy
        mrs     x0, sctlr_el1
        movz    x1, #0x1005                                     // I, C, M
        orr     x0, x0, x1
        msr     sctlr_el1, x0
        isb
        ic      iallu
        isb
        adr     x10, text_ready
        bl      puts

        load    x2, 0x12345678
        fmov    v0.2d, #1.0
        fmov    v1.2d, #2.0
        page    x1, 0
        str     x2, [x1, #8]
        page    x1, 1
        stp     x2, x2, [x1, #16]
        page    x1, 2
        str     q0, [x1, #32]
        page    x1, 3
        st1     {v0.16b, v1.16b}, [x1]
        page    x1, 4
1:      ldxr    x3, [x1]
        add     x3, x3, #5
        stxr    w4, x3, [x1]
        cbnz    w4, 1b
        page    x1, 5
        ldadd   x2, x3, [x1]
        page    x1, 6
        mov     x3, #0
        cas     x3, x2, [x1]
        page    x1, 7
        add     x1, x1, #0x800
        dc      zva, x1
        page    x1, 8
        str     w2, [x1], #4
        page    x1, 10
        stur    x2, [x1, #-4]                                   // four bytes in page 9, four in page 10
        page    x1, 11
        stlr    x2, [x1]

        page    x1, 12
        dc      cvac, x1
        page    x1, 13
        dc      civac, x1
        page    x1, 14
        dc      ivac, x1
        page    x1, 15
        dc      cvau, x1
        dsb     ish
        ic      ivau, x1
        dsb     ish
        isb
        page    x1, 21
        dc      ivac, x1
        str     x2, [x1]                                        // after maintenance, a store is a store
        page    x1, 22
        at      s1e1r, x1
        at      s1e1w, x1
        isb
        page    x1, 16
        ldr     x3, [x1]
        ldp     x3, x4, [x1, #16]
        ldr     q2, [x1, #32]
        ldar    x3, [x1]
        page    x1, 17
        blr     x1

        load    x1, WINDOW
        blr     x1                                              // access flag of page 18
        load    x1, (WINDOW + 0x200000)
        ldr     x3, [x1]                                        // access flag of page 19
        load    x1, (WINDOW + 0x400000)
        str     x2, [x1]                                        // dirty state of page 20

        adr     x10, text_done
        bl      puts
        system_off

        puts_routine

text_ready:
        .asciz  "ready\n"
text_done:
        .asciz  "done\n"
        .balign 16
image_end:
