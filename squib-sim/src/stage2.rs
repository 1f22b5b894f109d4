//! Stage 2: intermediate physical address to host memory, with permissions.
