//! Conversions from layout to layout, all in temporary directories.

#[path = "it/good.rs"]
mod good;
#[path = "it/platform.rs"]
mod platform;
#[path = "it/refused.rs"]
mod refused;
#[path = "it/world.rs"]
mod world;
