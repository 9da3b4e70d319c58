//! Images of chunks that are numbers.

use std::collections::HashMap;
use std::path::PathBuf;

use chunkdict::ChunkKey;
use chunkdict_store::{Error, Import, Snapshot, Store, Writer};
use progress::Cancel;
use rafs_format::{BlobId, BlobInfo, ChunkFlags, ChunkRecord, Compressor, Digester, Version};
use tree::{Image, Tree};

pub const CHUNK: u32 = 4096;

pub fn key(content: u32) -> ChunkKey {
    let mut digest = [0; 32];
    let mixed = content.wrapping_mul(0x9e37_79b9);
    digest[..4].copy_from_slice(&mixed.to_be_bytes());
    digest[28..].copy_from_slice(&content.to_be_bytes());
    ChunkKey {
        digest,
        size: CHUNK,
    }
}

/// An image of blobs; of each its name and, row by row, which content a chunk has. `None`: the image lacks that row.
pub fn image(blobs: &[(&str, &[Option<u32>])]) -> Image {
    let mut image = Image {
        version: Version::V6,
        tree: Tree::new(),
        blobs: Vec::new(),
        chunks: Vec::new(),
        chunk_size: CHUNK,
        prefetch: Vec::new(),
        compressor: Compressor::Zstd,
        digester: Digester::Blake3,
        explicit_owners: true,
        tarfs: false,
    };
    for (index, (name, rows)) in (0..).zip(blobs) {
        let id = BlobId::new(*name).unwrap();
        image.blobs.push(BlobInfo {
            index,
            chunk_count: 100,
            ..BlobInfo::new(id, CHUNK, Compressor::Zstd, Digester::Blake3)
        });
        for (row, content) in (0..).zip(*rows) {
            let Some(content) = content else { continue };
            image.chunks.push(ChunkRecord {
                digest: key(*content).digest,
                blob_index: index,
                flags: ChunkFlags::COMPRESSED,
                compressed_size: 1000,
                uncompressed_size: CHUNK,
                compressed_offset: u64::from(row) * 1000,
                uncompressed_offset: u64::from(row) * u64::from(CHUNK),
                file_offset: 77,
                index: row,
                crc32: 0,
            });
        }
    }
    image
}

/// What a dictionary takes of such an image, whose id is that of its name.
pub fn import(name: &str, blobs: &[(&str, &[Option<u32>])]) -> Import {
    of_image(name, image(blobs)).unwrap()
}

pub fn of_image(name: &str, image: Image) -> Result<Import, Error> {
    let id = *blake3::hash(name.as_bytes()).as_bytes();
    Import::of_image(name, id, image, &HashMap::new())
}

/// Rows that an image has all of.
pub fn all(contents: impl IntoIterator<Item = u32>) -> Vec<Option<u32>> {
    contents.into_iter().map(Some).collect()
}

/// A dictionary in a scratch directory.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("dictionary")
    }

    pub fn store(&self) -> Store {
        Store::create(&self.path()).unwrap()
    }

    pub fn writer(&self) -> Writer {
        self.store().writer(&Cancel::default()).unwrap()
    }

    pub fn add(&self, imports: &[Import]) {
        self.writer().add(imports.to_vec()).unwrap();
    }

    pub fn snapshot(&self) -> Snapshot {
        self.store().snapshot().unwrap().0
    }

    /// The file of the current snapshot.
    pub fn file(&self) -> PathBuf {
        let id = self.store().catalogue().unwrap().snapshot.unwrap();
        self.path().join("snapshots").join(hex::encode(id))
    }

    /// Names of all files of snapshots.
    pub fn files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.path().join("snapshots")).unwrap();
        files.map(|file| file.unwrap().path()).collect()
    }
}

/// In which blobs and rows a content lies.
pub fn places(snapshot: &Snapshot, content: u32) -> Vec<(String, u32)> {
    let records = snapshot.index().places(&key(content));
    records
        .map(|record| {
            let blob = &snapshot.blobs()[record.blob_index as usize];
            (blob.id.to_string(), record.index)
        })
        .collect()
}
