//! The chunk table of a blob ("blob meta", "CI table"): where each chunk is stored.
//!
//! The uncompressed table is `chunk records | context records | zran dictionaries`; a 4096-byte header follows the
//! stored table in the blob. Chunk records have 16 bytes (V1) or 24 bytes (V2), context records 40 bytes.
//!
//! V1, two words of 64 bits: bits 12..43 of the first are the uncompressed offset in place, bits 44..63 and 8..11 the
//! low 20 and high 4 bits of the uncompressed size less one; bits 0..39 of the second are the compressed offset, bits
//! 44..63 and 40..43 the compressed size less one. A chunk is compressed if its sizes differ.
//!
//! V2, three words: bits 0..31 of the first are the uncompressed offset in blocks, bits 32..55 the uncompressed size
//! less one, bits 56..60 flags; bits 0..39 of the second are the compressed offset, bits 40..63 the compressed size;
//! the third is, by flag, `index << 32 | offset` in a batch or slice, or a CRC-32C.

mod header;
mod record;

use crate::error::expect_equal;
use crate::raw::{self, BatchContextRaw, MetaChunkV1Raw, MetaChunkV2Raw, ZranContextRaw, up};
use crate::{BLOCK_SIZE, BlobFeatures, BlobInfo, ChunkRecord, Error};

pub use header::{HEADER_SIZE, Header};
use record::{BATCH, ENCRYPTED, HAS_CRC32, SIZE_MAX, ZRAN, decode_v1, decode_v2};
pub use record::{
    BatchContext, Placement, StoredChunk, ZranContext, encode_batch, encode_v1, encode_v2,
    encode_zran,
};

/// Bytes of a chunk record in the table: V1, and V2.
pub const CHUNK_V1_SIZE: u64 = MetaChunkV1Raw::SIZE as u64;
/// See [`CHUNK_V1_SIZE`].
pub const CHUNK_V2_SIZE: u64 = MetaChunkV2Raw::SIZE as u64;
/// Length of the record of a batch or slice, in bytes.
pub const CONTEXT_SIZE: usize = ZranContextRaw::SIZE;
/// Largest dictionary of a slice: the window of deflate.
const DICTIONARY_MAX: u32 = 32768;

/// The chunk table of one blob, every record validated. It is kept as it is and decoded on access.
#[derive(Debug, Clone)]
pub struct BlobMeta {
    table: Vec<u8>,
    count: u32,
    v2: bool,
    contexts_offset: u64,
    contexts_count: u32,
    contexts_size: u64,
    /// What is known of the chunks of a blob without a table, by index; the table then has the batches alone.
    listed: Vec<StoredChunk>,
}

