//! The deployed builder's files for the same input.

use std::fs;
use std::path::Path;

use bootstrap::Parsed;
use builder::{BlobKey, BuildOptions, Encryption, encode, encode_v6, load_image, merge};
use rafs_format::{BlobId, BlobInfo, Bootstrap, Compressor, Digester, Version, v5};
use storage::FileBlob;
use tree::Image;

use crate::{build, options};

/// Options that say for what golden file they are.
fn options_of(name: &str) -> BuildOptions {
    let mut options = options();
    if name.starts_with("v5") {
        (options.version, options.blob_toc) = (Version::V5, false);
    }
    match name {
        "v6-none" => options.compressor = Compressor::None,
        "v6-lz4-sha256" => {
            (options.compressor, options.digester) = (Compressor::Lz4Block, Digester::Sha256)
        }
        "v6-zstd-64k" => options.chunk_size = 0x10000,
        "v6-batch" => options.batch_size = 0x4_0000,
        // With the key that the test puts in.
        "v6-encrypt" => {}
        "v6-separate" => (options.blob_toc, options.inline_meta) = (false, false),
        "v6-zstd" | "v6-upper" => {}
        "v5-lz4" | "v5-upper" => options.compressor = Compressor::Lz4Block,
        "v5-separate" => {
            options.compressor = Compressor::Lz4Block;
            options.inline_meta = false;
        }
        "v5-zstd-aligned-sha256" => {
            (options.aligned_chunk, options.digester) = (true, Digester::Sha256)
        }
        _ => panic!("{name}"),
    }
    options
}

fn golden_bootstrap(shared: &Path, name: &str) -> Bootstrap<Vec<u8>> {
    let blob = FileBlob::open(&shared.join(format!("golden/{name}.blob"))).unwrap();
    Bootstrap::parse(storage::extract_bootstrap(&blob).unwrap()).unwrap()
}

/// Everything a bootstrap says, but for what depends on the version of a compressor: stored sizes and offsets. The
/// deployed builder's extended attributes come in random order.
fn facts(bootstrap: &Bootstrap<Vec<u8>>, ids: bool) -> Vec<String> {
    let mut out = vec![format!("{:?}", bootstrap.superblock())];
    let id = |id: &str| if ids { id.to_owned() } else { String::new() };
    out.extend(
        bootstrap
            .devices()
            .iter()
            .map(|d| format!("{} {} {}", id(&d.id), d.blocks, d.mapped_blkaddr)),
    );
    for blob in bootstrap.blobs() {
        let id = if ids {
            blob.id.clone()
        } else {
            BlobId::placeholder()
        };
        let stored = BlobInfo {
            id,
            compressed_size: 0,
            meta_offset: 0,
            meta_compressed_size: 0,
            ..blob.clone()
        };
        out.push(format!("{stored:?}"));
    }
    for chunk in bootstrap.chunk_table() {
        let mut chunk = chunk.unwrap();
        (chunk.compressed_offset, chunk.compressed_size) = (0, 0);
        out.push(format!("{chunk:?}"));
    }
    let mut todo = vec![(String::new(), bootstrap.inode(bootstrap.root()).unwrap())];
    while let Some((path, mut inode)) = todo.pop() {
        // Our own mark, which the deployed builder leaves zero.
        inode.implied = false;
        let mut xattrs: Vec<_> = bootstrap.xattrs(&inode).unwrap();
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        out.push(format!("{path} {inode:?} {xattrs:?}"));
        if inode.is_symlink() {
            out.push(format!("{:?}", bootstrap.symlink(&inode).unwrap()));
        }
        if inode.is_regular() {
            let chunks: Vec<_> = bootstrap
                .chunks(&inode)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            out.push(format!("{chunks:?}"));
        }
        if inode.is_dir() {
            for entry in bootstrap.entries(&inode).unwrap().map(Result::unwrap) {
                let name = String::from_utf8_lossy(entry.name);
                out.push(format!(
                    "{path}/{name} {:?} {:?}",
                    entry.nid, entry.file_type
                ));
                if name != "." && name != ".." {
                    todo.push((
                        format!("{path}/{name}"),
                        bootstrap.inode(entry.nid).unwrap(),
                    ));
                }
            }
        }
    }
    out
}

