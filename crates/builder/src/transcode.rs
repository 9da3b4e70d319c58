//! The bootstrap of an image in the other version. Blobs stay as they are.
//!
//! What v5 says of a chunk is in its bootstrap. Readers of v6 look into a table that belongs to the blob instead, so
//! a blob needs one: it has it if it was made for v6, and otherwise gets it in a small blob of its own, as blobs have
//! it whose data is a layer of a plain image.

use std::collections::BTreeMap;

use rafs_format::blob_meta::{self, BlobMeta, HEADER_SIZE, Header, StoredChunk};
use rafs_format::{BLOCK_SIZE, BlobFeatures, BlobId, BlobInfo, ChunkRecord, Compressor, Version};
use sha2::{Digest as _, Sha256};
use storage::{BlobReader, BlobSource};
use tree::Image;

use crate::Error;

/// Features that v6 blobs with a table of their own have of it.
const TABLE_FEATURES: BlobFeatures = BlobFeatures::CHUNK_INFO_V2
    .union(BlobFeatures::INLINED_CHUNK_DIGEST)
    .union(BlobFeatures::HAS_TAR_HEADER)
    .union(BlobFeatures::HAS_TOC)
    .union(BlobFeatures::CAP_TAR_TOC);

/// A blob that holds the chunk table of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableBlob {
    /// Its id: the SHA-256 of its bytes.
    pub id: BlobId,
    /// The blob that it is about.
    pub of: BlobId,
    /// The table and the header behind it.
    pub bytes: Vec<u8>,
}

/// Turns an image into one of another version. Blobs are looked into when v6 is made of v5; those that hold no chunk
/// table get one in a blob of its own, which has to be put beside them.
///
/// # Errors
/// [`Error::NoChunkTable`] if the blobs cannot be looked into, [`Error::Blob`] if one cannot be read,
/// [`Error::Contradiction`] if one is not that of the image; what the new version cannot say is an error of
/// [`bootstrap::encode`].
pub fn transcode(
    mut image: Image,
    version: Version,
    blobs: Option<&dyn BlobSource>,
) -> Result<(Image, Vec<TableBlob>), Error> {
    image.compact()?;
    let mut tables = Vec::new();
    for blob in &mut image.blobs {
        // Its id is final, not one that is to be replaced by a file name.
        blob.features -= BlobFeatures::INLINED_FS_META;
    }
    if (image.version, version) == (Version::V5, Version::V6) {
        for index in 0..image.blobs.len() {
            tables.extend(give_table(&mut image, index, blobs)?);
        }
    }
    image.version = version;
    Ok((image, tables))
}

/// Finds the chunk table of a blob, or makes one.
fn give_table(
    image: &mut Image,
    index: usize,
    blobs: Option<&dyn BlobSource>,
) -> Result<Option<TableBlob>, Error> {
    let info = &mut image.blobs[index];
    let chunks = image
        .chunks
        .iter_mut()
        .filter(|chunk| chunk.blob_index as usize == index);
    let Some(blobs) = blobs else {
        return Err(Error::NoChunkTable {
            blob: info.id.clone(),
        });
    };
    let id = info.id.clone();
    let failed = |source: storage::Error| Error::Blob {
        id: id.to_string(),
        source: source.into(),
    };
    let reader = blobs.open(id.as_str()).map_err(|source| Error::Blob {
        id: id.to_string(),
        source: source.into(),
    })?;
    match storage::find_chunk_table(&*reader).map_err(failed)? {
        Some(header) => {
            adopt(info, chunks, &header, &*reader)?;
            Ok(None)
        }
        None => make_table(info, chunks).map(Some),
    }
}

/// Takes the table that lies in the blob.
fn adopt<'a>(
    info: &mut BlobInfo,
    chunks: impl Iterator<Item = &'a mut ChunkRecord>,
    header: &Header,
    reader: &dyn BlobReader,
) -> Result<(), Error> {
    info.features = BlobFeatures::ALIGNED
        | (header.features & TABLE_FEATURES)
        | (info.features & (BlobFeatures::CAP_TAR_TOC | BlobFeatures::HAS_TAR_HEADER));
    info.chunk_count = header.entries;
    info.compressed_size = reader.size();
    info.meta_compressor = header.compressor;
    info.meta_offset = header.offset;
    info.meta_compressed_size = header.compressed_size;
    info.meta_uncompressed_size = header.uncompressed_size;
    // What the table says decides about the end of the address space.
    info.uncompressed_size = u64::from(header.entries) * u64::from(info.chunk_size);
    let table = storage::read_blob_meta(info, reader).map_err(|source| Error::Blob {
        id: info.id.to_string(),
        source: source.into(),
    })?;
    info.uncompressed_size = end(&table).next_multiple_of(BLOCK_SIZE);
    for chunk in chunks {
        let stored = table
            .chunk(chunk.index)
            .filter(|stored| same_place(stored, chunk));
        let Some(stored) = stored else {
            return Err(Error::Contradiction {
                blob: info.id.clone(),
                chunk: chunk.index,
            });
        };
        chunk.uncompressed_offset = stored.uncompressed_offset;
    }
    Ok(())
}

