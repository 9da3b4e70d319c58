//! Conversions that need root: a target whose disk is full.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "it/world.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod world;

use std::path::PathBuf;

use convert::ConvertOptions;
use image::Location;
use progress::{Cancel, Silent};
use testkit::layout::Packing;
use testkit::noise;
use testkit::run::run;
use world::{World, chain, oci, options, tar};

/// A tmpfs of a few KiB, unmounted when dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(at: PathBuf, kib: u32) -> Self {
        std::fs::create_dir(&at).unwrap();
        let size = format!("size={kib}k");
        run(
            "mount",
            ["-t", "tmpfs", "-o", &size, "tmpfs", at.to_str().unwrap()],
        )
        .ok();
        Self(at)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        run("umount", [self.0.to_str().unwrap()]).ok();
    }
}

#[test]
fn privileged_a_full_disk_is_named_and_left_empty() {
    if !testkit::oracle::is_root() {
        return testkit::skip("privileged_a_full_disk_is_named_and_left_empty", "not root");
    }
    let world = World::new();
    let tars: Vec<Vec<u8>> = (0..3).map(|seed| tar("a", &noise(seed, 400_000))).collect();
    testkit::layout::write(&world.source(), &tars, Packing::Gzip);
    // Full within the first blob, within a later one, and at the documents behind the blobs.
    for kib in [200, 900, 1220] {
        let disk = Tiny::mount(world.path("disk"), kib);
        for target in [
            oci(&disk.0.join("target"), Some("t")),
            Location::OciArchive {
                file: disk.0.join("target"),
                tag: None,
            },
        ] {
            let options = ConvertOptions {
                check: false,
                ..options()
            };
            let error = convert::convert(
                &oci(&world.source(), None),
                &target,
                &options,
                &Silent,
                &Cancel::default(),
            )
            .unwrap_err();
            let text = chain(&error);
            assert!(
                text.contains("target") && text.contains("No space left"),
                "{kib}: {text}"
            );
            assert_eq!(std::fs::read_dir(&disk.0).unwrap().count(), 0, "{kib}");
        }
        drop(disk);
        std::fs::remove_dir(world.path("disk")).unwrap();
    }
}
