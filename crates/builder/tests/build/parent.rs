//! Layers over a parent image, the head of a blob, and blobs that begin somewhere in a file.

use std::fs;
use std::sync::Arc;

use builder::{
    BuildOptions, BuiltLayer, Dedup, Error, Parent, Whiteouts, build_directory, encode, load_image,
};
use rafs_format::{BlobFeatures, Bootstrap, Digester, Version};
use testkit::tar::{Entry, Tar};
use tree::Image;

use crate::{build, bytes, content, options};

/// Options of a layer with a separate bootstrap.
fn options_of(version: Version) -> BuildOptions {
    BuildOptions {
        version,
        blob_toc: false,
        inline_meta: false,
        chunk_size: 0x1000,
        ..options()
    }
}

fn lower(options: &BuildOptions) -> (BuiltLayer, Vec<u8>) {
    let mut tar = Tar::new();
    tar.add(Entry::directory("d").mode(0o700))
        .add(Entry::file("d/kept", bytes(1, 9000)))
        .add(Entry::file("d/gone", bytes(2, 5000)))
        .add(Entry::file("d/changed", bytes(3, 5000)))
        .add(Entry::file("o/hidden", bytes(4, 100)))
        .add(Entry::file(".wh.parent", "not a whiteout"));
    build(&tar.finish(), options)
}

fn over(image: &Image, whiteouts: Whiteouts, options: &BuildOptions) -> BuildOptions {
    let parent = Parent {
        image: image.clone(),
        whiteouts,
    };
    BuildOptions {
        parent: Some(Arc::new(parent)),
        ..options.clone()
    }
}

fn paths(image: &Image) -> Vec<String> {
    let mut walk = image.tree.walk();
    let mut paths = Vec::new();
    while let Some(visit) = walk.next() {
        paths.push(String::from_utf8(walk.path(&visit)).unwrap());
    }
    paths.sort();
    paths
}

/// What readers find in the bootstrap of an image.
fn read_back(image: &Image) -> Image {
    let bytes = encode(image).unwrap();
    match image.version {
        Version::V6 => {
            let bootstrap = Bootstrap::parse(bytes).unwrap();
            bootstrap.check().unwrap();
            load_image(&bootstrap).unwrap()
        }
        Version::V5 => {
            let bootstrap = rafs_format::v5::Bootstrap::parse(bytes).unwrap();
            bootstrap.check(codec::digest).unwrap();
            bootstrap::load_v5(&bootstrap).unwrap()
        }
    }
}

#[test]
fn a_tar_lies_over_its_parent() {
    for version in [Version::V6, Version::V5] {
        let options = options_of(version);
        let (parent, lower_blob) = lower(&options);
        let mut tar = Tar::new();
        tar.add(Entry::file("d/.wh.gone", ""))
            .add(Entry::file("d/changed", bytes(5, 6000)))
            .add(Entry::file("o/.wh..wh..opq", ""))
            .add(Entry::file("o/seen", bytes(6, 100)))
            .add(Entry::file("copy", bytes(1, 9000)));
        let over = BuildOptions {
            prefetch: vec![b"/d/kept".to_vec(), b"/o/seen".to_vec()],
            ..over(&parent.image, Whiteouts::Oci, &options)
        };
        let (layer, blob) = build(&tar.finish(), &over);
        assert_eq!(layer.own_blob, Some(1));
        assert_eq!(layer.stats.duplicate_chunks, 3, "the copy's");
        let image = read_back(&layer.image);
        assert_eq!(
            paths(&image),
            [
                "/",
                "/.wh.parent",
                "/copy",
                "/d",
                "/d/changed",
                "/d/kept",
                "/o",
                "/o/seen"
            ]
        );
        let first = [&b"/d/kept"[..], b"/o/seen"].map(|path| image.tree.lookup(path).unwrap());
        assert_eq!(image.prefetch, first, "of the parent, too");
        assert_eq!(image.blobs[0], parent.image.blobs[0], "comes first");
        assert_eq!(image.blobs[1].chunk_count, 3);
        let of = |path| content(&image, &[&lower_blob, &blob], path);
        for path in ["/copy", "/d/kept"] {
            assert_eq!(of(path), bytes(1, 9000));
        }
        assert_eq!(of("/d/changed"), bytes(5, 6000));
        assert_eq!(of("/o/seen"), bytes(6, 100));
        let d = image.tree.inode(image.tree.lookup(b"/d").unwrap());
        assert_eq!(d.mode & 0o777, 0o700, "the layer has no entry for it");
    }
}

