//! The few calls that do not go through `applevisor`, and the decoding of exits: everything that knows the framework's ABI.

pub mod baseline;
pub mod exit;
pub mod gic_mmio;
pub mod gic_state;
pub mod probe;
pub mod simd;
pub mod stage2;
pub mod vm;
