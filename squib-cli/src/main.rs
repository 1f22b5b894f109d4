//! The `squib` program.
fn main() {}
