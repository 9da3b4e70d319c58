//! Parsing and validation of blob table entries.

use std::collections::BTreeSet;

use crate::error::expect_equal;
use crate::raw::{self, BlobInfoRaw};
use crate::superblock::{SuperFlags, Superblock};
use crate::{
    BlobFeatures, BlobId, BlobInfo, CHUNKS_PER_BLOB_MAX, Cipher, Compressor, Digester, Error,
    Version,
};

/// Largest blob file.
pub(crate) const COMPRESSED_SIZE_MAX: u64 = 1 << 40;
/// Largest uncompressed address space.
pub(crate) const UNCOMPRESSED_SIZE_MAX: u64 = 1 << 44;
/// Features that other readers refuse: undefined low bits, and one that is internal to v5 readers.
pub(crate) const FORBIDDEN_FEATURES: u32 = 0x8000_f000;

/// Parses the whole blob table. Its place within `data` has been validated with the superblock.
///
/// # Errors
/// [`Error`] naming the first field that is wrong.
pub(crate) fn parse(
    data: &[u8],
    superblock: &Superblock,
    version: Version,
) -> Result<Vec<BlobInfo>, Error> {
    let table_offset = superblock.blob_table_offset;
    let size = u64::from(superblock.blob_table_size);
    let table = raw::slice(data, table_offset, size)
        .ok_or_else(|| Error::bounds("the blob table", table_offset, size, data.len() as u64))?;
    let count = table.len() / BlobInfoRaw::SIZE;
    expect_equal(
        "number of blob table entries",
        table_offset,
        count,
        usize::from(superblock.extra_devices),
    )?;
    let mut blobs = Vec::with_capacity(count);
    let mut ids = BTreeSet::new();
    for (position, bytes) in table.chunks_exact(BlobInfoRaw::SIZE).enumerate() {
        let offset = table_offset + (position * BlobInfoRaw::SIZE) as u64;
        let record = raw::read(bytes)
            .ok_or_else(|| Error::bounds("a blob table entry", offset, 256, data.len() as u64))?;
        let info = from_raw(record, offset)?;
        expect_equal(
            "index in a blob table entry",
            offset + 64,
            info.index as usize,
            position,
        )?;
        validate(&info, superblock, version, offset)?;
        if !ids.insert(info.id.clone()) {
            return Err(Error::field(
                "id in a blob table entry",
                offset,
                &info.id,
                "no id twice",
            ));
        }
        blobs.push(info);
    }
    Ok(blobs)
}

fn from_raw(record: &BlobInfoRaw, offset: u64) -> Result<BlobInfo, Error> {
    let id = raw::text(&record.id).and_then(BlobId::new).ok_or_else(|| {
        Error::field(
            "id in a blob table entry",
            offset,
            raw_text(&record.id),
            "1 to 64 printable characters fit for a file name",
        )
    })?;
    let compressor = |at: u64, number: u32| {
        Compressor::from_number(number).ok_or_else(|| {
            Error::field(
                "compressor in a blob table entry",
                offset + at,
                number,
                "0 to 3",
            )
        })
    };
    let digester = record.digester.get();
    let cipher = record.cipher.get();
    let features = record.features.get();
    if features & FORBIDDEN_FEATURES != 0 {
        return Err(Error::field(
            "features in a blob table entry",
            offset + 84,
            format!("{features:#x}"),
            "no undefined bit",
        ));
    }
    Ok(BlobInfo {
        id,
        index: record.index.get(),
        chunk_size: record.chunk_size.get(),
        chunk_count: record.chunk_count.get(),
        compressor: compressor(76, record.compressor.get())?,
        digester: Digester::from_number(digester).ok_or_else(|| {
            Error::field(
                "digester in a blob table entry",
                offset + 80,
                digester,
                "0 or 1",
            )
        })?,
        features: BlobFeatures::from_bits_retain(features),
        compressed_size: record.compressed_size.get(),
        uncompressed_size: record.uncompressed_size.get(),
        toc_size: record.toc_size.get(),
        toc_digest: record.toc_digest,
        meta_compressor: compressor(108, record.meta_compressor.get())?,
        meta_offset: record.meta_offset.get(),
        meta_compressed_size: record.meta_compressed_size.get(),
        meta_uncompressed_size: record.meta_uncompressed_size.get(),
        meta_digest: record.meta_digest,
        meta_size: record.meta_size.get(),
        cipher_iv: record.cipher_iv,
        cipher: Cipher::from_number(cipher).ok_or_else(|| {
            Error::field(
                "cipher in a blob table entry",
                offset + 216,
                cipher,
                "0 or 1",
            )
        })?,
        readahead_size: 0,
    })
}

