//! The builder as its consumers run it, without privileges.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

mod batch;
mod compact;
mod config;
mod consumer;
mod contract;
mod damage;
mod dictionary;
mod docs;
mod estargz;
mod export;
mod external;
mod golden;
mod optimize;
mod parent;
mod replay;
mod stack;
mod stat;
mod support;
mod tarfs;
#[path = "../../../export/tests/common/trees.rs"]
mod trees;
mod unpack;
mod zran;
