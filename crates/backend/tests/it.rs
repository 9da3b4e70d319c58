//! Backends against stores in this process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "it/access.rs"]
mod access;
#[path = "it/detours.rs"]
mod detours;
#[path = "it/faults.rs"]
mod faults;
#[path = "it/local.rs"]
mod local;
#[path = "it/stores.rs"]
mod stores;
#[path = "it/support.rs"]
mod support;
