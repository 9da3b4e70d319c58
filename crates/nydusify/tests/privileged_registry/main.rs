//! The program between real registries and real mounts: needs root, FUSE and Debian's docker-registry.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod away;
mod build_cache;
mod limits;
mod secured;
mod servers;
mod support;
mod trees;
mod walk;
mod ways;
