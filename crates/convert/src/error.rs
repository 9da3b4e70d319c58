use std::collections::{BTreeSet, HashMap};

use image::Digest;
use progress::Cancelled;
use rafs_format::BlobId;

/// Why an image cannot be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The source cannot be read, or the target cannot be written.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// One image of an index cannot be converted.
    #[error("cannot convert the image for {platform} ({digest})")]
    Entry {
        /// Its platform.
        platform: String,
        /// Its manifest.
        digest: Digest,
        /// Why not.
        source: Box<Error>,
    },
    /// A layer cannot be converted.
    #[error("cannot convert layer {digest}")]
    Layer {
        /// The layer.
        digest: Digest,
        /// Why not.
        source: Box<LayerError>,
    },
    /// The configuration is about other layers than the manifest.
    #[error("manifest {manifest} has {layers} layers, its configuration {diff_ids} diff ids")]
    LayerCount {
        /// The manifest.
        manifest: Digest,
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the configuration.
        diff_ids: usize,
    },
    /// The layers cannot be laid over each other, or the result not be encoded.
    #[error("cannot merge the layers of {manifest}")]
    Merge {
        /// The manifest.
        manifest: Digest,
        /// Why not.
        source: Box<builder::Error>,
    },
    /// The bootstrap cannot be packed.
    #[error("cannot pack the bootstrap of {manifest}")]
    Pack {
        /// The source's manifest.
        manifest: Digest,
        /// What the compressor said.
        source: std::io::Error,
    },
    /// The directory with indexes cannot be used.
    #[error("cannot keep indexes in {}", dir.display())]
    Index {
        /// The directory.
        dir: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The chunk cache cannot be looked after.
    #[error(transparent)]
    Cache(#[from] storage::Error),
    /// The bootstrap of an image that is copied is malformed.
    #[error("cannot read the bootstrap of {manifest}")]
    Bootstrap {
        /// The image's manifest.
        manifest: Digest,
        /// What is wrong with it.
        source: rafs_format::Error,
    },
    /// A blob has a name that no registry can have it under.
    #[error(
        "{manifest} has a blob with the id {id:?}, which is no SHA-256: it cannot be listed in the image"
    )]
    BlobId {
        /// The image's manifest.
        manifest: Digest,
        /// The blob's id.
        id: String,
    },
    /// There is no image that could be optimized.
    #[error("{0} holds no Nydus image for this platform; convert it first")]
    NotNydus(Digest),
    /// A trace does not say what the image needs first.
    #[error(transparent)]
    Trace(Box<trace::Error>),
    /// The list of files to fetch first is none.
    #[error(transparent)]
    List(Box<builder::Error>),
    /// The image is not made of its layers alone.
    #[error(
        "{manifest} uses blob {id}, which it does not list: name the backend that has it with --source-backend-type"
    )]
    Unlisted {
        /// The image's manifest.
        manifest: Digest,
        /// The blob.
        id: String,
    },
    /// An image cannot be optimized.
    #[error("cannot optimize {manifest}")]
    Optimize {
        /// The image's manifest.
        manifest: Digest,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The new image could not be checked.
    #[error("cannot check the new image of {manifest}")]
    CheckFailed {
        /// The source's manifest.
        manifest: Digest,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The new image is not equal to its source.
    #[error("the new image is not equal to its source {manifest}; nothing was tagged")]
    Different {
        /// The source's manifest.
        manifest: Digest,
        /// What differs.
        report: Box<verify::Report>,
    },
    /// The chunk dictionary cannot be used.
    #[error(transparent)]
    Dictionary(Box<crate::DictionaryError>),
    /// Blobs of the chunk dictionary that the image refers to are gone.
    #[error("blobs of the chunk dictionary are gone: {}", crate::dictionary::names(.0))]
    DictionaryGone(BTreeSet<BlobId>),
    /// An image would have more blobs than the format has room for.
    #[error("the image would use {} blobs with the chunk dictionary", .worth.len())]
    TooManyBlobs {
        /// Blobs of its own.
        own: usize,
        /// Stored bytes that it has of each blob.
        worth: Box<HashMap<BlobId, u64>>,
    },
    /// What is in the place of the build cache is something else.
    #[error(
        "{name} is {what}, not a build cache, and would be lost: give the build cache another name"
    )]
    NotCache {
        /// The cache's name.
        name: String,
        /// What is there.
        what: &'static str,
    },
    /// No threads could be started.
    #[error("cannot start threads")]
    Threads(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The source holds no image.
    #[error("the source holds no image")]
    NoImage,
}

/// Why a layer cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It cannot be read, or its blob not be written.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// It cannot be built.
    #[error(transparent)]
    Build(#[from] builder::Error),
    /// Its content is not what the configuration says.
    #[error("its diff id is {actual}, the configuration says {expected}")]
    DiffId {
        /// In the configuration.
        expected: Digest,
        /// Of the content.
        actual: Digest,
    },
    /// The table of contents of an eStargz layer is not the one that the manifest names.
    #[error("its table of contents is {actual}, the manifest says {expected}")]
    Toc {
        /// In the manifest.
        expected: Digest,
        /// In the layer.
        actual: Digest,
    },
    /// A thread ended early.
    #[error("a stage of the conversion stopped without a reason; this is a bug")]
    Stopped,
}

impl LayerError {
    /// Whether the target failed, not the source.
    pub(crate) fn is_of_target(&self) -> bool {
        matches!(self, Self::Build(builder::Error::Write(_))) || self.is_lost()
    }

    /// Whether the target lost what was written of the blob: it can be written again from its start.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Image(image::Error::Lost(_)) => true,
            Self::Build(builder::Error::Write(error)) => error
                .get_ref()
                .and_then(|inner| inner.downcast_ref())
                .is_some_and(|inner| matches!(inner, image::Error::Lost(_))),
            _ => false,
        }
    }
}

impl Error {
    /// Whether it only says that something else went wrong, or that the caller asked to stop.
    pub(crate) fn is_consequence(&self) -> bool {
        use builder::Error as Build;
        match self {
            Self::Cancelled => true,
            Self::Layer { source, .. } => matches!(
                **source,
                LayerError::Build(Build::Cancelled | Build::Stopped | Build::LowerLayer)
            ),
            _ => false,
        }
    }
}

/// An error and what led to it, as one line.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<crate::DictionaryError> for Error {
    fn from(error: crate::DictionaryError) -> Self {
        Self::Dictionary(Box::new(error))
    }
}

impl From<Cancelled> for Error {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}
