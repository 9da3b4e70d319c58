//! Conversions from layout to layout, all in temporary directories.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "it/dictionary.rs"]
mod dictionary;
#[path = "it/good.rs"]
mod good;
#[path = "it/indexes.rs"]
mod indexes;
#[path = "it/journal.rs"]
mod journal;
#[path = "it/kept.rs"]
mod kept;
#[path = "it/known_chunks.rs"]
mod known_chunks;
#[path = "it/platform.rs"]
mod platform;
#[path = "it/refused.rs"]
mod refused;
#[path = "it/world.rs"]
mod world;
