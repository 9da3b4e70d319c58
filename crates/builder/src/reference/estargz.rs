//! eStargz by its TOC: the layer's blob stays as it is, every chunk is the beginning of a gzip member in it.
//!
//! The chunk table has V1 records and lies in no blob: readers take the records of the bootstrap, or a copy of the table
//! that is put into their cache ([`ChunkTable::cache_file`](crate::ChunkTable::cache_file)). It is said to lie behind the
//! data, where records may not point.
//!
//! The TOC does not say how long a member is. What is recorded is an upper bound: readers go on until they have the
//! bytes of the chunk. Deployed readers want all of it to be there, so the bound of the last chunk must not go beyond the
//! end of the layer, which may not be known.

use std::io::Read;

use layer::estargz::{Contents, StoredChunk, read_contents};
use rafs_format::{
    BLOCK_SIZE, BlobFeatures, BlobId, BlobInfo, CHUNKS_PER_BLOB_MAX, ChunkFlags, ChunkRecord,
    Compressor, Digester, Version,
};
use tree::Image;

use crate::build::own_blob;
use crate::pipeline::Places;
use crate::prefetch::resolve_prefetch;
use crate::{BuildOptions, BuiltLayer, Error, Stats, tail};

/// Stored bytes that a record of the chunk table can express.
const STORED_MAX: u64 = 1 << 24;
/// Bytes by which a deflate block can make a chunk larger that is but the beginning of it: the code tables, and longer codes
/// for bytes that the rest of the block has few of. Encoders end blocks after some 16 Ki symbols.
const SHARED_BLOCK: u64 = 1536;

/// Makes an image of the TOC of an eStargz layer, as JSON, whose chunks lie in that layer's blob `id`. The layer's data
/// ends at byte `data_end` of it, where known. Nothing is written. Of the options, compressor, digester and all that is
/// about a blob file count for nothing.
///
/// # Errors
/// [`Error`]; among others for a TOC whose files cannot be read chunk by chunk.
pub fn build_estargz(
    toc: impl Read,
    id: BlobId,
    data_end: Option<u64>,
    options: &BuildOptions,
) -> Result<BuiltLayer, Error> {
    options.validate_chunk_size()?;
    if options.version != Version::V6 {
        return Err(Error::NotInV5("an eStargz layer as the blob"));
    }
    let contents = read_contents(toc, options.chunk_size, &options.layer)?;
    options.cancel.check()?;
    if contents.chunks.len() >= CHUNKS_PER_BLOB_MAX as usize {
        return Err(Error::TooLarge {
            what: "the number of chunks",
            limit: "2^24 - 1",
        });
    }
    let mut chunks = Vec::with_capacity(contents.chunks.len());
    let (mut uncompressed, mut end) = (0u64, 0u64);
    let toc = toc_size_min(&contents);
    for (index, chunk) in (0..).zip(&contents.chunks) {
        let stored = stored_size(chunk, data_end, toc)?;
        chunks.push(ChunkRecord {
            digest: chunk.digest,
            blob_index: 0,
            flags: ChunkFlags::COMPRESSED,
            compressed_size: stored,
            uncompressed_size: chunk.size,
            compressed_offset: chunk.member,
            uncompressed_offset: uncompressed,
            file_offset: chunk.file_offset,
            index,
            crc32: 0,
        });
        // At most 2^24 chunks of at most 2^24 bytes, and offsets that have passed `stored_size`.
        uncompressed += u64::from(chunk.size).next_multiple_of(BLOCK_SIZE);
        end = end.max(chunk.member + u64::from(stored));
    }
    let table_size = 16 * chunks.len() as u64;
    let blob = BlobInfo {
        id,
        chunk_count: chunks.len() as u32,
        compressor: Compressor::Gzip,
        digester: Digester::Sha256,
        features: BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC,
        compressed_size: data_end.unwrap_or(end),
        uncompressed_size: uncompressed,
        meta_compressor: Compressor::None,
        meta_offset: data_end.unwrap_or(end),
        meta_compressed_size: table_size,
        meta_uncompressed_size: table_size,
        ..own_blob(0, options)
    };
    let stats = Stats {
        chunks: chunks.len() as u64,
        uncompressed_size: chunks.iter().map(|c| u64::from(c.uncompressed_size)).sum(),
        ..Stats::default()
    };
    let has_data = !chunks.is_empty();
    let tree = contents.tree;
    let image = Image {
        version: Version::V6,
        prefetch: resolve_prefetch(&tree, &options.prefetch),
        tree,
        blobs: has_data.then_some(blob).into_iter().collect(),
        chunks,
        chunk_size: options.chunk_size,
        compressor: Compressor::Gzip,
        digester: Digester::Sha256,
        explicit_owners: options.explicit_owners,
        tarfs: false,
    };
    let own_blob = has_data.then_some(0);
    let table = own_blob.map(|own| tail::chunk_table(&image, own, &Places::default()));
    Ok(BuiltLayer {
        table: table.transpose()?,
        image,
        own_blob,
        blob_digest: [0; 32],
        self_digest: [0; 32],
        blob_size: 0,
        bootstrap_digest: None,
        stats,
    })
}

