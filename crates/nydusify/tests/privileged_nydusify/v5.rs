//! Images of RAFS v5, mounted through FUSE. The kernel knows nothing of it.

use testkit::expect::{Expect, compare, compare_with_stack};
use testkit::layout::{Flavour, Layer, Layout, Packing, layer_files};
use testkit::oracle::{Stack, kernel_mount};
use testkit::{corner, fixture, shared_or_skip};

use crate::support::*;

#[test]
fn privileged_v5_corner_cases_show_the_expected_tree() {
    let Some(place) = Place::new("privileged_v5_corner_cases_show_the_expected_tree") else {
        return;
    };
    let corner::Corner { layers, expect } = corner::image();
    let mut layout = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let packed: Vec<Layer> = layers
        .iter()
        .map(|tar| Layer::new(tar, Packing::Gzip))
        .collect();
    let image = layout.manifest(&packed, Flavour::Oci);
    layout.tag(&image, "latest");
    for options in [
        &["--fs-version", "5"][..],
        &[
            "--fs-version",
            "5",
            "--compressor",
            "lz4_block",
            "--fs-chunk-size",
            "0x1000",
        ],
    ] {
        let target = place.converted(&place.oci("source", "latest"), options);
        let mount = place.mount(&target, &[]);
        assert_equal(&expect.compare(mount.path()));
        mount.stop().ok();
        // What is in the cache now is right as well.
        let mount = place.mount(&target, &["--no-prefetch"]);
        assert_equal(&expect.compare(mount.path()));
        mount.stop().ok();
        for name in ["nydus", "cache"] {
            std::fs::remove_dir_all(place.path(name)).unwrap();
        }
    }
}

#[test]
fn privileged_v5_is_mounted_lazily() {
    let Some(place) = Place::new("privileged_v5_is_mounted_lazily") else {
        return;
    };
    let target = place.converted(&fixture(), &["--fs-version", "5"]);
    let mount = place.mount(&target, &["--no-prefetch"]);
    let read = std::fs::read(mount.path().join("etc/os-release")).unwrap();
    assert_eq!(read.first(), Some(&b'N'));
    let fetched = stored(&place.path("cache"));
    assert!(
        fetched < 500_000,
        "{fetched} bytes were fetched for one small file"
    );
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
}

#[test]
fn privileged_v5_torture_image_shows_the_expected_tree() {
    const NAME: &str = "privileged_v5_torture_image_shows_the_expected_tree";
    let Some(shared) = shared_or_skip(NAME).map(|shared| shared.join("torture")) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let source = format!("oci:{}:torture", shared.join("image").display());
    let target = place.converted(&source, &["--fs-version", "5"]);
    let mount = place.mount(&target, &[]);
    assert_equal(&compare(mount.path(), &shared.join("expect.json")));
    mount.stop().ok();
}

#[test]
fn privileged_v5_reference_image_equals_its_unpacked_layers() {
    const NAME: &str = "privileged_v5_reference_image_equals_its_unpacked_layers";
    let Some(images) = shared_or_skip(NAME).map(|shared| shared.join("images")) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let stack = Stack::new(&layer_files(&images, "app-1")).unwrap();
    let source = format!("oci:{}:app-1", images.display());
    let target = place.converted(&source, &["--fs-version", "5"]);
    let mount = place.mount(&target, &[]);
    assert_equal(&compare_with_stack(stack.path(), mount.path()));
    mount.stop().ok();
}

/// Images by the deployed builder, and two images that share the cache of a blob of which they use different chunks.
#[test]
fn privileged_v5_golden_images_are_checked_and_mounted() {
    const NAME: &str = "privileged_v5_golden_images_are_checked_and_mounted";
    let Some(golden) = shared_or_skip(NAME).map(|shared| shared.join("golden")) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let blobs = [
        "v5-lz4.blob",
        "v5-upper.blob",
        "v5-separate.blob",
        "v5-zstd-aligned-sha256.blob",
    ];
    let blobs = place.golden_blobs(&golden, &blobs);
    let named = |name: &str| {
        let file = golden.join(format!("{name}.blob"));
        blobs.join(testkit::sha256(&std::fs::read(file).unwrap()))
    };
    let cases = [
        (golden.join("v5-separate.boot"), "lower.tar.expect.json"),
        (named("v5-zstd-aligned-sha256"), "lower.tar.expect.json"),
        // The merged image uses fewer chunks of the layer's blob than the layer.
        (golden.join("merged/v5.boot"), "merged.expect.json"),
        (named("v5-lz4"), "lower.tar.expect.json"),
        (golden.join("merged/v5.boot"), "merged.expect.json"),
    ];
    for (bootstrap, expect) in cases {
        let mount = place.checked_bare(&bootstrap, &blobs, "cache");
        assert_equal(
            &Expect::load(&golden.join(expect))
                .unwrap()
                .compare(mount.path()),
        );
        mount.stop().ok();
    }
}

/// A v5 image made v6: chunk tables are in blobs of their own. The kernel takes the cache as its devices.
#[test]
fn privileged_v5_made_v6_is_checked_and_mounted() {
    const NAME: &str = "privileged_v5_made_v6_is_checked_and_mounted";
    let Some(golden) = shared_or_skip(NAME).map(|shared| shared.join("golden")) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let blobs = place.golden_blobs(&golden, &["v5-lz4.blob", "v5-upper.blob"]);
    let image = storage::load_bootstrap(&golden.join("merged/v5.boot")).unwrap();
    let source = storage::DirSource(blobs.clone());
    let (image, tables) = builder::transcode(
        image.image().unwrap(),
        rafs_format::Version::V6,
        Some(&source),
    )
    .unwrap();
    assert_eq!(tables.len(), 2);
    let bootstrap = place.path("six.boot");
    std::fs::write(&bootstrap, builder::encode(&image).unwrap()).unwrap();
    let ran = check_bare(&bootstrap, &blobs).exits(1);
    assert!(
        ran.stdout.contains("which holds the chunk table of blob"),
        "{ran}"
    );
    for table in &tables {
        std::fs::write(blobs.join(table.id.as_str()), &table.bytes).unwrap();
    }
    let mount = place.checked_bare(&bootstrap, &blobs, "cache");
    let expect = Expect::load(&golden.join("merged.expect.json")).unwrap();
    assert_equal(&expect.compare(mount.path()));
    let devices = place.devices(&bootstrap);
    let kernel = kernel_mount(&bootstrap, &devices, &place.directory("kernel")).unwrap();
    assert_equal(&expect.compare(kernel.path()));
    mount.stop().ok();
}