/// End of the uncompressed address space that a table describes.
fn end(table: &BlobMeta) -> u64 {
    let ends = table.chunks();
    ends.map(|chunk| chunk.uncompressed_offset + u64::from(chunk.uncompressed_size))
        .max()
        .unwrap_or(0)
}

/// Whether two records are about the same stored bytes.
fn same_place(stored: &StoredChunk, chunk: &ChunkRecord) -> bool {
    let place = |stored: &StoredChunk| {
        (
            stored.compressed_offset,
            stored.compressed_size,
            stored.uncompressed_size,
            stored.compressed,
            stored.placement,
        )
    };
    place(stored) == place(&StoredChunk::from(chunk))
}

/// Writes a table of the chunks that the image uses of a blob, numbers them by their place and moves them to block
/// boundaries of the address space.
fn make_table<'a>(
    info: &mut BlobInfo,
    chunks: impl Iterator<Item = &'a mut ChunkRecord>,
) -> Result<TableBlob, Error> {
    // Data and table are apart, so that the size of the one blob says where the data ends.
    info.compressed_size = info.data_size();
    info.features &= BlobFeatures::EXTERNAL;
    let bytes = table_apart(info, chunks, 0)?;
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    info.meta_digest = digest;
    info.meta_size = bytes.len() as u64;
    debug_assert!(bytes.len() >= HEADER_SIZE);
    Ok(TableBlob {
        id: BlobId::new(hex::encode(digest)).expect("64 hexadecimal digits make an id"),
        of: info.id.clone(),
        bytes,
    })
}

/// The table of the chunks of a blob, to be written to another one at `offset`. Numbers the chunks by their place, moves them
/// to block boundaries of the address space, and says so in the blob's entry.
pub(crate) fn table_apart<'a>(
    info: &mut BlobInfo,
    chunks: impl Iterator<Item = &'a mut ChunkRecord>,
    offset: u64,
) -> Result<Vec<u8>, Error> {
    let mut ordered = BTreeMap::new();
    for chunk in chunks {
        ordered.insert((chunk.uncompressed_offset, chunk.index), chunk);
    }
    let mut table = Vec::with_capacity(ordered.len() * 24);
    let (mut count, mut end) = (0, 0_u64);
    for chunk in ordered.into_values() {
        (chunk.index, chunk.uncompressed_offset) = (count, end);
        blob_meta::encode_v2(&StoredChunk::from(&*chunk), &mut table).map_err(|source| {
            Error::Encode {
                path: format!("chunk {count} of the table for blob {}", info.id),
                source,
            }
        })?;
        count += 1;
        end += u64::from(chunk.uncompressed_size).next_multiple_of(BLOCK_SIZE);
    }
    let mut encoder = codec::Encoder::new(Compressor::Zstd, codec::Encoder::ZSTD_LEVEL_DEFAULT)
        .map_err(Error::Compress)?;
    let compressed = encoder.compress(&table).map_err(Error::Compress)?;
    let (compressor, mut bytes) = match compressed {
        Some(compressed) => (Compressor::Zstd, compressed.to_vec()),
        None => (Compressor::None, table.clone()),
    };
    info.features |= BlobFeatures::ALIGNED
        | BlobFeatures::CHUNK_INFO_V2
        | BlobFeatures::SEPARATE
        | BlobFeatures::CAP_TAR_TOC;
    info.chunk_count = count;
    info.uncompressed_size = end;
    info.meta_compressor = compressor;
    info.meta_offset = offset;
    info.meta_compressed_size = bytes.len() as u64;
    info.meta_uncompressed_size = table.len() as u64;
    bytes.extend_from_slice(&crate::tail::table_header(info).encode());
    Ok(bytes)
}
