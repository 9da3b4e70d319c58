//! Chunk and context records, decoded and encoded.

use zerocopy::IntoBytes;

use crate::encode::narrow;
use crate::raw::{BatchContextRaw, MetaChunkV1Raw, MetaChunkV2Raw, ZranContextRaw};
use crate::{BLOCK_SIZE, ChunkFlags, ChunkRecord, Error};

const COMPRESSED: u64 = 1 << 56;
pub(super) const ZRAN: u64 = 1 << 57;
pub(super) const BATCH: u64 = 1 << 58;
pub(super) const ENCRYPTED: u64 = 1 << 59;
pub(super) const HAS_CRC32: u64 = 1 << 60;
/// Uncompressed offsets are stored in units of this many bits.
const OFFSET_BITS: u32 = 12;
const COMPRESSED_OFFSET_MAX: u64 = (1 << 40) - 1;
const UNCOMPRESSED_OFFSET_MAX: u64 = u32::MAX as u64 * BLOCK_SIZE;
pub(super) const SIZE_MAX: u64 = 1 << 24;

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

impl From<&ChunkRecord> for StoredChunk {
    /// What a bootstrap says of a chunk that is stored on its own.
    fn from(record: &ChunkRecord) -> Self {
        Self {
            index: record.index,
            uncompressed_offset: record.uncompressed_offset,
            uncompressed_size: record.uncompressed_size,
            compressed_offset: record.compressed_offset,
            compressed_size: record.compressed_size,
            compressed: record.flags.contains(ChunkFlags::COMPRESSED),
            encrypted: record.flags.contains(ChunkFlags::ENCRYPTED),
            crc32: record
                .flags
                .contains(ChunkFlags::HAS_CRC32)
                .then_some(record.crc32),
            placement: Placement::Plain,
        }
    }
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

pub(super) fn decode_v1(raw: &MetaChunkV1Raw, index: u32) -> StoredChunk {
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

pub(super) fn decode_v2(raw: &MetaChunkV2Raw, index: u32) -> StoredChunk {
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