fn assert_same(name: &str, ours: &[String], theirs: &[String]) {
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs, "{name}");
    }
    assert_eq!(ours.len(), theirs.len(), "{name}");
}

#[test]
fn layers_are_those_of_the_deployed_builder() {
    let Some(shared) = testkit::shared_or_skip("layers_are_those_of_the_deployed_builder") else {
        return;
    };
    for (name, source) in [
        ("v6-zstd", "lower.tar"),
        ("v6-lz4-sha256", "lower.tar"),
        ("v6-none", "lower.tar"),
        ("v6-zstd-64k", "lower.tar"),
        ("v6-batch", "lower.tar"),
        ("v6-encrypt", "lower.tar"),
        ("v6-upper", "upper.tar"),
    ] {
        let tar = fs::read(shared.join("golden").join(source)).unwrap();
        let theirs = golden_bootstrap(&shared, name);
        let mut options = options_of(name);
        let key = theirs.blobs()[0].cipher_key();
        options.encryption = key.map(|(key, iv)| Encryption::Key(BlobKey::new(key, iv)));
        let (_, blob) = build(&tar, &options);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        fs::write(&path, &blob).unwrap();
        let ours =
            Bootstrap::parse(storage::extract_bootstrap(&FileBlob::open(&path).unwrap()).unwrap())
                .unwrap();
        assert_same(name, &facts(&ours, true), &facts(&theirs, true));
        // The C libraries are the same, so all before the bootstrap is too, byte for byte: chunks, their table and their
        // digests.
        let data = theirs.blobs()[0].compressed_size as usize;
        let golden = fs::read(shared.join(format!("golden/{name}.blob"))).unwrap();
        assert!(
            blob[..data] == golden[..data],
            "{name}: stored bytes differ"
        );
    }
}

#[test]
fn a_blob_without_bootstrap_is_the_deployed_builder_s_byte_for_byte() {
    let Some(shared) =
        testkit::shared_or_skip("a_blob_without_bootstrap_is_the_deployed_builder_s")
    else {
        return;
    };
    let tar = fs::read(shared.join("golden/lower.tar")).unwrap();
    let (layer, blob) = build(&tar, &options_of("v6-separate"));
    assert!(blob == fs::read(shared.join("golden/v6-separate.blob")).unwrap());
    let ours = Bootstrap::parse(encode_v6(&layer.image).unwrap()).unwrap();
    let theirs =
        Bootstrap::parse(fs::read(shared.join("golden/v6-separate.boot")).unwrap()).unwrap();
    assert_same("v6-separate", &facts(&ours, true), &facts(&theirs, true));
    assert_eq!(ours.blobs(), theirs.blobs());
}

#[test]
fn merging_the_deployed_builder_s_layers_gives_its_merged_bootstrap() {
    let Some(shared) = testkit::shared_or_skip("merging_the_deployed_builder_s_layers") else {
        return;
    };
    let theirs = Bootstrap::parse(fs::read(shared.join("golden/merged/v6.boot")).unwrap()).unwrap();
    let layer = |name: &str, id: &str| -> Image {
        let mut image = load_image(&golden_bootstrap(&shared, name)).unwrap();
        image.blobs[0].id = BlobId::new(id).unwrap();
        image
    };
    let [upper, lower] = theirs.blobs() else {
        panic!("two blobs")
    };
    let merged = merge(vec![
        layer("v6-zstd", lower.id.as_str()),
        layer("v6-upper", upper.id.as_str()),
    ])
    .unwrap();
    let ours = Bootstrap::parse(encode_v6(&merged).unwrap()).unwrap();
    assert_same("merged", &facts(&ours, true), &facts(&theirs, true));
    assert_eq!(ours.blobs(), theirs.blobs());
}

