//! From stored bytes to verified bytes.
//!
//! The only way to the bytes of a chunk is a [`VerifiedChunk`], and the only way to that is a digest that matches.

use std::borrow::Cow;
use std::ops::Deref;

use codec::{BlobCipher, CipherError, DecodeError, SliceDecoder, SliceStart};
use rafs_format::blob_meta::{BatchContext, Placement, StoredChunk, ZranContext};
use rafs_format::{BlobFeatures, BlobInfo, CHUNK_SIZE_MAX, Compressor, Digester};

use crate::{Error, KnownChunk};

/// Largest batch, in bytes: as large as the largest chunk.
pub const BATCH_SIZE_MAX: u32 = CHUNK_SIZE_MAX;

/// Largest slice of a gzip layer that is read, in bytes of the layer. Builders make them of about a megabyte; they are
/// longer only where deflate blocks or chunks are.
pub const SLICE_STORED_MAX: u32 = 64 << 20;
/// Largest slice once inflated, in bytes. So much may have to be inflated for one chunk, but never is in memory.
pub const SLICE_SIZE_MAX: u32 = 256 << 20;

/// Why stored bytes are not the chunk that they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// The cipher refused them.
    #[error("the stored bytes do not decrypt")]
    Cipher(#[from] CipherError),
    /// The decompressor refused them, or they have another length.
    #[error("the stored bytes do not decompress")]
    Decompress(#[from] DecodeError),
    /// The decoded bytes have another digest.
    #[error(
        "the bytes have digest {actual}, but {expected} is recorded: the blob is damaged or was exchanged"
    )]
    Digest {
        /// Recorded digest, hexadecimal.
        expected: String,
        /// Digest of the bytes, hexadecimal.
        actual: String,
    },
    /// The decoded bytes have the digest, but not the checksum.
    #[error("the bytes have CRC-32C {actual:#010x}, but {expected:#010x} is recorded")]
    Crc {
        /// Recorded checksum.
        expected: u32,
        /// Checksum of the bytes.
        actual: u32,
    },
    /// The records of the blob and of the bootstrap do not fit each other.
    #[error("{0}")]
    Record(&'static str),
}

/// Bytes of a chunk that have the digest which the bootstrap records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedChunk(Vec<u8>);

impl VerifiedChunk {
    /// Takes `bytes` if they are those of `known`.
    ///
    /// # Errors
    /// [`ChunkError::Digest`] or [`ChunkError::Crc`] if they are not.
    pub fn verify(
        digester: Digester,
        known: &KnownChunk,
        bytes: Vec<u8>,
    ) -> Result<Self, ChunkError> {
        let digest = codec::digest(digester, &bytes);
        if digest != known.digest {
            return Err(ChunkError::Digest {
                expected: hex::encode(known.digest),
                actual: hex::encode(digest),
            });
        }
        check_crc(known.crc32, &bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, no longer known as verified.
    pub fn into_inner(self) -> Vec<u8> {
        self.0
    }
}

impl Deref for VerifiedChunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Decodes the chunks of one blob.
pub struct ChunkDecoder {
    compressor: Compressor,
    digester: Digester,
    cipher: Option<BlobCipher>,
}

/// A decoded batch. Its members are verified one by one.
pub struct DecodedBatch<'a> {
    decoder: &'a ChunkDecoder,
    bytes: Vec<u8>,
}

/// A slice of a gzip layer that is being inflated. Its chunks are taken in the order in which they lie.
pub struct OpenSlice<'a> {
    decoder: &'a ChunkDecoder,
    inflate: SliceDecoder<'a>,
    position: u32,
    size: u32,
}

impl ChunkDecoder {
    /// The decoder of the blob's chunks.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for blobs whose chunks cannot be decoded one by one yet, see [`require_supported`].
    pub fn new(info: &BlobInfo) -> Result<Self, Error> {
        require_supported(info)?;
        Ok(Self {
            compressor: info.compressor,
            digester: info.digester,
            cipher: cipher_of(info),
        })
    }

