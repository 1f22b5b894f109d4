//! The CPU engine: decodes A64 once into blocks of [`Op`](op::Op)s and runs them.
//!
//! Names follow the pseudocode of the Arm Architecture Reference Manual (DDI 0487).

pub mod a64;
pub mod block;
pub mod cpu;
mod debug;
pub mod decode;
pub mod exception;
pub mod fp;
pub mod memory;
pub mod mmu;
pub mod op;
pub mod pstate;
pub mod run;
pub mod shared;
pub mod simd;
pub mod syndrome;
pub mod sysreg;
pub mod system;
pub mod timer;

#[cfg(test)]
mod tests;
