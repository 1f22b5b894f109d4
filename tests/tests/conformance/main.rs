//! What is known about Hypervisor.framework on arm64, fact by fact, through `applevisor` alone.
//!
//! Each test is named after a fact: `a1_...` exits and the program counter, `a2_...` time, `a3_...` threads, life cycle and
//! errors, `a4_...` stage-2 memory, `a5_...` the GIC, `a6_...` registers, `a7_...` restoring. What is certain is asserted; what is unknown or
//! contradicted is tried and reported ([`guest::probe`]), and only what a host relies on either way is asserted about it.
//! `make conformance-report` lists all facts with what was found.
//!
//! On Apple silicon this runs on Hypervisor.framework, elsewhere (and there with feature `sim`) on the stand-in. No test knows
//! which, except `switches`: it turns what is contradicted about the framework to its other positions, and runs all tests in each.
//!
//! There is one virtual machine per process, so tests that have one take turns ([`guest::Turn`]).

#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
extern crate squib_sim as _;

mod a1_exits;
mod a2_time;
mod a3_life_cycle;
mod a4_host;
mod a4_memory;
mod a4_restart;
mod a4_running;
mod a5_gic;
mod a5_interrupts;
mod a5_state;
mod a6_registers;
mod a7_restore;
mod a8_faults;
mod asm;
mod facts;
mod guest;
mod iss;
#[cfg(not(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim"))))]
mod switches;
