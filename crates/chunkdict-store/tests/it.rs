//! The dictionary on disk.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "it/damage.rs"]
mod damage;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/images.rs"]
mod images;
#[path = "it/together.rs"]
mod together;
#[path = "it/working.rs"]
mod working;
