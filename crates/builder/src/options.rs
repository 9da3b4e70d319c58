//! What a build is asked for.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use chunkdict::Dictionary;
use codec::Encoder;
use progress::Cancel;
use rafs_format::{
    BLOCK_SIZE, BlobId, CHUNK_SIZE_DEFAULT, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, Compressor, Digester,
    Version,
};

use crate::{Attributes, Budget, Encryption, Error, Parent};

/// Largest address in a blob file, in bytes.
pub(crate) const COMPRESSED_MAX: u64 = 1 << 40;

/// Options of a build, and the means it may use.
#[derive(Clone)]
pub struct BuildOptions {
    /// Layout of the bootstrap. A v5 blob holds no chunk table and hence no table of contents.
    pub version: Version,
    /// Whether chunks begin at block boundaries of the blob's uncompressed address space; in v6 they always do.
    pub aligned_chunk: bool,
    /// Compressor of the chunks and of the blob's chunk table.
    pub compressor: Compressor,
    /// zstd level of the chunks.
    pub level: i32,
    /// Digester of the chunks.
    pub digester: Digester,
    /// Chunk size in bytes: a power of two from 4 KiB to 16 MiB.
    pub chunk_size: u32,
    /// Below half of so many bytes, files are compressed together, in batches of fewer than so many bytes; 0 for never,
    /// else a power of two from 4 KiB to the chunk size. Needs v6.
    pub batch_size: u32,
    /// Encrypts the chunks and the blob's chunk table. Needs v6. The key lies in the blob's entry of the bootstrap: it
    /// protects a blob from who has not the bootstrap, and nothing if the bootstrap is in the blob.
    pub encryption: Option<Encryption>,
    /// Ends the blob in a table of contents and puts the chunk digests into it.
    pub blob_toc: bool,
    /// Puts the bootstrap into the blob.
    pub inline_meta: bool,
    /// Id of the blob instead of its own digest. A bootstrap inside the blob always has a placeholder.
    pub blob_id: Option<BlobId>,
    /// Whether inodes carry their owners; if not, readers take themselves for the owner of everything.
    pub explicit_owners: bool,
    /// Absolute paths of files and directories to fetch first, in order.
    pub prefetch: Vec<Vec<u8>>,
    /// Records the files that come first in the blob, by [`BuildOptions::prefetch`], as the blob's head, to be fetched as
    /// one piece, and not as a table of inodes. RAFS v6 has no place for it.
    pub readahead: bool,
    /// Where the blob begins in the file that readers see, in bytes: what comes before is put there by someone else.
    pub blob_offset: u64,
    /// The image that the layer lies on.
    pub parent: Option<Arc<Parent>>,
    /// The files of a directory that are left out, for their data lies elsewhere: see [`crate::ExternalImage`].
    pub external: Option<Arc<Attributes>>,
    /// How tar entries are read.
    pub layer: layer::Options,
    /// Chunks of other images that need not be stored again.
    pub dictionary: Option<Arc<Dictionary>>,
    /// How many chunks in a row must be in one blob of the dictionary, one behind the other, to be taken from there; a
    /// run of [`BuildOptions::RUN_ENOUGH`] bytes is long enough, too. Of several places of a run the one in which it is
    /// longest is taken, then the one in the blob with the lowest id. `None`: the first place of each chunk.
    pub dictionary_run: Option<NonZeroU32>,
    /// Where digests are computed and chunks are compressed.
    pub pool: Arc<rayon::ThreadPool>,
    /// What bounds the memory for file data.
    pub budget: Arc<Budget>,
    /// Stops the build.
    pub cancel: Cancel,
}

impl BuildOptions {
    /// Uncompressed bytes for which a request is worth it however few chunks they are.
    pub const RUN_ENOUGH: u64 = 1 << 20;

    /// The options of the deployed builder: zstd at level 3, BLAKE3, chunks of 1 MiB, a native layer with a table of
    /// contents.
    pub fn new(pool: Arc<rayon::ThreadPool>, budget: Arc<Budget>) -> Self {
        Self {
            version: Version::V6,
            aligned_chunk: false,
            compressor: Compressor::Zstd,
            level: Encoder::ZSTD_LEVEL_DEFAULT,
            digester: Digester::Blake3,
            chunk_size: CHUNK_SIZE_DEFAULT,
            batch_size: 0,
            encryption: None,
            blob_toc: true,
            inline_meta: true,
            blob_id: None,
            explicit_owners: true,
            prefetch: Vec::new(),
            readahead: false,
            blob_offset: 0,
            parent: None,
            external: None,
            layer: layer::Options::default(),
            dictionary: None,
            dictionary_run: None,
            pool,
            budget,
            cancel: Cancel::default(),
        }
    }

    /// What chunks are aligned to in the blob's uncompressed address space, in bytes.
    pub(crate) fn alignment(&self) -> u64 {
        match self.version {
            Version::V5 if !self.aligned_chunk => 1,
            _ => BLOCK_SIZE,
        }
    }

    /// Checks what no build could be done with.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.validate_chunk_size()?;
        self.validate_batch_size()?;
        let of_v6 = [
            (self.blob_toc, "a table of contents in the blob"),
            (self.batch_size != 0, "batches of chunks"),
            (self.encryption.is_some(), "an encrypted blob"),
        ];
        if let (Version::V5, Some((_, what))) =
            (self.version, of_v6.iter().find(|(asked, _)| *asked))
        {
            return Err(Error::NotInV5(what));
        }
        if self.blob_offset > COMPRESSED_MAX {
            return Err(Error::TooLarge {
                what: "the offset of the blob",
                limit: "2^40 bytes",
            });
        }
        Encoder::new(self.compressor, self.level).map_err(Error::Compress)?;
        Ok(())
    }

    fn validate_batch_size(&self) -> Result<(), Error> {
        let sizes = CHUNK_SIZE_MIN..=self.chunk_size;
        let size = self.batch_size;
        if size == 0 || size.is_power_of_two() && sizes.contains(&size) {
            Ok(())
        } else {
            Err(Error::BatchSize {
                size,
                chunk_size: self.chunk_size,
            })
        }
    }

    /// Whether the one chunk of a file of `size` bytes goes into a batch.
    pub(crate) fn is_batched(&self, size: u64) -> bool {
        size < u64::from(self.batch_size / 2)
    }

    pub(crate) fn validate_chunk_size(&self) -> Result<(), Error> {
        let sizes = CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX;
        if self.chunk_size.is_power_of_two() && sizes.contains(&self.chunk_size) {
            Ok(())
        } else {
            Err(Error::ChunkSize(self.chunk_size))
        }
    }
}

impl fmt::Debug for BuildOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildOptions")
            .field("version", &self.version)
            .field("aligned_chunk", &self.aligned_chunk)
            .field("compressor", &self.compressor)
            .field("level", &self.level)
            .field("digester", &self.digester)
            .field("chunk_size", &self.chunk_size)
            .field("batch_size", &self.batch_size)
            .field("encryption", &self.encryption)
            .field("blob_toc", &self.blob_toc)
            .field("inline_meta", &self.inline_meta)
            .field("blob_id", &self.blob_id)
            .field("explicit_owners", &self.explicit_owners)
            .field("readahead", &self.readahead)
            .field("blob_offset", &self.blob_offset)
            .field("dictionary_run", &self.dictionary_run)
            .finish_non_exhaustive()
    }
}
