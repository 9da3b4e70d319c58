//! Converted images, mounted: through FUSE and through the kernel they show the tree they were made of.

use std::path::Path;

use testkit::expect::{Expect, compare, compare_trees, compare_with_stack};
use testkit::layout::{Flavour, Layer, Layout, Packing, layer_files};
use testkit::oracle::{Stack, fsck, kernel_mount};
use testkit::run::{Mount, run};
use testkit::{corner, fixture, shared_or_skip};

use crate::support::*;

/// With everything read, the cache files are complete: `fsck.erofs` and the kernel take them as devices, and the
/// kernel shows the same tree.
#[track_caller]
fn the_kernel_agrees(place: &Place, mount: &Mount) {
    let bootstrap = place.bootstrap();
    let devices = place.devices(&bootstrap);
    fsck(&bootstrap, &devices).unwrap_or_else(|text| panic!("fsck.erofs: {text}"));
    let kernel = kernel_mount(&bootstrap, &devices, &place.directory("kernel")).unwrap();
    assert_equal(&compare_trees(mount.path(), kernel.path()));
}

#[test]
fn privileged_the_fixture_is_mounted_lazily() {
    let Some(place) = Place::new("privileged_the_fixture_is_mounted_lazily") else {
        return;
    };
    let target = place.converted(&fixture(), &["--prefetch-dir", "/etc"]);
    let mount = place.mount(&target, &["--no-prefetch"]);
    assert_eq!(
        std::fs::read(mount.path().join("etc/os-release"))
            .unwrap()
            .first(),
        Some(&b'N')
    );
    let (fetched, whole) = (stored(&place.path("cache")), 2_000_000);
    assert!(
        fetched < whole / 4,
        "{fetched} bytes were fetched for one small file"
    );
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    the_kernel_agrees(&place, &mount);
    mount.stop().ok();
}

#[test]
fn privileged_corner_cases_show_the_expected_tree() {
    let Some(place) = Place::new("privileged_corner_cases_show_the_expected_tree") else {
        return;
    };
    let corner::Corner { layers, expect } = corner::image();
    let mut layout_at = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let packings = [Packing::GzipMembers, Packing::Zstd, Packing::None];
    let packed: Vec<Layer> = layers
        .iter()
        .zip(packings)
        .map(|(tar, packing)| Layer::new(tar, packing))
        .collect();
    let image = layout_at.manifest(&packed, Flavour::Oci);
    layout_at.tag(&image, "latest");
    for (number, options) in [
        &[][..],
        &[
            "--compressor",
            "lz4_block",
            "--fs-chunk-size",
            "0x10000",
            "--dedup",
            "image",
        ],
        &["--batch-size", "0x10000", "--dedup", "image"],
    ]
    .into_iter()
    .enumerate()
    {
        let target = place.converted(&place.oci("source", "latest"), options);
        let mount = place.mount(&target, &[]);
        assert_equal(&expect.compare(mount.path()));
        the_kernel_agrees(&place, &mount);
        mount.stop().ok();
        if number < 2 {
            for name in ["nydus", "cache"] {
                std::fs::remove_dir_all(place.path(name)).unwrap();
            }
        }
    }
}

#[test]
fn privileged_the_torture_image_shows_the_expected_tree() {
    const NAME: &str = "privileged_the_torture_image_shows_the_expected_tree";
    let Some(shared) = shared_or_skip(NAME).map(|shared| shared.join("torture")) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let target = place.converted(
        &format!("oci:{}:torture", shared.join("image").display()),
        &[],
    );
    let mount = place.mount(&target, &[]);
    assert_equal(&compare(mount.path(), &shared.join("expect.json")));
    the_kernel_agrees(&place, &mount);
    mount.stop().ok();
}

/// GNU tar and overlayfs say what the image is.
#[test]
fn privileged_reference_images_equal_their_unpacked_layers() {
    const NAME: &str = "privileged_reference_images_equal_their_unpacked_layers";
    let Some(images) = shared_or_skip(NAME).map(|shared| shared.join("images")) else {
        return;
    };
    for tag in ["base", "python", "app-1", "app-2", "node"] {
        let Some(place) = Place::new(NAME) else {
            return;
        };
        let stack = Stack::new(&layer_files(&images, tag)).unwrap();
        let target = place.converted(&format!("oci:{}:{tag}", images.display()), &[]);
        let mount = place.mount(&target, &[]);
        assert_equal(&compare_with_stack(stack.path(), mount.path()));
        the_kernel_agrees(&place, &mount);
        mount.stop().ok();
    }
}

