//! Where a chunk with a given content already lies.
//!
//! [`ChunkTable`] is the running table of one build; [`Dictionary`] is a frozen set of chunks of other images that a
//! build may refer to instead of storing them again. Both know chunks by [`ChunkKey`]: content is never compared.
//! [`ChunkIndex`] is what a dictionary looks chunks up in: tens of millions of them fit into memory.
#![forbid(unsafe_code)]

mod generate;
mod index;
mod kind;
mod places;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rafs_format::{BlobFeatures, BlobInfo, ChunkRecord, Compressor, Digest};

pub use generate::{GenerateError, Generated, Source, generate};
pub use index::{ChunkIndex, IndexBuilder, IndexEntry, IndexFull, Parts};
pub use kind::{Difference, Kind};

/// What makes two chunks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkKey {
    /// Digest of the uncompressed bytes.
    pub digest: Digest,
    /// Length of the uncompressed bytes.
    pub size: u32,
}

impl From<&ChunkRecord> for ChunkKey {
    fn from(record: &ChunkRecord) -> Self {
        Self {
            digest: record.digest,
            size: record.uncompressed_size,
        }
    }
}

/// Chunks met so far, each with what the caller wants to remember of it. The first one met stays.
#[derive(Debug, Clone)]
pub struct ChunkTable<V> {
    known: HashMap<ChunkKey, V>,
}

impl<V> Default for ChunkTable<V> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
        }
    }
}

impl<V: Copy> ChunkTable<V> {
    /// What is remembered of a chunk.
    pub fn find(&self, key: &ChunkKey) -> Option<V> {
        self.known.get(key).copied()
    }

    /// Remembers a chunk unless it is known. Returns whether it was new.
    pub fn insert(&mut self, key: ChunkKey, value: V) -> bool {
        match self.known.entry(key) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(value);
                true
            }
        }
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no chunk is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// Chunks of other images, frozen before a build starts so that the build's result depends on no other build.
#[derive(Debug, Clone, Default)]
pub struct Dictionary {
    blobs: Vec<BlobInfo>,
    parts: Vec<Part>,
}

/// Chunks that came together.
#[derive(Debug, Clone)]
struct Part {
    index: Arc<ChunkIndex>,
    /// Which blob of the dictionary each blob of the index is; `None` for one that was left out.
    positions: Vec<Option<u32>>,
}

impl Part {
    fn moved(&self, record: ChunkRecord) -> Option<ChunkRecord> {
        let position = self.positions.get(record.blob_index as usize)?;
        Some(ChunkRecord {
            blob_index: (*position)?,
            ..record
        })
    }
}

/// Blobs whose chunks lie in files of another kind, or can't be read without another image's key.
const UNUSABLE: BlobFeatures = BlobFeatures::ZRAN
    .union(BlobFeatures::SEPARATE)
    .union(BlobFeatures::TARFS)
    .union(BlobFeatures::ENCRYPTED)
    .union(BlobFeatures::SEPARATED_WITH_PREFETCH_FILES)
    .union(BlobFeatures::EXTERNAL);

/// Whether chunks of a blob can be chunks of other images, too. Those of gzip can't: no build makes any, and what looks
/// like such a blob may be an eStargz layer, which no image lists among its blobs and whose records only say how far a chunk
/// may reach.
pub fn is_usable(blob: &BlobInfo) -> bool {
    !blob.id.is_placeholder()
        && !blob.features.intersects(UNUSABLE)
        && blob.compressor != Compressor::Gzip
}

impl Dictionary {
    /// A dictionary of `chunks`, whose blob indexes point into `blobs`; chunks of no such blob are left out, and those
    /// beyond what an index has room for.
    pub fn new(blobs: Vec<BlobInfo>, chunks: impl IntoIterator<Item = ChunkRecord>) -> Self {
        let mut dictionary = Self::default();
        dictionary.extend(&blobs, chunks);
        dictionary
    }

    /// A dictionary of an index, the blob indexes of which point into `blobs`.
    pub fn of_index(blobs: Vec<BlobInfo>, index: Arc<ChunkIndex>) -> Self {
        let positions = (0..blobs.len() as u32).map(Some).collect();
        Self {
            blobs,
            parts: vec![Part { index, positions }],
        }
    }

