//! Our bootstraps before other judges: `fsck.erofs`, and the kernel where it has EROFS.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;

use builder::{Budget, BuildOptions, BuiltLayer, Dedup, build_tar, encode_v6, merge};
use testkit::oracle;
use testkit::tar::{Entry, Tar};

fn layer(tar: &[u8], chunk_size: u32) -> BuiltLayer {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    let mut options = BuildOptions::new(Arc::new(pool), Budget::new(8 << 20));
    options.chunk_size = chunk_size;
    build_tar(tar, std::io::sink(), &options, Dedup::Layer).unwrap()
}

/// Directories of several blocks, links of every length, files of many chunks, odd types.
fn odd_layer() -> Vec<u8> {
    let mut tar = Tar::new();
    for i in 0..2000 {
        tar.add(Entry::file(format!("wide/{i:0100}"), format!("{i}")));
    }
    for len in [1, 3900, 4031, 4032, 4033, 4094, 4095] {
        tar.add(Entry::symlink(format!("links/{len}"), "x".repeat(len)));
    }
    tar.add(
        Entry::file("large", vec![7; 3_000_001])
            .xattr("user.a", "b")
            .xattr("security.selinux", "c"),
    );
    tar.add(Entry::hard("links/hard", "large"))
        .add(Entry::fifo("fifo"));
    tar.add(Entry::device("null", b'3', 1, 3))
        .add(Entry::device("disk", b'4', 259, 300));
    tar.add(Entry::file("-before-dots", ""))
        .add(Entry::file("!early", "data"));
    tar.finish()
}

fn fsck(name: &str, image: &tree::Image) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bootstrap");
    let bootstrap = encode_v6(image).unwrap();
    fs::write(&path, &bootstrap).unwrap();
    let blocks: Vec<u64> = oracle::device_slots(&bootstrap)
        .into_iter()
        .map(|(_, blocks)| blocks)
        .collect();
    let devices = oracle::sparse_devices(dir.path(), &blocks).unwrap();
    if let Err(text) = oracle::fsck(&path, &devices) {
        panic!("{name}: {text}");
    }
}

#[test]
fn privileged_fsck_finds_nothing_wrong() {
    if let Some(why) = oracle::no_fsck() {
        return testkit::skip("privileged_fsck_finds_nothing_wrong", why);
    }
    let odd = odd_layer();
    for chunk_size in [0x1000, 0x10_0000, 0x100_0000] {
        fsck(
            &format!("layer with chunks of {chunk_size:#x}"),
            &layer(&odd, chunk_size).image,
        );
    }
    let mut upper = Tar::new();
    upper
        .add(Entry::file("links/.wh..wh..opq", ""))
        .add(Entry::file("wide/more", vec![1; 2_000_000]));
    let layers = vec![
        layer(&odd, 0x10_0000).image,
        layer(&upper.finish(), 0x10_0000).image,
    ];
    fsck("merged", &merge(layers).unwrap());
    fsck("empty", &layer(&Tar::new().finish(), 0x10_0000).image);
}

#[test]
fn privileged_fsck_finds_nothing_wrong_with_the_reference_layers() {
    if let Some(why) = oracle::no_fsck() {
        return testkit::skip(
            "privileged_fsck_finds_nothing_wrong_with_the_reference_layers",
            why,
        );
    }
    let name = "privileged_fsck_finds_nothing_wrong_with_the_reference_layers";
    let Some(shared) = testkit::shared_or_skip(name) else {
        return;
    };
    let tars =
        ["lower.tar", "upper.tar"].map(|name| fs::read(shared.join("golden").join(name)).unwrap());
    let images: Vec<_> = tars.iter().map(|tar| layer(tar, 0x10_0000).image).collect();
    images.iter().for_each(|image| fsck("golden", image));
    fsck("golden, merged", &merge(images).unwrap());
}
