//! Where the batches of a blob lie, found out from its chunk data.
//!
//! Programs that turn layers back into tars cut the chunk data out of a blob and leave the table behind, which alone says
//! where the chunks of batches lie. But the bootstrap says where every other chunk is stored, batches fill the gaps
//! between those one behind the other, their members follow in the order of their rows, and a zstd frame says how long
//! it is and how much it holds. A batch that is stored as it is comes out as chunks that are stored by themselves.

use std::sync::Arc;

use rafs_format::blob_meta::{BatchContext, BlobMeta, Placement, StoredChunk};
use rafs_format::{BlobInfo, ChunkFlags, ChunkRecord, Cipher, Compressor};

use crate::decode::BATCH_SIZE_MAX;
use crate::meta::read_piece;
use crate::{BlobReader, BlobSource, Error, KnownChunk};

const WHAT: &str = "the chunk data of a blob with batches";
/// Bytes that are read at a time, at least: those who pass blobs on like few reads, and only forward ones.
const READ: u64 = 1 << 20;

/// Whether the chunk data of a blob says where its batches lie: where they are zstd frames or stored as they are, in clear.
pub fn can_locate_batches(info: &BlobInfo) -> bool {
    matches!(info.compressor, Compressor::Zstd | Compressor::None) && info.cipher == Cipher::None
}

/// The table of a blob that holds batches and no table, from the records of all its chunks.
///
/// # Errors
/// [`Error::Invalid`] if chunks are missing, if the blob is encrypted, or if its compressor does not say where a batch
/// ends; [`Error::Read`] if the blob cannot be read, [`Error::Format`] if what comes out is not sound.
pub(crate) fn locate(
    info: &BlobInfo,
    records: &[ChunkRecord],
    source: &dyn BlobSource,
) -> Result<BlobMeta, Error> {
    let mut records: Vec<&ChunkRecord> = records.iter().collect();
    records.sort_unstable_by_key(|record| record.index);
    if records.len() != info.chunk_count as usize || !can_locate_batches(info) {
        return Err(lost(info));
    }
    let blob = source.open(info.id.as_str());
    let blob = blob.map_err(|source| Error::Read {
        what: WHAT,
        offset: 0,
        size: info.data_size(),
        source,
    })?;
    let mut search = Search {
        info,
        window: Window {
            blob,
            end: info.data_size(),
            start: 0,
            bytes: Vec::new(),
        },
        position: 0,
        stored: Vec::with_capacity(records.len()),
        batches: Vec::new(),
    };
    let mut rest = &records[..];
    while let Some(first) = rest.first() {
        let members = rest.iter().take_while(|record| is_member(record)).count();
        let (batched, others) = rest.split_at(members);
        let end = others
            .first()
            .map_or(info.data_size(), |next| next.compressed_offset);
        if batched.is_empty() {
            search.alone(first);
            rest = rest.get(1..).unwrap_or_default();
        } else {
            search.gap(batched, end)?;
            rest = others;
        }
    }
    let format = |source| Error::Format { what: WHAT, source };
    BlobMeta::from_stored(search.stored, &search.batches, info).map_err(format)
}

/// Whether a bootstrap's record is that of a member of a batch: it says nothing of where that is.
fn is_member(record: &ChunkRecord) -> bool {
    record.compressed_size == 0
}

fn lost(info: &BlobInfo) -> Error {
    Error::invalid(
        format!("blob {}", info.id),
        "where its batches of small chunks lie is said by the table at its end alone, which is not there: \
         give the whole blob instead of its chunk data",
    )
}

/// What was found so far.
struct Search<'a> {
    info: &'a BlobInfo,
    window: Window,
    /// End of the stored bytes whose chunks are known.
    position: u64,
    stored: Vec<StoredChunk>,
    batches: Vec<BatchContext>,
}

