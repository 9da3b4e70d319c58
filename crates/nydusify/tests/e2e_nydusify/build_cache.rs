//! `convert --build-cache` in layouts.

use crate::support::*;

#[test]
fn the_cache_may_be_in_a_layout_also_beside_the_target() {
    let place = Place::new();
    let cache = place.oci("first", "cache");
    let beside = ["--no-journal", "--build-cache-tag", "cache"];
    let ran = convert(&fixture(), &place.oci("first", "t"), &beside).ok();
    assert!(ran.stderr.contains("has 3 layers more"), "{ran}");
    let with = ["--no-journal", "--build-cache", &cache, "--check"];
    let ran = convert(&fixture(), &place.oci("second", "t"), &with).ok();
    assert!(ran.stderr.contains("were in the build cache"), "{ran}");
    let digests = ["first", "second"].map(|layout| digest(&place.path(layout), "t"));
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn layers_that_depend_on_lower_ones_are_neither_looked_for_nor_added() {
    let place = Place::new();
    let cache = place.oci("cache", "c");
    let with = ["--build-cache", &cache, "--dedup", "image", "--check"];
    for target in ["first", "second"] {
        let ran = convert(&fixture(), &place.oci(target, "t"), &with).ok();
        assert_eq!(ran.stderr, "");
    }
    assert!(!place.path("cache").exists());
}
