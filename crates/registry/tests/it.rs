//! The client against small scripted servers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "it/auth.rs"]
mod auth;
#[path = "it/policy.rs"]
mod policy;
#[path = "it/pull.rs"]
mod pull;
#[path = "it/push.rs"]
mod push;
#[path = "it/referrers.rs"]
mod referrers;
#[path = "it/server.rs"]
mod server;