    /// Adds chunks of further blobs, whose blob indexes point into those, behind what is known; as in
    /// [`Dictionary::new`].
    pub fn extend(&mut self, blobs: &[BlobInfo], chunks: impl IntoIterator<Item = ChunkRecord>) {
        let mut index = IndexBuilder::default();
        let known = |chunk: &ChunkRecord| (chunk.blob_index as usize) < blobs.len();
        for chunk in chunks.into_iter().filter(known) {
            if index.push(&chunk).is_err() {
                break;
            }
        }
        let base = self.blobs.len() as u32;
        self.blobs.extend_from_slice(blobs);
        self.parts.push(Part {
            index: Arc::new(index.finish()),
            positions: (base..self.blobs.len() as u32).map(Some).collect(),
        });
    }

    /// The record of a chunk with that content: the first one if there are several.
    pub fn find(&self, key: &ChunkKey) -> Option<ChunkRecord> {
        self.places(key).next()
    }

    /// Every place of a chunk with that content.
    pub fn places(&self, key: &ChunkKey) -> impl Iterator<Item = ChunkRecord> {
        self.parts.iter().flat_map(|part| {
            let records = part.index.places(key);
            records.filter_map(|record| part.moved(record))
        })
    }

    /// Every place of each of many chunks, in the order of the keys: faster than one after the other.
    pub fn all_places(&self, keys: &[ChunkKey]) -> Vec<Vec<ChunkRecord>> {
        let mut all = vec![Vec::new(); keys.len()];
        for part in &self.parts {
            part.index.all_places(keys, |at, records| {
                all[at].extend(records.iter().filter_map(|record| part.moved(*record)));
            });
        }
        all
    }

    /// The record of a chunk with that content at a row of a blob's chunk table, if it is there.
    pub fn at(&self, key: &ChunkKey, blob_index: u32, index: u32) -> Option<ChunkRecord> {
        self.places(key)
            .find(|record| (record.blob_index, record.index) == (blob_index, index))
    }

    /// The blob that a record of this dictionary points to.
    pub fn blob(&self, index: u32) -> Option<&BlobInfo> {
        self.blobs.get(index as usize)
    }

    /// All blobs; records have their positions here.
    pub fn blobs(&self) -> &[BlobInfo] {
        &self.blobs
    }

    /// Uncompressed bytes of the chunks that are known in each blob, by its position.
    pub fn sizes(&self) -> Vec<u64> {
        let mut sizes = vec![0_u64; self.blobs.len()];
        for part in &self.parts {
            let records = part.index.bare_records();
            for record in records.filter_map(|record| part.moved(record)) {
                sizes[record.blob_index as usize] += u64::from(record.uncompressed_size);
            }
        }
        sizes
    }

    /// The dictionary with those blobs alone that `keep` is true for. The order of the others stays.
    #[must_use]
    pub fn retain(&self, keep: impl Fn(&BlobInfo) -> bool) -> Self {
        let mut blobs = Vec::new();
        let moved: Vec<Option<u32>> = self
            .blobs
            .iter()
            .map(|blob| {
                keep(blob).then(|| {
                    blobs.push(blob.clone());
                    blobs.len() as u32 - 1
                })
            })
            .collect();
        let parts = self.parts.iter().map(|part| Part {
            index: Arc::clone(&part.index),
            positions: part
                .positions
                .iter()
                .map(|position| moved.get((*position)? as usize).copied().flatten())
                .collect(),
        });
        Self {
            parts: parts.collect(),
            blobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use rafs_format::{BlobId, Digester};

    use super::*;

    #[test]
    fn chunks_of_estargz_layers_and_of_other_kinds_of_files_are_nobody_elses() {
        let blob = |compressor, features| BlobInfo {
            features,
            ..BlobInfo::new(
                BlobId::new("a").unwrap(),
                4 << 20,
                compressor,
                Digester::Sha256,
            )
        };
        let native = BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC;
        assert!(is_usable(&blob(Compressor::Zstd, native)));
        assert!(!is_usable(&blob(Compressor::Gzip, native)));
        for feature in UNUSABLE.iter() {
            assert!(!is_usable(&blob(Compressor::Zstd, native | feature)));
        }
        let open = BlobInfo {
            id: BlobId::placeholder(),
            ..blob(Compressor::Zstd, native)
        };
        assert!(!is_usable(&open));
    }

    #[test]
    fn the_same_digest_with_another_size_is_another_chunk() {
        let mut table = ChunkTable::default();
        let key = |size| ChunkKey {
            digest: [7; 32],
            size,
        };
        assert!(table.insert(key(1), 'a'));
        assert!(table.insert(key(2), 'b'));
        assert!(!table.insert(key(1), 'c'), "the first one stays");
        assert_eq!(
            (
                table.find(&key(1)),
                table.find(&key(2)),
                table.find(&key(3))
            ),
            (Some('a'), Some('b'), None)
        );
        assert_eq!(table.len(), 2);
    }
}
