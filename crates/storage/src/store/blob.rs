use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use rafs_format::BlobInfo;
use rafs_format::blob_meta::{BatchContext, BlobMeta, Placement, StoredChunk, ZranContext};

use crate::cache::{BlobCache, State};
use crate::decode::{BATCH_SIZE_MAX, SLICE_STORED_MAX};
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

/// What the place with the last word has of a blob.
struct LastWord<'a>(&'a dyn BlobReader);

impl BlobReader for LastWord<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)?;
        self.0.read_again(buf, offset).map(drop)
    }

    fn size(&self) -> u64 {
        self.0.size()
    }
}

/// Where a unit of stored bytes lies: a chunk by itself, or a group of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    pub size: u64,
    pub group: Option<Group>,
}

/// Chunks that are decoded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Batch(u32),
    Slice(u32),
}

impl Group {
    fn of(record: &StoredChunk) -> Option<Self> {
        match record.placement {
            Placement::Plain => None,
            Placement::Batch { index, .. } => Some(Self::Batch(index)),
            Placement::Zran { index, .. } => Some(Self::Slice(index)),
        }
    }
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

    /// Whether the cache on disk has all that the image uses.
    pub fn is_complete(&self) -> bool {
        self.cache
            .as_ref()
            .is_some_and(|cache| cache.missing() == 0)
    }

    /// Opens the blob and reads its chunk table, the first time; `permit` lets that be done.
    pub fn remote<P>(
        &self,
        source: &dyn BlobSource,
        permit: impl FnOnce() -> P,
    ) -> Result<Arc<Remote>, ReadCause> {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = &*remote {
            return Ok(Arc::clone(remote));
        }
        let _permit = permit();
        let reader = source.open(&self.id).map_err(ReadCause::Open)?;
        let meta = |error: Error| ReadCause::Meta(Arc::new(error));
        let decoder = ChunkDecoder::new(&self.info).map_err(meta)?;
        let table = match &self.table {
            Some(table) => Arc::clone(table),
            None => {
                let table = read_blob_meta_from(&self.info, &*reader, source);
                let again = |_| read_blob_meta_from(&self.info, &LastWord(&*reader), source);
                Arc::new(table.or_else(again).map_err(meta)?)
            }
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

    /// Stored size of a chunk in bytes; `None` as long as the blob was not needed, or is just being opened: that may take
    /// long, and who asks has what it wanted.
    pub fn stored_size(&self, known: &KnownChunk) -> Option<u32> {
        let remote = match self.remote.try_lock() {
            Ok(remote) => remote,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
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
        let group = Group::of(record);
        let (offset, size) = match group {
            None => {
                let mut size = u64::from(record.compressed_size);
                if self.bounds {
                    let left = self.reader.size().saturating_sub(record.compressed_offset);
                    size = size.min(left);
                }
                (record.compressed_offset, size)
            }
            Some(Group::Batch(index)) => {
                let size = self.batch(index)?.compressed_size;
                if size > BATCH_SIZE_MAX {
                    return Err(ChunkError::Record(
                        "the chunk's batch is larger than the format allows",
                    ));
                }
                (record.compressed_offset, size.into())
            }
            Some(Group::Slice(index)) => {
                let slice = self.slice(index)?;
                if slice.in_len > SLICE_STORED_MAX {
                    return Err(ChunkError::Record(
                        "the chunk's slice of the gzip layer is larger than any builder makes it",
                    ));
                }
                (slice.in_offset, slice.in_len.into())
            }
        };
        Ok(Extent {
            offset,
            size,
            group,
        })
    }

    pub fn slice(&self, index: u32) -> Result<ZranContext, ChunkError> {
        self.meta
            .zran(index)
            .ok_or(ChunkError::Record("the chunk's slice does not exist"))
    }

    pub fn batch(&self, index: u32) -> Result<BatchContext, ChunkError> {
        self.meta
            .batch(index)
            .ok_or(ChunkError::Record("the chunk's batch does not exist"))
    }

    /// The chunks of the group `group`, which has chunk `index`. A builder gives them consecutive rows.
    pub fn members(&self, group: Group, index: u32) -> impl Iterator<Item = u32> {
        let member = move |index: &u32| {
            let record = self.meta.chunk(*index);
            record.and_then(|record| Group::of(&record)) == Some(group)
        };
        let before = (0..index).rev().take_while(member);
        let after = (index..).take_while(member);
        before.chain(after)
    }
}
