//! The program with registries as a user has them: one in this process, with authentication, redirects and faults.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod build_cache;
mod index;
mod killed;
mod oci_ref;
mod refused;
mod schedules;
mod support;
mod working;
