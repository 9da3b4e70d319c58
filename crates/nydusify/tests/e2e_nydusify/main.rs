//! The program as a user runs it, without privileges.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod auth;
mod backend;
mod bad_input;
mod build_cache;
mod chunkdict;
mod cli;
mod convert;
mod copy;
mod damage;
mod dictionary;
mod docs;
mod dump;
mod images;
mod merged;
mod oci_ref;
mod optimize;
mod support;
mod terminal;
mod traces;
mod v5;
mod variables;
