use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rafs_format::BlobInfo;
use rafs_format::blob_meta::{BatchContext, BlobMeta, Placement, StoredChunk};

use crate::cache::{BlobCache, State};
use crate::decode::BATCH_SIZE_MAX;
use crate::{
    BlobReader, BlobSource, ChunkDecoder, ChunkError, Error, KnownChunk, KnownChunks, ReadCause,
    ReadError, read_blob_meta_from,
};

/// One blob of the image: what the bootstrap says of it, its cache, and, once needed, the blob itself.
pub(super) struct Blob {
    pub info: BlobInfo,
    pub id: Arc<str>,
    pub known: KnownChunks,
    pub cache: Option<BlobCache>,
    /// What the bootstrap says in place of a chunk table, if the blob holds none.
    table: Option<Arc<BlobMeta>>,
    remote: Mutex<Option<Arc<Remote>>>,
    /// One bit for each chunk of which anything was read.
    used: Vec<AtomicU64>,
}

/// The blob behind the cache.
pub(super) struct Remote {
    pub reader: Arc<dyn BlobReader>,
    pub meta: Arc<BlobMeta>,
    pub decoder: ChunkDecoder,
    /// Whether stored sizes are upper bounds.
    bounds: bool,
}

/// Where a unit of stored bytes lies: a chunk by itself, or a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub size: u64,
    pub batch: Option<u32>,
}

impl Blob {
    pub fn new(
        info: BlobInfo,
        known: KnownChunks,
        table: Option<BlobMeta>,
        cache: Option<BlobCache>,
    ) -> Self {
        let id = Arc::from(info.id.as_str());
        Self {
            info,
            id,
            used: (0..known.len().div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            known,
            cache,
            table: table.map(Arc::new),
            remote: Mutex::default(),
        }
    }

    /// What the cache on disk has of a chunk.
    pub fn state(&self, slot: usize) -> State {
        self.cache
            .as_ref()
            .map_or(State::Absent, |cache| cache.state(slot))
    }

    /// Opens the blob and reads its chunk table, the first time.
    pub fn remote(&self, source: &dyn BlobSource) -> Result<Arc<Remote>, ReadCause> {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = &*remote {
            return Ok(Arc::clone(remote));
        }
        let reader = source.open(&self.id).map_err(ReadCause::Open)?;
        let meta = |error: Error| ReadCause::Meta(Arc::new(error));
        let decoder = ChunkDecoder::new(&self.info).map_err(meta)?;
        let table = match &self.table {
            Some(table) => Arc::clone(table),
            None => Arc::new(read_blob_meta_from(&self.info, &*reader, source).map_err(meta)?),
        };
        Ok(Arc::clone(remote.insert(Arc::new(Remote {
            reader,
            meta: table,
            decoder,
            bounds: self.info.is_estargz(),
        }))))
    }

    /// Notes that a chunk is read; whether that is the first time.
    pub fn note_use(&self, slot: usize) -> bool {
        let bit = 1 << (slot % 64);
        self.used.get(slot / 64).is_some_and(|word| {
            word.load(Ordering::Relaxed) & bit == 0
                && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
        })
    }

    /// Stored size of a chunk in bytes; `None` as long as the blob was not needed.
    pub fn stored_size(&self, known: &KnownChunk) -> Option<u32> {
        let remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        Some(remote.as_ref()?.meta.chunk(known.index)?.compressed_size)
    }

    pub fn error(&self, known: &KnownChunk, cause: ReadCause) -> ReadError {
        ReadError {
            blob: Arc::clone(&self.id),
            index: known.index,
            offset: known.offset,
            cause: Arc::new(cause),
        }
    }
}

impl Remote {
    /// The blob's own record of a chunk, if it agrees with the bootstrap.
    pub fn record(&self, known: &KnownChunk) -> Result<StoredChunk, ReadCause> {
        let record = self.meta.chunk(known.index).ok_or(ReadCause::Unknown)?;
        if (record.uncompressed_offset, record.uncompressed_size) != (known.offset, known.size) {
            return Err(ReadCause::Mismatch {
                actual: record.uncompressed_offset,
                actual_size: record.uncompressed_size,
                offset: known.offset,
                size: known.size,
            });
        }
        Ok(record)
    }

    /// Where the stored bytes of a chunk lie.
    pub fn extent(&self, record: &StoredChunk) -> Result<Extent, ChunkError> {
        let offset = record.compressed_offset;
        let Placement::Batch { index, .. } = record.placement else {
            let mut size = u64::from(record.compressed_size);
            if self.bounds {
                size = size.min(self.reader.size().saturating_sub(offset));
            }
            return Ok(Extent {
                offset,
                size,
                batch: None,
            });
        };
        match self.batch(index)?.compressed_size {
            size if size <= BATCH_SIZE_MAX => Ok(Extent {
                offset,
                size: u64::from(size),
                batch: Some(index),
            }),
            _ => Err(ChunkError::Record(
                "the chunk's batch is larger than the format allows",
            )),
        }
    }

    pub fn batch(&self, index: u32) -> Result<BatchContext, ChunkError> {
        self.meta
            .batch(index)
            .ok_or(ChunkError::Record("the chunk's batch does not exist"))
    }

    /// The chunks of batch `batch`, which has chunk `index`. A builder gives them consecutive rows.
    pub fn batch_members(&self, batch: u32, index: u32) -> impl Iterator<Item = u32> {
        let member = move |index: &u32| {
            let placement = self.meta.chunk(*index).map(|record| record.placement);
            matches!(placement, Some(Placement::Batch { index, .. }) if index == batch)
        };
        let before = (0..index).rev().take_while(member);
        let after = (index..).take_while(member);
        before.chain(after)
    }
}