    /// Decodes and verifies a chunk that is stored by itself.
    ///
    /// # Errors
    /// [`ChunkError`] if `stored` is anything but that chunk.
    pub fn chunk(
        &self,
        record: &StoredChunk,
        known: &KnownChunk,
        stored: &[u8],
    ) -> Result<VerifiedChunk, ChunkError> {
        if !matches!(record.placement, Placement::Plain) {
            return Err(ChunkError::Record("the chunk is not stored by itself"));
        }
        let compressor = if record.compressed {
            self.compressor
        } else {
            Compressor::None
        };
        let size = checked_size(record, known)?;
        let raw_size = (compressor == Compressor::None).then_some(size);
        let stored = self.decrypt(record.encrypted, stored, raw_size)?;
        let bytes = decompress(compressor, stored, size)?;
        self.verify(record, known, bytes)
    }

    /// Decodes a batch. `encrypted` is what the records of its members say.
    ///
    /// # Errors
    /// [`ChunkError`] if `stored` does not decode to the length that `context` records.
    pub fn batch(
        &self,
        context: &BatchContext,
        encrypted: bool,
        stored: &[u8],
    ) -> Result<DecodedBatch<'_>, ChunkError> {
        if context.uncompressed_size > BATCH_SIZE_MAX {
            return Err(ChunkError::Record(
                "the chunk's batch is larger than the format allows",
            ));
        }
        let size = context.uncompressed_size as usize;
        let stored = self.decrypt(encrypted, stored, Some(size))?;
        // Compressed bytes are always fewer, else the batch would have been stored as it is.
        let compressor = if stored.len() == size {
            Compressor::None
        } else {
            self.compressor
        };
        Ok(DecodedBatch {
            decoder: self,
            bytes: decompress(compressor, stored, size)?,
        })
    }

    /// Begins to inflate a slice. `stored` is the slice's input, `dictionary` the output before it.
    ///
    /// # Errors
    /// [`ChunkError`] for a slice that is too large, or cannot be one.
    pub fn slice<'s>(
        &'s self,
        context: &ZranContext,
        dictionary: &[u8],
        stored: &'s [u8],
    ) -> Result<OpenSlice<'s>, ChunkError> {
        if context.out_len > SLICE_SIZE_MAX || context.in_len > SLICE_STORED_MAX {
            return Err(ChunkError::Record(
                "the chunk's slice of the gzip layer is larger than any builder makes it",
            ));
        }
        let start = SliceStart {
            byte: context.byte,
            bits: context.bits,
            window: dictionary,
        };
        Ok(OpenSlice {
            decoder: self,
            inflate: SliceDecoder::new(start, stored)?,
            position: 0,
            size: context.out_len,
        })
    }

    fn decrypt<'s>(
        &self,
        encrypted: bool,
        stored: &'s [u8],
        plain_len: Option<usize>,
    ) -> Result<Cow<'s, [u8]>, ChunkError> {
        if !encrypted {
            return Ok(Cow::Borrowed(stored));
        }
        let cipher = self.cipher.as_ref().ok_or(ChunkError::Record(
            "the chunk is encrypted, but its blob has no key",
        ))?;
        let mut stored = stored.to_vec();
        cipher.decrypt(&mut stored, plain_len)?;
        Ok(Cow::Owned(stored))
    }

    fn verify(
        &self,
        record: &StoredChunk,
        known: &KnownChunk,
        bytes: Vec<u8>,
    ) -> Result<VerifiedChunk, ChunkError> {
        let chunk = VerifiedChunk::verify(self.digester, known, bytes)?;
        check_crc(record.crc32, &chunk)?;
        Ok(chunk)
    }
}

impl DecodedBatch<'_> {
    /// Cuts out and verifies one member.
    ///
    /// # Errors
    /// [`ChunkError`] if the bytes at its place are anything but that chunk.
    pub fn member(
        &self,
        record: &StoredChunk,
        known: &KnownChunk,
    ) -> Result<VerifiedChunk, ChunkError> {
        let Placement::Batch { offset, .. } = record.placement else {
            return Err(ChunkError::Record("the chunk is not in a batch"));
        };
        let size = checked_size(record, known)?;
        let start = offset as usize;
        let bytes = start
            .checked_add(size)
            .and_then(|end| self.bytes.get(start..end));
        let bytes = bytes.ok_or(ChunkError::Record("the chunk ends beyond its batch"))?;
        self.decoder.verify(record, known, bytes.to_vec())
    }
}

