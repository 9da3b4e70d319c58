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

use zerocopy::IntoBytes;

use crate::encode::narrow;
use crate::error::expect_equal;
use crate::raw::{
    self, BatchContextRaw, MetaChunkV1Raw, MetaChunkV2Raw, MetaHeaderRaw, ZranContextRaw, up,
};
use crate::{BLOCK_SIZE, BlobFeatures, BlobInfo, Compressor, Error};

/// Length of the header in bytes.
pub const HEADER_SIZE: usize = 4096;
const MAGIC: u32 = 0xb10b_b10b;
/// Where the second magic number lies in the header.
const MAGIC2_OFFSET: usize = HEADER_SIZE - 4;
/// Largest dictionary of a slice: the window of deflate.
const DICTIONARY_MAX: u32 = 32768;

const COMPRESSED: u64 = 1 << 56;
const ZRAN: u64 = 1 << 57;
const BATCH: u64 = 1 << 58;
const ENCRYPTED: u64 = 1 << 59;
const HAS_CRC32: u64 = 1 << 60;
/// Uncompressed offsets are stored in units of this many bits.
const OFFSET_BITS: u32 = 12;
const COMPRESSED_OFFSET_MAX: u64 = (1 << 40) - 1;
const UNCOMPRESSED_OFFSET_MAX: u64 = u32::MAX as u64 * BLOCK_SIZE;
const SIZE_MAX: u64 = 1 << 24;

/// How a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoredChunk {
    /// Row in the table.
    pub index: u32,
    /// Where the chunk begins in the blob's uncompressed address space.
    pub uncompressed_offset: u64,
    /// Bytes of file data, at least 1.
    pub uncompressed_size: u32,
    /// Where the stored bytes begin in the blob; for a member of a batch where the batch begins.
    pub compressed_offset: u64,
    /// Bytes stored; 0 for a member of a batch.
    pub compressed_size: u32,
    /// Whether the stored bytes are compressed. Always true for a member of a batch: its context decides.
    pub compressed: bool,
    /// Whether the stored bytes are encrypted.
    pub encrypted: bool,
    /// CRC-32C of the uncompressed bytes, if recorded.
    pub crc32: Option<u32>,
    /// Whether the chunk is stored on its own.
    pub placement: Placement,
}

/// Whether a chunk is stored on its own or within something larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// On its own.
    Plain,
    /// In a batch of chunks that are compressed together.
    Batch {
        /// Which batch.
        index: u32,
        /// Where the chunk begins in the decoded batch, in bytes.
        offset: u32,
    },
    /// In a slice of a gzip stream.
    Zran {
        /// Which slice.
        index: u32,
        /// Where the chunk begins in the inflated slice, in bytes.
        offset: u32,
    },
}

/// A batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchContext {
    /// Bytes stored, after compression and encryption.
    pub compressed_size: u32,
    /// Bytes once decoded.
    pub uncompressed_size: u32,
}

/// A slice of a gzip stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ZranContext {
    /// Where the first whole byte of input lies in the gzip file.
    pub in_offset: u64,
    /// Where the output lies in the tar stream.
    pub out_offset: u64,
    /// Where the dictionary begins in the dictionary area.
    pub dictionary_offset: u64,
    /// Bytes of input.
    pub in_len: u32,
    /// Bytes of output.
    pub out_len: u32,
    /// Bytes of dictionary, at most 32768.
    pub dictionary_size: u32,
    /// The byte before the input, when `bits` is not 0.
    pub byte: u8,
    /// High-order bits of `byte` that belong to the input, 0 to 7.
    pub bits: u8,
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Features of the blob; informational, the blob table decides.
    pub features: BlobFeatures,
    /// Compressor of the table.
    pub compressor: Compressor,
    /// Number of chunk records.
    pub entries: u32,
    /// Where the stored table begins in the blob.
    pub offset: u64,
    /// Stored size of the table in bytes.
    pub compressed_size: u64,
    /// Size of the whole uncompressed table in bytes.
    pub uncompressed_size: u64,
    /// Where context records begin in the uncompressed table, 0 if there are none.
    pub contexts_offset: u64,
    /// Bytes of context records and dictionaries.
    pub contexts_size: u64,
    /// Number of context records.
    pub contexts_count: u32,
}

impl Header {
    /// Parses a (decrypted) header.
    ///
    /// # Errors
    /// [`Error::Field`] if a magic number or the compressor is wrong.
    pub fn parse(header: &[u8; HEADER_SIZE]) -> Result<Self, Error> {
        let raw: &MetaHeaderRaw =
            raw::read(header).ok_or_else(|| Error::bounds("a blob meta header", 0, 60, 0))?;
        let magic2: &zerocopy::little_endian::U32 = raw::read_at(header, MAGIC2_OFFSET as u64)
            .ok_or_else(|| Error::bounds("a blob meta header", 0, 4096, 0))?;
        expect_equal(
            "magic number of a blob meta header",
            0,
            raw.magic.get(),
            MAGIC,
        )?;
        expect_equal(
            "second magic number of a blob meta header",
            MAGIC2_OFFSET as u64,
            magic2.get(),
            MAGIC,
        )?;
        let compressor = raw.compressor.get();
        Ok(Self {
            features: BlobFeatures::from_bits_retain(raw.features.get()),
            compressor: Compressor::from_number(compressor).ok_or_else(|| {
                Error::field("compressor of a blob meta header", 8, compressor, "0 to 3")
            })?,
            entries: raw.entries.get(),
            offset: raw.offset.get(),
            compressed_size: raw.compressed_size.get(),
            uncompressed_size: raw.uncompressed_size.get(),
            contexts_offset: raw.contexts_offset.get(),
            contexts_size: raw.contexts_size.get(),
            contexts_count: raw.contexts_count.get(),
        })
    }

