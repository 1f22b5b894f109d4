// A guest that writes to memory as it is told, for measurements: a round of stores, how long it took (nanoseconds by the guest's
// counter, 16 hexadecimal digits) and a `.` on the console, and the next round when a byte is typed. What a round is, stands behind
// the header of the image, where the program that boots it puts it.
//
// x19 memory, x20 random state, x21 stride, x22 stores of a round, x23 mask of random offsets (0: by stride), x24 number of the
// store, x25 repetitions in a round, x26 counter at its start.

        .include "header.inc"

image_start:
        image_header
stride: .quad   0x4000
stores: .quad   0
mask:   .quad   0
repeat: .quad   1

start:  ldr     x21, stride
        ldr     x22, stores
        ldr     x23, mask
        movz    x19, #0x4200, lsl #16   // 32 MiB into RAM
        movz    x20, #0x5c1b, lsl #48
        movk    x20, #0x9e37, lsl #16
        mov     x24, #0

        // Addresses are physical, RAM is Normal memory.
        mov     x0, #0xff                       // attribute 0 Normal, 1 Device
        msr     mair_el1, x0
        movz    x0, #0x3519                     // T0SZ 25, write-back, inner shareable
        movk    x0, #0x80, lsl #16              // EPD1
        movk    x0, #1, lsl #32                 // 36 bits
        msr     tcr_el1, x0
        adr     x0, table
        msr     ttbr0_el1, x0
        isb
        tlbi    vmalle1
        dsb     sy
        mrs     x0, sctlr_el1
        movz    x1, #0x1005                     // I, C, M
        orr     x0, x0, x1
        msr     sctlr_el1, x0
        isb

        // UARTCR: UARTEN, TXE, RXE.
        movz    x17, #(UART >> 16), lsl #16
        movz    w16, #0x301
        str     w16, [x17, #0x30]

round:  ldr     x25, repeat
        isb
        mrs     x26, cntvct_el0
again:  mov     x0, #0
1:      mul     x1, x0, x21
        cbz     x23, 2f
        eor     x20, x20, x20, lsl #13
        eor     x20, x20, x20, lsr #7
        eor     x20, x20, x20, lsl #17
        and     x1, x20, x23
2:      add     x24, x24, #1
        str     x24, [x19, x1]
        add     x0, x0, #1
        cmp     x0, x22
        b.lo    1b
        subs    x25, x25, #1
        b.ne    again
        isb
        mrs     x0, cntvct_el0
        sub     x0, x0, x26
        movz    x1, #0x3b9a, lsl #16
        movk    x1, #0xca00                     // nanoseconds in a second
        mul     x0, x0, x1
        mrs     x1, cntfrq_el0
        udiv    x0, x0, x1
        mov     x2, #16
4:      ror     x0, x0, #60
        and     w16, w0, #0xf
        add     w1, w16, #'0'
        add     w16, w16, #('a' - 10)
        cmp     w1, #'9'
        csel    w16, w1, w16, ls
        putc    w16
        subs    x2, x2, #1
        b.ne    4b
        mov     w16, #'.'
        putc    w16
        // UARTFR.RXFE
        movz    x17, #(UART >> 16), lsl #16
3:      ldr     w16, [x17, #0x18]
        tbnz    w16, #4, 3b
        ldr     w16, [x17]
        b       round

        .balign 4096
table:  .quad   0x405                           // devices
        .set    gigabyte, 1
        .rept   15
        .quad   gigabyte * 0x40000000 + 0x701
        .set    gigabyte, gigabyte + 1
        .endr
        .balign 4096
image_end:
