//! The replay of layers against GNU tar and overlayfs: what they make of the layers is packed as an image and checked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod common;

use std::path::PathBuf;

use builder::{Dedup, Whiteouts};
use common::{build_options, check_with, image_tars, layers, target};
use testkit::oracle::{Stack, no_overlay};
use testkit::tar::{Entry, Tar};
use verify::{Outcome, Rule, Side};

/// What an overlay of the layers shows, packed as an image.
fn overlay(tars: &[Vec<u8>]) -> Side {
    let dir = tempfile::tempdir().unwrap();
    let write = |(index, tar): (usize, &Vec<u8>)| {
        let path = dir.path().join(format!("{index}.tar"));
        std::fs::write(&path, tar).unwrap();
        path
    };
    let files: Vec<PathBuf> = tars.iter().enumerate().map(write).collect();
    let stack = Stack::new(&files).unwrap();
    let mut blob = Vec::new();
    let built = builder::build_directory(
        stack.path(),
        Whiteouts::None,
        &mut blob,
        &build_options(),
        Dedup::Layer,
    );
    target(&built.unwrap().image, vec![blob])
}

/// Compares the layers with the overlay, packed as an image. The root directory is the test's own.
fn compare(tars: &[Vec<u8>]) {
    let report = check_with(
        Some(&layers(tars)),
        &overlay(tars),
        layer::Options {
            keep_trusted: false,
            ..layer::Options::default()
        },
    );
    let of_root = report
        .differences
        .first
        .iter()
        .filter(|difference| difference.path == "/")
        .count() as u64;
    assert_eq!(report.differences.total, of_root, "{report}");
    assert!(
        report
            .rules
            .iter()
            .all(|rule| rule.rule == Rule::Filesystem || rule.outcome != Outcome::Failed),
        "{report}"
    );
}

fn tar(entries: Vec<Entry>) -> Vec<u8> {
    let mut tar = Tar::new();
    for entry in entries {
        tar.add(entry);
    }
    tar.finish()
}

#[test]
fn privileged_stacks_are_what_tar_and_overlayfs_make_of_them() {
    if let Some(why) = no_overlay() {
        return testkit::skip(
            "privileged_stacks_are_what_tar_and_overlayfs_make_of_them",
            why,
        );
    }
    let lower = vec![
        Entry::directory("keep")
            .mode(0o711)
            .owner(3, 4)
            .mtime(77)
            .xattr("user.k", "v"),
        Entry::file("keep/a", "a").owner(1, 2),
        Entry::hard("keep/b", "keep/a").owner(1, 2),
        Entry::file("keep/c", vec![7; 70_000]).mode(0o4755),
        Entry::symlink("keep/l", "/nowhere").owner(5, 6),
        Entry::directory("opaque"),
        Entry::file("opaque/hidden", "h"),
        Entry::directory("opaque/both").mode(0o700),
        Entry::file("opaque/both/hidden", "h"),
        Entry::directory("gone"),
        Entry::file("gone/x", "x"),
        Entry::directory("again"),
        Entry::file("again/old", "o"),
        Entry::directory("file-over-dir"),
        Entry::file("file-over-dir/x", "x"),
        Entry::file("dir-over-file", "f"),
        Entry::device("null", b'3', 1, 3).mode(0o666),
        Entry::fifo("pipe"),
        Entry::file("cap", "c").xattr(
            "security.capability",
            [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
    ];
    let middle = vec![
        Entry::file("keep/.wh.c", ""),
        Entry::file(".wh.gone", ""),
        Entry::directory("opaque").mode(0o750),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "n"),
        Entry::directory("again").mtime(99),
        Entry::file(".wh.again", ""),
        Entry::file("again/new", "n"),
        Entry::file("file-over-dir", "now a file"),
        Entry::directory("dir-over-file"),
        Entry::file("dir-over-file/y", "y"),
        Entry::file("twice", "first"),
        Entry::file("twice", "second").owner(8, 9),
        Entry::hard("twice-too", "twice").owner(8, 9),
        Entry::file(".wh.nothing", ""),
    ];
    let top = vec![
        Entry::file("keep/a", "new a"),
        Entry::directory("gone").mode(0o500),
        Entry::file("gone/z", "z"),
        Entry::file("dir-over-file/.wh.y", ""),
        Entry::directory("opaque/both"),
        Entry::file("opaque/both/b", "b"),
    ];
    let mut layers: Vec<Vec<u8>> = [lower, middle, top].map(tar).into();
    // Behind the end mark nothing counts.
    let behind = tar(vec![
        Entry::file("keep/c", "again"),
        Entry::file(".wh.cap", ""),
    ]);
    layers[1].extend(behind);
    for count in 1..=layers.len() {
        compare(&layers[..count]);
    }
}

#[test]
fn privileged_reference_images_are_what_tar_and_overlayfs_make_of_them() {
    let name = "privileged_reference_images_are_what_tar_and_overlayfs_make_of_them";
    let Some(shared) = testkit::shared_or_skip(name) else {
        return;
    };
    if let Some(why) = no_overlay() {
        return testkit::skip(name, why);
    }
    for tag in ["base", "python", "app-1", "app-2"] {
        compare(&image_tars(&shared, "images", tag));
    }
}
