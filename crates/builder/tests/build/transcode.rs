//! Bootstraps of the other version over the same blobs.

use std::sync::Arc;

use builder::{BuildOptions, Error, TableBlob, encode, transcode};
use rafs_format::blob_meta::BlobMeta;
use rafs_format::{BlobFeatures, Version};
use storage::NamedSource;
use tree::Image;

use crate::{build, busy_tar, content, options};

fn v5() -> BuildOptions {
    BuildOptions {
        version: Version::V5,
        blob_toc: false,
        ..options()
    }
}

fn source(image: &Image, blob: &[u8]) -> NamedSource {
    let mut source = NamedSource::new(None);
    source.insert(image.blobs[0].id.as_str(), Arc::new(blob.to_vec()));
    source
}

/// Offsets in v5 mean nothing to the table of a blob that was made for v6; that of the table counts.
#[test]
fn chunks_go_where_the_table_in_the_blob_has_them() {
    for inline_meta in [true, false] {
        for blob_toc in [true, false] {
            let options = BuildOptions {
                inline_meta,
                blob_toc,
                ..options()
            };
            let (layer, blob) = build(&busy_tar(), &options);
            let (mut five, none) = transcode(layer.image.clone(), Version::V5, None).unwrap();
            assert_eq!(none, []);
            let mut end = 0;
            for chunk in &mut five.chunks {
                chunk.uncompressed_offset = end;
                end += u64::from(chunk.uncompressed_size);
            }
            let blobs = source(&five, &blob);
            let (six, none) = transcode(five.clone(), Version::V6, Some(&blobs)).unwrap();
            assert_eq!(none, []);
            let mut expected = layer.image.clone();
            expected.compact().unwrap();
            assert_eq!(six.chunks, expected.chunks);
            let (ours, theirs) = (&six.blobs[0], &expected.blobs[0]);
            assert_eq!(ours.uncompressed_size, theirs.uncompressed_size);
            assert_eq!(
                ours.features,
                theirs.features - BlobFeatures::INLINED_FS_META
            );
            assert_eq!(ours.meta_offset, theirs.meta_offset);
            encode(&six).unwrap();
            // A chunk that lies elsewhere is one of another blob.
            five.chunks[3].compressed_offset += 1;
            let index = five.chunks[3].index;
            let refused = transcode(five, Version::V6, Some(&blobs));
            assert!(matches!(refused, Err(Error::Contradiction { chunk, .. }) if chunk == index));
        }
    }
}

#[test]
fn a_blob_without_a_table_gets_one() {
    let (layer, blob) = build(&busy_tar(), &v5());
    let refused = transcode(layer.image.clone(), Version::V6, None);
    assert!(matches!(refused, Err(Error::NoChunkTable { .. })));
    let nothing = NamedSource::new(None);
    let refused = transcode(layer.image.clone(), Version::V6, Some(&nothing));
    assert!(matches!(refused, Err(Error::Blob { .. })));
    let blobs = source(&layer.image, &blob);
    let (six, tables) = transcode(layer.image.clone(), Version::V6, Some(&blobs)).unwrap();
    let [TableBlob { id, of, bytes }] = &tables[..] else {
        panic!("{} tables", tables.len())
    };
    let info = &six.blobs[0];
    assert_eq!(
        (of, id.as_str()),
        (&info.id, &*hex::encode(info.meta_digest))
    );
    assert_eq!(info.data_size(), layer.image.blobs[0].data_size());
    // The table says of every chunk what the bootstrap says, and is one that parsers take.
    let (stored, header) = bytes.split_last_chunk().unwrap();
    let mut table = vec![0; info.meta_uncompressed_size as usize];
    codec::decompress(info.meta_compressor, stored, &mut table).unwrap();
    let table = BlobMeta::parse(&table, header, info).unwrap();
    assert_eq!(table.len() as usize, six.chunks.len());
    for chunk in &six.chunks {
        let stored = table.chunk(chunk.index).unwrap();
        assert_eq!(stored.uncompressed_offset, chunk.uncompressed_offset);
        assert_eq!(stored.compressed_offset, chunk.compressed_offset);
        assert_eq!(stored.compressed_size, chunk.compressed_size);
        assert_eq!(stored.crc32, Some(chunk.crc32));
    }
    let parsed = bootstrap::Parsed::parse(encode(&six).unwrap()).unwrap();
    parsed.check().unwrap();
    assert!(content(&six, &[&blob], "/copy") == content(&layer.image, &[&blob], "/copy"));
}

/// With a table or without: what was one version and becomes it again is what it was.
#[test]
fn the_same_version_stays_the_same() {
    for options in [v5(), options()] {
        let (layer, _) = build(&busy_tar(), &options);
        let (same, tables) = transcode(layer.image.clone(), options.version, None).unwrap();
        assert_eq!(tables, []);
        let mut expected = layer.image;
        expected.compact().unwrap();
        expected.blobs[0].features -= BlobFeatures::INLINED_FS_META;
        assert_eq!(encode(&same).unwrap(), encode(&expected).unwrap());
    }
}