#[test]
fn a_directory_lies_over_its_parent_and_nothing_new_is_no_blob() {
    let options = options_of(Version::V6);
    let (parent, lower_blob) = lower(&options);
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("d")).unwrap();
    fs::write(source.path().join("d/.wh.kept"), "").unwrap();
    fs::write(source.path().join("same"), bytes(2, 5000)).unwrap();
    for (whiteouts, kept) in [(Whiteouts::Oci, false), (Whiteouts::Overlayfs, true)] {
        let mut blob = Vec::new();
        let over = over(&parent.image, whiteouts, &options);
        let layer =
            build_directory(source.path(), whiteouts, &mut blob, &over, Dedup::Layer).unwrap();
        assert_eq!((layer.own_blob, blob.len()), (None, 0));
        let image = read_back(&layer.image);
        assert_eq!(image.tree.lookup(b"/d/kept").is_some(), kept);
        assert_eq!(image.tree.lookup(b"/d/.wh.kept").is_some(), kept);
        assert_eq!(image.blobs, parent.image.blobs);
        assert_eq!(content(&image, &[&lower_blob], "/same"), bytes(2, 5000));
    }
}

#[test]
fn a_native_layer_holds_the_bootstrap_of_both() {
    let parent_options = options_of(Version::V6);
    let (parent, _) = lower(&parent_options);
    let options = BuildOptions {
        blob_toc: true,
        inline_meta: true,
        ..over(&parent.image, Whiteouts::Oci, &parent_options)
    };
    let (_, blob) = build(&Tar::new().add(Entry::file("x", "new")).finish(), &options);
    let bootstrap = Bootstrap::parse(storage::extract_bootstrap(&blob).unwrap()).unwrap();
    bootstrap.check().unwrap();
    let [first, own] = bootstrap.blobs() else {
        panic!()
    };
    assert_eq!(first.id, parent.image.blobs[0].id);
    assert!(own.id.is_placeholder() && own.features.contains(BlobFeatures::INLINED_FS_META));
    assert!(!first.features.contains(BlobFeatures::INLINED_FS_META));
}

#[test]
fn a_parent_of_another_kind_is_refused() {
    let options = options_of(Version::V6);
    let (parent, _) = lower(&options);
    let (old, _) = lower(&options_of(Version::V5));
    let refused = |parent: &Image, options: &BuildOptions, what: &str| {
        let over = over(parent, Whiteouts::Oci, options);
        let tar = Tar::new().finish();
        let error = builder::build_tar(&tar[..], Vec::new(), &over, Dedup::Layer).unwrap_err();
        assert!(
            matches!(&error, Error::Parent { what: found, .. } if *found == what),
            "{error}"
        );
    };
    refused(&old.image, &options, "RAFS version");
    let larger = BuildOptions {
        chunk_size: 0x2000,
        ..options.clone()
    };
    refused(&parent.image, &larger, "chunk size");
    let repeatable = BuildOptions {
        explicit_owners: false,
        ..options.clone()
    };
    refused(&parent.image, &repeatable, "explicit owners");
    let mut tarfs = parent.image.clone();
    tarfs.tarfs = true;
    refused(&tarfs, &options, "tarfs mode");
    let v5 = |digester, compressor| BuildOptions {
        digester,
        compressor,
        ..options_of(Version::V5)
    };
    let zstd = options.compressor;
    refused(&old.image, &v5(Digester::Sha256, zstd), "digester");
    let lz4 = rafs_format::Compressor::Lz4Block;
    refused(&old.image, &v5(options.digester, lz4), "compressor");
    // v6 has a digester for each blob.
    let sha256 = BuildOptions {
        digester: Digester::Sha256,
        ..over(&parent.image, Whiteouts::Oci, &options)
    };
    let (layer, _) = build(
        &Tar::new().add(Entry::file("x", bytes(1, 9000))).finish(),
        &sha256,
    );
    assert_eq!(read_back(&layer.image).blobs.len(), 2);
}