/// As above, with what the image before it has in blobs of that.
#[test]
fn privileged_an_image_in_blobs_of_another_equals_its_unpacked_layers() {
    const NAME: &str = "privileged_an_image_in_blobs_of_another_equals_its_unpacked_layers";
    let Some(images) = shared_or_skip(NAME).map(|shared| shared.join("images")) else {
        return;
    };
    let stack = Stack::new(&layer_files(&images, "app-2")).unwrap();
    for version in ["6", "5"] {
        let Some(place) = Place::new(NAME) else {
            return;
        };
        let source = |tag: &str| format!("oci:{}:{tag}", images.display());
        let (first, old) = (place.oci("first", "t"), source("app-1"));
        let options = ["--fs-version", version];
        let words = ["convert", "--source", &old, "--target", &first];
        run(NYDUSIFY, words.iter().chain(&options)).ok();
        let dictionary = format!("bootstrap:registry:{first}");
        let with = ["--chunk-dict", &dictionary, "--dict-min-run", "1"];
        let target = place.converted(&source("app-2"), &[&options[..], &with].concat());
        let mount = place.mount(&target, &["--no-prefetch"]);
        assert_equal(&compare_with_stack(stack.path(), mount.path()));
        if version == "6" {
            the_kernel_agrees(&place, &mount);
        }
        mount.stop().ok();
    }
}

/// Images by the deployed builder, as bare files: blobs with their bootstrap inside, bootstraps beside blobs.
#[test]
fn privileged_golden_images_are_checked_and_mounted() {
    const NAME: &str = "privileged_golden_images_are_checked_and_mounted";
    let Some(golden) = shared_or_skip(NAME).map(|shared| shared.join("golden")) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let blobs = std::fs::read_dir(&golden).unwrap().flatten();
    let blobs: Vec<String> = blobs
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".blob"))
        .collect();
    let blobs: Vec<&str> = blobs.iter().map(String::as_str).collect();
    let blobs = place.golden_blobs(&golden, &blobs);
    let cases = [
        ("v6-zstd.blob", "lower.tar.expect.json"),
        ("v6-separate.boot", "lower.tar.expect.json"),
        ("v6-lz4-sha256.blob", "lower.tar.expect.json"),
        ("v6-none.blob", "lower.tar.expect.json"),
        ("v6-zstd-64k.blob", "lower.tar.expect.json"),
        ("v6-batch.blob", "lower.tar.expect.json"),
        ("v6-encrypt.blob", "lower.tar.expect.json"),
        ("v6-upper.blob", "upper.tar.expect.json"),
        ("v6-dict-upper.blob", "upper.tar.expect.json"),
        ("merged/v6.boot", "merged.expect.json"),
    ];
    for (name, expect) in cases {
        // A layer that holds its bootstrap is named by its digest where the bootstrap's place holder stands.
        let own = golden.join(name);
        let id = testkit::sha256(&std::fs::read(&own).unwrap());
        let bootstrap = if name.ends_with(".blob") {
            blobs.join(id)
        } else {
            own
        };
        let cache = format!("cache-{}", name.replace('/', "-"));
        let mount = place.checked_bare(&bootstrap, &blobs, &cache);
        let mut expect = Expect::load(&golden.join(expect)).unwrap();
        if name.contains("upper") {
            layer_as_it_is(&mut expect, mount.path());
        }
        assert_equal(&expect.compare(mount.path()));
        mount.stop().ok();
    }
}

/// An upper layer alone keeps its whiteouts as files.
fn layer_as_it_is(expect: &mut Expect, root: &Path) {
    for (path, _) in testkit::scan::scan(root).unwrap() {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap();
        if name.starts_with(b".wh.") && !expect.entries.contains_key(&path) {
            expect.entries.insert(
                path,
                testkit::expect::Entry {
                    kind: 'f',
                    ..Default::default()
                },
            );
        }
    }
}

/// What was fetched before a kill or while another process looked on is used, verified, afterwards.
#[test]
fn privileged_the_cache_outlives_a_killed_mount() {
    let Some(place) = Place::new("privileged_the_cache_outlives_a_killed_mount") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let mount = place.mount(&target, &["--no-prefetch"]);
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    Pair::of(mount.path()).kill(mount.path());
    drop(mount);
    let before = stored(&place.path("cache"));
    // Without the blobs only the cache can answer; a chunk it does not hold for sure would be an error.
    let mount = place.mount(&target, &["--no-prefetch"]);
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
    assert!(before > 2_000_000 && stored(&place.path("cache")) <= before + 65_536);
}

#[test]
fn privileged_layers_that_stay_as_they_are_show_the_expected_tree() {
    let name = "privileged_layers_that_stay_as_they_are_show_the_expected_tree";
    let Some(place) = Place::new(name) else {
        return;
    };
    let corner::Corner { layers, expect } = corner::image();
    let mut layout_at = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let packings = [Packing::GzipMembers, Packing::Gzip, Packing::None];
    let packed: Vec<Layer> = layers
        .iter()
        .zip(packings.into_iter().cycle())
        .map(|(tar, packing)| Layer::new(tar, packing))
        .collect();
    let image = layout_at.manifest(&packed, Flavour::Oci);
    layout_at.tag(&image, "latest");
    let target = place.converted(&place.oci("source", "latest"), &["--oci-ref", "--check"]);
    for mode in modes(name, &place) {
        for prefetch in ["--no-prefetch", "--prefetch"] {
            let _ = std::fs::remove_dir_all(place.path("cache"));
            let mount = place.mount(&target, &["--mode", mode, prefetch]);
            assert_equal(&expect.compare(mount.path()));
            mount.stop().ok();
        }
    }
}
