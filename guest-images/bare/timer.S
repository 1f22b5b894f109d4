// A guest that waits two seconds for its virtual timer. Prints the real-time clock, `armed`, and once the timer has fired: the INTID it fired
// with, the counter's ticks since it was armed, the counter's frequency, and the real-time clock again, all in hexadecimal. Then it switches
// itself off.

        .include "header.inc"

        .macro  say     text
        adr     x10, \text
        bl      puts
        bl      puthex
        .endm

        .macro  say_rtc
        movz    x0, #(RTC >> 16), lsl #16
        movk    x0, #(RTC & 0xffff)
        ldr     w19, [x0]               // RTCDR
        say     text_rtc
        .endm

image_start:
        image_header

start:
        gic_with_timer
        say_rtc
        mrs     x21, cntfrq_el0
        isb
        mrs     x20, cntvct_el0
        add     x0, x20, x21, lsl #1
        msr     cntv_cval_el0, x0
        mov     x0, #1
        msr     cntv_ctl_el0, x0
        adr     x10, text_armed
        bl      puts

        // Interrupts stay masked: WFI ends when one is pending, and this takes it by hand.
1:      wfi
        mrs     x0, cntv_ctl_el0
        tbz     x0, #2, 1b              // ISTATUS
        isb
        mrs     x22, cntvct_el0
        mrs     x19, s3_0_c12_c12_0     // ICC_IAR1_EL1
        msr     cntv_ctl_el0, xzr
        isb
        msr     s3_0_c12_c12_1, x19     // ICC_EOIR1_EL1
        say     text_intid
        sub     x19, x22, x20
        say     text_ticks
        mov     x19, x21
        say     text_frequency
        say_rtc
        system_off

        puts_and_puthex

text_rtc:
        .asciz  "rtc "
text_armed:
        .asciz  "armed\n"
text_intid:
        .asciz  "intid "
text_ticks:
        .asciz  "ticks "
text_frequency:
        .asciz  "frequency "
        .balign 16
image_end:
