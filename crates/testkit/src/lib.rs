//! What the tests share: where the reference data lies, trees to compare with, tar and image builders, oracles.
//!
//! Nothing here depends on the crates under test, so that a test never proves the code by itself.
#![forbid(unsafe_code)]

#[cfg(feature = "buckets")]
pub mod bucket;
pub mod change;
pub mod corner;
pub mod docker_registry;
pub mod docs;
pub mod estargz;
pub mod expect;
pub mod fixture;
pub mod gpt;
pub mod home;
pub mod layout;
mod maker;
pub mod oracle;
pub mod rafsdump;
pub mod registry;
pub mod run;
pub mod scan;
pub mod tar;

use std::io::Write;
use std::path::{Path, PathBuf};

/// Root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two levels below the workspace")
        .to_path_buf()
}

/// The directory of reference data: `$NYDUS_SHARED`, else `shared` beside the workspace; `None` when there is none.
pub fn shared() -> Option<PathBuf> {
    let path = match std::env::var_os("NYDUS_SHARED") {
        Some(path) => PathBuf::from(path),
        None => workspace().parent()?.join("shared"),
    };
    path.join("golden").is_dir().then_some(path)
}

/// Like [`shared`]; says aloud that the test `name` is skipped when there is none.
pub fn shared_or_skip(name: &str) -> Option<PathBuf> {
    let found = shared();
    if found.is_none() {
        skip(name, "no ../shared");
    }
    found
}

/// Says aloud that a test does not run: one line `SKIPPED (why): name` on standard error and, since the test
/// harness hides the output of tests that pass, also at the end of the file that `$NYDUS_TEST_SKIPS` names.
pub fn skip(name: &str, why: &str) {
    let line = format!("SKIPPED ({why}): {name}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("NYDUS_TEST_SKIPS") {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| {
                panic!(
                    "{}: cannot note a skipped test: {error}",
                    Path::new(&path).display()
                )
            });
    }
}

/// The sha256 of `bytes` in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// The seeds of a test that goes through many: the one that the variable `NYDUS_{kind}_SEED` names, else as many as
/// `NYDUS_{kind}_COUNT` says or `count`.
///
/// # Panics
/// If a variable is no number.
pub fn seeds(kind: &str, count: u64) -> std::ops::Range<u64> {
    let number = |what: &str| {
        let value = std::env::var(format!("NYDUS_{kind}_{what}")).ok()?;
        Some(value.parse().expect("a number"))
    };
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("COUNT").unwrap_or(count),
    }
}

/// Bytes that look random, the same for the same `seed`: compressors find nothing in them.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Text of `len` bytes that compresses well without being a single repeated byte.
pub fn prose(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "layer", "chunk", "blob", "the", "inode", "of", "tree", "a", "mount", "digest", "and",
        "table", "name", "is", "link", "read",
    ];
    let picks = noise(seed, len / 3 + 1);
    let mut out = Vec::with_capacity(len + 8);
    for pick in picks {
        if out.len() >= len {
            break;
        }
        out.extend_from_slice(WORDS[usize::from(pick & 15)].as_bytes());
        out.push(if pick & 0xf0 == 0 { b'\n' } else { b' ' });
    }
    out.resize(len, b'.');
    out
}
