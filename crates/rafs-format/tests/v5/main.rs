//! Version 5: real bytes, a bootstrap of our own, and what damage to it does.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod damage;
mod golden;
mod sample;
#[path = "../damage/says.rs"]
mod says;
mod vectors;

use rafs_format::v5::Bootstrap;

fn parse(bytes: &[u8]) -> Bootstrap<&[u8]> {
    Bootstrap::parse(bytes).unwrap()
}
