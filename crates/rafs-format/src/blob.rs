//! Blob table entries: what a bootstrap knows of a blob.

use std::fmt;

use bitflags::bitflags;

use crate::{Cipher, Compressor, Digest, Digester, toc};

bitflags! {
    /// Features of a blob, in the blob table and in the blob meta header.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct BlobFeatures: u32 {
        /// Chunks begin on 4096-byte boundaries of the uncompressed address space.
        const ALIGNED = 0x1;
        /// The bootstrap lies in the blob.
        const INLINED_FS_META = 0x2;
        /// Chunk records have 24 bytes.
        const CHUNK_INFO_V2 = 0x4;
        /// Chunk data is in a gzip stream that is entered in the middle.
        const ZRAN = 0x8;
        /// Chunk data and blob meta lie in two blobs.
        const SEPARATE = 0x10;
        /// `blob.digest` is present.
        const INLINED_CHUNK_DIGEST = 0x20;
        /// The blob is a raw tar used as a device.
        const TARFS = 0x40;
        /// Small chunks are compressed together.
        const BATCH = 0x80;
        /// Chunk data is encrypted.
        const ENCRYPTED = 0x100;
        /// The entry was written by a chunk dictionary generator; counts may not match.
        const CHUNKDICT_GENERATED = 0x200;
        /// The blob holds copies of prefetched files.
        const SEPARATED_WITH_PREFETCH_FILES = 0x400;
        /// The data lives in an external backend.
        const EXTERNAL = 0x800;
        /// Pieces of the blob are followed by tar headers.
        const HAS_TAR_HEADER = 0x1000_0000;
        /// The blob ends in a table of contents.
        const HAS_TOC = 0x2000_0000;
        /// Sizes follow the rules of builders since v2.2.
        const CAP_TAR_TOC = 0x4000_0000;
    }
}

/// Identity of a blob: normally the lowercase hexadecimal SHA-256 of the blob file. At most 64 bytes, none NUL.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(String);

impl BlobId {
    /// The id that an inlined bootstrap carries before the blob's own digest is known: 64 times `x`.
    pub const PLACEHOLDER: &'static str =
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

    /// Takes an id of 1 to 64 printable ASCII bytes that is fit to be a file name.
    pub fn new(id: impl Into<String>) -> Option<Self> {
        let id = id.into();
        let plain = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b'\\';
        (!id.is_empty() && id.len() <= 64 && !id.starts_with('.') && id.bytes().all(plain))
            .then_some(Self(id))
    }

    /// The id a bootstrap has while its blob's digest is unknown.
    pub fn placeholder() -> Self {
        Self(Self::PLACEHOLDER.to_owned())
    }

    /// Whether the id is still to be replaced by the name of the file that the bootstrap came from.
    pub fn is_placeholder(&self) -> bool {
        self.0 == Self::PLACEHOLDER
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One entry of the v6 blob table (256 bytes on disk), together with the extended table of v5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Name of the blob in its backend.
    pub id: BlobId,
    /// Position in the blob table; the EROFS device id is one more.
    pub index: u32,
    /// Chunk size of the image, in bytes.
    pub chunk_size: u32,
    /// Chunks stored in the blob.
    pub chunk_count: u32,
    /// Compressor of the chunks.
    pub compressor: Compressor,
    /// Digester of the chunks.
    pub digester: Digester,
    /// See [`BlobFeatures`].
    pub features: BlobFeatures,
    /// Size of the blob file as known when the bootstrap was written.
    pub compressed_size: u64,
    /// End of the uncompressed address space.
    pub uncompressed_size: u64,
    /// Size of the table of contents with its tar header; 0 if unknown or inlined.
    pub toc_size: u32,
    /// SHA-256 of the table of contents and its tar header; zeros if unknown or inlined.
    pub toc_digest: Digest,
    /// Compressor of the chunk table ("CI table") in the blob.
    pub meta_compressor: Compressor,
    /// Where the chunk table begins in the blob file; the 4096-byte header follows it.
    pub meta_offset: u64,
    /// Stored size of the chunk table, without its header.
    pub meta_compressed_size: u64,
    /// Size of the chunk table once decompressed, without its header.
    pub meta_uncompressed_size: u64,
    /// Id of the RAFS blob of a separate (zran) blob, or the key of an encrypted one (see [`BlobInfo::cipher_key`]).
    pub meta_digest: Digest,
    /// Size of the RAFS blob of a separate (zran) blob, or the first half of the tweak of an encrypted one.
    pub meta_size: u64,
    /// Last eight bytes of the tweak of an encrypted blob.
    pub cipher_iv: [u8; 8],
    /// Cipher of the chunks, the chunk table and its header.
    pub cipher: Cipher,
    /// Stored bytes at the head of the blob that belong to files to fetch first; v5 alone has a place for it.
    pub readahead_size: u32,
}

impl BlobInfo {
    /// A blob of which nothing more is known: without chunks, features and chunk table.
    pub fn new(id: BlobId, chunk_size: u32, compressor: Compressor, digester: Digester) -> Self {
        Self {
            id,
            index: 0,
            chunk_size,
            chunk_count: 0,
            compressor,
            digester,
            features: BlobFeatures::empty(),
            compressed_size: 0,
            uncompressed_size: 0,
            toc_size: 0,
            toc_digest: [0; 32],
            meta_compressor: Compressor::None,
            meta_offset: 0,
            meta_compressed_size: 0,
            meta_uncompressed_size: 0,
            meta_digest: [0; 32],
            meta_size: 0,
            cipher_iv: [0; 8],
            cipher: Cipher::None,
            readahead_size: 0,
        }
    }