impl OpenSlice<'_> {
    /// Inflates as far as the chunk, takes and verifies it. It must not lie before one that was taken already.
    ///
    /// # Errors
    /// [`ChunkError`] if the bytes at its place are anything but that chunk.
    pub fn member(
        &mut self,
        record: &StoredChunk,
        known: &KnownChunk,
    ) -> Result<VerifiedChunk, ChunkError> {
        let Placement::Zran { offset, .. } = record.placement else {
            return Err(ChunkError::Record("the chunk is not in a gzip layer"));
        };
        let size = checked_size(record, known)?;
        let end = offset
            .checked_add(known.size)
            .filter(|&end| end <= self.size);
        let end = end.ok_or(ChunkError::Record("the chunk ends beyond its slice"))?;
        let before = offset.checked_sub(self.position);
        let before = before.ok_or(ChunkError::Record("two chunks of the slice overlap"))?;
        let mut bytes = vec![0; size];
        self.inflate.skip(before.into())?;
        self.position = offset;
        self.inflate.read_exact(&mut bytes)?;
        self.position = end;
        self.decoder.verify(record, known, bytes)
    }
}

/// Decodes and verifies one chunk out of its stored bytes: those of the chunk, or of the whole batch that it is in.
///
/// # Errors
/// [`ChunkError`] if `stored` is anything but that chunk.
pub fn decode_chunk(
    decoder: &ChunkDecoder,
    record: &StoredChunk,
    batch: Option<&BatchContext>,
    known: &KnownChunk,
    stored: &[u8],
) -> Result<VerifiedChunk, ChunkError> {
    match batch {
        Some(context) => decoder
            .batch(context, record.encrypted, stored)?
            .member(record, known),
        None => decoder.chunk(record, known, stored),
    }
}

/// The cipher of an encrypted blob.
pub(crate) fn cipher_of(info: &BlobInfo) -> Option<BlobCipher> {
    info.cipher_key()
        .map(|(key, iv)| BlobCipher::new(&key, &iv))
}

/// Whether the blob is of a kind whose chunks can be read.
///
/// # Errors
/// [`Error::Unsupported`] that names the kind.
pub fn require_supported(info: &BlobInfo) -> Result<(), Error> {
    let kinds = [
        (
            BlobFeatures::TARFS,
            "tarfs (the blob is an uncompressed layer tar without chunk digests)",
        ),
        (BlobFeatures::EXTERNAL, "chunk data in an external backend"),
    ];
    match kinds
        .into_iter()
        .find(|(bit, _)| info.features.contains(*bit))
    {
        Some((_, feature)) => Err(Error::Unsupported {
            what: format!("blob {}", info.id),
            feature,
        }),
        None => Ok(()),
    }
}

fn checked_size(record: &StoredChunk, known: &KnownChunk) -> Result<usize, ChunkError> {
    if record.uncompressed_size != known.size {
        return Err(ChunkError::Record(
            "the blob's chunk table and the bootstrap give the chunk different sizes",
        ));
    }
    Ok(known.size as usize)
}

fn decompress(
    compressor: Compressor,
    stored: Cow<'_, [u8]>,
    size: usize,
) -> Result<Vec<u8>, ChunkError> {
    if compressor == Compressor::None && stored.len() == size {
        return Ok(stored.into_owned());
    }
    let mut bytes = vec![0; size];
    match compressor {
        // In eStargz layers a member goes on behind the chunk.
        Compressor::Gzip => codec::gunzip_head(&stored, &mut bytes)?,
        _ => codec::decompress(compressor, &stored, &mut bytes)?,
    }
    Ok(bytes)
}

fn check_crc(expected: Option<u32>, bytes: &[u8]) -> Result<(), ChunkError> {
    match expected.map(|expected| (expected, codec::crc32c(bytes))) {
        Some((expected, actual)) if expected != actual => Err(ChunkError::Crc { expected, actual }),
        _ => Ok(()),
    }
}
