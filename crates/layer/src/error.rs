//! What can be wrong with a layer.

use std::io;

/// Why a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream could not be read or inflated.
    #[error("cannot read the layer's tar stream at byte {offset}")]
    Read {
        /// Position in the (inflated) tar stream, in bytes.
        offset: u64,
        /// What the stream said.
        source: io::Error,
    },
    /// The stream ends where it must not.
    #[error("the layer's tar stream is truncated: it ends at byte {offset}, within {within}")]
    Truncated {
        /// Where it ends, in bytes.
        offset: u64,
        /// What is incomplete.
        within: String,
    },
    /// A header that makes no sense.
    #[error("malformed tar header at byte {offset}: {reason}")]
    Header {
        /// Where the header begins in the tar stream, in bytes.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry of a well-formed tar that cannot be put into a file tree.
    #[error("tar entry {path} (data at byte {offset}) is refused: {reason}")]
    Entry {
        /// Path of the entry, as in the tar.
        path: String,
        /// Where its data begins in the tar stream, in bytes.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The data of a file could not be read or taken.
    #[error("cannot process the data of {path}")]
    Data {
        /// Path of the file in the tree.
        path: String,
        /// What failed.
        source: io::Error,
    },
    /// A blob that does not end as an eStargz layer does.
    #[error("the blob is no eStargz layer: {reason}")]
    Footer {
        /// What is wrong.
        reason: String,
    },
    /// A table of contents that is not well-formed.
    #[error("cannot read the table of contents of the eStargz layer")]
    Toc {
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// An entry of a well-formed table of contents that makes no sense.
    #[error("entry {number} of the eStargz table of contents, {path}, is refused: {reason}")]
    TocEntry {
        /// Number of the entry, the first is 0.
        number: u64,
        /// Path of the entry, as in the table.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Two chunks that cannot both begin a gzip member.
    #[error(
        "the eStargz table of contents has chunks at bytes {a} and {b} of the blob, too near for gzip members of their own"
    )]
    Members {
        /// Where the one begins.
        a: u64,
        /// Where the other begins.
        b: u64,
    },
    /// More data than allowed.
    #[error("with {path} the layer's files have more than {limit} bytes")]
    TooMuchContent {
        /// Path of the first file that is too much, as in the tar.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// More inodes than allowed.
    #[error("the layer has more than {limit} files and directories")]
    TooManyInodes {
        /// The limit.
        limit: u32,
    },
}

/// A path or name for messages: readable, on one line, not endless.
pub(crate) fn show(bytes: &[u8]) -> String {
    const MAX: usize = 200;
    let text = String::from_utf8_lossy(bytes.get(..MAX).unwrap_or(bytes));
    let more = if bytes.len() > MAX { "..." } else { "" };
    format!("{text:?}{more}")
}
