//! The virtual machine: what its vCPUs share.
