// A guest whose vCPUs write to the same memory without end: 4 MiB, 8 bytes at a time, at random. Each vCPU has its own 8 bytes
// of every 64, and puts the number of the write there. `go` is printed when all of them write.
//
// x19 number of this vCPU, x20 random state, x21 memory, x22 number of the write.

        .include "header.inc"
        .set    VCPUS, 4                // at most: PSCI refuses those the machine does not have
        .set    MEMORY, 0x4100          // times 64 KiB: 16 MiB into RAM
        .set    OFFSETS, 0x3fffc0       // 4 MiB in steps of 64 bytes

image_start:
        image_header

start:
        mov     x23, #1
1:      cmp     x23, #VCPUS
        b.hs    2f
        // PSCI CPU_ON by HVC: vCPU x23 begins at `storm`, with its number in X0.
        movz    x0, #0xc400, lsl #16
        movk    x0, #0x0003
        mov     x1, x23
        adr     x2, storm
        mov     x3, x23
        hvc     #0
        add     x23, x23, #1
        b       1b
2:      mov     w16, #'g'
        putc    w16
        mov     w16, #'o'
        putc    w16
        mov     w16, #'\n'
        putc    w16
        mov     x0, #0

storm:  mov     x19, x0
        movz    x20, #0x5c1b, lsl #48
        movk    x20, #0x9e37, lsl #16
        add     x20, x20, x0, lsl #7
        movz    x21, #MEMORY, lsl #16
        add     x21, x21, x19, lsl #3
        mov     x22, #0
3:      eor     x20, x20, x20, lsl #13
        eor     x20, x20, x20, lsr #7
        eor     x20, x20, x20, lsl #17
        and     x1, x20, #OFFSETS
        add     x22, x22, #1
        str     x22, [x21, x1]
        b       3b

        .balign 16
image_end:
