//! What deduplication saved, and what it costs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use chunkdict::{ChunkKey, Dictionary};
use rafs_format::BlobId;
use serde::Serialize;
use tree::{Content, Image, InodeId};

/// Chunks, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How many.
    #[serde(rename = "Chunks")]
    pub chunks: u64,
    /// Their uncompressed bytes.
    #[serde(rename = "Bytes")]
    pub bytes: u64,
    /// Their bytes as they are stored, those of batches in part.
    #[serde(rename = "StoredBytes")]
    pub stored: u64,
}

/// What deduplication saved in a conversion.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Savings {
    /// Chunks that occur again in their own layer.
    #[serde(rename = "Layer")]
    pub layer: Amount,
    /// Chunks taken from a lower layer of the same image.
    #[serde(rename = "Image")]
    pub image: Amount,
    /// Chunks taken from the dictionary.
    #[serde(rename = "Dictionary")]
    pub dictionary: Amount,
    /// Chunks that are in the dictionary and were stored again, for a request would not have been worth it.
    #[serde(rename = "StoredAgain")]
    pub again: Amount,
    /// Blobs of the dictionary that the new images use.
    #[serde(rename = "DictionaryBlobs")]
    pub blobs: u64,
    /// Runs of chunks in these: requests more for a cold read of everything.
    #[serde(rename = "ExtraRequests")]
    pub requests: u64,
}

impl Amount {
    fn add(&mut self, bytes: u32, stored: u32) {
        self.chunks += 1;
        self.bytes += u64::from(bytes);
        self.stored += u64::from(stored);
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.chunks += other.chunks;
        self.bytes += other.bytes;
        self.stored += other.stored;
    }
}

impl AddAssign for Savings {
    fn add_assign(&mut self, other: Self) {
        self.layer += other.layer;
        self.image += other.image;
        self.dictionary += other.dictionary;
        self.again += other.again;
        self.blobs += other.blobs;
        self.requests += other.requests;
    }
}

impl Savings {
    /// What was saved in a layer whose blob is `own`.
    pub(crate) fn of_layer(layer: &Image, own: &str, dictionary: Option<&Dictionary>) -> Self {
        let foreign: BTreeSet<&BlobId> = dictionary
            .into_iter()
            .flat_map(|dictionary| dictionary.blobs().iter().map(|blob| &blob.id))
            .collect();
        let mut savings = Self::default();
        let mut seen = vec![false; layer.chunks.len()];
        let sizes = layer.stored_sizes();
        for id in (0..layer.tree.len() as u32).map(InodeId) {
            let Content::Regular { chunks, .. } = &layer.tree.inode(id).content else {
                continue;
            };
            for chunk in chunks {
                let at = chunk.0 as usize;
                let (Some(record), Some(seen)) = (layer.chunks.get(at), seen.get_mut(at)) else {
                    continue;
                };
                if std::mem::replace(seen, true) {
                    let stored = sizes.get(at).copied().unwrap_or_default();
                    savings.layer.add(record.uncompressed_size, stored);
                }
            }
        }
        for (record, stored) in layer.chunks.iter().zip(sizes) {
            let blob = layer.blobs.get(record.blob_index as usize);
            let bytes = record.uncompressed_size;
            match blob.map(|blob| &blob.id) {
                Some(id) if id.as_str() == own => {
                    let known = |dictionary: &Dictionary| {
                        dictionary.find(&ChunkKey::from(record)).is_some()
                    };
                    if dictionary.is_some_and(known) {
                        savings.again.add(bytes, stored);
                    }
                }
                Some(id) if foreign.contains(id) => savings.dictionary.add(bytes, stored),
                _ => savings.image.add(bytes, stored),
            }
        }
        savings
    }

    /// Notes what the blobs of a dictionary cost the readers of an image.
    pub(crate) fn note_cost(&mut self, image: &Image, blobs: &[BlobId]) {
        let blobs: BTreeSet<&BlobId> = blobs.iter().collect();
        let mut rows: BTreeMap<&BlobId, BTreeSet<u32>> = BTreeMap::new();
        for record in &image.chunks {
            if let Some(blob) = image.blobs.get(record.blob_index as usize)
                && blobs.contains(&blob.id)
            {
                rows.entry(&blob.id).or_default().insert(record.index);
            }
        }
        self.blobs += rows.len() as u64;
        for rows in rows.values() {
            let begins = |row: &&u32| row.checked_sub(1).is_none_or(|row| !rows.contains(&row));
            self.requests += rows.iter().filter(begins).count() as u64;
        }
    }

    /// Whether there is anything to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Savings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "saved {} bytes within layers, {} within the image, {} against the dictionary",
            self.layer.bytes, self.image.bytes, self.dictionary.bytes
        )?;
        if self.blobs != 0 || self.again.chunks != 0 {
            write!(
                f,
                " ({} bytes stored); {} dictionary blobs, {} extra requests, {} bytes stored again in short runs",
                self.dictionary.stored, self.blobs, self.requests, self.again.stored
            )?;
        }
        Ok(())
    }
}