    /// The header as stored, before encryption.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let raw = MetaHeaderRaw {
            magic: MAGIC.into(),
            features: self.features.bits().into(),
            compressor: self.compressor.number().into(),
            entries: self.entries.into(),
            offset: self.offset.into(),
            compressed_size: self.compressed_size.into(),
            uncompressed_size: self.uncompressed_size.into(),
            contexts_offset: self.contexts_offset.into(),
            contexts_size: self.contexts_size.into(),
            contexts_count: self.contexts_count.into(),
        };
        let mut header = [0; HEADER_SIZE];
        let (head, tail) = header.split_at_mut(MAGIC2_OFFSET);
        for (to, from) in head.iter_mut().zip(raw.as_bytes()) {
            *to = *from;
        }
        tail.copy_from_slice(&MAGIC.to_le_bytes());
        header
    }

    /// What the blob table says must be what the header says.
    fn check(&self, info: &BlobInfo) -> Result<(), Error> {
        if !info.features.contains(BlobFeatures::CHUNKDICT_GENERATED) {
            expect_equal(
                "number of chunks in a blob meta header",
                12,
                self.entries,
                info.chunk_count,
            )?;
        }
        expect_equal(
            "compressor of a blob meta header",
            8,
            self.compressor,
            info.meta_compressor,
        )?;
        expect_equal(
            "table offset in a blob meta header",
            16,
            self.offset,
            info.meta_offset,
        )?;
        expect_equal(
            "stored size in a blob meta header",
            24,
            self.compressed_size,
            info.meta_compressed_size,
        )?;
        expect_equal(
            "table size in a blob meta header",
            32,
            self.uncompressed_size,
            info.meta_uncompressed_size,
        )
    }
}

/// The chunk table of one blob, every record validated. It is kept as it is and decoded on access.
#[derive(Debug, Clone)]
pub struct BlobMeta {
    table: Vec<u8>,
    count: u32,
    v2: bool,
    contexts_offset: u64,
    contexts_count: u32,
    contexts_size: u64,
}

