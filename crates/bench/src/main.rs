//! Benchmarks of the release binaries against what the machine allows.
#![forbid(unsafe_code)]

fn main() {}