    /// Key (two AES-128 halves) and tweak of an encrypted blob; `None` if the blob is not encrypted.
    pub fn cipher_key(&self) -> Option<([u8; 32], [u8; 16])> {
        if self.cipher == Cipher::None {
            return None;
        }
        let mut iv = [0; 16];
        iv[..8].copy_from_slice(&self.meta_size.to_le_bytes());
        iv[8..].copy_from_slice(&self.cipher_iv);
        Some((self.meta_digest, iv))
    }

    /// Whether the blob holds a table of its chunks. One of v5 does not: where its chunks are stored is said by their
    /// records in the bootstrap.
    pub fn has_chunk_table(&self) -> bool {
        self.meta_uncompressed_size != 0
    }

    /// Whether chunks are the beginnings of gzip members in an eStargz layer, in either version. The stored sizes in their records are upper
    /// bounds then, which may even go beyond the end of the blob, and no blob holds the table of chunks.
    pub fn is_estargz(&self) -> bool {
        self.compressor == Compressor::Gzip
            && !self
                .features
                .intersects(BlobFeatures::ZRAN | BlobFeatures::SEPARATE)
    }

    /// Whether readers know where chunks are stored by the records of the bootstrap alone.
    pub fn is_located_by_bootstrap(&self) -> bool {
        !self.has_chunk_table() || self.is_estargz()
    }

    /// The blob that holds the table of this one's chunks, if that is another blob; `None` if the table is in the blob
    /// itself, or if the bootstrap leaves open where it is.
    pub fn table_blob(&self) -> Option<BlobId> {
        let named = self.features.contains(BlobFeatures::SEPARATE) && self.meta_digest != [0; 32];
        named
            .then(|| BlobId::new(hex::encode(self.meta_digest)))
            .flatten()
    }

    /// Describes the blob as a file that is its chunk data and nothing behind it: without chunk table, headers and
    /// bootstrap.
    pub fn cut_to_data(&mut self) {
        self.compressed_size = self.data_size();
        self.features -= BlobFeatures::HAS_TAR_HEADER;
        (
            self.meta_offset,
            self.meta_compressed_size,
            self.meta_uncompressed_size,
        ) = (0, 0, 0);
    }

    /// Length of the pure chunk data at the head of the blob file: the bound of every compressed offset.
    pub fn data_size(&self) -> u64 {
        let header = if self.features.contains(BlobFeatures::HAS_TAR_HEADER) {
            toc::TAR_HEADER_SIZE as u64
        } else {
            0
        };
        if self.features.contains(BlobFeatures::SEPARATE)
            || !self.features.contains(BlobFeatures::CAP_TAR_TOC)
        {
            self.compressed_size
        } else if self.meta_uncompressed_size != 0 {
            self.meta_offset.saturating_sub(header)
        } else {
            self.compressed_size.saturating_sub(header)
        }
    }
}
