//! Layers that are sound, but not what anybody makes: each goes through all there is, or is refused by name.

use std::error::Error;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use fuzz_targets::Image;
use rafs_format::Version;
use testkit::tar::{Entry, Tar};

/// How long a layer may take, unoptimised and beside other tests.
const TIME: Duration = Duration::from_secs(20);

fn tar(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    let mut tar = Tar::new();
    for entry in entries {
        tar.add(entry);
    }
    tar.finish()
}

/// Converts the layer to both versions, proves the image equal to it, and serves it.
fn goes_all_the_way(tar: &[u8]) {
    let begun = Instant::now();
    for version in [Version::V5, Version::V6] {
        let image = Image::of(tar, version).unwrap_or_else(|error| panic!("{version:?}: {error}"));
        assert!(image.serve(&image.bootstrap), "{version:?}");
    }
    fuzz_targets::run("replay", &[&[0], tar].concat());
    assert!(begun.elapsed() < TIME, "{:?}", begun.elapsed());
}

/// Sees to it that the layer is refused with all of these words.
fn is_refused(tar: &[u8], version: Version, words: &[&str]) {
    let Err(error) = Image::of(tar, version) else {
        panic!("{version:?} takes it");
    };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(text, ": {error}").expect("memory takes all");
        cause = error.source();
    }
    for word in words {
        assert!(text.contains(word), "{version:?}: {text}");
    }
}

/// A file with so many attributes.
fn attributes(count: u32) -> Vec<u8> {
    let attributes = (0..count).map(|number| format!("user.{number:04x}"));
    tar([
        attributes.fold(Entry::file("usr/file", "data"), |file, name| {
            file.xattr(&name, "")
        }),
    ])
}

#[test]
fn a_tree_of_ten_thousand_levels_whose_paths_no_system_call_takes() {
    goes_all_the_way(&tar([Entry::file(
        format!("{}file", "d/".repeat(10_000)),
        "data",
    )]));
}

#[test]
fn as_many_attributes_as_there_is_room_for() {
    goes_all_the_way(&attributes(30_000));
}

#[test]
fn more_attributes_than_there_is_room_for_are_refused() {
    is_refused(
        &attributes(35_000),
        Version::V6,
        &["/usr/file", "attributes"],
    );
    for version in [Version::V5, Version::V6] {
        is_refused(
            &attributes(64 << 10),
            version,
            &["extended header", "limit"],
        );
    }
}

#[test]
fn a_file_with_seventy_thousand_names() {
    let names = (0..70_000).map(|number| Entry::hard(format!("usr/{number:08}"), "usr/file"));
    goes_all_the_way(&tar([Entry::file("usr/file", "data")]
        .into_iter()
        .chain(names)));
}

#[test]
fn hard_links_in_a_circle_are_refused_by_name() {
    let circle = tar([Entry::hard("a", "b"), Entry::hard("b", "a")]);
    for version in [Version::V5, Version::V6] {
        is_refused(&circle, version, &["a"]);
    }
}

#[test]
fn what_leads_out_of_the_root_stays_inside() {
    goes_all_the_way(&tar([
        Entry::symlink("out", "/../../../../etc"),
        Entry::file("out/passwd", "x"),
        Entry::file("../../../../up", "y"),
        Entry::hard("../../linked", "/../up"),
        Entry::symlink("..\\..\\odd", "\\\\?\\C:"),
        Entry::file("usr/./../..//../dots", "z"),
    ]));
}
