//! Proves that an image equals its source, without root and without a mount.
//!
//! [`check`] looks at a target alone, or compares it with a source. Either [`Side`] is an image of layers, a Nydus
//! image, or bare RAFS files. The rules, in order ([`Rule`]):
//!
//! * the manifest rule: the documents are those of an image of their kind, and containers run the same way from both;
//! * the bootstrap rule: all that a kernel or a daemon relies on is there, its blobs are layers of the manifest, and
//!   their own chunk tables agree with it;
//! * the file system rule: names, types, modes, owners, devices, link targets, hard links, extended attributes,
//!   times, sizes and contents are the same;
//! * the data rule: every chunk in the blobs has the digest that the bootstrap records.
//!
//! A failed rule does not hide the ones after it. Layers are replayed by code that the conversion does not share: top
//! layer first, into a tree of facts, where an entry counts unless a layer above covers it. Contents are compared by
//! digest: the layers' files are cut where the target's chunks are, while they stream by, and each blob is then read
//! once and held to the same digests. So nothing is unpacked, and memory holds two trees and about 40 bytes per chunk.
#![forbid(unsafe_code)]

mod bootstrap;
mod check;
mod compare;
mod data;
mod images;
mod manifest;
mod model;
mod replay;
mod report;
mod side;
mod source;

pub use bootstrap::BootstrapError;
pub use check::{Error, Options, check};
pub use images::images;
pub use replay::Refusal;
pub use replay::stream::LayerError;
pub use report::{
    Counts, Difference, Differences, Fact, Outcome, Report, Rule, RuleReport, SCHEMA, SHOWN_MAX,
};
pub use side::{Document, Files, LayerFile, OpenError, Side};
pub use source::ReplayError;
