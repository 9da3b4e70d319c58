use std::ops::Deref;

use rafs_format::v5;
use rafs_format::{BLOCK_SIZE, BlobFeatures, Bootstrap};
use tree::Image;

use crate::{Error, v6};

/// The v6 form of a v5 bootstrap, for readers: the same tree in one that was never on disk. What knows v6 can read
/// it; blobs hold no chunk table, so records of chunks count ([`rafs_format::BlobInfo::has_chunk_table`]). Chunks lie
/// at block boundaries of their blobs' uncompressed address spaces.
///
/// # Errors
/// As [`crate::load_v5`], and what v6 has no room for.
pub fn view_v5<D: Deref<Target = [u8]>>(
    bootstrap: &v5::Bootstrap<D>,
) -> Result<Bootstrap<Vec<u8>>, Error> {
    let mut image = super::load_v5(bootstrap)?;
    align(&mut image);
    let bytes = v6::write(&image)?;
    Bootstrap::parse_view(bytes).map_err(|source| Error::Encode {
        path: "the bootstrap in v6 layout".to_owned(),
        source,
    })
}

/// Moves chunks to block boundaries of their blobs' uncompressed address spaces.
///
/// In v5 chunks are packed there. The new place depends on a chunk's own record alone, so all images that use a blob
/// agree about it: one more block for each chunk before. Chunks that did not overlap do not then, as long as they are
/// numbered in the order in which they lie.
pub(crate) fn align(image: &mut Image) {
    let down = |offset: u64| offset - offset % BLOCK_SIZE;
    for chunk in &mut image.chunks {
        let blocks = u64::from(chunk.index) * BLOCK_SIZE;
        chunk.uncompressed_offset = down(chunk.uncompressed_offset).saturating_add(blocks);
    }
    for blob in &mut image.blobs {
        blob.features |= BlobFeatures::ALIGNED;
        let blocks = (u64::from(blob.chunk_count) + 1) * BLOCK_SIZE;
        blob.uncompressed_size = down(blob.uncompressed_size).saturating_add(blocks);
    }
}
