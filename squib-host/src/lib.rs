//! Everything of squib that touches the machine: VM, vCPUs, GIC, guest memory, devices, live snapshots.
