use std::io;

/// Why something cannot be told of a bootstrap.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The output cannot be written.
    #[error("cannot write the output")]
    Write(#[from] io::Error),
    /// The bootstrap is damaged.
    #[error("the bootstrap is damaged at {}", path.escape_ascii())]
    Damaged {
        /// Path of the file in the image.
        path: Vec<u8>,
        /// What is wrong.
        source: rafs_format::Error,
    },
    /// A blob cannot be opened or its chunk table cannot be read.
    #[error("blob {id}")]
    Blob {
        /// Id of the blob.
        id: String,
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The chunk table of a blob contradicts that of the bootstrap.
    #[error(
        "chunk {index} of blob {id}: {what} is {blob} in the blob and {bootstrap} in the bootstrap"
    )]
    Contradiction {
        /// Id of the blob.
        id: String,
        /// Row in the chunk table.
        index: u32,
        /// Field that differs.
        what: &'static str,
        /// Its value in the blob.
        blob: String,
        /// Its value in the bootstrap.
        bootstrap: String,
    },
    /// A blob ends before its chunks do.
    #[error("blob {id} has {size} bytes, but its chunks take {needed}")]
    TooShort {
        /// Id of the blob.
        id: String,
        /// Its size in bytes.
        size: u64,
        /// Bytes that its chunks take.
        needed: u64,
    },
    /// A command that does not exist.
    #[error("unsupported inspect request: {0:?}")]
    UnknownCommand(String),
    /// A command whose argument is missing or no number.
    #[error("invalid arguments: {0:?}")]
    InvalidArguments(String),
    /// `help` makes no sense for programs.
    #[error("help is not supported in request mode")]
    Help,
}

impl Error {
    /// Whether the reader of the output went away, which is no fault.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
