//! The CPU engine: decodes A64 once into blocks of [`Op`](op::Op)s and runs them.
//!
//! Names follow the pseudocode of the Arm Architecture Reference Manual (DDI 0487).

pub mod a64;
pub mod cpu;
pub mod memory;
pub mod op;
pub mod shared;
pub mod simd;
