// A guest whose whole course depends on every part of its state: a hash over RAM, general and vector registers, flags, the
// virtual counter and timer interrupts. If a restore loses or changes anything, all later lines differ.
//
// Prints `hash XXXXXXXXXXXXXXXX` LINES times, then switches itself off. x19 hash, x20 random state, x21 buffer, x22 lines
// left, x23 rounds left in this line, x24 interrupts taken, v0..v2 floating-point state.

        .include "header.inc"
        .set    LINES, 40
        .set    ROUNDS, 2000
        .set    PERIOD, 700             // counter ticks between two timer interrupts
        .set    BUFFER_MASK, 0x7ffff8   // 8 MiB of RAM

image_start:
        image_header

start:
        // Vector and floating-point instructions do not trap (CPACR_EL1.FPEN).
        movz    x0, #0x30, lsl #16
        msr     cpacr_el1, x0
        isb
        adr     x0, vectors
        msr     vbar_el1, x0
        adr     x0, stack_end
        mov     sp, x0

        gic_with_timer

        mov     x19, #0
        movz    x20, #0x5c1b, lsl #48
        movk    x20, #0x9e37, lsl #16
        movk    x20, #0x79b9
        movz    x21, #0x4100, lsl #16   // 16 MiB into RAM
        mov     x22, #LINES
        mov     x24, #0
        fmov    v0.2d, #1.0
        fmov    v1.2d, #1.0
        mov     x0, #PERIOD
        msr     cntv_tval_el0, x0
        mov     x0, #1
        msr     cntv_ctl_el0, x0
        msr     daifclr, #2

line:
        mov     x23, #ROUNDS
round:
        // xorshift64
        eor     x20, x20, x20, lsl #13
        eor     x20, x20, x20, lsr #7
        eor     x20, x20, x20, lsl #17
        // RAM: read, mix, write
        and     x0, x20, #BUFFER_MASK
        ldr     x1, [x21, x0]
        add     x1, x1, x20
        ror     x1, x1, #23
        str     x1, [x21, x0]
        // flags carry over from one round to the next
        adcs    x19, x19, x1
        ror     x19, x19, #7
        // vectors
        dup     v2.2d, x20
        ucvtf   v3.2d, v2.2d
        fmul    v1.2d, v1.2d, v0.2d
        fadd    v0.2d, v0.2d, v3.2d
        eor     v1.16b, v1.16b, v2.16b
        sub     x23, x23, #1
        cbnz    x23, round

        // The counter, and what interrupts did
        mrs     x0, cntvct_el0
        eor     x19, x19, x0
        add     x19, x19, x24
        umov    x0, v1.d[1]
        eor     x19, x19, x0
        adr     x10, text_hash
        bl      puts
        bl      puthex
        // Half of the lines wait for the next interrupt.
        tbz     x22, #0, 2f
        wfi
2:      sub     x22, x22, #1
        cbnz    x22, line
        mov     x19, x24
        adr     x10, text_interrupts
        bl      puts
        bl      puthex
        system_off

        puts_and_puthex

// The timer's interrupt: counted, hashed with the counter, armed again.
irq:    stp     x0, x1, [sp, #-16]!
        mrs     x0, s3_0_c12_c12_0      // ICC_IAR1_EL1
        add     x24, x24, #1
        mrs     x1, cntvct_el0
        add     x24, x24, x1, lsl #32
        mov     x1, #PERIOD
        msr     cntv_tval_el0, x1
        isb
        msr     s3_0_c12_c12_1, x0      // ICC_EOIR1_EL1
        isb
        ldp     x0, x1, [sp], #16
        eret

        .balign 8
text_hash:
        .asciz  "hash "
text_interrupts:
        .asciz  "interrupts "

        // Only IRQs from the current level with SP_ELx are expected; anything else says so and ends.
        .balign 2048
vectors:
        .rept   5
        .balign 128
        b       unexpected
        .endr
        .balign 128
        b       irq
        .rept   10
        .balign 128
        b       unexpected
        .endr
        .balign 128
unexpected:
        mov     w16, #'!'
        putc    w16
        mrs     x19, esr_el1
        bl      puthex
        system_off

        .balign 16
        .skip   1024
stack_end:
image_end:
