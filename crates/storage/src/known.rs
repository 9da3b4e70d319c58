//! What a bootstrap says of the chunks of its blobs: where they lie once decoded, and their digests.

use std::ops::{Deref, Range};

use rafs_format::blob_meta::BlobMeta;
use rafs_format::{BLOCK_SIZE, BlobFeatures, BlobInfo, Bootstrap, ChunkFlags, ChunkRecord, Digest};

use crate::{BlobSource, Error, batches};

/// One chunk as the bootstrap's chunk table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownChunk {
    /// Row of the chunk in its blob's own chunk table.
    pub index: u32,
    /// Bytes of file data.
    pub size: u32,
    /// Where the chunk begins in the blob's uncompressed address space, in bytes.
    pub offset: u64,
    /// Digest of the bytes.
    pub digest: Digest,
    /// CRC-32C of the bytes, if recorded.
    pub crc32: Option<u32>,
}

impl From<&ChunkRecord> for KnownChunk {
    fn from(record: &ChunkRecord) -> Self {
        Self {
            index: record.index,
            size: record.uncompressed_size,
            offset: record.uncompressed_offset,
            digest: record.digest,
            crc32: record
                .flags
                .contains(ChunkFlags::HAS_CRC32)
                .then_some(record.crc32),
        }
    }
}

/// The chunks of one blob that an image uses. No two of them share a block of the uncompressed address space.
#[derive(Debug, Default)]
pub struct KnownChunks {
    /// By index.
    chunks: Box<[KnownChunk]>,
    /// Positions in `chunks`, by uncompressed offset.
    by_offset: Box<[u32]>,
}

impl KnownChunks {
    /// Reads the chunk table of `bootstrap`; the result has one item for each entry of the blob table.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a chunk lies outside its blob, twice in the table, or over another one;
    /// [`Error::Unsupported`] if chunks have no digest.
    pub fn of<D: Deref<Target = [u8]>>(bootstrap: &Bootstrap<D>) -> Result<Vec<Self>, Error> {
        let blobs = bootstrap.blobs();
        let mut chunks: Vec<Vec<KnownChunk>> = vec![Vec::new(); blobs.len()];
        for record in bootstrap.chunk_table() {
            let record = record.map_err(|source| Error::Format {
                what: "the chunk table",
                source,
            })?;
            let at = usize::try_from(record.blob_index).ok();
            let (Some(info), Some(chunks)) = (
                at.and_then(|at| blobs.get(at)),
                at.and_then(|at| chunks.get_mut(at)),
            ) else {
                let what = format!("chunk {} of blob index {}", record.index, record.blob_index);
                return Err(Error::invalid(
                    what,
                    format!("the image has {} blobs", blobs.len()),
                ));
            };
            let chunk = KnownChunk::from(&record);
            check_chunk(info, &chunk)?;
            chunks.push(chunk);
        }
        chunks
            .into_iter()
            .zip(blobs)
            .map(|(chunks, info)| Self::new(info, chunks))
            .collect()
    }

    /// The chunk tables of those blobs that hold none, by blob; see [`BlobMeta::from_records`]. Where batches lie is found
    /// out from the blob in `source`.
    ///
    /// # Errors
    /// [`Error::Format`] naming the first record that does not fit its blob, [`Error::Invalid`] if a table is missed
    /// that says more than can be found out, [`Error::Read`] if a blob cannot be read.
    pub fn tables<D: Deref<Target = [u8]>>(
        bootstrap: &Bootstrap<D>,
        source: &dyn BlobSource,
    ) -> Result<Vec<Option<BlobMeta>>, Error> {
        let blobs = bootstrap.blobs();
        let mut records: Vec<Vec<ChunkRecord>> = vec![Vec::new(); blobs.len()];
        if !blobs.iter().any(BlobInfo::is_located_by_bootstrap) {
            return Ok(blobs.iter().map(|_| None).collect());
        }
        let damaged = |source| Error::Format {
            what: "the chunk table",
            source,
        };
        for record in bootstrap.chunk_table() {
            let record = record.map_err(damaged)?;
            let at = record.blob_index as usize;
            if blobs.get(at).is_some_and(BlobInfo::is_located_by_bootstrap) {
                records[at].push(record);
            }
        }
        let table = |(info, records): (&BlobInfo, Vec<ChunkRecord>)| {
            if !info.is_located_by_bootstrap() {
                return Ok(None);
            }
            if info.features.contains(BlobFeatures::BATCH) {
                return batches::locate(info, &records, source).map(Some);
            }
            BlobMeta::from_records(&records, info)
                .map(Some)
                .map_err(damaged)
        };
        blobs.iter().zip(records).map(table).collect()
    }

    /// The chunks of a blob whose records are `records`.
    pub(crate) fn of_blob(info: &BlobInfo, records: &[ChunkRecord]) -> Result<Self, Error> {
        let chunks: Vec<KnownChunk> = records.iter().map(KnownChunk::from).collect();
        chunks
            .iter()
            .try_for_each(|chunk| check_chunk(info, chunk))?;
        Self::new(info, chunks)
    }