pub(crate) fn raw_text(field: &[u8]) -> String {
    String::from_utf8_lossy(field)
        .trim_end_matches('\0')
        .escape_debug()
        .to_string()
}

fn validate(
    info: &BlobInfo,
    superblock: &Superblock,
    version: Version,
    offset: u64,
) -> Result<(), Error> {
    let tarfs = superblock.flags.contains(SuperFlags::TARFS_MODE);
    expect_equal(
        "chunk size in a blob table entry",
        offset + 68,
        info.chunk_size,
        superblock.chunk_size,
    )?;
    at_most(
        "chunk count in a blob table entry",
        offset + 72,
        u64::from(info.chunk_count),
        u64::from(CHUNKS_PER_BLOB_MAX),
    )?;
    at_most(
        "compressed size in a blob table entry",
        offset + 88,
        info.compressed_size,
        COMPRESSED_SIZE_MAX,
    )?;
    at_most(
        "uncompressed size in a blob table entry",
        offset + 96,
        info.uncompressed_size,
        UNCOMPRESSED_SIZE_MAX,
    )?;
    let features = info.features;
    if features.contains(BlobFeatures::ALIGNED) == tarfs {
        let expected = if tarfs {
            "no ALIGNED bit in a tarfs image"
        } else {
            "the ALIGNED bit"
        };
        return Err(Error::field(
            "features in a blob table entry",
            offset + 84,
            format!("{:#x}", features.bits()),
            expected,
        ));
    }
    if features.contains(BlobFeatures::ENCRYPTED) && info.cipher == Cipher::None {
        return Err(Error::field(
            "cipher in a blob table entry",
            offset + 216,
            0,
            "a cipher, for the blob is encrypted",
        ));
    }
    if version == Version::V5 && !info.has_chunk_table() {
        return Ok(());
    }
    validate_meta_sizes(info, tarfs, offset)
}

/// The size of a blob's chunk table is fixed by the number of its chunks.
fn validate_meta_sizes(info: &BlobInfo, tarfs: bool, offset: u64) -> Result<(), Error> {
    let end = info.meta_offset.checked_add(info.meta_compressed_size);
    if end.is_none_or(|end| end > COMPRESSED_SIZE_MAX) {
        return Err(Error::field(
            "chunk table offset in a blob table entry",
            offset + 112,
            info.meta_offset,
            "an offset in a blob",
        ));
    }
    at_most(
        "stored chunk table size in a blob table entry",
        offset + 120,
        info.meta_compressed_size,
        info.meta_uncompressed_size,
    )?;
    let size = info.meta_uncompressed_size;
    let wrong = |expected: String| {
        Err(Error::field(
            "chunk table size in a blob table entry",
            offset + 128,
            size,
            expected,
        ))
    };
    let v2 = 24 * u64::from(info.chunk_count);
    let v1 = 16 * u64::from(info.chunk_count);
    let contexts = BlobFeatures::BATCH | BlobFeatures::ZRAN | BlobFeatures::ENCRYPTED;
    match (
        info.features.contains(BlobFeatures::CHUNK_INFO_V2),
        info.features.intersects(contexts),
    ) {
        (true, true) if size < v2 => wrong(format!("at least {v2}")),
        (true, true) => Ok(()),
        (true, false) if size != v2 => wrong(v2.to_string()),
        (true, false) => Ok(()),
        (false, true) => Err(Error::field(
            "features in a blob table entry",
            offset + 84,
            format!("{:#x}", info.features.bits()),
            "the CHUNK_INFO_V2 bit, for the blob has batches, slices or encryption",
        )),
        (false, false)
            if size == v1 || tarfs || info.features.contains(BlobFeatures::CHUNKDICT_GENERATED) =>
        {
            Ok(())
        }
        (false, false) => wrong(v1.to_string()),
    }
}

pub(crate) fn at_most(
    what: &'static str,
    offset: u64,
    actual: u64,
    limit: u64,
) -> Result<(), Error> {
    if actual <= limit {
        Ok(())
    } else {
        Err(Error::field(
            what,
            offset,
            actual,
            format!("at most {limit}"),
        ))
    }
}
