//! Reading a blob's own chunk table.

use rafs_format::blob_meta::{BlobMeta, HEADER_SIZE};
use rafs_format::{BlobFeatures, BlobInfo, CHUNKS_PER_BLOB_MAX, Compressor};

use crate::decode::{cipher_of, require_supported};
use crate::{BlobReader, BlobSource, ChunkError, Error};

const WHAT: &str = "the chunk table";
/// Most bytes of dictionaries of one gzip layer: enough for one of 64 GiB.
const DICTIONARIES_MAX: u64 = 2 << 30;
/// Dictionaries of so many bytes are taken however small they are stored.
const DICTIONARIES_FREE: u64 = 32 << 20;
/// Greatest plausible ratio between dictionaries and their stored form, beyond that.
const EXPANSION_MAX: u64 = 256;

/// Reads, decrypts, decompresses and checks the chunk table of a blob out of the one that holds it. Only the blob
/// table entry is needed for it.
///
/// # Errors
/// [`Error::Unsupported`] for kinds of blobs that cannot be read yet, [`Error::Read`] if the blob cannot be read or
/// is too short, and [`Error::Decode`], [`Error::Format`] or [`Error::TooLarge`] if the table is not sound.
pub fn read_blob_meta(info: &BlobInfo, blob: &dyn BlobReader) -> Result<BlobMeta, Error> {
    let (table, header) = read_chunk_table(info, blob)?;
    BlobMeta::from_vec(table, &header, info).map_err(|source| Error::Format { what: WHAT, source })
}

/// Reads the chunk table of a blob from wherever it is: `blob` itself, or another blob of `source`.
///
/// # Errors
/// As [`read_blob_meta`]; [`Error::TableBlob`] if the other blob cannot be opened.
pub fn read_blob_meta_from(
    info: &BlobInfo,
    blob: &dyn BlobReader,
    source: &dyn BlobSource,
) -> Result<BlobMeta, Error> {
    if !info.features.contains(BlobFeatures::SEPARATE) {
        return read_blob_meta(info, blob);
    }
    let id = info.table_blob().ok_or_else(|| Error::Unsupported {
        what: format!("blob {}", info.id),
        feature: "a chunk table in a blob that the bootstrap does not name",
    })?;
    let table = source.open(id.as_str());
    let table = table.map_err(|source| Error::TableBlob {
        id: id.to_string(),
        of: info.id.to_string(),
        source,
    })?;
    read_blob_meta(info, &*table)
}

/// Reads, decrypts and decompresses the chunk table of a blob, and the header behind it.
///
/// # Errors
/// As [`read_blob_meta`].
pub fn read_chunk_table(
    info: &BlobInfo,
    blob: &dyn BlobReader,
) -> Result<(Vec<u8>, [u8; HEADER_SIZE]), Error> {
    require_supported(info)?;
    let limit = size_limit(info);
    if info.meta_uncompressed_size > limit {
        return Err(Error::TooLarge {
            what: WHAT,
            size: info.meta_uncompressed_size,
            limit,
        });
    }
    let stored_limit = info.meta_uncompressed_size.max(18);
    if info.meta_compressed_size > stored_limit {
        return Err(Error::TooLarge {
            what: WHAT,
            size: info.meta_compressed_size,
            limit: stored_limit,
        });
    }
    // The sum is no overflow: the first was limited just now.
    let mut table = read_piece(
        blob,
        WHAT,
        info.meta_offset,
        info.meta_compressed_size + HEADER_SIZE as u64,
    )?;
    let mut header = table.split_off(table.len() - HEADER_SIZE);

    let size = usize::try_from(info.meta_uncompressed_size).map_err(|_| Error::TooLarge {
        what: WHAT,
        size: info.meta_uncompressed_size,
        limit,
    })?;
    let decode = |source| Error::Decode { what: WHAT, source };
    if let Some(cipher) =
        cipher_of(info).filter(|_| info.features.contains(BlobFeatures::ENCRYPTED))
    {
        let raw = (info.meta_compressor == Compressor::None).then_some(size);
        cipher
            .decrypt(&mut table, raw)
            .map_err(|error| decode(ChunkError::from(error)))?;
        cipher
            .decrypt(&mut header, Some(HEADER_SIZE))
            .map_err(|error| decode(ChunkError::from(error)))?;
    }
    let mut plain = vec![0; size];
    codec::decompress(info.meta_compressor, &table, &mut plain)
        .map_err(|error| decode(ChunkError::from(error)))?;
    let header = <[u8; HEADER_SIZE]>::try_from(header).unwrap_or([0; HEADER_SIZE]);
    Ok((plain, header))
}

/// Largest table that a blob with that many chunks can have: a record and a context for each, and, in a gzip layer, a
/// dictionary. Dictionaries are bounded by what is stored, too.
fn size_limit(info: &BlobInfo) -> u64 {
    let any_count = info.features.contains(BlobFeatures::CHUNKDICT_GENERATED);
    let count = u64::from(if any_count {
        CHUNKS_PER_BLOB_MAX
    } else {
        info.chunk_count
    });
    let records = count * (24 + 40);
    if !info.features.contains(BlobFeatures::ZRAN) {
        return records;
    }
    let plausible = info.meta_compressed_size.saturating_mul(EXPANSION_MAX);
    let dictionaries = (count * codec::DEFLATE_WINDOW as u64)
        .min(plausible.max(DICTIONARIES_FREE))
        .min(DICTIONARIES_MAX);
    records + dictionaries
}

pub(crate) fn read_piece(
    blob: &dyn BlobReader,
    what: &'static str,
    offset: u64,
    size: u64,
) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read {
        what,
        offset,
        size,
        source,
    };
    let end = offset.checked_add(size).filter(|&end| end <= blob.size());
    let len = end.and(usize::try_from(size).ok());
    let len = len.ok_or_else(|| failed(std::io::ErrorKind::UnexpectedEof.into()))?;
    let mut bytes = vec![0; len];
    blob.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}
