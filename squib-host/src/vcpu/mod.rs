//! vCPUs: their threads, their power states, what they exit for, and their state when they stand still.

pub mod control;
pub mod hypercall;
pub mod inject;
pub mod psci;
pub mod registers;
pub mod run;
pub mod sysreg;
pub mod walk;
