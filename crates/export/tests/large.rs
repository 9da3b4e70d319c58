//! Sparse files larger than 4 GiB, in every dialect of tar and both versions: every chunk is what it should be, and reads back.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;

use builder::{Budget, BuildOptions, Dedup, build_tar};
use rafs_format::{ChunkPointer, Compressor, Digest, Digester, Version};
use storage::{ChunkStore, LoadedBootstrap, NamedSource, StoreOptions, extract_bootstrap};
use testkit::noise;
use testkit::tar::{Entry, Sparse, Tar};
use tree::Content;

/// Bytes of a chunk.
const CHUNK: usize = 16 << 20;
/// The end of 32 bits.
const LIMIT: u64 = 1 << 32;
/// A size that is no multiple of anything.
const SIZE: u64 = LIMIT + 3 * CHUNK as u64 + 12_345;

/// Data around the limit, the last block of a chunk, and nearly the end.
fn pieces() -> Vec<(u64, Vec<u8>)> {
    vec![
        (512, noise(1, 1024)),
        (CHUNK as u64 - 512, noise(2, 512)),
        (LIMIT - 512, noise(3, 1024)),
        (SIZE - 11_345, noise(4, 700)),
    ]
}

/// What the chunk at `offset` of the file holds; `None` if nothing but zeros.
fn chunk(offset: u64) -> Option<Vec<u8>> {
    let size = (SIZE - offset).min(CHUNK as u64) as usize;
    let mut data = vec![0; size];
    let mut some = size < CHUNK;
    for (at, bytes) in pieces() {
        for (position, byte) in (at..).zip(bytes) {
            if (offset..offset + size as u64).contains(&position) {
                data[(position - offset) as usize] = byte;
                some = true;
            }
        }
    }
    some.then_some(data)
}

fn assert_large(dialect: Sparse, version: Version) {
    let mut tar = Tar::new();
    tar.sparse(Entry::file("large", b""), dialect, SIZE, &pieces());
    tar.add(Entry::file("small", "small"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
    let options = BuildOptions {
        version,
        blob_toc: version == Version::V6,
        chunk_size: CHUNK as u32,
        compressor: Compressor::Lz4Block,
        ..BuildOptions::new(Arc::new(pool.unwrap()), Budget::new(64 << 20))
    };
    let mut blob = Vec::new();
    build_tar(&tar.finish()[..], &mut blob, &options, Dedup::Layer).unwrap();
    // Zeros are there once.
    assert!(blob.len() < 1 << 20, "{}", blob.len());

    let loaded = LoadedBootstrap::from_bytes(extract_bootstrap(&blob).unwrap()).unwrap();
    loaded.check().unwrap();
    let image = bootstrap::load_image(&loaded.bootstrap).unwrap();
    let id = image.tree.lookup(b"large").unwrap();
    let Content::Regular { size, chunks } = &image.tree.inode(id).content else {
        panic!("it is no file");
    };
    assert_eq!(*size, SIZE);
    assert_eq!(chunks.len() as u64, SIZE.div_ceil(CHUNK as u64));

    let mut source = NamedSource::new(None);
    let own = loaded.bootstrap.blobs()[0].id.clone();
    source.insert(own.as_str(), Arc::new(blob));
    let store = ChunkStore::open(&loaded.bootstrap, Arc::new(source), StoreOptions::default());
    let store = store.unwrap();
    let zeros = codec::digest(Digester::Blake3, &vec![0; CHUNK]);
    let mut read: HashMap<Digest, Vec<u8>> = HashMap::new();
    for (offset, id) in (0..SIZE).step_by(CHUNK).zip(chunks) {
        let record = image.chunks[id.0 as usize];
        let data = read.entry(record.digest).or_insert_with(|| {
            let pointer = ChunkPointer {
                blob_index: record.blob_index,
                index: record.index,
                uncompressed_offset: record.uncompressed_offset,
            };
            let mut bytes = vec![0; record.uncompressed_size as usize];
            store.read(pointer, 0, &mut bytes, &[]).unwrap();
            bytes
        });
        match chunk(offset) {
            Some(expected) => assert!(*data == expected, "{dialect:?} {version} at {offset:#x}"),
            None => assert_eq!(record.digest, zeros, "{dialect:?} {version} at {offset:#x}"),
        }
    }
    assert!(read[&zeros].iter().all(|byte| *byte == 0));
}

#[test]
fn sparse_files_of_more_than_4_gib_in_gnus_dialects() {
    assert_large(Sparse::Gnu, Version::V6);
    assert_large(Sparse::Pax10, Version::V5);
}

#[test]
fn sparse_files_of_more_than_4_gib_in_the_older_dialects_of_pax() {
    assert_large(Sparse::Pax00, Version::V5);
    assert_large(Sparse::Pax01, Version::V6);
}
