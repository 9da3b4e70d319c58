//! Access to the data of an image: blobs, bootstraps, verified chunks and the cache.
//!
//! * [`BlobReader`] and [`BlobSource`] say where stored bytes come from; [`FileBlob`] and [`DirSource`] are files.
//! * [`MirroredBlob`] asks mirrors before the place that has the last word, and finds out which of them lie.
//! * [`load_bootstrap`] and [`extract_bootstrap`] find a bootstrap in a file or in the tail of a blob.
//! * [`read_blob_meta`] reads a blob's own chunk table, [`ChunkDecoder`] decodes its chunks into [`VerifiedChunk`]s.
//! * [`ChunkStore`] serves verified chunks on demand and keeps them in a cache that survives crashes.
#![forbid(unsafe_code)]

mod batches;
mod bootstrap;
mod cache;
mod decode;
mod error;
mod known;
mod locate;
mod meta;
mod mirror;
mod reader;
mod store;
mod words;
mod workers;

pub use batches::can_locate_batches;
pub use bootstrap::{LoadedBootstrap, extract_bootstrap, load_bootstrap, parse_bootstrap};
pub use cache::{
    BadChunk, BlobFiles, CacheFill, CachedBlob, CheckedBlob, Prune, Pruned, cache_file,
    cached_blobs, check_cache, is_at, prune_cache, remove_cached,
};
pub use decode::{
    BATCH_SIZE_MAX, ChunkDecoder, ChunkError, DecodedBatch, OpenSlice, SLICE_SIZE_MAX,
    SLICE_STORED_MAX, VerifiedChunk, decode_chunk, require_supported,
};
pub use error::{Error, ReadCause, ReadError};
pub use known::{KnownChunk, KnownChunks};
pub use locate::find_chunk_table;
pub use meta::{read_blob_meta, read_blob_meta_from, read_chunk_table};
pub use mirror::{Mirror, MirrorStats, MirroredBlob, MirroredSource, Mirrors, Standing, Tolerance};
pub use reader::{BlobReader, BlobSource, DirSource, FileBlob, Forward, NamedSource};
pub use store::{
    Besides, BlobDetails, ChunkStore, Decoded, Details, Fetch, HandedOver, Observer, Purpose, Room,
    Sequence, Stats, StoreOptions, complete_cache_files,
};
pub use words::{Counter, Histogram, Timer, Times, Words};
