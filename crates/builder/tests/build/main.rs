//! Builds through the public interface: what comes out, and what happens when something goes wrong.
#![allow(clippy::unwrap_used)]

mod batch;
mod dedup;
mod directory;
mod external;
mod failure;
mod golden;
mod merge;
mod parent;
mod roundtrip;
mod tail;
mod transcode;

use std::sync::Arc;

use builder::{Budget, BuildOptions, BuiltLayer, Dedup, build_tar};
use rafs_format::{BlobInfo, ChunkFlags, ChunkRecord, Compressor};
use testkit::tar::{Entry, Tar};
use tree::{Content, Image};

/// Options with so many threads and so much memory.
fn options_with(threads: usize, memory: usize) -> BuildOptions {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    BuildOptions::new(Arc::new(pool), Budget::new(memory))
}

fn options() -> BuildOptions {
    options_with(2, 8 << 20)
}

/// The layer and its blob file.
fn build(tar: &[u8], options: &BuildOptions) -> (BuiltLayer, Vec<u8>) {
    let mut blob = Vec::new();
    let layer = build_tar(tar, &mut blob, options, Dedup::Layer).unwrap();
    assert_eq!(layer.blob_size, blob.len() as u64);
    (layer, blob)
}

/// Bytes that compress to about half; no two `seed`s give the same.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        let word = next();
        out.extend_from_slice(&word);
        out.extend_from_slice(&[word[0] & 3; 8]);
    }
    out.truncate(len);
    out
}

/// A layer with chunks of every size, duplicates, small files and a hard link.
fn busy_tar() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::directory("d"));
    for (i, len) in [
        1,
        4095,
        4096,
        4097,
        65_536,
        1 << 20,
        (1 << 20) + 1,
        3_500_000,
    ]
    .into_iter()
    .enumerate()
    {
        tar.add(Entry::file(
            format!("d/size{len}"),
            bytes(i as u64 + 1, len),
        ));
    }
    tar.add(Entry::file("copy", bytes(8, 3_500_000)));
    tar.add(Entry::hard("link", "copy"));
    for i in 0..600 {
        tar.add(Entry::file(
            format!("d/small{i}"),
            bytes(i % 500 + 100, 1000),
        ));
    }
    tar.add(Entry::file("zeros", vec![0; 2 << 20]))
        .add(Entry::file("empty", ""));
    tar.finish()
}

/// The uncompressed bytes of a chunk.
fn chunk(blob: &[u8], info: &BlobInfo, chunk: &ChunkRecord) -> Vec<u8> {
    let start = chunk.compressed_offset as usize;
    let stored = &blob[start..start + chunk.compressed_size as usize];
    let compressor = if chunk.flags.contains(ChunkFlags::COMPRESSED) {
        info.compressor
    } else {
        Compressor::None
    };
    let mut out = vec![0; chunk.uncompressed_size as usize];
    codec::decompress(compressor, stored, &mut out).unwrap();
    assert_eq!(codec::digest(info.digester, &out), chunk.digest);
    assert_eq!(codec::crc32c(&out), chunk.crc32);
    out
}

/// The content of a file, out of the blobs of its image in order.
fn content(image: &Image, blobs: &[&[u8]], path: &str) -> Vec<u8> {
    let id = image
        .tree
        .lookup(path.as_bytes())
        .unwrap_or_else(|| panic!("no {path}"));
    let Content::Regular { size, chunks } = &image.tree.inode(id).content else {
        panic!("{path} is no file")
    };
    let mut out = Vec::new();
    for id in chunks {
        let record = &image.chunks[id.0 as usize];
        let blob = record.blob_index as usize;
        out.extend(chunk(blobs[blob], &image.blobs[blob], record));
    }
    assert_eq!(out.len() as u64, *size);
    out
}
