use std::ops::Deref;

use rafs_format::blob_meta::{BlobMeta, Placement};
use rafs_format::{BlobFeatures, BlobInfo, Bootstrap, ChunkRecord};
use storage::BlobSource;

use crate::Error;

/// Checks the chunk table that each blob holds against that of the bootstrap. No chunk is read.
///
/// Raw tar files and gzip layers are left out. Of a blob that needs no table (v5) only the size can be looked at.
///
/// # Errors
/// [`Error::Blob`] if a blob is missing or its table is damaged, [`Error::Contradiction`] if the tables differ,
/// [`Error::TooShort`] if a blob ends before its chunks do.
pub fn check_blobs<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    source: &dyn BlobSource,
) -> Result<(), Error> {
    let metas: Result<Vec<_>, Error> = bootstrap
        .blobs()
        .iter()
        .map(|info| read_meta(info, source))
        .collect();
    let metas = metas?;
    for record in bootstrap.chunk_table() {
        let record = record.map_err(|source| Error::Damaged {
            path: b"the chunk table".to_vec(),
            source,
        })?;
        let index = record.blob_index as usize;
        if let (Some(info), Some(Some(meta))) = (bootstrap.blobs().get(index), metas.get(index)) {
            compare(info, meta, &record)?;
        }
    }
    Ok(())
}

fn read_meta(info: &BlobInfo, source: &dyn BlobSource) -> Result<Option<BlobMeta>, Error> {
    if info.features.contains(BlobFeatures::TARFS) {
        return Ok(None);
    }
    let failed = |source| Error::Blob {
        id: info.id.to_string(),
        source,
    };
    let blob = source
        .open(info.id.as_str())
        .map_err(|error| failed(error.into()))?;
    if info.is_estargz() {
        // How much of the blob its chunks take is not known.
        return Ok(None);
    }
    if !info.has_chunk_table() {
        let (size, needed) = (blob.size(), info.data_size());
        let id = info.id.to_string();
        return if size < needed {
            Err(Error::TooShort { id, size, needed })
        } else {
            Ok(None)
        };
    }
    let meta = storage::read_blob_meta_from(info, blob.as_ref(), source)
        .map_err(|error| failed(error.into()))?;
    Ok(Some(meta))
}

fn compare(info: &BlobInfo, meta: &BlobMeta, record: &ChunkRecord) -> Result<(), Error> {
    let differs = |what, blob: &dyn ToString, bootstrap: &dyn ToString| {
        let (blob, bootstrap) = (blob.to_string(), bootstrap.to_string());
        Err(Error::Contradiction {
            id: info.id.to_string(),
            index: record.index,
            what,
            blob,
            bootstrap,
        })
    };
    let Some(stored) = meta.chunk(record.index) else {
        return differs(
            "the number of chunks",
            &meta.len(),
            &format!("more than {}", record.index),
        );
    };
    if stored.uncompressed_offset != record.uncompressed_offset {
        return differs(
            "the offset",
            &stored.uncompressed_offset,
            &record.uncompressed_offset,
        );
    }
    if stored.uncompressed_size != record.uncompressed_size {
        return differs(
            "the size",
            &stored.uncompressed_size,
            &record.uncompressed_size,
        );
    }
    // The bootstrap knows nothing of where members of a batch or slice are stored.
    if stored.placement == Placement::Plain && stored.compressed_offset != record.compressed_offset
    {
        return differs(
            "the stored offset",
            &stored.compressed_offset,
            &record.compressed_offset,
        );
    }
    if stored.placement == Placement::Plain && stored.compressed_size != record.compressed_size {
        return differs(
            "the stored size",
            &stored.compressed_size,
            &record.compressed_size,
        );
    }
    Ok(())
}
