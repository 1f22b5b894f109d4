//! A software stand-in for Apple's Hypervisor.framework.
//!
//! Defines the `hv_*` C symbols that `applevisor-sys` declares, and executes aarch64 guest code underneath, so that the
//! one host code path of squib runs, unmodified, on machines that have no Hypervisor.framework.

pub mod engine;
pub mod gic;
pub mod machine;
pub mod stage2;
