//! What fuzzers call: one function for each parser of bytes that somebody else made.
//!
//! The contract of all of them: errors are fine; panics, endless loops and memory beyond that of the input are bugs. Some
//! also hold what was parsed to a rule, such as that the image of any tar passes the check of its bootstrap.
//!
//! `cargo fuzz` runs them from the workspace in `fuzz/`, whose binaries have one line each. The tests here run them
//! without it, on the seeds in `fuzz/seeds` and on changed seeds (docs/fuzzing.md).
#![forbid(unsafe_code)]

mod blob;
mod bootstraps;
mod cache;
mod credentials;
mod dictionary;
mod images;
mod layers;
mod places;
mod sample;
mod traces;

pub use images::Image;

/// Something that can be fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of the binary in `fuzz/`, and of the directory of its seeds.
    pub name: &'static str,
    /// Panics if the input shows a bug.
    pub run: fn(&[u8]),
    /// Inputs to begin with, the same each time.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// How many changed inputs the tests try; fewer where each takes long.
    pub changes: u32,
}

/// All there is to fuzz.
pub const TARGETS: [Target; 26] = [
    bootstraps::V6,
    bootstraps::V5,
    bootstraps::LOAD,
    images::SERVE,
    blob::META,
    blob::TOC_TAIL,
    blob::TAIL,
    blob::CHUNK,
    cache::CACHE,
    cache::STORE,
    layers::TAR,
    layers::OVERLAY,
    layers::REPLAY,
    layers::REFERENCE,
    layers::DECOMPRESS,
    layers::ZSTD_FRAMES,
    layers::GZIP_INDEX,
    layers::ESTARGZ_TOC,
    layers::ESTARGZ_FOOTER,
    places::DOCUMENTS,
    places::ARCHIVE,
    places::BOOTSTRAP_LAYER,
    dictionary::SNAPSHOT,
    dictionary::CATALOGUE,
    traces::TRACE,
    credentials::CREDENTIALS,
];

/// Runs the target of this name.
///
/// # Panics
/// If the input shows a bug, or if there is no such target.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("there is a target of this name").run)(input);
}
