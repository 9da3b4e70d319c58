//! Blobs in directories.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use image::{Digest, Store as _};
use storage::BlobSource as _;

use crate::support::{open_config, stream, write};

fn config(json: &serde_json::Value) -> backend::Backend {
    open_config("localfs", &json.to_string())
}

#[test]
fn blobs_are_files_named_by_their_digest() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("made/by/it");
    let backend = config(&serde_json::json!({"dir": blobs}));
    let target = backend.target(false);
    let bytes = testkit::noise(1, 100_000);
    let digest = Digest::of(&bytes);
    assert!(!target.contains(&digest, 100_000).unwrap());
    write(&target, &bytes).unwrap();
    assert!(target.contains(&digest, 100_000).unwrap());
    let path = blobs.join(digest.hex());
    assert!(fs::read(&path).unwrap() == bytes);
    assert_ne!(fs::metadata(&path).unwrap().permissions().mode() & 0o044, 0);
    assert!(stream(backend.open(&digest.hex()).unwrap(), 0) == bytes);
    assert!(stream(backend.blob(&digest, None).unwrap(), 5) == bytes[5..]);

    // What is there stays, unless it has another size or is to be written again.
    let same = || fs::write(&path, vec![0; bytes.len()]).unwrap();
    same();
    write(&target, &bytes).unwrap();
    assert!(fs::read(&path).unwrap() != bytes);
    write(&backend.target(true), &bytes).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    fs::write(&path, "short").unwrap();
    write(&target, &bytes).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 1);
}

#[test]
fn a_blob_that_is_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let backend = config(&serde_json::json!({"dir": dir.path()}));
    let mut writer = backend.target(false).blob_writer().unwrap();
    writer.write_all(b"half").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn blobs_are_looked_for_in_other_places_too() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fs::create_dir(&two).unwrap();
    fs::write(two.join("abc"), "in two").unwrap();
    let backend = config(&serde_json::json!({"dir": one, "alt_dirs": [two]}));
    assert_eq!(stream(backend.open("abc").unwrap(), 0), b"in two");
    let error = backend.open("def").err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("one"), "{error}");

    let backend = config(&serde_json::json!({"blob_file": two.join("abc")}));
    assert_eq!(stream(backend.open("any").unwrap(), 0), b"in two");
    let error = backend.target(false).blob_writer().err().unwrap();
    assert!(error.to_string().contains("\"dir\" is missing"), "{error}");
}
