//! Batches of small chunks, and encrypted blobs.

use std::collections::HashSet;

use builder::{
    BlobKey, BuildOptions, BuiltLayer, Dedup, Encryption, Error, Turn, build_tar, encode, merge,
};
use codec::{BlobCipher, Encoder};
use proptest::collection::vec;
use proptest::prelude::*;
use rafs_format::blob_meta::{BlobMeta, Placement};
use rafs_format::{BlobFeatures, Compressor, Version};
use storage::{KnownChunk, decode_chunk};
use testkit::tar::{Entry, Tar};

use crate::{build, busy_tar, bytes, options, options_with};

/// The table of a blob, out of the blob.
fn table(layer: &BuiltLayer, blob: &Vec<u8>) -> BlobMeta {
    storage::read_blob_meta(&layer.image.blobs[0], blob).unwrap()
}

/// Decodes and verifies all chunks of the one blob of a layer.
fn assert_readable(layer: &BuiltLayer, blob: &Vec<u8>) {
    let meta = table(layer, blob);
    let info = &layer.image.blobs[0];
    let decoder = storage::ChunkDecoder::new(info).unwrap();
    for record in &layer.image.chunks {
        let stored = meta.chunk(record.index).unwrap();
        let batch = match stored.placement {
            Placement::Batch { index, .. } => meta.batch(index),
            _ => None,
        };
        let size = batch.map_or(stored.compressed_size, |batch| batch.compressed_size);
        let start = stored.compressed_offset as usize;
        let bytes = &blob[start..start + size as usize];
        decode_chunk(
            &decoder,
            &stored,
            batch.as_ref(),
            &KnownChunk::from(record),
            bytes,
        )
        .unwrap_or_else(|error| panic!("chunk {}: {error}", record.index));
    }
    let ours = layer.table.as_ref().unwrap();
    let (rows, header) = storage::read_chunk_table(info, blob).unwrap();
    assert_eq!((&ours.table, &ours.header[..]), (&rows, &header[..]));
}

/// Which batch each chunk is in.
fn batches(meta: &BlobMeta) -> Vec<Option<u32>> {
    let of = |placement| match placement {
        Placement::Batch { index, .. } => Some(index),
        _ => None,
    };
    meta.chunks().map(|chunk| of(chunk.placement)).collect()
}

fn batched(batch_size: u32) -> BuildOptions {
    BuildOptions {
        batch_size,
        ..options()
    }
}

fn key() -> Encryption {
    Encryption::Key(BlobKey::new(std::array::from_fn(|i| i as u8), [7; 16]))
}

/// Files of these sizes, no two alike.
fn files(sizes: &[usize]) -> Vec<u8> {
    let mut tar = Tar::new();
    for (number, &size) in sizes.iter().enumerate() {
        let mut data = bytes(number as u64 + 1, size);
        let mark = (number as u64).to_le_bytes();
        let len = size.min(8);
        data[..len].copy_from_slice(&mark[..len]);
        tar.add(Entry::file(format!("f{number}"), data));
    }
    tar.finish()
}

#[test]
fn a_batch_ends_before_it_is_full_at_large_chunks_and_with_the_blob() {
    let sizes = [1000, 2047, 1048, 2048, 100, 2047, 2047, 1, 9000, 5, 4096, 6];
    let (layer, blob) = build(&files(&sizes), &batched(0x1000));
    let expected = [
        Some(0), // 1000
        Some(0), // 3047 bytes
        Some(0), // 4095: one less than the limit
        None,    // 2048 is no less than half of the limit
        Some(1),
        Some(1),
        Some(2), // 100 + 2047 + 2047 is beyond it
        Some(2),
        None,
        Some(3),
        None,
        Some(4),
    ];
    assert_eq!(batches(&table(&layer, &blob)), expected);
    assert_readable(&layer, &blob);
    // One byte more and the third file would not fit.
    let (layer, blob) = build(&files(&[1000, 2047, 1049]), &batched(0x1000));
    assert_eq!(batches(&table(&layer, &blob)), [Some(0), Some(0), Some(1)]);
    // Known chunks neither go into a batch nor end one.
    let mut tar = Tar::new();
    let large = bytes(9, 5000);
    tar.add(Entry::file("large", large.clone()))
        .add(Entry::file("a", "a"))
        .add(Entry::file("copy", large))
        .add(Entry::file("a2", "a"))
        .add(Entry::file("b", "b"));
    let (layer, blob) = build(&tar.finish(), &batched(0x1000));
    assert_eq!(batches(&table(&layer, &blob)), [None, Some(0), Some(0)]);
}

