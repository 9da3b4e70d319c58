//! Bootstraps of images that nobody has: files of some chunks each, all different.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rafs_format::{
    BlobFeatures, BlobId, BlobInfo, ChunkFlags, ChunkRecord, Compressor, Digest, Digester, Version,
};
use tree::{ChunkId, Content, Image, Inode, InodeId, Tree, mode};

/// Chunks of an image.
pub const CHUNKS: u64 = 100_000;
/// Size of a chunk in bytes, and what is stored of it.
pub const CHUNK: u32 = 64 << 10;
const STORED: u32 = 20_000;
/// Blobs of an image.
const BLOBS: u64 = 5;
/// Chunks of a file.
const PER_FILE: u64 = 4;

/// A number without a pattern, the same for the same number (SplitMix64's mixing).
pub fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The digest of a chunk of all images.
pub fn digest(number: u64) -> Digest {
    let mut digest = [0; 32];
    for (part, bytes) in (0_u64..).zip(digest.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&mixed(number.wrapping_mul(4).wrapping_add(part)).to_le_bytes());
    }
    digest
}

/// Writes the bootstrap of an image below `work`.
///
/// # Errors
/// If it cannot be encoded or written.
pub fn write(work: &Path, number: u64) -> Result<PathBuf> {
    let path = work.join(format!("{number}.boot"));
    std::fs::write(&path, bootstrap::encode(&image(number)?)?)?;
    Ok(path)
}

fn image(number: u64) -> Result<Image> {
    let rows = CHUNKS / BLOBS;
    let mut blobs = Vec::new();
    for index in 0..BLOBS {
        blobs.push(blob(number * BLOBS + index, index as u32, rows)?);
    }
    let chunks = (0..CHUNKS).map(|at| {
        let row = at % rows;
        ChunkRecord {
            digest: digest(number * CHUNKS + at),
            blob_index: (at / rows) as u32,
            flags: ChunkFlags::COMPRESSED,
            compressed_size: stored(row),
            uncompressed_size: CHUNK,
            // Half of the bound, with a remainder that differs: no run of offsets is regular.
            compressed_offset: row * u64::from(STORED) + mixed(row) % 1000,
            uncompressed_offset: row * u64::from(CHUNK),
            file_offset: (at % PER_FILE) * u64::from(CHUNK),
            index: row as u32,
            crc32: 0,
        }
    });
    Ok(Image {
        version: Version::V6,
        tree: files(),
        blobs,
        chunks: chunks.collect(),
        chunk_size: CHUNK,
        prefetch: Vec::new(),
        compressor: Compressor::Zstd,
        digester: Digester::Blake3,
        explicit_owners: true,
        tarfs: false,
    })
}

/// Stored size of the chunk in a row: less than what is left for it.
fn stored(row: u64) -> u32 {
    STORED - 1000 - (mixed(!row) % 10_000) as u32
}

fn blob(number: u64, index: u32, rows: u64) -> Result<BlobInfo> {
    let id = hex::encode(digest(!number));
    let id = BlobId::new(id).context("a digest makes no blob id")?;
    let end = rows * u64::from(STORED);
    Ok(BlobInfo {
        index,
        chunk_count: rows as u32,
        features: BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC,
        compressed_size: end + 16 * rows + 4096,
        uncompressed_size: rows * u64::from(CHUNK),
        meta_offset: end,
        meta_compressed_size: 16 * rows,
        meta_uncompressed_size: 16 * rows,
        ..BlobInfo::new(id, CHUNK, Compressor::Zstd, Digester::Blake3)
    })
}

/// A directory of files.
fn files() -> Tree {
    let mut tree = Tree::new();
    let header = |content| Inode {
        mode: mode::REGULAR | 0o644,
        content,
        implied: false,
        ..Inode::implied_directory()
    };
    for file in 0..CHUNKS / PER_FILE {
        let chunks = (0..PER_FILE).map(|at| ChunkId((file * PER_FILE + at) as u32));
        let inode = tree.add(header(Content::Regular {
            size: PER_FILE * u64::from(CHUNK),
            chunks: chunks.collect(),
        }));
        let entries = tree.entries_mut(InodeId::ROOT);
        let name = format!("{file:06}").into_bytes().into_boxed_slice();
        entries
            .expect("the root is a directory")
            .insert(name, inode);
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_synthetic_image_is_a_valid_one() {
        let bytes = bootstrap::encode(&image(3).unwrap()).unwrap();
        let parsed = bootstrap::Parsed::parse(bytes).unwrap();
        parsed.check().unwrap();
        let image = parsed.load().unwrap();
        assert_eq!(image.chunks.len() as u64, CHUNKS);
        let sum: usize = image.chunks.iter().filter(|chunk| chunk.index == 7).count();
        assert_eq!(sum as u64, BLOBS);
    }
}
