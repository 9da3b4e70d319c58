/// Why a bootstrap cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More than the format can express.
    #[error("{what} is too large: the format allows {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// What is allowed.
        limit: &'static str,
    },
    /// More blobs than the format can express.
    #[error(
        "the image needs {0} blobs, the format allows 255: share chunks between fewer images, or squash layers"
    )]
    TooManyBlobs(usize),
    /// A file that the format cannot express.
    #[error("{path}: {what}")]
    File {
        /// Path in the image.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A record that the format cannot express.
    #[error("cannot encode {path}")]
    Encode {
        /// Path in the image, or the table.
        path: String,
        /// What is wrong.
        source: rafs_format::Error,
    },
    /// A bootstrap that cannot be loaded.
    #[error("cannot load {path} from the bootstrap")]
    Load {
        /// Path in the image, or the table.
        path: String,
        /// What is wrong.
        source: rafs_format::Error,
    },
    /// A bootstrap whose parts contradict each other.
    #[error("{path}: {what}")]
    Damaged {
        /// Path in the image, or the table.
        path: String,
        /// The contradiction.
        what: String,
    },
}