/// The batch of each new chunk by the rules of the format, for files of these sizes and contents.
fn by_the_rules(files: &[(usize, u64)], batch_size: usize, chunk_size: usize) -> Vec<Option<u32>> {
    let (mut out, mut known) = (Vec::new(), HashSet::new());
    let (mut batch, mut filled) = (0, 0);
    for &(size, seed) in files {
        let data = bytes(seed, size);
        for chunk in data.chunks(chunk_size) {
            if !known.insert(chunk.to_vec()) {
                continue;
            }
            let eligible = size <= chunk_size && size < batch_size / 2;
            if filled != 0 && (!eligible || filled + size >= batch_size) {
                (batch, filled) = (batch + 1, 0);
            }
            filled += if eligible { size } else { 0 };
            out.push(eligible.then_some(batch));
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn batches_are_those_of_the_rules(
        files in vec((prop_oneof![1..60_usize, 1000..2100_usize, 1..9000_usize], 0..40_u64), 0..60),
        batch_size in prop_oneof![Just(0x1000), Just(0x2000)],
        memory in 1..(4_usize << 20),
        threads in 1..4_usize,
    ) {
        let mut tar = Tar::new();
        for (number, &(size, seed)) in files.iter().enumerate() {
            tar.add(Entry::file(format!("{number:03}"), bytes(seed, size)));
        }
        let options = BuildOptions {
            batch_size,
            chunk_size: 0x2000,
            ..options_with(threads, memory)
        };
        let (layer, blob) = build(&tar.finish(), &options);
        let expected = by_the_rules(&files, batch_size as usize, 0x2000);
        prop_assert_eq!(layer.table.is_none(), expected.is_empty());
        if layer.table.is_some() {
            prop_assert_eq!(batches(&table(&layer, &blob)), expected);
            assert_readable(&layer, &blob);
        }
    }
}

#[test]
fn last_chunks_of_larger_files_are_in_no_batch() {
    let options = BuildOptions {
        chunk_size: 0x1000,
        ..batched(0x1000)
    };
    let (layer, blob) = build(&files(&[10, 4097, 20]), &options);
    assert_eq!(
        batches(&table(&layer, &blob)),
        [Some(0), None, None, Some(1)]
    );
    assert_readable(&layer, &blob);
}

#[test]
fn everything_can_be_read_back_and_depends_on_the_input_alone() {
    let tar = busy_tar();
    for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
        for batch_size in [0, 0x1000, 0x1_0000, 0x10_0000] {
            for encryption in [None, Some(key())] {
                let made = |threads, memory| {
                    let options = BuildOptions {
                        batch_size,
                        compressor,
                        encryption: encryption.clone(),
                        ..options_with(threads, memory)
                    };
                    build(&tar, &options)
                };
                let (layer, blob) = made(1, 1);
                let (_, other) = made(3, 8 << 20);
                assert!(blob == other, "{compressor} {batch_size:#x}");
                assert_readable(&layer, &blob);
                let features = layer.image.blobs[0].features;
                assert_eq!(features.contains(BlobFeatures::BATCH), batch_size != 0);
                assert_eq!(
                    features.contains(BlobFeatures::ENCRYPTED),
                    encryption.is_some()
                );
            }
        }
    }
}

#[test]
fn encrypted_chunks_that_are_hard_to_tell_apart_are_read_back() {
    // Filled up by the cipher, as long as one that was filled up, and batches of such sizes.
    let mut tar = Tar::new();
    for size in [1_u8, 15, 16, 17, 18, 19] {
        tar.add(Entry::file(format!("f{size}"), vec![size; size.into()]));
        tar.add(Entry::file(format!("g{size}"), bytes(size.into(), 5000)));
    }
    let mut looks_filled = vec![3; 16];
    looks_filled.extend([0x78, 0x90]);
    tar.add(Entry::file("looks-filled", looks_filled));
    // One of these has such a compressed form.
    let mut encoder = Encoder::new(Compressor::Lz4Block, 0).unwrap();
    let mut met = false;
    for count in 0..16 {
        let mut data = vec![0; 100];
        data.extend(1..count);
        data.extend([0x78, 0x90]);
        let compressed = encoder.compress(&data).unwrap();
        met |= compressed.is_some_and(BlobCipher::looks_filled);
        tar.add(Entry::file(format!("compressed-{count}"), data));
    }
    assert!(met);
    for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
        for batch_size in [0, 0x1000] {
            let options = BuildOptions {
                compressor,
                encryption: Some(key()),
                ..batched(batch_size)
            };
            let (layer, blob) = build(&tar.finish(), &options);
            assert_readable(&layer, &blob);
            let meta = table(&layer, &blob);
            for index in 0.. {
                let Some(batch) = meta.batch(index) else {
                    break;
                };
                assert!(batch.uncompressed_size > 18, "{batch:?}");
            }
        }
    }
}

