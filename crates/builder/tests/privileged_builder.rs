//! Our bootstraps before other judges: `fsck.erofs`, and the kernel where it has EROFS.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;

use builder::{
    Budget, BuildOptions, BuiltLayer, Dedup, Whiteouts, build_directory, build_tar, encode_v6,
    merge, transcode,
};
use rafs_format::{ChunkFlags, Compressor, Version};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat, setxattr};
use testkit::oracle;
use testkit::tar::{Entry, Tar};

fn options(chunk_size: u32) -> BuildOptions {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    let mut options = BuildOptions::new(Arc::new(pool), Budget::new(8 << 20));
    options.chunk_size = chunk_size;
    options
}

fn layer(tar: &[u8], chunk_size: u32) -> BuiltLayer {
    let options = options(chunk_size);
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

#[test]
fn privileged_a_directory_keeps_devices_owners_and_attributes() {
    let name = "privileged_a_directory_keeps_devices_owners_and_attributes";
    if !oracle::is_root() {
        return testkit::skip(name, "not root");
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let node = |name: &str, kind, device| {
        mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o600), device).unwrap()
    };
    node("char", FileType::CharacterDevice, makedev(5, 300));
    node("gone", FileType::CharacterDevice, makedev(0, 0));
    node("pipe", FileType::Fifo, 0);
    fs::write(at("file"), "data").unwrap();
    std::os::unix::fs::chown(at("file"), Some(100_000), Some(70_000)).unwrap();
    std::os::unix::fs::symlink("file", at("link")).unwrap();
    std::os::unix::fs::lchown(at("link"), Some(5), Some(6)).unwrap();
    for (file, name) in [("file", "trusted.long"), ("link", "trusted.link")] {
        lsetxattr(at(file), name, &[9; 2000][..], XattrFlags::empty()).unwrap();
    }
    setxattr(at("file"), "security.a", b"", XattrFlags::empty()).unwrap();
    let build = |whiteouts| {
        build_directory(
            dir.path(),
            whiteouts,
            std::io::sink(),
            &options(0x10_0000),
            Dedup::Layer,
        )
        .unwrap()
        .image
    };
    let image = build(Whiteouts::Overlayfs);
    let inode = |name: &str| {
        image
            .tree
            .inode(image.tree.lookup(name.as_bytes()).unwrap())
    };
    assert_eq!(
        (inode("char").mode, inode("char").rdev),
        (0o020_600, 44 | 5 << 8 | 256 << 12)
    );
    assert_eq!((inode("pipe").mode, inode("pipe").rdev), (0o010_600, 0));
    assert_eq!((inode("file").uid, inode("file").gid), (100_000, 70_000));
    assert_eq!((inode("link").uid, inode("link").gid), (5, 6));
    let xattrs = inode("file").xattrs.as_ref().unwrap();
    assert_eq!(xattrs[&b"trusted.long"[..]].len(), 2000);
    assert_eq!(xattrs[&b"security.a"[..]].len(), 0);
    assert!(
        inode("link")
            .xattrs
            .as_ref()
            .unwrap()
            .contains_key(&b"trusted.link"[..])
    );
    assert!(image.tree.lookup(b"gone").is_none());
    assert!(build(Whiteouts::Oci).tree.lookup(b"gone").is_some());
    fsck(name, &image);
}

/// An image of v5 blobs as v6: the kernel shows its tree, with the blobs' address spaces as devices.
#[test]
fn privileged_the_kernel_mounts_what_was_v5() {
    const NAME: &str = "privileged_the_kernel_mounts_what_was_v5";
    if let Some(why) = oracle::no_fsck().or_else(oracle::no_erofs) {
        return testkit::skip(NAME, why);
    }
    let Some(shared) = testkit::shared_or_skip(NAME) else {
        return;
    };
    let options = BuildOptions {
        version: Version::V5,
        blob_toc: false,
        ..options(0x10_0000)
    };
    let tar = fs::read(shared.join("golden/lower.tar")).unwrap();
    let mut blob = Vec::new();
    let image = build_tar(&tar[..], &mut blob, &options, Dedup::Layer)
        .unwrap()
        .image;
    let mut blobs = storage::NamedSource::new(None);
    blobs.insert(image.blobs[0].id.as_str(), Arc::new(blob.clone()));
    let (image, tables) = transcode(image, Version::V6, Some(&blobs)).unwrap();
    assert_eq!(tables.len(), 1);
    fsck(NAME, &image);
    let info = &image.blobs[0];
    let mut device = vec![0; info.uncompressed_size as usize];
    for chunk in &image.chunks {
        let range = |offset: u64, size: u32| offset as usize..offset as usize + size as usize;
        let compressor = match chunk.flags.contains(ChunkFlags::COMPRESSED) {
            true => info.compressor,
            false => Compressor::None,
        };
        let stored = &blob[range(chunk.compressed_offset, chunk.compressed_size)];
        let place = range(chunk.uncompressed_offset, chunk.uncompressed_size);
        codec::decompress(compressor, stored, &mut device[place]).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let (boot, data, mnt) = (
        dir.path().join("boot"),
        dir.path().join("data"),
        dir.path().join("mnt"),
    );
    fs::write(&boot, encode_v6(&image).unwrap()).unwrap();
    fs::write(&data, device).unwrap();
    fs::create_dir(&mnt).unwrap();
    let mounted = oracle::kernel_mount(&boot, &[data], &mnt).unwrap();
    let expect = shared.join("golden/lower.tar.expect.json");
    let differences = testkit::expect::compare(mounted.path(), &expect);
    assert_eq!(differences, Vec::<String>::new());
}
