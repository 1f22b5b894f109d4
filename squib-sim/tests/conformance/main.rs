//! What is known about Hypervisor.framework on arm64, fact by fact, through `applevisor` alone.
//!
//! Each test is named after a fact: `a1_...` exits and the program counter, `a2_...` time, `a3_...` threads, life cycle and
//! errors, `a4_...` stage-2 memory, `a5_...` the GIC, `a6_...` registers. Nothing here knows that the other side is a
//! stand-in, except [`switches`], which turns what is contradicted about the framework to its other positions.
//!
//! There is one virtual machine per process, so tests that have one take turns ([`guest::Turn`]).

extern crate squib_sim as _;

mod a1_exits;
mod a2_time;
mod a3_life_cycle;
mod a4_memory;
mod a4_restart;
mod a4_running;
mod a5_gic;
mod a5_interrupts;
mod a6_registers;
mod asm;
mod guest;
mod iss;
mod switches;
