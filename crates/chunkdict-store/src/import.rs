//! What a dictionary takes of an image.

use std::collections::{BTreeMap, HashMap};

use bootstrap::Parsed;
use chunkdict::is_usable;
use rafs_format::{BlobFeatures, BlobId, BlobInfo, ChunkRecord, Digest};
use tree::Image;

use crate::{Error, Kind, kind};

/// What an image is known by: the SHA-256 of its manifest, or of its bootstrap if there is no manifest.
pub type ImageId = Digest;

/// An image as a dictionary takes it up: blobs whose chunks others can use, and the chunks that the image has in them.
#[derive(Debug, Clone)]
pub struct Import {
    /// Where the image lies, as it was named.
    pub name: String,
    /// Its platform, if it was one of several.
    pub platform: Option<String>,
    /// What it is known by.
    pub id: ImageId,
    pub(crate) kind: Kind,
    pub(crate) blobs: BTreeMap<BlobId, ImportedBlob>,
}

/// A blob, and chunks in the order of their rows.
#[derive(Debug, Clone)]
pub(crate) struct ImportedBlob {
    pub info: BlobInfo,
    /// Size of the blob's file in bytes; 0 if it is not known.
    pub size: u64,
    pub rows: Vec<ChunkRecord>,
}

impl Import {
    /// Takes a bootstrap apart: one of RAFS v5 or v6 whose blobs' ids are complete. `sizes` are those of the blobs'
    /// files, as far as they are known.
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::Invalid`], [`Error::NoChunks`], [`Error::Contradiction`], and [`Error::Other`] if its
    /// own blobs are compressed in several ways.
    pub fn new(
        name: &str,
        id: ImageId,
        bootstrap: Vec<u8>,
        sizes: &HashMap<BlobId, u64>,
    ) -> Result<Self, Error> {
        let parsed = Parsed::parse(bootstrap).map_err(|source| Error::Format {
            name: name.to_owned(),
            source,
        })?;
        let invalid = |source| Error::Invalid {
            name: name.to_owned(),
            source,
        };
        parsed.check().map_err(|error| invalid(error.into()))?;
        let image = parsed.load().map_err(|error| invalid(error.into()))?;
        drop(parsed);
        Self::of_image(name, id, image, sizes)
    }

    /// As [`Import::new`], of a bootstrap that was decoded already.
    ///
    /// # Errors
    /// As there.
    pub fn of_image(
        name: &str,
        id: ImageId,
        image: Image,
        sizes: &HashMap<BlobId, u64>,
    ) -> Result<Self, Error> {
        let usable = |blob: &BlobInfo| {
            is_usable(blob) && !blob.features.contains(BlobFeatures::CHUNKDICT_GENERATED)
        };
        let first = image.blobs.iter().find(|blob| usable(blob));
        let kind = Kind {
            version: image.version,
            digester: image.digester,
            compressor: first
                .ok_or_else(|| Error::NoChunks(name.to_owned()))?
                .compressor,
            chunk_size: image.chunk_size,
        };
        let mut rows: Vec<Vec<ChunkRecord>> = vec![Vec::new(); image.blobs.len()];
        for record in image.chunks {
            if let Some(rows) = rows.get_mut(record.blob_index as usize) {
                // What says nothing of the chunk itself.
                rows.push(ChunkRecord {
                    blob_index: 0,
                    file_offset: 0,
                    ..record
                });
            }
        }
        let mut blobs = BTreeMap::new();
        for (info, mut rows) in image.blobs.into_iter().zip(rows) {
            if rows.is_empty() || !usable(&info) {
                continue;
            }
            let compressor = info.compressor;
            kind::same(&kind, name, &Kind { compressor, ..kind })?;
            rows.sort_by_key(|record| record.index);
            rows.dedup();
            if let Some(pair) = rows.windows(2).find(|pair| pair[0].index == pair[1].index) {
                return Err(contradiction(name, &info.id, pair[0].index));
            }
            let info = BlobInfo {
                index: 0,
                features: info.features - BlobFeatures::INLINED_FS_META,
                ..info
            };
            let size = sizes.get(&info.id).copied().unwrap_or(0);
            blobs.insert(info.id.clone(), ImportedBlob { info, size, rows });
        }
        if blobs.is_empty() {
            return Err(Error::NoChunks(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            platform: None,
            id,
            kind,
            blobs,
        })
    }

    /// Chunks in it.
    pub fn chunks(&self) -> usize {
        self.blobs.values().map(|blob| blob.rows.len()).sum()
    }
}

pub(crate) fn contradiction(name: &str, blob: &BlobId, row: u32) -> Error {
    Error::Contradiction {
        name: name.to_owned(),
        blob: blob.clone(),
        what: format!("chunk {row}"),
    }
}
