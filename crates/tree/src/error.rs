//! What can be wrong with images that are to be joined.

use rafs_format::Version;

/// Why images cannot be joined or compacted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The layers were built for different versions.
    #[error(
        "layers have different versions, RAFS {lower} below and {upper} above: build them alike"
    )]
    Version {
        /// Version of the lower image.
        lower: Version,
        /// Version of the upper image.
        upper: Version,
    },
    /// The layers were built with different chunk sizes.
    #[error(
        "layers have different chunk sizes, {lower:#x} below and {upper:#x} above: build them alike"
    )]
    ChunkSize {
        /// Chunk size of the lower image, in bytes.
        lower: u32,
        /// Chunk size of the upper image, in bytes.
        upper: u32,
    },
    /// Two bootstraps contradict each other about one blob.
    #[error(
        "two layers name the blob {id} but describe it differently: one of the bootstraps is not of this blob"
    )]
    BlobConflict {
        /// Id of the blob.
        id: String,
    },
    /// Two records contradict each other about one chunk.
    #[error(
        "two records describe chunk {row} of blob {blob} differently: one of the bootstraps is wrong"
    )]
    ChunkConflict {
        /// Index of the blob in the joined image.
        blob: u32,
        /// Row of the chunk in its blob.
        row: u32,
    },
    /// A chunk lies in a blob that the image does not have.
    #[error("a chunk lies in blob {index}, which the image does not have")]
    UnknownBlob {
        /// The blob index.
        index: u32,
    },
    /// A file has a chunk that the image does not have.
    #[error("a file refers to chunk {id}, which the image does not have")]
    UnknownChunk {
        /// The chunk id.
        id: u32,
    },
    /// More than 2^32 inodes.
    #[error("the joined image has more than 2^32 inodes")]
    TooManyInodes,
    /// More than 2^32 chunks.
    #[error("the joined image has more than 2^32 chunks")]
    TooManyChunks,
}
