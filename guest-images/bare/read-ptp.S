// Not a guest but a program for one: a static ELF file without a C library, small enough for a kernel's command line in base64. It prints
// six numbers of nanoseconds in hexadecimal, on one line: the time of /dev/ptp0; CLOCK_MONOTONIC_RAW; then of one PTP_SYS_OFFSET_PRECISE
// the time of /dev/ptp0 and what the kernel says CLOCK_REALTIME and CLOCK_MONOTONIC_RAW were at that moment, by the counter that came with the time;
// and CLOCK_MONOTONIC_RAW again. With an argument it sets CLOCK_REALTIME to the first of them.
//
// Exit code 1 if any system call fails.

        .include "header.inc"
        .set    BASE, 0x400000
        .set    BUFFER, 112             // what is printed: six numbers of 16 digits, each with a space or a newline behind it

        .set    SYS_ioctl, 29
        .set    SYS_openat, 56
        .set    SYS_write, 64
        .set    SYS_exit, 93
        .set    SYS_clock_settime, 112
        .set    SYS_clock_gettime, 113
        .set    AT_FDCWD, -100
        .set    CLOCK_REALTIME, 0
        .set    CLOCK_MONOTONIC_RAW, 4
        .set    PTP_SYS_OFFSET_PRECISE, 0xc0403d08

        // A system call that must not fail.
        .macro  must    number
        mov     x8, #\number
        svc     #0
        tbnz    x0, #63, fail
        .endm

        // Appends the time at sp + \offset: seconds, nanoseconds in 32 bits.
        .macro  append  offset
        ldr     x19, [sp, #\offset]
        ldr     w0, [sp, #(\offset + 8)]
        madd    x19, x19, x21, x0
        bl      hex
        .endm

        .macro  append_clock id
        mov     x0, \id
        mov     x1, sp
        must    SYS_clock_gettime
        append  0
        .endm

image_start:
        .ascii  "\x7f\x45LF"            // ELF, 64 bits, little endian
        .byte   2, 1, 1
        .zero   9
        .short  2, 183                  // executable, AArch64
        .long   1
        .quad   BASE + start - image_start
        .quad   segment - image_start
        .quad   0
        .long   0
        .short  64, 56, 1, 0, 0, 0
segment:
        .long   1, 5                    // PT_LOAD, readable and executable
        .quad   0, BASE, BASE
        .quad   image_end - image_start, image_end - image_start
        .quad   0x10000

start:
        ldr     x24, [sp]               // argc
        movz    x21, #(1000000000 & 0xffff)
        movk    x21, #(1000000000 >> 16), lsl #16
        sub     sp, sp, #(BUFFER + 112)
        add     x23, sp, #BUFFER        // where the next digit goes

        mov     x0, #AT_FDCWD
        adr     x1, device
        mov     x2, #0
        must    SYS_openat
        mov     x22, x0
        mvn     x20, x0                 // FD_TO_CLOCKID
        lsl     x20, x20, #3
        orr     x20, x20, #3
        append_clock x20
        cmp     x24, #1
        b.le    1f
        mov     x0, #CLOCK_REALTIME
        mov     x1, sp
        must    SYS_clock_settime
1:      append_clock #CLOCK_MONOTONIC_RAW
        mov     x0, x22
        movz    x1, #(PTP_SYS_OFFSET_PRECISE & 0xffff)
        movk    x1, #(PTP_SYS_OFFSET_PRECISE >> 16), lsl #16
        stp     xzr, xzr, [sp, #48]     // reserved
        mov     x2, sp
        must    SYS_ioctl
        append  0
        append  16
        append  32
        append_clock #CLOCK_MONOTONIC_RAW

        mov     w0, #'\n'
        strb    w0, [x23, #-1]
        mov     x0, #1
        add     x1, sp, #BUFFER
        sub     x2, x23, x1
        must    SYS_write
        mov     x0, #0
        b       2f
fail:   mov     x0, #1
2:      mov     x8, #SYS_exit
        svc     #0

        // Writes x19 and a space to x23 on.
hex:    mov     x11, #60
3:      lsr     x16, x19, x11
        hex_digit x16
        strb    w16, [x23], #1
        subs    x11, x11, #4
        b.ge    3b
        mov     w16, #' '
        strb    w16, [x23], #1
        ret

device:
        .asciz  "/dev/ptp0"
        .balign 4
image_end:
