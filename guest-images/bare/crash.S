// A guest that a host must give up on: a load pair from a device register, whose syndrome does not say what to emulate.

        .include "header.inc"

image_start:
        image_header
start:
        movz    x5, #(UART >> 16), lsl #16
        movz    x7, #0x1234
        ldp     x8, x9, [x5]
        system_off
image_end:
