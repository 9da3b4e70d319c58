use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use progress::Cancelled;
use rafs_format::BlobId;

/// A list of files to fetch first, for messages.
const EXAMPLE: &str = r#"{"version": "v1", "files": [{"path": "/bin/app", "ranges": [[0, 4096]]}, {"path": "/etc/app.conf"}]}"#;

/// Why an image cannot be built, encoded, loaded or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// Chunk size outside of what the format allows.
    #[error("chunk size {0:#x} is not a power of two from 0x1000 to 0x1000000")]
    ChunkSize(u32),
    /// Batch size outside of what the format allows.
    #[error(
        "batch size {size:#x} is not a power of two from 0x1000 to the chunk size of {chunk_size:#x}"
    )]
    BatchSize {
        /// The batch size.
        size: u32,
        /// The chunk size.
        chunk_size: u32,
    },
    /// The system gives no random numbers for the key of an encrypted blob.
    #[error("cannot make a key for the blob")]
    Random(#[source] io::Error),
    /// The tar stream cannot be turned into a tree.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// A file or directory of the source cannot be read.
    #[error("cannot read {}", path.display())]
    Source {
        /// What was read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the source is something no image can hold.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// Path of the file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// File data was not taken.
    #[error("cannot cut the data into chunks")]
    Cut(#[source] io::Error),
    /// The compressor failed.
    #[error("cannot compress a chunk")]
    Compress(#[source] io::Error),
    /// The blob cannot be written.
    #[error("cannot write the blob")]
    Write(#[source] io::Error),
    /// No thread could be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A bug: a stage of the build panicked.
    #[error("the {stage} stage of the build panicked; this is a bug")]
    Panicked {
        /// Name of the stage.
        stage: &'static str,
    },
    /// Another stage of the build has failed and says why.
    #[error("another stage of the build failed")]
    Stopped,
    /// With chunks shared by all layers, each layer needs those below it.
    #[error("a lower layer of the image was not built")]
    LowerLayer,
    /// More than the format can express.
    #[error("{what} is too large: the format allows {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// What is allowed.
        limit: &'static str,
    },
    /// Gzip data in which inflating can begin at too few places.
    #[error(
        "the layer's gzip data has no place within {size} bytes of output at which inflating could begin, so its files cannot be read one by one: compress the layer anew, or use targz-rafs"
    )]
    NoPlace {
        /// Bytes between two places.
        size: u64,
    },
    /// More blobs than the format can express.
    #[error(
        "the image needs {0} blobs, the format allows 255: share chunks between fewer images, or squash layers"
    )]
    TooManyBlobs(usize),
    /// A layer would take chunks of more blobs than one image can have, by stored bytes that it would take of each.
    #[error("the layer would use {} blobs with the chunk dictionary", .0.len())]
    DictionaryBlobs(Box<HashMap<BlobId, u64>>),
    /// A record that the format cannot express.
    #[error("cannot encode {path}")]
    Encode {
        /// Path in the image, or the table.
        path: String,
        /// What is wrong.
        source: rafs_format::Error,
    },
    /// A bootstrap that cannot be written or read.
    #[error(transparent)]
    Bootstrap(#[from] bootstrap::Error),
    /// Something asked for that is of v6 alone.
    #[error("{0} is not possible in RAFS v5: leave it out, or take v6")]
    NotInV5(&'static str),
    /// A blob of v5 that is to be one of v6.
    #[error(
        "blob {blob} of a v5 image is not known to hold a table of its chunks, without which no reader of v6 finds them: name the directory of the blobs, to look there and to put one beside the blob if there is none"
    )]
    NoChunkTable {
        /// The blob.
        blob: BlobId,
    },
    /// A blob that is to be looked into cannot be read.
    #[error("cannot read blob {id}")]
    Blob {
        /// Its id.
        id: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A chunk that is not what the image says of it.
    #[error("chunk {chunk} of blob {blob} cannot be copied")]
    Chunk {
        /// Its blob.
        blob: BlobId,
        /// Its row there.
        chunk: u32,
        /// What is wrong.
        source: storage::ChunkError,
    },
    /// Chunks that have to be decoded cannot be.
    #[error("cannot read the chunks of the image")]
    Store(#[source] storage::Error),
    /// A list of files to fetch first that is none.
    #[error("{0}: a list of files to fetch first is JSON such as {EXAMPLE}")]
    PrefetchList(String),
    /// A blob that has not the chunks that the image says.
    #[error(
        "chunk {chunk} lies elsewhere in blob {blob} than the bootstrap says: it is another blob"
    )]
    Contradiction {
        /// The blob.
        blob: BlobId,
        /// Number of the chunk.
        chunk: u32,
    },
    /// A gzip member of an eStargz layer that no record can describe.
    #[error("the gzip member at byte {offset} of the eStargz layer: {reason}")]
    Member {
        /// Where it begins in the blob.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Nothing to merge.
    #[error("there is no layer to merge")]
    NoLayers,
    /// Images that contradict each other.
    #[error(transparent)]
    Merge(#[from] tree::Error),
    /// A file whose data is said to lie elsewhere, but not in a way that can be.
    #[error("external file {path}: {what}")]
    External {
        /// Path in the directory, and the line that is about it.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// An image that no layer of this build can lie on.
    #[error(
        "the parent image differs from the build in {what}: it has {parent}, the build makes {build}; build alike"
    )]
    Parent {
        /// The attribute.
        what: &'static str,
        /// The parent's value.
        parent: String,
        /// The value of the build.
        build: String,
    },
    /// Images that cannot be merged.
    #[error("layer {layer} differs from the first one in {what}: {actual} instead of {expected}")]
    Inconsistent {
        /// Number of the layer, the first is 0.
        layer: usize,
        /// The attribute.
        what: &'static str,
        /// The first layer's value.
        expected: String,
        /// This layer's value.
        actual: String,
    },
}

impl From<Cancelled> for Error {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}