#[test]
fn tiny_chunks_grow_by_encryption_and_still_fit_their_buffers() {
    let mut tar = Tar::new();
    for number in 0..40_000_u32 {
        tar.add(Entry::file(format!("{number}"), &number.to_le_bytes()[..3]));
    }
    let options = BuildOptions {
        chunk_size: 0x1000,
        encryption: Some(key()),
        ..options_with(2, 1 << 20)
    };
    let (layer, blob) = build(&tar.finish(), &options);
    assert_readable(&layer, &blob);
    assert_eq!(table(&layer, &blob).chunk(5).unwrap().compressed_size, 18);
}

#[test]
fn every_blob_has_a_key_of_its_own() {
    let options = BuildOptions {
        encryption: Some(Encryption::Random),
        ..options()
    };
    let tar = files(&[100, 20_000]);
    let (one, first) = build(&tar, &options);
    let (two, second) = build(&tar, &options);
    assert_readable(&one, &first);
    assert_readable(&two, &second);
    let (key, iv) = one.image.blobs[0].cipher_key().unwrap();
    let (other_key, other_iv) = two.image.blobs[0].cipher_key().unwrap();
    assert!(key != other_key && iv != other_iv);
    assert!(key[..16] != key[16..]);
    assert_eq!(format!("{:?}", self::key()), "Key(BlobKey(..))");
}

#[test]
fn chunks_of_batches_are_shared_between_layers() {
    let mut tars = Vec::new();
    for layer in 0..3 {
        let mut tar = Tar::new();
        for number in 0..200 {
            tar.add(Entry::file(
                format!("{layer}/{number}"),
                bytes(number / 2 + layer * 30, 300),
            ));
        }
        tars.push(tar.finish());
    }
    let options = batched(0x2000);
    let mut blobs = vec![Vec::new(); 3];
    let built: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = tars
            .iter()
            .zip(&mut blobs)
            .zip(Turn::for_layers(3))
            .map(|((tar, blob), turn)| {
                let options = &options;
                scope.spawn(move || build_tar(&tar[..], blob, options, Dedup::Image(turn)).unwrap())
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(built[1].stats.chunks, 30);
    let merged = merge(built.into_iter().map(|layer| layer.image).collect()).unwrap();
    let tables: Vec<_> = merged
        .blobs
        .iter()
        .map(|info| {
            let named = |blob: &&Vec<u8>| testkit::sha256(blob) == info.id.as_str();
            storage::read_blob_meta(info, blobs.iter().find(named).unwrap()).unwrap()
        })
        .collect();
    for record in &merged.chunks {
        let stored = tables[record.blob_index as usize]
            .chunk(record.index)
            .unwrap();
        assert_eq!(stored.uncompressed_offset, record.uncompressed_offset);
        assert_eq!(stored.uncompressed_size, record.uncompressed_size);
    }
    encode(&merged).unwrap();
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let failed = |options: &BuildOptions| {
        let tar = files(&[1]);
        build_tar(&tar[..], std::io::sink(), options, Dedup::Layer).unwrap_err()
    };
    for size in [1, 0x800, 0x1001, 0x20_0000] {
        let error = failed(&batched(size));
        assert!(matches!(error, Error::BatchSize { .. }), "{error}");
    }
    let v5 = BuildOptions {
        version: Version::V5,
        blob_toc: false,
        ..batched(0x1000)
    };
    assert!(matches!(failed(&v5), Error::NotInV5(_)));
    let v5 = BuildOptions {
        batch_size: 0,
        encryption: Some(key()),
        ..v5
    };
    assert!(matches!(failed(&v5), Error::NotInV5(_)));
}
