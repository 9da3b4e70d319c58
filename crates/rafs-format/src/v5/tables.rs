//! The blob table, which is text, and the extended blob table beside it.

use std::collections::BTreeSet;

use super::{EXT_BLOB_SIZE, Superblock};
use crate::blob_table::{
    COMPRESSED_SIZE_MAX, FORBIDDEN_FEATURES, UNCOMPRESSED_SIZE_MAX, at_most, raw_text,
};
use crate::error::expect_equal;
use crate::raw::{self, ExtBlobV5Raw};
use crate::{BlobFeatures, BlobId, BlobInfo, CHUNKS_PER_BLOB_MAX, Compressor, Digester, Error};

/// Ranges of bytes to fetch first, before the id: two numbers of 32 bits.
const HEAD_SIZE: usize = 8;
/// Features of blobs whose chunks no record of v5 can describe.
const FOREIGN_FEATURES: BlobFeatures = BlobFeatures::CHUNK_INFO_V2
    .union(BlobFeatures::ZRAN)
    .union(BlobFeatures::SEPARATE)
    .union(BlobFeatures::TARFS)
    .union(BlobFeatures::BATCH)
    .union(BlobFeatures::ENCRYPTED);

/// Parses both tables. Their places within `data` have been validated with the superblock.
pub(super) fn parse(
    data: &[u8],
    superblock: &Superblock,
    compressor: Compressor,
    digester: Digester,
) -> Result<Vec<BlobInfo>, Error> {
    let (start, size) = (
        superblock.blob_table_offset,
        u64::from(superblock.blob_table_size),
    );
    let beyond = || Error::bounds("the blob table", start, size, data.len() as u64);
    let table = raw::slice(data, start, size).ok_or_else(beyond)?;
    let mut blobs = Vec::new();
    let mut ids = BTreeSet::new();
    let mut rest = table;
    // A blob table ends in up to seven bytes of padding.
    while rest.len() > HEAD_SIZE {
        let offset = start + (table.len() - rest.len()) as u64;
        let (head, text) = rest.split_at(HEAD_SIZE);
        let len = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        let (name, after) = text.split_at(len);
        rest = after.get(1..).unwrap_or_default();
        let id = std::str::from_utf8(name).ok().and_then(BlobId::new);
        let id = id.ok_or_else(|| {
            Error::field(
                "id in the blob table",
                offset + 8,
                raw_text(name),
                "1 to 64 printable characters fit for a file name",
            )
        })?;
        if !ids.insert(id.clone()) {
            return Err(Error::field(
                "id in the blob table",
                offset + 8,
                &id,
                "no id twice",
            ));
        }
        let number = |at: usize| head.get(at..).and_then(|b| b.first_chunk());
        let [_, readahead_size] =
            [0, 4].map(|at| number(at).map_or(0, |bytes| u32::from_le_bytes(*bytes)));
        blobs.push(BlobInfo {
            readahead_size,
            ..extended(data, superblock, blobs.len(), id, (compressor, digester))?
        });
    }
    expect_equal(
        "number of extended blob table entries",
        superblock.ext_blob_table_offset,
        superblock.ext_blob_table_entries as usize,
        blobs.len(),
    )?;
    Ok(blobs)
}

/// The blob at a position, with what the extended table says of it.
fn extended(
    data: &[u8],
    superblock: &Superblock,
    position: usize,
    id: BlobId,
    (compressor, digester): (Compressor, Digester),
) -> Result<BlobInfo, Error> {
    let entries = superblock.ext_blob_table_entries;
    let index = u32::try_from(position).ok().filter(|&i| i < entries);
    let Some(index) = index else {
        return Err(Error::Unsupported {
            what: "the extended blob table",
            offset: superblock.ext_blob_table_offset,
            feature: format!("a table of {entries} entries that lacks blob {id}"),
        });
    };
    let offset = superblock.ext_blob_table_offset + u64::from(index) * EXT_BLOB_SIZE;
    let raw: &ExtBlobV5Raw = raw::read_at(data, offset).ok_or_else(|| {
        Error::bounds(
            "an extended blob table entry",
            offset,
            EXT_BLOB_SIZE,
            data.len() as u64,
        )
    })?;
    let word = raw.features.get();
    let features = BlobFeatures::from_bits_retain(word);
    if word & FORBIDDEN_FEATURES != 0 || features.intersects(FOREIGN_FEATURES) {
        return Err(Error::field(
            "features in an extended blob table entry",
            offset + 4,
            format!("{word:#x}"),
            "no undefined bit, and none of a kind of blob that v5 cannot describe",
        ));
    }
    let (chunks, full, stored) = (
        raw.chunk_count.get(),
        raw.uncompressed_size.get(),
        raw.compressed_size.get(),
    );
    at_most(
        "chunk count in an extended blob table entry",
        offset,
        chunks.into(),
        CHUNKS_PER_BLOB_MAX.into(),
    )?;
    at_most(
        "uncompressed size in an extended blob table entry",
        offset + 8,
        full,
        UNCOMPRESSED_SIZE_MAX,
    )?;
    at_most(
        "compressed size in an extended blob table entry",
        offset + 16,
        stored,
        COMPRESSED_SIZE_MAX,
    )?;
    Ok(BlobInfo {
        index,
        chunk_count: chunks,
        features,
        compressed_size: stored,
        uncompressed_size: full,
        ..BlobInfo::new(id, superblock.chunk_size, compressor, digester)
    })
}