    fn new(info: &BlobInfo, mut chunks: Vec<KnownChunk>) -> Result<Self, Error> {
        chunks.sort_unstable_by_key(|chunk| chunk.index);
        for pair in chunks.windows(2) {
            if let [a, b] = pair
                && a.index == b.index
            {
                return Err(Error::invalid(
                    name(info, a),
                    "it has two entries in the chunk table",
                ));
            }
        }
        let mut by_offset: Vec<(u64, u32)> = (0..)
            .zip(&chunks)
            .map(|(slot, chunk)| (chunk.offset, slot))
            .collect();
        by_offset.sort_unstable();
        let known = Self {
            chunks: chunks.into(),
            by_offset: by_offset.into_iter().map(|(_, slot)| slot).collect(),
        };
        let mut end = 0;
        for chunk in known.in_order() {
            if chunk.offset < end {
                return Err(Error::invalid(
                    name(info, chunk),
                    "another chunk lies at the same uncompressed offset",
                ));
            }
            end = chunk.end();
        }
        Ok(known)
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether the image uses no chunk of the blob.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// All chunks, by index.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &KnownChunk> + DoubleEndedIterator {
        self.chunks.iter()
    }

    /// The chunk with that index in the blob, and its position among the known ones.
    pub fn find(&self, index: u32) -> Option<(usize, &KnownChunk)> {
        // Mostly every chunk of a blob is in use, and then the position is the index.
        let slot = match usize::try_from(index)
            .ok()
            .and_then(|slot| Some((slot, self.chunks.get(slot)?)))
        {
            Some((slot, chunk)) if chunk.index == index => slot,
            _ => self
                .chunks
                .binary_search_by_key(&index, |chunk| chunk.index)
                .ok()?,
        };
        Some((slot, self.chunks.get(slot)?))
    }

    /// The chunk at a position that [`KnownChunks::find`] gave.
    pub fn get(&self, slot: usize) -> Option<&KnownChunk> {
        self.chunks.get(slot)
    }

    /// Whether a run of the uncompressed address space touches a block of a known chunk.
    pub(crate) fn overlaps(&self, offset: u64, size: u32) -> bool {
        let end = offset.saturating_add(u64::from(size));
        self.within(&(offset..end)).next().is_some()
    }

    /// Positions of the chunks that touch a run of the uncompressed address space, in its order.
    pub fn within(&self, run: &Range<u64>) -> impl Iterator<Item = usize> {
        let chunk = |slot: &u32| self.chunks.get(usize::try_from(*slot).ok()?);
        let first = self
            .by_offset
            .partition_point(|slot| chunk(slot).is_some_and(|chunk| chunk.end() <= run.start));
        self.by_offset
            .get(first..)
            .unwrap_or_default()
            .iter()
            .take_while(move |slot| chunk(slot).is_some_and(|chunk| chunk.offset < run.end))
            .filter_map(|&slot| usize::try_from(slot).ok())
    }

    fn in_order(&self) -> impl Iterator<Item = &KnownChunk> {
        self.by_offset
            .iter()
            .filter_map(|&slot| self.chunks.get(usize::try_from(slot).ok()?))
    }
}

impl KnownChunk {
    /// End of the last block of the chunk. `check_chunk` has seen that it is no overflow.
    pub(crate) fn end(&self) -> u64 {
        (self.offset + u64::from(self.size)).next_multiple_of(BLOCK_SIZE)
    }
}

/// Size of the uncompressed address space in whole blocks, in bytes.
pub(crate) fn device_size(info: &BlobInfo) -> u64 {
    info.uncompressed_size
        .checked_next_multiple_of(BLOCK_SIZE)
        .unwrap_or(info.uncompressed_size)
}

fn check_chunk(info: &BlobInfo, chunk: &KnownChunk) -> Result<(), Error> {
    let problem = if chunk.digest == [0; 32] {
        let what = format!("blob {}", info.id);
        return Err(Error::Unsupported {
            what,
            feature: "chunks without digests (tarfs or legacy stargz)",
        });
    } else if chunk.index >= info.chunk_count
        && !info.features.contains(BlobFeatures::CHUNKDICT_GENERATED)
    {
        format!("the blob has {} chunks", info.chunk_count)
    } else if chunk.size == 0 || chunk.size > info.chunk_size {
        format!(
            "its size of {} bytes is not in 1..={}",
            chunk.size, info.chunk_size
        )
    } else if !chunk.offset.is_multiple_of(BLOCK_SIZE) {
        format!(
            "its uncompressed offset {:#x} is no multiple of {BLOCK_SIZE}",
            chunk.offset
        )
    } else if chunk
        .offset
        .checked_add(u64::from(chunk.size))
        .is_none_or(|end| end > device_size(info))
    {
        format!(
            "at {:#x} with {} bytes it ends beyond the {} bytes of the blob",
            chunk.offset,
            chunk.size,
            device_size(info)
        )
    } else {
        return Ok(());
    };
    Err(Error::invalid(name(info, chunk), problem))
}

fn name(info: &BlobInfo, chunk: &KnownChunk) -> String {
    format!("chunk {} of blob {}", chunk.index, info.id)
}
