//! How file data is stored where nothing else is asked for.

use rafs_format::{Compressor, Version};

/// What the deployed tool does, or what is smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Small files are compressed together, in batches. Readers know these since 2.2; programs that take stored chunks
    /// out of blobs by the bootstrap's records alone (the deployed `compact` and `optimize`) do not.
    Dense,
    /// As the deployed tool does it: each chunk by itself.
    #[default]
    Compat,
}

impl Profile {
    /// Size of dense batches, in bytes. Smaller ones compress less; larger ones hardly more, and who reads one small file
    /// has to fetch and decode all of them.
    const BATCH_SIZE: u32 = 256 << 10;

    /// Batch size for such blobs, in bytes; 0 for no batches. Those of v5 can't have any. Those of the other compressors
    /// are chosen for reading fast, and nothing in an lz4 block says where it ends: who has a layer's chunk data alone
    /// would be lost.
    pub fn batch_size(self, version: Version, compressor: Compressor, chunk_size: u32) -> u32 {
        match (self, version, compressor) {
            (Self::Dense, Version::V6, Compressor::Zstd) => Self::BATCH_SIZE.min(chunk_size),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_made_where_they_can_be_and_are_worth_it() {
        let size = Profile::batch_size;
        assert_eq!(
            size(Profile::Dense, Version::V6, Compressor::Zstd, 1 << 20),
            Profile::BATCH_SIZE
        );
        assert_eq!(
            size(Profile::Dense, Version::V6, Compressor::Zstd, 0x1000),
            0x1000
        );
        for (profile, version, compressor) in [
            (Profile::Dense, Version::V5, Compressor::Zstd),
            (Profile::Dense, Version::V6, Compressor::Lz4Block),
            (Profile::Dense, Version::V6, Compressor::None),
            (Profile::Compat, Version::V6, Compressor::Zstd),
        ] {
            assert_eq!(size(profile, version, compressor, 1 << 20), 0);
        }
    }
}
