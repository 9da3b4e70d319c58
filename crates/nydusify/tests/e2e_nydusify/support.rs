//! Places and helpers of the tests here.

use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::run::{Ran, run};

/// The program under test.
pub const NYDUSIFY: &str = env!("CARGO_BIN_EXE_nydusify");

/// A scratch directory with a source and a target layout in it.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `oci:DIR:TAG` of a layout in here.
    pub fn oci(&self, name: &str, tag: &str) -> String {
        format!("oci:{}:{tag}", self.path(name).display())
    }
}

/// The reference of the busybox fixture.
pub fn fixture() -> String {
    format!(
        "oci:{}:{}",
        testkit::fixture::busybox().display(),
        testkit::fixture::BUSYBOX_TAG
    )
}

/// Runs `nydusify convert`.
#[track_caller]
pub fn convert(source: &str, target: &str, more: &[&str]) -> Ran {
    run(
        NYDUSIFY,
        ["convert", "--source", source, "--target", target]
            .iter()
            .chain(more),
    )
}

/// Runs `nydusify check`.
#[track_caller]
pub fn check(source: &str, target: &str) -> Ran {
    run(NYDUSIFY, ["check", "--source", source, "--target", target])
}

/// A JSON document in a layout by digest.
#[track_caller]
pub fn document(layout: &Path, digest: &str) -> Value {
    let path = layout.join("blobs").join(digest.replace(':', "/"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// The descriptors that `index.json` names by `tag`; none without an index.
pub fn tagged(layout: &Path, tag: &str) -> Vec<Value> {
    let Ok(bytes) = std::fs::read(layout.join("index.json")) else {
        return Vec::new();
    };
    let index: Value = serde_json::from_slice(&bytes).unwrap();
    let is_it = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == tag;
    index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .filter(is_it)
        .cloned()
        .collect()
}

/// Digest of what `tag` names.
#[track_caller]
pub fn digest(layout: &Path, tag: &str) -> String {
    let found = tagged(layout, tag);
    assert_eq!(found.len(), 1, "{tag} in {}", layout.display());
    found[0]["digest"].as_str().unwrap().to_owned()
}

/// The manifest that `tag` names.
#[track_caller]
pub fn manifest(layout: &Path, tag: &str) -> Value {
    document(layout, &digest(layout, tag))
}

/// What a failed conversion must leave: no tag, and no file but complete blobs under their digests.
#[track_caller]
pub fn assert_clean(layout: &Path, tag: &str) {
    assert_eq!(
        tagged(layout, tag),
        Vec::<Value>::new(),
        "a tag was written"
    );
    if !layout.exists() {
        return;
    }
    for (path, file) in testkit::scan::scan(layout).unwrap() {
        let path = String::from_utf8(path).unwrap();
        let name = path.rsplit('/').next().unwrap();
        match &file.sha256 {
            None => {}
            Some(_) if path == "oci-layout" || path == "index.json" => {}
            Some(digest) => assert_eq!(digest.as_deref(), Ok(name), "{path} was left behind"),
        }
    }
}