impl BlobMeta {
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
        let end = chunk.uncompressed_offset + size;
        if end > rules.uncompressed_end {
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
        if chunk.compressed_offset + stored > rules.compressed_end {
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

fn decode_v1(raw: &MetaChunkV1Raw, index: u32) -> StoredChunk {
    let (uncompressed, compressed) = (raw.uncompressed.get(), raw.compressed.get());
    let size = |low: u64, high: u64| ((low & 0xf_ffff) | (high & 0xf) << 20) as u32 + 1;
    let uncompressed_size = size(uncompressed >> 44, uncompressed >> 8);
    let compressed_size = size(compressed >> 44, compressed >> 40);
    StoredChunk {
        index,
        uncompressed_offset: uncompressed & UNCOMPRESSED_OFFSET_MAX,
        uncompressed_size,
        compressed_offset: compressed & COMPRESSED_OFFSET_MAX,
        compressed_size,
        compressed: compressed_size != uncompressed_size,
        encrypted: false,
        crc32: None,
        placement: Placement::Plain,
    }
}

fn decode_v2(raw: &MetaChunkV2Raw, index: u32) -> StoredChunk {
    let (uncompressed, compressed, data) =
        (raw.uncompressed.get(), raw.compressed.get(), raw.data.get());
    let (context, offset) = ((data >> 32) as u32, data as u32);
    let placement = match (uncompressed & BATCH != 0, uncompressed & ZRAN != 0) {
        (true, _) => Placement::Batch {
            index: context,
            offset,
        },
        (_, true) => Placement::Zran {
            index: context,
            offset,
        },
        _ => Placement::Plain,
    };
    let has_crc = uncompressed & HAS_CRC32 != 0 && placement == Placement::Plain;
    StoredChunk {
        index,
        uncompressed_offset: (uncompressed & 0xffff_ffff) << OFFSET_BITS,
        uncompressed_size: (uncompressed >> 32 & 0xff_ffff) as u32 + 1,
        compressed_offset: compressed & COMPRESSED_OFFSET_MAX,
        compressed_size: (compressed >> 40) as u32,
        compressed: uncompressed & COMPRESSED != 0,
        encrypted: uncompressed & ENCRYPTED != 0,
        crc32: has_crc.then_some(data as u32),
        placement,
    }
}

/// What both encodings of a record demand.
fn check_encodable(chunk: &StoredChunk) -> Result<(), Error> {
    narrow(
        "compressed offset of a chunk",
        chunk.compressed_offset,
        COMPRESSED_OFFSET_MAX,
    )?;
    narrow(
        "uncompressed offset of a chunk",
        chunk.uncompressed_offset,
        UNCOMPRESSED_OFFSET_MAX,
    )?;
    narrow(
        "size of a chunk",
        u64::from(chunk.uncompressed_size),
        SIZE_MAX,
    )?;
    if chunk.uncompressed_size == 0 {
        return Err(Error::field("size of a chunk", 0, 0, "more than 0"));
    }
    if !chunk.uncompressed_offset.is_multiple_of(BLOCK_SIZE) {
        return Err(Error::field(
            "uncompressed offset of a chunk",
            0,
            chunk.uncompressed_offset,
            "a multiple of 4096",
        ));
    }
    Ok(())
}

/// Appends a V1 record (16 bytes). It holds neither CRC nor flags: the chunk is taken as compressed if its sizes differ.
///
/// # Errors
/// [`Error`] if a number does not fit, or if V1 cannot say what the chunk is.
pub fn encode_v1(chunk: &StoredChunk, out: &mut Vec<u8>) -> Result<(), Error> {
    check_encodable(chunk)?;
    narrow(
        "stored size of a chunk",
        u64::from(chunk.compressed_size),
        SIZE_MAX,
    )?;
    let sayable = chunk.compressed == (chunk.compressed_size != chunk.uncompressed_size);
    if chunk.compressed_size == 0
        || chunk.encrypted
        || chunk.placement != Placement::Plain
        || !sayable
    {
        return Err(Error::field(
            "a chunk",
            u64::from(chunk.index),
            "batched, encrypted or raw with two sizes",
            "one that a V1 record can describe",
        ));
    }
    let (usize_, csize) = (
        u64::from(chunk.uncompressed_size - 1),
        u64::from(chunk.compressed_size - 1),
    );
    let raw = MetaChunkV1Raw {
        uncompressed: (chunk.uncompressed_offset | (usize_ & 0xf_ffff) << 44 | (usize_ >> 20) << 8)
            .into(),
        compressed: (chunk.compressed_offset | (csize & 0xf_ffff) << 44 | (csize >> 20) << 40)
            .into(),
    };
    out.extend_from_slice(raw.as_bytes());
    Ok(())
}

/// Appends a V2 record (24 bytes). A CRC of 0 is left out, for readers refuse it.
///
/// # Errors
/// [`Error`] if a number does not fit.
pub fn encode_v2(chunk: &StoredChunk, out: &mut Vec<u8>) -> Result<(), Error> {
    check_encodable(chunk)?;
    narrow(
        "stored size of a chunk",
        u64::from(chunk.compressed_size),
        SIZE_MAX - 1,
    )?;
    let mut word =
        chunk.uncompressed_offset >> OFFSET_BITS | u64::from(chunk.uncompressed_size - 1) << 32;
    let mut flag = |set: bool, bit: u64| word |= if set { bit } else { 0 };
    flag(chunk.compressed, COMPRESSED);
    flag(chunk.encrypted, ENCRYPTED);
    let place = |index: u32, offset: u32| u64::from(index) << 32 | u64::from(offset);
    let data = match (chunk.placement, chunk.crc32) {
        (Placement::Batch { index, offset }, _) => {
            flag(true, BATCH);
            place(index, offset)
        }
        (Placement::Zran { index, offset }, _) => {
            flag(true, ZRAN);
            place(index, offset)
        }
        (Placement::Plain, Some(crc)) if crc != 0 => {
            flag(true, HAS_CRC32);
            u64::from(crc)
        }
        (Placement::Plain, _) => 0,
    };
    let raw = MetaChunkV2Raw {
        uncompressed: word.into(),
        compressed: (chunk.compressed_offset | u64::from(chunk.compressed_size) << 40).into(),
        data: data.into(),
    };
    out.extend_from_slice(raw.as_bytes());
    Ok(())
}

/// Appends a batch context (40 bytes).
pub fn encode_batch(context: &BatchContext, out: &mut Vec<u8>) {
    let raw = BatchContextRaw {
        compressed_size: context.compressed_size.into(),
        uncompressed_size: context.uncompressed_size.into(),
        reserved: [0; 32],
    };
    out.extend_from_slice(raw.as_bytes());
}

/// Appends a slice context (40 bytes).
pub fn encode_zran(context: &ZranContext, out: &mut Vec<u8>) {
    let raw = ZranContextRaw {
        in_offset: context.in_offset.into(),
        out_offset: context.out_offset.into(),
        dictionary_offset: context.dictionary_offset.into(),
        in_len: context.in_len.into(),
        out_len: context.out_len.into(),
        dictionary_size: context.dictionary_size.into(),
        byte: context.byte,
        bits: context.bits,
        reserved: 0.into(),
    };
    out.extend_from_slice(raw.as_bytes());
}
