//! A software stand-in for Apple's Hypervisor.framework.
//!
//! Defines the `hv_*` C symbols that `applevisor-sys` declares, and executes aarch64 guest code underneath, so that the
//! one host code path of squib runs, unmodified, on machines that have no Hypervisor.framework.
//!
//! A program that links this crate talks to it through `applevisor`, exactly as it would talk to the framework. What the
//! framework leaves open or is contradicted about is a switch of [`Config`], set with [`configure`] or the environment
//! variable `SQUIB_SIM` before the virtual machine is created.

pub mod clock;
pub mod config;
pub mod control;
pub mod engine;
pub mod gic;
mod host_memory;
mod hv;
pub mod mach;
pub mod machine;
pub mod stage2;

pub use config::{Config, configure};