impl BlobMeta {
    /// The table of a blob that holds none, put together from the records of those of its chunks that a bootstrap uses.
    /// There is but one record for each chunk.
    ///
    /// # Errors
    /// [`Error`] naming the first record that does not fit the blob.
    pub fn from_records<'a>(
        records: impl IntoIterator<Item = &'a ChunkRecord>,
        info: &BlobInfo,
    ) -> Result<Self, Error> {
        let listed = records.into_iter().map(StoredChunk::from).collect();
        Self::from_stored(listed, &[], info)
    }

    /// The table of a blob that holds none, put together from what is known of its chunks and of their batches.
    ///
    /// # Errors
    /// As [`BlobMeta::from_records`].
    pub fn from_stored(
        mut listed: Vec<StoredChunk>,
        batches: &[BatchContext],
        info: &BlobInfo,
    ) -> Result<Self, Error> {
        listed.sort_unstable_by_key(|chunk| chunk.index);
        let mut table = Vec::with_capacity(batches.len() * CONTEXT_SIZE);
        for batch in batches {
            encode_batch(batch, &mut table);
        }
        let meta = Self {
            contexts_size: table.len() as u64,
            table,
            count: info.chunk_count,
            v2: false,
            contexts_offset: 0,
            contexts_count: batches.len() as u32,
            listed: Vec::new(),
        };
        let rules = Rules::new(info);
        for index in 0..meta.contexts_count {
            meta.check_context(index, info)?;
        }
        for chunk in &listed {
            meta.check_chunk(chunk, 0, &rules)?;
        }
        Ok(Self { listed, ..meta })
    }

    /// Parses the uncompressed table with its header and the blob's entry in the blob table, which must agree.
    ///
    /// # Errors
    /// [`Error`] naming the first field or record that is wrong; offsets are those in the table or header.
    pub fn parse(table: &[u8], header: &[u8; HEADER_SIZE], info: &BlobInfo) -> Result<Self, Error> {
        Self::from_vec(table.to_vec(), header, info)
    }

    /// Like [`BlobMeta::parse`], without a copy of the table.
    ///
    /// # Errors
    /// As [`BlobMeta::parse`].
    pub fn from_vec(
        table: Vec<u8>,
        header: &[u8; HEADER_SIZE],
        info: &BlobInfo,
    ) -> Result<Self, Error> {
        let header = Header::parse(header)?;
        header.check(info)?;
        expect_equal(
            "length of a chunk table",
            0,
            table.len() as u64,
            info.meta_uncompressed_size,
        )?;
        let v2 = info.features.contains(BlobFeatures::CHUNK_INFO_V2);
        let record = if v2 {
            MetaChunkV2Raw::SIZE
        } else {
            MetaChunkV1Raw::SIZE
        };
        let records = u64::from(header.entries) * record as u64;
        if records > table.len() as u64 {
            return Err(Error::bounds(
                "the chunk records",
                0,
                records,
                table.len() as u64,
            ));
        }
        let mut meta = Self {
            table,
            count: header.entries,
            v2,
            contexts_offset: records,
            contexts_count: 0,
            contexts_size: 0,
            listed: Vec::new(),
        };
        if info
            .features
            .intersects(BlobFeatures::BATCH | BlobFeatures::ZRAN)
        {
            meta.adopt_contexts(&header)?;
        }
        let rules = Rules::new(info);
        for index in 0..meta.contexts_count {
            meta.check_context(index, info)?;
        }
        for index in 0..meta.count {
            let offset = u64::from(index) * record as u64;
            let chunk = meta.chunk(index).ok_or_else(|| {
                Error::bounds(
                    "a chunk record",
                    offset,
                    record as u64,
                    meta.table.len() as u64,
                )
            })?;
            meta.check_flags(index, offset, info)?;
            meta.check_chunk(&chunk, offset, &rules)?;
        }
        Ok(meta)
    }

    /// Number of chunks.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether the blob holds no chunk.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How chunk `index` is stored; `None` if there is no such chunk.
    pub fn chunk(&self, index: u32) -> Option<StoredChunk> {
        if index >= self.count {
            return None;
        }
        if !self.listed.is_empty() {
            let at = self
                .listed
                .binary_search_by_key(&index, |chunk| chunk.index);
            return self.listed.get(at.ok()?).copied();
        }
        if self.v2 {
            let raw = raw::read_at(&self.table, u64::from(index) * MetaChunkV2Raw::SIZE as u64)?;
            Some(decode_v2(raw, index))
        } else {
            let raw = raw::read_at(&self.table, u64::from(index) * MetaChunkV1Raw::SIZE as u64)?;
            Some(decode_v1(raw, index))
        }
    }

    /// All chunks in order.
    pub fn chunks(&self) -> impl Iterator<Item = StoredChunk> + '_ {
        (0..self.count).filter_map(|index| self.chunk(index))
    }

    /// Batch `index`; `None` if there is none.
    pub fn batch(&self, index: u32) -> Option<BatchContext> {
        let raw: &BatchContextRaw = self.context(index)?;
        Some(BatchContext {
            compressed_size: raw.compressed_size.get(),
            uncompressed_size: raw.uncompressed_size.get(),
        })
    }

    /// Slice `index` of the gzip stream; `None` if there is none.
    pub fn zran(&self, index: u32) -> Option<ZranContext> {
        let raw: &ZranContextRaw = self.context(index)?;
        Some(ZranContext {
            in_offset: raw.in_offset.get(),
            out_offset: raw.out_offset.get(),
            dictionary_offset: raw.dictionary_offset.get(),
            in_len: raw.in_len.get(),
            out_len: raw.out_len.get(),
            dictionary_size: raw.dictionary_size.get(),
            byte: raw.byte,
            bits: raw.bits,
        })
    }

    /// The dictionary with which inflating a slice begins; `None` if it does not lie in the table.
    pub fn dictionary(&self, context: &ZranContext) -> Option<&[u8]> {
        let records = u64::from(self.contexts_count) * ZranContextRaw::SIZE as u64;
        let area = raw::slice(
            &self.table,
            self.contexts_offset + records,
            self.contexts_size.checked_sub(records)?,
        )?;
        raw::slice(
            area,
            context.dictionary_offset,
            u64::from(context.dictionary_size),
        )
    }

    fn context<
        T: zerocopy::FromBytes + zerocopy::Immutable + zerocopy::KnownLayout + zerocopy::Unaligned,
    >(
        &self,
        index: u32,
    ) -> Option<&T> {
        if index >= self.contexts_count {
            return None;
        }
        raw::read_at(&self.table, self.contexts_offset + u64::from(index) * 40)
    }

    fn adopt_contexts(&mut self, header: &Header) -> Result<(), Error> {
        let len = self.table.len() as u64;
        expect_equal(
            "context offset in a blob meta header",
            40,
            header.contexts_offset,
            self.contexts_offset,
        )?;
        let end = header.contexts_offset.checked_add(header.contexts_size);
        if end.is_none_or(|end| end > len) {
            return Err(Error::bounds(
                "the context records",
                header.contexts_offset,
                header.contexts_size,
                len,
            ));
        }
        let records = u64::from(header.contexts_count) * 40;
        if records > header.contexts_size || header.contexts_count > header.entries {
            let expected = format!(
                "at most {} and {}",
                header.contexts_size / 40,
                header.entries
            );
            return Err(Error::field(
                "context count in a blob meta header",
                56,
                header.contexts_count,
                expected,
            ));
        }
        self.contexts_count = header.contexts_count;
        self.contexts_size = header.contexts_size;
        Ok(())
    }

    fn check_context(&self, index: u32, info: &BlobInfo) -> Result<(), Error> {
        let offset = self.contexts_offset + u64::from(index) * 40;
        let wrong =
            |what, actual: u64, expected: String| Err(Error::field(what, offset, actual, expected));
        let data_size = info.data_size();
        if info.features.contains(BlobFeatures::ZRAN) {
            let Some(context) = self.zran(index) else {
                return Err(Error::bounds(
                    "a slice record",
                    offset,
                    40,
                    self.table.len() as u64,
                ));
            };
            if context.bits > 7 {
                return wrong(
                    "bit count of a slice",
                    context.bits.into(),
                    "0 to 7".to_owned(),
                );
            }
            if context.dictionary_size > DICTIONARY_MAX || self.dictionary(&context).is_none() {
                return wrong(
                    "dictionary size of a slice",
                    context.dictionary_size.into(),
                    "at most 32768 bytes within the table".to_owned(),
                );
            }
            if context
                .in_offset
                .checked_add(u64::from(context.in_len))
                .is_none_or(|end| end > data_size)
            {
                return wrong(
                    "input offset of a slice",
                    context.in_offset,
                    format!("an end within {data_size} bytes of data"),
                );
            }
        } else if let Some(context) = self.batch(index) {
            if context.uncompressed_size == 0 || u64::from(context.uncompressed_size) > SIZE_MAX {
                return wrong(
                    "size of a batch",
                    context.uncompressed_size.into(),
                    format!("1 to {SIZE_MAX}"),
                );
            }
            if context.compressed_size == 0 || u64::from(context.compressed_size) > data_size {
                return wrong(
                    "stored size of a batch",
                    context.compressed_size.into(),
                    format!("1 to {data_size}"),
                );
            }
        }
        Ok(())
    }

    /// Flags that only some blobs may have.
    fn check_flags(&self, index: u32, offset: u64, info: &BlobInfo) -> Result<(), Error> {
        if !self.v2 {
            return Ok(());
        }
        let Some(raw) = raw::read_at::<MetaChunkV2Raw>(
            &self.table,
            u64::from(index) * MetaChunkV2Raw::SIZE as u64,
        ) else {
            return Ok(());
        };
        let word = raw.uncompressed.get();
        let illegal = |expected| {
            Err(Error::field(
                "flags of a chunk record",
                offset,
                format!("{:#x}", word >> 56),
                expected,
            ))
        };
        if word & ZRAN != 0 && !info.features.contains(BlobFeatures::ZRAN) {
            return illegal("no slice flag, for the blob has no slices");
        }
        if word & BATCH != 0 && !info.features.contains(BlobFeatures::BATCH) {
            return illegal("no batch flag, for the blob has no batches");
        }
        if word & ZRAN != 0 && word & BATCH != 0 {
            return illegal("not both the slice and the batch flag");
        }
        if word & ENCRYPTED != 0 && info.cipher_key().is_none() {
            return illegal("no encryption flag, for the blob has no key");
        }
        if word & HAS_CRC32 != 0 && word & (ZRAN | BATCH) == 0 && raw.data.get() & 0xffff_ffff == 0
        {
            return illegal("no CRC flag, for the CRC is 0");
        }
        Ok(())
    }

    fn check_chunk(&self, chunk: &StoredChunk, offset: u64, rules: &Rules) -> Result<(), Error> {
        let size = u64::from(chunk.uncompressed_size);
        let end = chunk.uncompressed_offset.checked_add(size);
        if end.is_none_or(|end| end > rules.uncompressed_end) {
            return Err(Error::bounds(
                "the data of a chunk record",
                chunk.uncompressed_offset,
                size,
                rules.uncompressed_end,
            ));
        }
        let mut stored = u64::from(chunk.compressed_size);
        match chunk.placement {
            Placement::Plain => {
                if stored == 0 && !rules.separate {
                    return Err(Error::field(
                        "stored size of a chunk record",
                        offset,
                        0,
                        "more than 0",
                    ));
                }
                if !chunk.compressed && !chunk.encrypted && stored != size {
                    return Err(Error::field(
                        "stored size of a raw chunk record",
                        offset,
                        stored,
                        size,
                    ));
                }
            }
            Placement::Batch {
                index,
                offset: start,
            } => {
                let context = self
                    .batch(index)
                    .ok_or_else(|| self.no_context("batch", offset, index))?;
                within(offset, start, size, context.uncompressed_size)?;
                stored = u64::from(context.compressed_size);
            }
            Placement::Zran {
                index,
                offset: start,
            } => {
                let context = self
                    .zran(index)
                    .ok_or_else(|| self.no_context("slice", offset, index))?;
                within(offset, start, size, context.out_len)?;
            }
        }
        let end = chunk.compressed_offset.checked_add(stored);
        if end.is_none_or(|end| end > rules.compressed_end) {
            return Err(Error::bounds(
                "the stored bytes of a chunk record",
                chunk.compressed_offset,
                stored,
                rules.compressed_end,
            ));
        }
        Ok(())
    }

    fn no_context(&self, kind: &str, offset: u64, index: u32) -> Error {
        Error::field(
            "context index of a chunk record",
            offset,
            format!("{kind} {index}"),
            format!("below {}", self.contexts_count),
        )
    }
}

/// Bounds for the records of a blob.
struct Rules {
    compressed_end: u64,
    uncompressed_end: u64,
    separate: bool,
}

impl Rules {
    fn new(info: &BlobInfo) -> Self {
        Self {
            compressed_end: info.data_size(),
            uncompressed_end: up(info.uncompressed_size, BLOCK_SIZE).unwrap_or(u64::MAX),
            separate: info.features.contains(BlobFeatures::SEPARATE),
        }
    }
}

fn within(offset: u64, start: u32, size: u64, limit: u32) -> Result<(), Error> {
    if u64::from(start) + size <= u64::from(limit) {
        return Ok(());
    }
    Err(Error::field(
        "place of a chunk in its batch or slice",
        offset,
        format!("{start} with {size} bytes"),
        format!("an end within {limit}"),
    ))
}
