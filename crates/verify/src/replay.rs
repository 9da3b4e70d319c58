//! Replays the layers of a source image into a [`FileTree`](crate::model::FileTree).
//!
//! This is deliberately not the code that converts: each layer is read on its own into names and inodes
//! ([`layer::Layer`]), then laid *under* what the layers above it left open ([`stack::Stack`]).

pub(crate) mod layer;
pub(crate) mod path;
pub(crate) mod stack;
pub(crate) mod stream;

pub(crate) use layer::Layer;
pub use layer::Refusal;
pub(crate) use stack::Stack;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
