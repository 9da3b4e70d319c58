use std::io;
use std::path::{Path, PathBuf};

use progress::Cancelled;
use rafs_format::BlobId;

/// Why a dictionary cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The file system says no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no dictionary.
    #[error("{0} is no chunk dictionary; nydusify chunkdict add makes one")]
    None(PathBuf),
    /// There are no images in it.
    #[error("the chunk dictionary {0} is empty; add images with nydusify chunkdict add")]
    Empty(PathBuf),
    /// A file is not what was written.
    #[error(
        "{path} is damaged: {reason}; nydusify chunkdict rebuild makes the dictionary anew of its images"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How that is known.
        reason: &'static str,
    },
    /// A file is of a newer version of this program.
    #[error(
        "{path} has the layout {layout:?}, which this version does not know: use a newer one, or another directory"
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// What it says.
        layout: String,
    },
    /// A bootstrap is malformed.
    #[error("{name} has a malformed bootstrap")]
    Format {
        /// The image.
        name: String,
        /// What is wrong.
        source: rafs_format::Error,
    },
    /// A bootstrap contradicts itself, or cannot be decoded.
    #[error("{name} has an invalid bootstrap")]
    Invalid {
        /// The image.
        name: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An image has no chunks that others can use.
    #[error(
        "{0} has no blob whose chunks others can use (zran, encrypted and external blobs are none)"
    )]
    NoChunks(String),
    /// An image is of another kind than the dictionary.
    #[error(
        "{name} has {what} {theirs}, the chunk dictionary {ours}: use a dictionary of its own for it"
    )]
    Other {
        /// The image.
        name: String,
        /// In what they differ.
        what: &'static str,
        /// Of the image.
        theirs: String,
        /// Of the dictionary.
        ours: String,
    },
    /// An image and others tell different things of a blob.
    #[error(
        "{name} contradicts another image about {what} of blob {blob}: one of the two is damaged; remove the other one or leave this one out"
    )]
    Contradiction {
        /// The image that was read later.
        name: String,
        /// The blob.
        blob: BlobId,
        /// What of it: a chunk, or the blob as a whole.
        what: String,
    },
    /// An image has something else than the dictionary says.
    #[error(
        "the chunk dictionary says something else about {what} of {name} than the image itself"
    )]
    Changed {
        /// The image.
        name: String,
        /// In what they differ.
        what: String,
    },
    /// There is no such image.
    #[error("the chunk dictionary has no image {0}; nydusify chunkdict ls names them")]
    NoImage(String),
    /// There are too many chunks.
    #[error(transparent)]
    Full(#[from] chunkdict::IndexFull),
}

impl Error {
    /// Makes an error of one of the file system's.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn damaged(path: &Path, reason: &'static str) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason,
        }
    }
}

impl From<Cancelled> for Error {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}
