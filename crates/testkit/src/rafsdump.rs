//! The independent decoder of bootstraps among the reference data.

use std::path::Path;

use serde_json::Value;

use crate::{oracle, run};

/// Why the decoder cannot run, if it cannot.
pub fn no_python() -> Option<&'static str> {
    oracle::program("python3").is_none().then_some("no python3")
}

/// What it says of a bootstrap. `shared` is where the reference data lies.
///
/// # Panics
/// When it does not run, or refuses the bootstrap.
#[track_caller]
pub fn dump(shared: &Path, bootstrap: &[u8]) -> Value {
    let file = tempfile::NamedTempFile::new().expect("make a temporary file");
    std::fs::write(file.path(), bootstrap).expect("write the bootstrap");
    let tool = shared.join("tools/rafsdump.py");
    let words = [tool.as_os_str(), "boot".as_ref(), file.path().as_os_str()];
    let printed = run::run("python3", words).ok().stdout;
    // Bytes that are not UTF-8 are printed as lone surrogates, which JSON readers refuse.
    let printed = printed.replace("\\udc", "\\u00");
    serde_json::from_str(&printed).expect("the decoder prints JSON")
}

/// Text as the decoder prints it: what is not UTF-8 byte by byte.
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|&b| char::from(b)));
    }
    text
}
