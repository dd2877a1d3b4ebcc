//! Flags and environment.
fn main() {}
