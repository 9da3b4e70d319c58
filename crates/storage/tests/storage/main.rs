//! Reading images through the public interface.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crash;
mod first;
mod golden;
mod image;
mod keep;
mod shared;
mod store;
