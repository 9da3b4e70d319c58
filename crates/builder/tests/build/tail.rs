//! Blobs: contents, tails, determinism.

use rafs_format::{BlobFeatures, Bootstrap, Compressor, Digester};
use sha2::{Digest as _, Sha256};
use storage::FileBlob;
use testkit::tar::{Entry, Tar};

use crate::{build, busy_tar, bytes, content, options, options_with};

#[test]
fn every_file_can_be_read_back_whatever_the_options() {
    let tar = busy_tar();
    for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
        for chunk_size in [0x1000, 0x10000, 0x100_0000] {
            let mut options = options_with(2, 4 << 20);
            (options.compressor, options.chunk_size) = (compressor, chunk_size);
            options.digester = if chunk_size == 0x1000 {
                Digester::Sha256
            } else {
                Digester::Blake3
            };
            let (layer, blob) = build(&tar, &options);
            for (path, expected) in [
                ("/d/size3500000", bytes(8, 3_500_000)),
                ("/link", bytes(8, 3_500_000)),
                ("/d/size1", bytes(1, 1)),
                ("/d/small599", bytes(199, 1000)),
                ("/zeros", vec![0; 2 << 20]),
                ("/empty", Vec::new()),
            ] {
                assert!(
                    content(&layer.image, &[&blob], path) == expected,
                    "{compressor} {chunk_size:#x} {path}"
                );
            }
        }
    }
}

#[test]
fn the_result_does_not_depend_on_threads_or_memory() {
    let tar = busy_tar();
    let (first, blob) = build(&tar, &options_with(1, 1));
    for (threads, memory) in [(1, 64 << 20), (2, 2 << 20), (5, 3 << 20), (3, 64 << 20)] {
        let (layer, other) = build(&tar, &options_with(threads, memory));
        assert!(blob == other, "{threads} threads, {memory} bytes");
        assert_eq!(layer.blob_digest, first.blob_digest);
        assert_eq!(layer.image.tree, first.image.tree);
    }
}

#[test]
fn repeated_content_is_stored_once() {
    let (layer, _) = build(&busy_tar(), &options());
    // The copy (4 chunks), 100 small files that repeat, the second mebibyte of zeros.
    assert_eq!(layer.stats.duplicate_chunks, 4 + 100 + 1);
    assert_eq!(
        layer.stats.duplicate_size,
        3_500_000 + 100 * 1000 + (1 << 20)
    );
    assert_eq!(layer.stats.chunks, layer.image.chunks.len() as u64);
}

#[test]
fn digests_and_ids_are_those_of_the_file() {
    let tar = busy_tar();
    for (toc, inline) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut options = options();
        (options.blob_toc, options.inline_meta) = (toc, inline);
        let (layer, blob) = build(&tar, &options);
        let info = &layer.image.blobs[0];
        assert_eq!(layer.blob_digest, <[u8; 32]>::from(Sha256::digest(&blob)));
        let id = if inline {
            layer.blob_digest
        } else {
            layer.self_digest
        };
        assert_eq!(info.id.as_str(), hex::encode(id));
        assert_eq!(
            layer.self_digest == layer.blob_digest,
            !toc,
            "the digest array is left out"
        );
        assert_eq!(info.features.contains(BlobFeatures::HAS_TOC), toc);
        assert_eq!(
            info.toc_size != 0,
            toc && !inline,
            "only a separate bootstrap is written after the table"
        );
        if !inline {
            assert_eq!(info.compressed_size, blob.len() as u64);
        }
        if toc && !inline {
            let table = &blob[blob.len() - info.toc_size as usize..];
            assert_eq!(info.toc_digest, <[u8; 32]>::from(Sha256::digest(table)));
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &blob).unwrap();
        let reader = FileBlob::open(file.path()).unwrap();
        let meta = storage::read_blob_meta(info, &reader).unwrap();
        assert_eq!(meta.len(), info.chunk_count);
        if inline {
            let bootstrap = Bootstrap::parse(storage::extract_bootstrap(&reader).unwrap()).unwrap();
            bootstrap.check().unwrap();
            assert!(bootstrap.blobs()[0].id.is_placeholder());
        }
    }
}

#[test]
fn a_layer_without_data_has_no_blob_and_still_its_bootstrap() {
    let mut tar = Tar::new();
    tar.add(Entry::directory("d"))
        .add(Entry::file("d/empty", ""))
        .add(Entry::symlink("l", "d"));
    let (layer, blob) = build(&tar.finish(), &options());
    assert!(layer.own_blob.is_none() && layer.image.blobs.is_empty());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &blob).unwrap();
    let bootstrap = storage::extract_bootstrap(&FileBlob::open(file.path()).unwrap()).unwrap();
    let bootstrap = Bootstrap::parse(bootstrap).unwrap();
    bootstrap.check().unwrap();
    assert!(bootstrap.blobs().is_empty());
    assert_eq!(bootstrap.superblock().meta_blkaddr, 0);
    let mut options = options();
    (options.blob_toc, options.inline_meta) = (false, false);
    let (_, blob) = build(&tar.finish(), &options);
    assert!(blob.is_empty());
}
