//! Finding the chunk table of a blob without a bootstrap that says where it is.

use rafs_format::blob_meta::{HEADER_SIZE, Header};
use rafs_format::toc::{self, TAR_HEADER_SIZE};

use crate::meta::read_piece;
use crate::{BlobReader, Error};

/// Pieces that a blob may end in: more are never written.
const PIECES_MAX: usize = 8;

/// The header of the chunk table that a blob holds; `None` if it holds none. The table lies right before the header.
///
/// # Errors
/// [`Error::Read`] if the blob cannot be read.
pub fn find_chunk_table(blob: &dyn BlobReader) -> Result<Option<Header>, Error> {
    let mut end = blob.size();
    // The table ends a blob without tar headers, else it is the piece with that name.
    if let Some(header) = header_before(blob, end)? {
        return Ok(Some(header));
    }
    for _ in 0..PIECES_MAX {
        let Some(start) = end.checked_sub(TAR_HEADER_SIZE as u64) else {
            break;
        };
        let bytes = read_piece(blob, "the blob's tail", start, TAR_HEADER_SIZE as u64)?;
        let parsed = bytes.first_chunk().map(toc::parse_tar_header);
        let Some(Ok((name, size))) = parsed else {
            break;
        };
        if name == toc::META {
            return header_before(blob, start);
        }
        match start.checked_sub(size) {
            Some(before) => end = before,
            None => break,
        }
    }
    Ok(None)
}

/// The header that ends at `end`, if there is one and its table lies right before it.
fn header_before(blob: &dyn BlobReader, end: u64) -> Result<Option<Header>, Error> {
    let Some(start) = end.checked_sub(HEADER_SIZE as u64) else {
        return Ok(None);
    };
    let bytes = read_piece(
        blob,
        "the header of the chunk table",
        start,
        HEADER_SIZE as u64,
    )?;
    let header = bytes.first_chunk().map(Header::parse);
    let sound = |header: &Header| header.offset.checked_add(header.compressed_size) == Some(start);
    Ok(header.and_then(Result::ok).filter(sound))
}