/// Bytes that the table of contents takes in the layer, behind its data, at the least: nothing makes digests shorter, and a name
/// takes some bytes.
fn toc_size_min(contents: &Contents) -> u64 {
    32 * contents.chunks.len() as u64 + 4 * contents.tree.len() as u64
}

/// Bytes from the beginning of a chunk's member within which the chunk surely is. At least `toc` bytes follow the data.
fn stored_size(chunk: &StoredChunk, data_end: Option<u64>, toc: u64) -> Result<u32, Error> {
    let refused = |reason: String| Error::Member {
        offset: chunk.member,
        reason,
    };
    let next = match (chunk.next_member, data_end) {
        (_, Some(end)) if end <= chunk.member => {
            return Err(refused(format!("the layer's data ends at byte {end}")));
        }
        (Some(next), Some(end)) => Some(next.min(end)),
        (next, end) => next.or(end),
    };
    let size = u64::from(chunk.size);
    // The member goes on behind the chunk, so the chunk's share of it may be larger than the chunk: up to 15 bits for a
    // byte, and the code tables of a block of which the chunk is but the beginning.
    let enough = match next {
        Some(_) => 2 * size + BLOCK_SIZE,
        // What encoders really do: five bytes for each 16 KiB that they can't make smaller, besides headers and trailer.
        None => size + 5 * size.div_ceil(16 << 10) + 151 + toc.min(SHARED_BLOCK),
    };
    let stored = next.map_or(enough.min(STORED_MAX), |next| {
        enough.min(next - chunk.member)
    });
    if stored > STORED_MAX || (next.is_none() && STORED_MAX <= u64::from(chunk.size)) {
        return Err(refused(format!(
            "its chunk of {} bytes may take more than the {STORED_MAX} stored bytes that a chunk record can express: take the layer's data size along, or build the layer with smaller chunks",
            chunk.size
        )));
    }
    // Chunks with one size only are taken for raw. The member ends in eight bytes that are not data.
    let stored = stored - u64::from(stored == u64::from(chunk.size));
    let end = chunk.member.checked_add(stored);
    if end.is_none_or(|end| end > 1 << 40) {
        return Err(refused(
            "it lies beyond the 2^40 bytes of a blob that a chunk record can express".to_owned(),
        ));
    }
    Ok(stored as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(size: u32, member: u64, next_member: Option<u64>) -> StoredChunk {
        StoredChunk {
            file_offset: 0,
            size,
            member,
            next_member,
            digest: [0; 32],
        }
    }

    #[test]
    fn the_stored_size_ends_before_the_next_member_and_never_equals_the_size() {
        for (size, next, end, expected) in [
            (100, None, None, 256 + 132),
            (100, Some(1200), None, 200),
            (100, Some(1200), Some(1150), 150),
            (100, None, Some(1080), 80),
            (100, Some(1100), None, 99),
            (100, Some(1 << 30), None, 4296),
            (1 << 22, Some(1 << 30), None, (1 << 23) + 4096),
            (1 << 24, Some(1000 + (1 << 24)), None, (1 << 24) - 1),
            (
                (1 << 24) - 8192,
                None,
                None,
                (1 << 24) - 8192 + 5 * 1024 + 151 + 132,
            ),
            ((1 << 24) - 4096, None, None, 1 << 24),
        ] {
            let stored = stored_size(&chunk(size, 1000, next), end, 132).unwrap();
            assert_eq!(stored, expected, "{size} {next:?} {end:?}");
        }
        for (size, member, next, end) in [
            (1, 1000, None, Some(1000)),
            (1, 1000, Some(1100), Some(10)),
            (1 << 24, 1000, Some(1 << 30), None),
            (1 << 24, 1000, None, None),
            (1, (1 << 40) - 1, None, None),
            (1, u64::MAX, None, None),
        ] {
            let refused = stored_size(&chunk(size, member, next), end, 132);
            assert!(refused.is_err(), "{size} {member} {next:?} {end:?}");
        }
    }
}
