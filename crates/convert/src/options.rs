//! What a conversion is asked for.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use image::PlatformChoice;
use rafs_format::{CHUNK_SIZE_DEFAULT, Compressor, Version};
use storage::{Besides as _, CacheFill};

use crate::{BesideBlobs, BuildCache, ChunkDictionary};

/// Where a chunk is looked for before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DedupScope {
    /// In its own layer: a layer's blob depends on the layer and the options alone.
    #[default]
    Layer,
    /// In its own layer and those below it: each chunk is stored in the lowest layer that has it.
    Image,
}

/// The chunk cache of mounts.
#[derive(Debug, Clone)]
pub struct ChunkCache {
    dir: PathBuf,
    limit: Option<u64>,
    /// Bytes that are kept and not in the cache yet.
    unsettled: Arc<AtomicU64>,
}

impl ChunkCache {
    /// The cache in `dir`, which may take no more than `limit` bytes on the disk.
    pub fn new(dir: PathBuf, limit: Option<u64>) -> Self {
        Self {
            dir,
            limit,
            unsettled: Arc::default(),
        }
    }

    /// Makes ready for the chunks of a layer. `None`, and why has been said, where they can't be kept.
    pub(crate) fn begin(&self) -> Option<CacheFill> {
        let besides = BesideBlobs::new(&self.dir).disk_usage();
        let limit = self.limit.map(|limit| limit.saturating_sub(besides));
        let fill = CacheFill::begin(&self.dir, limit, Arc::clone(&self.unsettled));
        fill.inspect_err(|error| tracing::warn!("chunks are not kept: {error}"))
            .ok()
    }
}

/// Options of a conversion.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Which images of an index.
    pub platform: PlatformChoice,
    /// Layout of the new images' bootstraps.
    pub version: Version,
    /// Whether chunks of v5 begin at block boundaries once decompressed; those of v6 always do.
    pub aligned_chunk: bool,
    /// Compressor of the chunks.
    pub compressor: Compressor,
    /// zstd level of the chunks.
    pub level: i32,
    /// Chunk size in bytes: a power of two from 4 KiB to 16 MiB.
    pub chunk_size: u32,
    /// Below half of so many bytes, files are compressed together, in batches of fewer than so many bytes; 0 for never,
    /// else a power of two from 4 KiB to the chunk size. Needs v6.
    pub batch_size: u32,
    /// Where chunks are shared.
    pub dedup: DedupScope,
    /// Chunks of other images that need not be stored again.
    pub dictionary: Option<ChunkDictionary>,
    /// Absolute paths of files and directories to fetch first when the image is mounted.
    pub prefetch: Vec<Vec<u8>>,
    /// Docker's media types become OCI's.
    pub oci: bool,
    /// Threads that compress and digest chunks.
    pub threads: NonZeroUsize,
    /// Bound of the memory for file data, in bytes.
    pub memory: usize,
    /// Most files and directories that a layer may have.
    pub layer_files_max: u32,
    /// Most bytes that the files of a layer may have together, holes included.
    pub layer_size_max: u64,
    /// Whether the new image is compared with its source before the tag is set.
    pub check: bool,
    /// Directory with what earlier runs have converted: what is there already is not converted again.
    pub journal: Option<PathBuf>,
    /// Image with what others have converted, to take layers from and to add layers to.
    pub cache: Option<BuildCache>,
    /// Whether the result is an index of the source's images, each with an empty layer below, and the new ones.
    pub merge: bool,
    /// Whether layers stay as they are, and only what describes them is made: their blobs are the original layers, as far
    /// as they can be read in pieces. Needs v6 and OCI's media types.
    pub reference: bool,
    /// Whether layers are described in ways that deployed runtimes do not know, too: eStargz by the table of contents that the
    /// manifest pins, without being read, and zstd by its frames.
    pub extended: bool,
    /// Where chunks of such layers are kept while they pass by, if anywhere.
    pub chunk_cache: Option<ChunkCache>,
    /// Whether new manifests refer to those they were made of.
    pub referrer: bool,
    /// Name of the source in the manifest's annotations.
    pub source_name: Option<String>,
}

impl ConvertOptions {
    /// Memory for file data per thread when nothing is asked for, in bytes.
    pub const MEMORY_PER_THREAD: usize = 32 << 20;
    /// Memory for file data when nothing is asked for is at least this, in bytes.
    pub const MEMORY_MIN: usize = 64 << 20;

    /// The defaults for this many threads.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self {
            platform: PlatformChoice::Host,
            version: Version::V6,
            aligned_chunk: false,
            compressor: Compressor::Zstd,
            level: codec::Encoder::ZSTD_LEVEL_DEFAULT,
            chunk_size: CHUNK_SIZE_DEFAULT,
            batch_size: 0,
            dedup: DedupScope::Layer,
            dictionary: None,
            prefetch: vec![b"/".to_vec()],
            oci: false,
            threads,
            memory: threads
                .get()
                .saturating_mul(Self::MEMORY_PER_THREAD)
                .max(Self::MEMORY_MIN),
            layer_files_max: ::layer::Options::default().max_inodes,
            layer_size_max: ::layer::Options::default().max_content,
            check: false,
            journal: None,
            cache: None,
            merge: false,
            reference: false,
            extended: false,
            chunk_cache: None,
            referrer: false,
            source_name: None,
        }
    }
}
