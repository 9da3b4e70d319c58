//! The program with real mounts: needs root, FUSE, the kernel's EROFS and erofs-utils.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod backend;
mod cache;
mod damage;
mod docs;
mod faults;
mod fio;
mod hardship;
mod kernel;
mod life;
mod live;
mod many;
mod metrics;
mod posix;
mod run;
mod serving;
mod support;
mod traces;
mod trees;
mod unconverted;
mod upper;
mod v5;