#[test]
fn the_head_of_a_blob_is_that_of_prefetched_files() {
    let source = tempfile::tempdir().unwrap();
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3), ("z", 2)] {
        fs::write(source.path().join(name), bytes(seed, 10_000)).unwrap();
    }
    let build = |prefetch: &[&[u8]], version, readahead| {
        let options = BuildOptions {
            prefetch: prefetch.iter().map(|path| path.to_vec()).collect(),
            readahead,
            ..options_of(version)
        };
        let mut blob = Vec::new();
        let none = Whiteouts::None;
        build_directory(source.path(), none, &mut blob, &options, Dedup::Layer)
            .unwrap()
            .image
    };
    let image = build(&[b"/z", b"/c"], Version::V5, true);
    assert_eq!(image.prefetch, []);
    // /z comes first and stores what /b has, too; /c follows.
    let ends: Vec<u64> = ["/z", "/c", "/a", "/b"]
        .map(|path| {
            let tree::Content::Regular { chunks, .. } = &image
                .tree
                .inode(image.tree.lookup(path.as_bytes()).unwrap())
                .content
            else {
                panic!()
            };
            let last = image.chunks[chunks[2].0 as usize];
            last.compressed_offset + u64::from(last.compressed_size)
        })
        .into();
    assert!(ends[0] < ends[1] && ends[1] < ends[2] && ends[0] == ends[3]);
    assert_eq!(
        u64::from(read_back(&image).blobs[0].readahead_size),
        ends[1]
    );
    let all = build(&[b"/"], Version::V5, true);
    assert_eq!(
        u64::from(all.blobs[0].readahead_size),
        all.blobs[0].data_size()
    );
    for (patterns, readahead) in [(&[b"/y".as_slice()][..], true), (&[b"/z"], false)] {
        let none = build(patterns, Version::V5, readahead);
        assert_eq!(none.blobs[0].readahead_size, 0);
        assert_eq!(none.prefetch.len(), usize::from(!readahead));
    }
    assert_eq!(build(&[b"/z"], Version::V6, true).prefetch, []);
}

#[test]
fn a_blob_begins_somewhere_in_a_file() {
    for (version, native) in [
        (Version::V6, true),
        (Version::V6, false),
        (Version::V5, true),
        (Version::V5, false),
    ] {
        let at = |blob_offset| BuildOptions {
            blob_offset,
            blob_toc: native && version == Version::V6,
            inline_meta: native,
            ..options_of(version)
        };
        let tar = Tar::new().add(Entry::file("f", bytes(1, 9000))).finish();
        let (layer, blob) = build(&tar, &at(512));
        let whole = [&[b'x'; 512], &blob[..]].concat();
        let image = match native {
            true => {
                let found = storage::extract_bootstrap(&whole).unwrap();
                match version {
                    Version::V6 => load_image(&Bootstrap::parse(found).unwrap()).unwrap(),
                    Version::V5 => {
                        bootstrap::load_v5(&rafs_format::v5::Bootstrap::parse(found).unwrap())
                            .unwrap()
                    }
                }
            }
            false => read_back(&layer.image),
        };
        assert_eq!(content(&image, &[&whole], "/f"), bytes(1, 9000));
        let info = &image.blobs[0];
        let end = info.data_size() as usize;
        let (direct, plain) = build(&tar, &at(0));
        assert_eq!(end, 512 + direct.image.blobs[0].data_size() as usize);
        assert_eq!(whole[512..end], plain[..end - 512]);
        if version == Version::V6 {
            let header = info.meta_offset + info.meta_compressed_size;
            let magic = &whole[header as usize..][..4];
            assert_eq!(magic, 0xb10b_b10b_u32.to_le_bytes());
        }
    }
    let far = BuildOptions {
        blob_offset: u64::MAX,
        ..options()
    };
    let tar = Tar::new().finish();
    let error = builder::build_tar(&tar[..], Vec::new(), &far, Dedup::Layer).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}