/// Everything that a v5 bootstrap says, but for the order of extended attributes, which is random in the deployed
/// builder's, and for device numbers of what is no device.
fn facts_v5(bootstrap: &v5::Bootstrap<Vec<u8>>) -> Vec<String> {
    let mut out = vec![
        format!("{:?}", bootstrap.superblock()),
        format!("{:?}", bootstrap.blobs()),
    ];
    for index in 1..=bootstrap.names() {
        let inode = bootstrap.inode(index).unwrap();
        let mut xattrs = inode.xattrs().unwrap();
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        let chunks: Vec<_> = inode.chunks().map(Result::unwrap).collect();
        let device = matches!(inode.mode & 0o170_000, 0o020_000 | 0o060_000);
        let rdev = if device { inode.rdev } else { 0 };
        let head = (
            inode.offset,
            inode.digest,
            inode.parent,
            inode.ino,
            inode.uid,
            inode.gid,
        );
        let size = (
            inode.mode,
            inode.size,
            inode.blocks,
            inode.flags,
            inode.nlink,
            rdev,
        );
        let below = (
            inode.child_index,
            inode.child_count,
            inode.mtime,
            inode.mtime_nsec,
        );
        let text = (inode.name, inode.target, xattrs);
        out.push(format!(
            "{index} {head:?} {size:?} {below:?} {text:?} {chunks:?}"
        ));
    }
    out
}

fn golden_v5(shared: &Path, name: &str) -> v5::Bootstrap<Vec<u8>> {
    let path = shared.join("golden").join(name);
    let bytes = if name.ends_with(".boot") {
        fs::read(path).unwrap()
    } else {
        storage::extract_bootstrap(&FileBlob::open(&path.with_extension("blob")).unwrap()).unwrap()
    };
    v5::Bootstrap::parse(bytes).unwrap()
}

#[test]
fn v5_layers_are_those_of_the_deployed_builder() {
    let Some(shared) = testkit::shared_or_skip("v5_layers_are_those_of_the_deployed_builder")
    else {
        return;
    };
    for (name, source) in [
        ("v5-lz4", "lower.tar"),
        ("v5-upper", "upper.tar"),
        ("v5-zstd-aligned-sha256", "lower.tar"),
    ] {
        let tar = fs::read(shared.join("golden").join(source)).unwrap();
        let (_, blob) = build(&tar, &options_of(name));
        let ours = storage::extract_bootstrap(&blob).unwrap();
        let ours = v5::Bootstrap::parse(ours).unwrap();
        ours.check(codec::digest).unwrap();
        let theirs = golden_v5(&shared, name);
        assert_same(name, &facts_v5(&ours), &facts_v5(&theirs));
        // The same libraries, so the chunks and the header behind them are the same, byte for byte.
        let golden = fs::read(shared.join(format!("golden/{name}.blob"))).unwrap();
        let data = theirs.blobs()[0].compressed_size as usize;
        assert!(blob[..data] == golden[..data], "{name}: chunks differ");
        assert_eq!(blob.len(), golden.len(), "{name}");
    }
    let tar = fs::read(shared.join("golden/lower.tar")).unwrap();
    let (layer, blob) = build(&tar, &options_of("v5-separate"));
    assert!(blob == fs::read(shared.join("golden/v5-separate.blob")).unwrap());
    let ours = v5::Bootstrap::parse(encode(&layer.image).unwrap()).unwrap();
    let theirs = golden_v5(&shared, "v5-separate.boot");
    assert_same("v5-separate", &facts_v5(&ours), &facts_v5(&theirs));
}

#[test]
fn merging_the_deployed_builder_s_v5_layers_gives_its_merged_bootstrap() {
    let Some(shared) = testkit::shared_or_skip("merging_the_deployed_builder_s_v5_layers") else {
        return;
    };
    let theirs = golden_v5(&shared, "merged/v5.boot");
    let [upper, lower] = theirs.blobs() else {
        panic!("two blobs")
    };
    let layer = |name: &str, id: &BlobId| -> Image {
        let mut image = Parsed::V5(golden_v5(&shared, name)).load().unwrap();
        image.blobs[0].id = id.clone();
        image
    };
    let merged = merge(vec![
        layer("v5-lz4", &lower.id),
        layer("v5-upper", &upper.id),
    ])
    .unwrap();
    let ours = v5::Bootstrap::parse(encode(&merged).unwrap()).unwrap();
    ours.check(codec::digest).unwrap();
    assert_same("merged", &facts_v5(&ours), &facts_v5(&theirs));
}
