use zerocopy::IntoBytes;

use crate::error::expect_equal;
use crate::raw::{self, MetaHeaderRaw};
use crate::{BlobFeatures, BlobInfo, Compressor, Error};

/// Length of the header in bytes.
pub const HEADER_SIZE: usize = 4096;
const MAGIC: u32 = 0xb10b_b10b;
/// Where the second magic number lies in the header.
const MAGIC2_OFFSET: usize = HEADER_SIZE - 4;

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
    pub(super) fn check(&self, info: &BlobInfo) -> Result<(), Error> {
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
