use std::io;

use progress::Cancelled;
use storage::ReadError;

/// Why an image cannot be written in another form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The output cannot be written.
    #[error("cannot write the output")]
    Write(#[from] io::Error),
    /// Data of a file cannot be had.
    #[error("cannot read {}", path.escape_ascii())]
    Read {
        /// Path of the file in the image.
        path: Vec<u8>,
        /// What went wrong.
        source: ReadError,
    },
    /// A blob cannot be read.
    #[error("cannot read blob {id}")]
    Blob {
        /// Its id.
        id: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A chunk cannot be had.
    #[error("cannot read the data of the image")]
    Chunk(#[source] ReadError),
    /// The image cannot be laid out as one disk.
    #[error("this cannot become a disk: {0}")]
    Disk(String),
    /// The image contradicts itself.
    #[error("{}: {what}", path.escape_ascii())]
    Damaged {
        /// Path of the file in the image.
        path: Vec<u8>,
        /// The contradiction.
        what: String,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}
