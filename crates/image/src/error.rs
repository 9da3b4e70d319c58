use std::io;
use std::path::PathBuf;

use crate::Digest;

/// What can go wrong with an image in local files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A location without a known prefix.
    #[error(
        "registry references are not supported yet: {0:?} (local images are oci:DIR[:TAG], oci-archive:FILE[:TAG] \
         and docker-archive:FILE[:TAG])"
    )]
    Registry(String),
    /// A place that is no local file could not be read or written.
    #[error(transparent)]
    Remote(Box<dyn std::error::Error + Send + Sync>),
    /// A place that is no local file lost what was written of a blob, which can be written again from its start.
    #[error(transparent)]
    Lost(Box<dyn std::error::Error + Send + Sync>),
    /// A location that cannot be used this way.
    #[error("invalid location {location:?}: {reason}")]
    Location {
        /// The location as given.
        location: String,
        /// Why.
        reason: &'static str,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried: "open", "read", ...
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A document is not the JSON it should be.
    #[error("malformed {what}")]
    Json {
        /// Which document.
        what: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A document contradicts itself or its descriptor.
    #[error("invalid {what}: {reason}")]
    Document {
        /// Which document.
        what: String,
        /// Why.
        reason: String,
    },
    /// A digest that is not one.
    #[error("invalid digest {0:?}")]
    InvalidDigest(String),
    /// A digest of an algorithm that is not SHA-256.
    #[error("digest algorithm {algorithm:?} of {digest:?} is not supported, only sha256 is")]
    UnsupportedDigest {
        /// The digest as written.
        digest: String,
        /// Its algorithm.
        algorithm: String,
    },
    /// A blob that the image names is not there.
    #[error("blob {digest} is missing from {store}")]
    MissingBlob {
        /// The blob.
        digest: Digest,
        /// Where it was looked for.
        store: String,
    },
    /// The bytes of a blob are not those its digest promises.
    #[error("blob {expected} is corrupt: its content has digest {actual}")]
    DigestMismatch {
        /// The digest in the descriptor.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// A blob is shorter or longer than its descriptor says.
    #[error(
        "blob {digest} has {actual} bytes instead of {expected}: it is truncated or not what the image names"
    )]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// Bytes that the descriptor promises.
        expected: u64,
        /// Bytes found.
        actual: u64,
    },
    /// A document beyond what is read into memory.
    #[error("{what} of {size} bytes is beyond the limit of {limit} bytes")]
    TooLarge {
        /// Which document.
        what: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A media type that stands for nothing this program knows.
    #[error("unsupported media type {media_type:?} of {what}: {reason}")]
    MediaType {
        /// The media type.
        media_type: String,
        /// Of which object.
        what: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// A tag was asked for that is not there.
    #[error("{store} has no image {tag:?}; it has {available}")]
    NoSuchTag {
        /// The layout or archive.
        store: String,
        /// The tag.
        tag: String,
        /// The tags it has, as text.
        available: String,
    },
    /// No tag was asked for and there are several images, or a name fits several.
    #[error(
        "{store} has several images that fit; add one of these tags to the location: {available}"
    )]
    Ambiguous {
        /// The layout or archive.
        store: String,
        /// The tags it has, as text.
        available: String,
    },
    /// An archive is not what its location says.
    #[error("archive {path}: {reason}", path = path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// No manifest of an index fits the platforms asked for.
    #[error("no image for {wanted}; there is {available}")]
    NoPlatform {
        /// The platforms asked for, as text.
        wanted: String,
        /// The platforms of the index, as text.
        available: String,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] progress::Cancelled),
    /// A platform that is not `os/architecture[/variant]`.
    #[error("invalid platform {0:?}: it must be OS/ARCHITECTURE[/VARIANT]")]
    InvalidPlatform(String),
}

impl Error {
    /// An [`Error::Io`] maker for `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