impl Search<'_> {
    /// A chunk that the bootstrap knows the place of.
    fn alone(&mut self, record: &ChunkRecord) {
        let size = u64::from(record.compressed_size);
        self.position = record.compressed_offset.saturating_add(size);
        self.stored.push(StoredChunk::from(record));
    }

    /// Chunks of batches that fill the blob up to `end`.
    fn gap(&mut self, mut members: &[&ChunkRecord], end: u64) -> Result<(), Error> {
        while let Some(first) = members.first() {
            let left = end.saturating_sub(self.position);
            let count = match self.frame(members, left)? {
                Some((size, content, count)) => {
                    let (batch, _) = members.split_at(count);
                    self.batch(batch, size, content);
                    count
                }
                None => {
                    self.raw(first, left)?;
                    1
                }
            };
            members = members.get(count..).unwrap_or_default();
        }
        match self.position == end {
            true => Ok(()),
            false => Err(lost(self.info)),
        }
    }

    /// The zstd frame here: its length, that of what it holds, and how many chunks that is; `None` if there is none that
    /// holds whole chunks.
    fn frame(
        &mut self,
        members: &[&ChunkRecord],
        left: u64,
    ) -> Result<Option<(u32, u32, usize)>, Error> {
        if self.info.compressor != Compressor::Zstd {
            return Ok(None);
        }
        let head = left.min(codec::ZSTD_HEADER_MAX as u64);
        let head = self.window.bytes(self.position, head)?;
        let content = codec::zstd_content_size(head);
        let Some(content) = content.filter(|&size| size <= u64::from(BATCH_SIZE_MAX)) else {
            return Ok(None);
        };
        let mut sum = 0;
        let ends = members.iter().map(|member| {
            sum += u64::from(member.uncompressed_size);
            sum
        });
        let count = ends.take_while(|&end| end < content).count() + 1;
        let members = members.get(..count).unwrap_or_default();
        let sizes = members
            .iter()
            .map(|member| u64::from(member.uncompressed_size));
        if sizes.sum::<u64>() != content {
            return Ok(None);
        }
        // Compressed bytes are always fewer, else the batch would have been stored as it is.
        let bytes = self.window.bytes(self.position, left.min(content))?;
        let size = codec::zstd_frame_size(bytes).filter(|&size| (size as u64) < content);
        Ok(size.map(|size| (size as u32, content as u32, count)))
    }

    fn batch(&mut self, members: &[&ChunkRecord], size: u32, content: u32) {
        let index = self.batches.len() as u32;
        let mut offset = 0;
        for record in members {
            self.stored.push(StoredChunk {
                compressed_offset: self.position,
                compressed: true,
                crc32: None,
                placement: Placement::Batch { index, offset },
                ..StoredChunk::from(*record)
            });
            offset += record.uncompressed_size;
        }
        self.batches.push(BatchContext {
            compressed_size: size,
            uncompressed_size: content,
        });
        self.position += u64::from(size);
    }

    /// A chunk of a batch that is stored as it is.
    fn raw(&mut self, record: &ChunkRecord, left: u64) -> Result<(), Error> {
        let size = u64::from(record.uncompressed_size);
        let bytes = self.window.bytes(self.position, size.min(left))?;
        let known = KnownChunk::from(record);
        if codec::digest(self.info.digester, bytes) != known.digest {
            return Err(lost(self.info));
        }
        let mut flags = record.flags;
        flags.remove(ChunkFlags::COMPRESSED);
        self.stored.push(StoredChunk::from(&ChunkRecord {
            compressed_offset: self.position,
            compressed_size: record.uncompressed_size,
            flags,
            ..*record
        }));
        self.position += size;
        Ok(())
    }
}

/// Bytes of a blob that is read front to back.
struct Window {
    blob: Arc<dyn BlobReader>,
    /// Where the chunk data ends. What passes a blob on may have no more, whatever size it states.
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The `len` bytes from `offset` on, which lies behind that of every earlier call or is the same.
    fn bytes(&mut self, offset: u64, len: u64) -> Result<&[u8], Error> {
        let have = self.start + self.bytes.len() as u64;
        let end = offset.saturating_add(len);
        let begin = offset
            .saturating_sub(self.start)
            .min(self.bytes.len() as u64) as usize;
        if end <= have {
            let until = (end - self.start) as usize;
            return Ok(self.bytes.get(begin..until).unwrap_or_default());
        }
        self.bytes.drain(..begin);
        self.start = offset;
        let from = offset + self.bytes.len() as u64;
        let left = self.end.saturating_sub(from);
        let more = (end - from).max(READ.min(left));
        self.bytes
            .extend(read_piece(&*self.blob, WHAT, from, more)?);
        Ok(self.bytes.get(..len as usize).unwrap_or_default())
    }
}
