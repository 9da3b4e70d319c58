//! Chunk records: what a bootstrap knows of a chunk.

use bitflags::bitflags;

/// A chunk or blob digest: BLAKE3 or SHA-256, 32 bytes either way.
pub type Digest = [u8; 32];

bitflags! {
    /// Flags of a chunk record.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct ChunkFlags: u32 {
        /// The stored bytes are compressed.
        const COMPRESSED = 0x1;
        /// Declared by the format, never written.
        const HOLE = 0x2;
        /// The stored bytes are encrypted.
        const ENCRYPTED = 0x4;
        /// The chunk lies in a batch.
        const BATCH = 0x8;
        /// `crc32` is meaningful.
        const HAS_CRC32 = 0x10;
    }
}

/// One entry of the chunk table: 80 bytes on disk.
///
/// | Offset | Size | Field |
/// |---|---|---|
/// | 0 | 32 | `digest` |
/// | 32 | 4 | `blob_index` |
/// | 36 | 4 | `flags` |
/// | 40 | 4 | `compressed_size` |
/// | 44 | 4 | `uncompressed_size` |
/// | 48 | 8 | `compressed_offset` |
/// | 56 | 8 | `uncompressed_offset` |
/// | 64 | 8 | `file_offset` |
/// | 72 | 4 | `index` |
/// | 76 | 4 | `crc32` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRecord {
    /// Digest of the uncompressed bytes.
    pub digest: Digest,
    /// Position of the chunk's blob in the blob table.
    pub blob_index: u32,
    /// See [`ChunkFlags`].
    pub flags: ChunkFlags,
    /// Bytes stored in the blob; 0 for a member of a batch.
    pub compressed_size: u32,
    /// Bytes of file data.
    pub uncompressed_size: u32,
    /// Where the stored bytes begin in the blob file.
    pub compressed_offset: u64,
    /// Where the chunk begins in the blob's uncompressed address space; a multiple of the block size in v6.
    pub uncompressed_offset: u64,
    /// Where the chunk lies in (one of) the files that use it; informational.
    pub file_offset: u64,
    /// Row of the chunk in its blob's chunk table.
    pub index: u32,
    /// CRC-32C of the uncompressed bytes, if [`ChunkFlags::HAS_CRC32`].
    pub crc32: u32,
}

impl ChunkRecord {
    /// A chunk of a tarfs image, which is nothing but a place: `size` bytes of a file that lie at `offset` of the tar, and
    /// there as they are.
    pub fn in_tar(
        (blob_index, index): (u32, u32),
        offset: u64,
        file_offset: u64,
        size: u32,
    ) -> Self {
        Self {
            digest: [0; 32],
            blob_index,
            flags: ChunkFlags::empty(),
            compressed_size: size,
            uncompressed_size: size,
            compressed_offset: offset,
            uncompressed_offset: offset,
            file_offset,
            index,
            crc32: 0,
        }
    }
}
