//! Flipped bytes in converted images: noticed each time, and never a crash.

use std::path::{Path, PathBuf};

use testkit::run::run;

use crate::support::*;

/// Positions spread over a file, its ends included.
fn positions(length: u64, count: u64) -> impl Iterator<Item = u64> {
    let ends = [0, 1, length / 2, length.saturating_sub(1)];
    (0..count)
        .map(move |i| i * length / count + i % 7)
        .chain(ends)
        .filter(move |at| *at < length)
}

fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x55;
    std::fs::write(path, bytes).unwrap();
}

fn blob_path(layout: &Path, descriptor: &serde_json::Value) -> PathBuf {
    layout
        .join("blobs")
        .join(descriptor["digest"].as_str().unwrap().replace(':', "/"))
}

#[test]
fn check_notices_any_flipped_byte_of_an_image() {
    let place = Place::new();
    let target = place.path("nydus");
    convert(&fixture(), &place.oci("nydus", "v6"), &[]).ok();
    let manifest = manifest(&target, "v6");
    let mut parts: Vec<_> = manifest["layers"].as_array().unwrap().clone();
    parts.push(manifest["config"].clone());
    for part in &parts {
        let path = blob_path(&target, part);
        let length = path.metadata().unwrap().len();
        for at in positions(length, 4) {
            flip(&path, at);
            let name = &part["digest"].as_str().unwrap()["sha256:".len()..][..12];
            check(&fixture(), &place.oci("nydus", "v6"))
                .exits(1)
                .says(&[name]);
            flip(&path, at);
        }
    }
    check(&fixture(), &place.oci("nydus", "v6")).ok();
}

#[test]
fn a_lost_blob_is_named() {
    let place = Place::new();
    let target = place.path("nydus");
    convert(&fixture(), &place.oci("nydus", "v6"), &[]).ok();
    let manifest = manifest(&target, "v6");
    let lost = &manifest["layers"][0];
    std::fs::remove_file(blob_path(&target, lost)).unwrap();
    let name = &lost["digest"].as_str().unwrap()["sha256:".len()..];
    run(NYDUSIFY, ["check", "--target", &place.oci("nydus", "v6")])
        .exits(1)
        .says(&[name]);
}
