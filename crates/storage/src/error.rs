use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::ChunkError;

/// Why an image or its cache cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory cannot be used.
    #[error("{path}: cannot {what}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Reading a piece of a blob failed.
    #[error("cannot read {what} at byte {offset:#x} of the blob ({size} bytes)")]
    Read {
        /// The piece.
        what: &'static str,
        /// Where it begins in the blob file.
        offset: u64,
        /// Its size in bytes.
        size: u64,
        /// What the blob's place said.
        source: io::Error,
    },
    /// Bytes of an image break the format.
    #[error("{what} is not valid")]
    Format {
        /// The structure.
        what: &'static str,
        /// How.
        source: rafs_format::Error,
    },
    /// The blob that holds the chunk table of another one cannot be opened.
    #[error("cannot open blob {id}, which holds the chunk table of blob {of}")]
    TableBlob {
        /// The blob with the table.
        id: String,
        /// The blob with the chunks.
        of: String,
        /// Why not.
        source: io::Error,
    },
    /// A bootstrap that cannot be read.
    #[error(transparent)]
    Bootstrap(::bootstrap::Error),
    /// A field of a structure is impossible.
    #[error("{what}: {problem}")]
    Invalid {
        /// The structure, with its blob or offset.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A stored piece does not decode.
    #[error("{what} does not decode")]
    Decode {
        /// The piece.
        what: &'static str,
        /// How.
        source: ChunkError,
    },
    /// A piece is not what its digest says.
    #[error("{what} has SHA-256 {actual}, but {expected} is recorded: the blob is damaged")]
    Digest {
        /// The piece.
        what: &'static str,
        /// Recorded digest, hexadecimal.
        expected: String,
        /// Digest of the bytes, hexadecimal.
        actual: String,
    },
    /// A piece is larger than any sound image has it.
    #[error("{what} of {size} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The piece.
        what: &'static str,
        /// Size that the image claims, in bytes.
        size: u64,
        /// Greatest size that is taken, in bytes.
        limit: u64,
    },
    /// The file is neither a bootstrap nor a blob that holds one.
    #[error("no bootstrap here: neither the superblock of one nor a blob's tail that holds one")]
    NoBootstrap,
    /// The image is of a kind that cannot be read yet.
    #[error("{what} is not supported yet: {feature}")]
    Unsupported {
        /// What asks for it.
        what: String,
        /// The kind.
        feature: &'static str,
    },
    /// An inlined bootstrap takes its blob's id from the file name, and the name is not fit for it.
    #[error(
        "the bootstrap names its own blob after the file, but {name:?} cannot be a blob id: rename the file to its SHA-256"
    )]
    BlobName {
        /// File name up to the first dot.
        name: String,
    },
    /// Something went wrong with the file at `path`.
    #[error("{path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: Box<Error>,
    },
    /// A process of another release has the cache directory for itself alone.
    #[error("the cache directory {dir} is in use by a process that does not share it: stop that mount or choose another directory", dir = dir.display())]
    CacheBusy {
        /// The directory.
        dir: PathBuf,
    },
    /// A blob's cache is in use for an image that has other chunks in a blob of the same id.
    #[error(
        "the cache of blob {blob} is in use for an image that has other chunks in it: choose another cache directory"
    )]
    CacheConflict {
        /// Id of the blob.
        blob: String,
    },
    /// The cache was written by a newer release.
    #[error("{path} has cache layout {version}, this release knows layout {known}: use the newer release or another directory", path = path.display())]
    CacheVersion {
        /// The map file.
        path: PathBuf,
        /// Layout version of the file.
        version: u32,
        /// Latest layout version that this release knows.
        known: u32,
    },
    /// A cache that was handed over by another process is not the one that the image wants.
    #[error("the cache of blob {blob} was changed while an image was mounted from it")]
    CacheLost {
        /// Id of the blob.
        blob: String,
    },
    /// A chunk that must be in the cache is not.
    #[error("the cache cannot be completed")]
    Incomplete {
        /// The first chunk that failed.
        source: ReadError,
    },
}

impl Error {
    /// Attaches the file that the error is about, unless it names it already.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            Self::Io {
                path: ref named, ..
            } if named == path => self,
            _ => Self::File {
                path: path.to_owned(),
                source: Box::new(self),
            },
        }
    }

    pub(crate) fn io(what: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            what: what.into(),
            problem: problem.into(),
        }
    }
}

/// A read that cannot be served with verified bytes. To a file system it is EIO.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot read chunk {index} of blob {blob} (uncompressed offset {offset:#x})")]
pub struct ReadError {
    /// Blob id, or the blob's index in the image if there is no such blob.
    pub blob: Arc<str>,
    /// Row of the chunk in its blob's chunk table.
    pub index: u32,
    /// Where the chunk begins in the blob's uncompressed address space, in bytes.
    pub offset: u64,
    /// What went wrong.
    #[source]
    pub cause: Arc<ReadCause>,
}

/// What made a read fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadCause {
    /// The image has no such blob, or no record of the chunk.
    #[error("the image does not know the chunk")]
    Unknown,
    /// The request does not fit the chunk.
    #[error("the request of {len} bytes at {start} does not fit the chunk of {size} bytes")]
    Bounds {
        /// First byte asked for, from the chunk's start.
        start: u64,
        /// Bytes asked for.
        len: usize,
        /// Size of the chunk in bytes.
        size: u32,
    },
    /// The blob cannot be opened, or its chunk table cannot be read.
    #[error("the blob cannot be opened")]
    Open(#[source] io::Error),
    /// The blob's chunk table cannot be used.
    #[error("the blob's chunk table cannot be used")]
    Meta(#[source] Arc<Error>),
    /// The blob's chunk table and the bootstrap disagree.
    #[error(
        "the blob's own table has the chunk at {actual:#x} with {actual_size} bytes, the bootstrap at {offset:#x} with {size} bytes"
    )]
    Mismatch {
        /// Uncompressed offset in the blob's chunk table.
        actual: u64,
        /// Uncompressed size in the blob's chunk table.
        actual_size: u32,
        /// Uncompressed offset in the bootstrap.
        offset: u64,
        /// Uncompressed size in the bootstrap.
        size: u32,
    },
    /// Stored bytes could not be fetched.
    #[error("cannot fetch {size} bytes at byte {offset:#x} of the blob")]
    Fetch {
        /// Where the stored bytes begin in the blob file.
        offset: u64,
        /// How many there are.
        size: u64,
        /// What the blob's place said.
        source: io::Error,
    },
    /// Stored bytes are not the chunk.
    #[error(transparent)]
    Decode(#[from] ChunkError),
    /// The chunk is needed in the cache file, and cannot be kept there.
    #[error("the cache takes no more: its disk is full or has failed")]
    NotKept,
}
