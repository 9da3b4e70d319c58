//! Chunks of blobs that exist in a blob of their own.
//!
//! Stored bytes are copied as they are wherever the new blob can say what they are. They are decoded on the way
//! nevertheless: nothing is written that does not have its digest. What the new blob cannot say (chunks of another
//! compressor, members of batches, slices of a gzip stream) is stored again.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use codec::Encoder;
use rafs_format::blob_meta::StoredChunk;
use rafs_format::{
    BLOCK_SIZE, BlobFeatures, BlobInfo, CHUNK_SIZE_MAX, CHUNKS_PER_BLOB_MAX, ChunkFlags,
    ChunkPointer, ChunkRecord, Cipher, Compressor,
};
use rayon::prelude::*;
use storage::{
    BlobReader, BlobSource, ChunkDecoder, ChunkStore, KnownChunk, LoadedBootstrap, Sequence,
};
use tree::{Image, Tree};

use crate::pipeline::{BlobWriter, Places};
use crate::{BuildOptions, Error, build, tail};

/// Most bytes to ask a blob for at once, unless one chunk alone is larger.
const READ_MAX: u64 = 4 << 20;
/// Longest run of unwanted bytes between two wanted chunks that is read along.
const GAP_MAX: u64 = 64 << 10;

/// The image that chunks are taken from, and where its blobs are.
pub struct Origin<'a> {
    /// Its bootstrap.
    pub loaded: &'a LoadedBootstrap,
    /// Its blobs.
    pub source: Arc<dyn BlobSource>,
}

/// What kind of a blob chunks are moved into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// Compressor of its chunks.
    pub compressor: Compressor,
    /// Features that say what it is for.
    pub features: BlobFeatures,
}

/// A blob that chunks were moved into.
#[derive(Debug)]
pub struct NewBlob {
    /// Its entry in the blob table; [`NewBlob::adopt`] gives it its index.
    pub info: BlobInfo,
    /// Where each chunk is now, by its blob and row so far.
    places: HashMap<(u32, u32), ChunkRecord>,
}

impl NewBlob {
    /// Makes the blob the last one of the image's, and lets every file that uses one of its chunks use it from there.
    pub fn adopt(mut self, image: &mut Image) {
        self.info.index = image.blobs.len() as u32;
        for record in &mut image.chunks {
            if let Some(place) = self.places.get(&(record.blob_index, record.index)) {
                *record = ChunkRecord {
                    blob_index: self.info.index,
                    file_offset: record.file_offset,
                    ..*place
                };
            }
        }
        image.blobs.push(self.info);
        settle(image);
    }
}

/// Notes that the ids of the blobs are final, not ones to be replaced by a file name.
pub(crate) fn settle(image: &mut Image) {
    for blob in &mut image.blobs {
        blob.features -= BlobFeatures::INLINED_FS_META;
    }
}

/// Whether the chunks of a blob may be in another blob: all but encrypted ones, whose key is the blob's own, those of
/// other places, and those without digests.
pub(crate) fn is_movable(blob: &BlobInfo) -> bool {
    let kept = BlobFeatures::ENCRYPTED | BlobFeatures::EXTERNAL | BlobFeatures::TARFS;
    blob.cipher == Cipher::None && !blob.features.intersects(kept)
}

/// Whether every chunk of a blob is stored by itself, so that its bytes can be those of another blob.
pub(crate) fn is_plain(blob: &BlobInfo) -> bool {
    holds_plain(blob) && !blob.features.contains(BlobFeatures::BATCH)
}

/// Whether a blob holds chunks that are stored by themselves; those of a batch may be among them.
fn holds_plain(blob: &BlobInfo) -> bool {
    // Records of eStargz layers say of a chunk only how long it is at most.
    is_movable(blob) && !blob.features.contains(BlobFeatures::ZRAN) && !blob.is_estargz()
}

/// Whether the stored bytes of a chunk are those that a blob of this compressor has of it.
pub(crate) fn can_copy(image: &Image, chunk: &ChunkRecord, compressor: Compressor) -> bool {
    let Some(blob) = image.blobs.get(chunk.blob_index as usize) else {
        return false;
    };
    // A member of a batch has no size of its own.
    let alone = chunk.compressed_size != 0 && !chunk.flags.contains(ChunkFlags::BATCH);
    let same = blob.compressor == compressor || !chunk.flags.contains(ChunkFlags::COMPRESSED);
    alone && same && holds_plain(blob)
}

/// Writes chunks of `image` into one blob, in this order and each content once. `image` is the one of `origin`; all
/// chunks are of movable blobs.
///
/// # Errors
/// [`Error::Blob`] and [`Error::Chunk`] if a chunk cannot be read or is not what its digest says.
pub(crate) fn write_blob(
    image: &Image,
    chunks: &[ChunkRecord],
    kind: Kind,
    origin: &Origin<'_>,
    options: &BuildOptions,
    out: impl Write,
) -> Result<NewBlob, Error> {
    let compressor = kind.compressor;
    let options = new_options(image, chunks, compressor, options);
    let (chunks, twins) = distinct(chunks);
    if chunks.len() > CHUNKS_PER_BLOB_MAX as usize {
        return Err(Error::TooLarge {
            what: "the number of chunks in one blob",
            limit: "2^24",
        });
    }
    let copied = |chunk: &ChunkRecord| can_copy(image, chunk, compressor);
    let again: Vec<_> = chunks
        .iter()
        .filter(|chunk| !copied(chunk))
        .copied()
        .collect();
    let mut mover = Mover {
        image,
        options: &options,
        readers: HashMap::new(),
        again: StoredAgain::new(&again, origin, &options)?,
        source: &*origin.source,
        blob: BlobWriter::new(out, 0),
        records: Vec::with_capacity(chunks.len()),
        end: 0,
    };
    let mut rest = &chunks[..];
    while let Some(first) = rest.first() {
        options.cancel.check()?;
        let run = if copied(first) {
            let length = run_length(rest, copied);
            mover.copy(&rest[..length])?;
            length
        } else {
            mover.store_again(first)?;
            1
        };
        rest = &rest[run..];
    }
    let Mover {
        blob, records, end, ..
    } = mover;
    let mut info = build::own_blob(0, &options);
    info.compressor = compressor;
    info.features |= kind.features;
    info.chunk_count = records.len() as u32;
    info.uncompressed_size = end;
    let info = finish(image, blob, info, &records, &options)?;
    let mut places: HashMap<(u32, u32), ChunkRecord> = chunks
        .iter()
        .map(|chunk| (chunk.blob_index, chunk.index))
        .zip(records)
        .collect();
    for (twin, of) in twins {
        if let Some(place) = places.get(&of).copied() {
            places.insert(twin, place);
        }
    }
    Ok(NewBlob { info, places })
}

/// How a blob of this image is written that is not built, but put together.
fn new_options(
    image: &Image,
    chunks: &[ChunkRecord],
    compressor: Compressor,
    options: &BuildOptions,
) -> BuildOptions {
    // In v5 nothing says whether chunks are aligned, so those that are stay so.
    let aligned = |chunk: &ChunkRecord| chunk.uncompressed_offset.is_multiple_of(BLOCK_SIZE);
    BuildOptions {
        version: image.version,
        aligned_chunk: chunks.iter().all(aligned),
        // The chunk table is never written with gzip.
        compressor: match compressor {
            Compressor::Gzip => Compressor::Zstd,
            other => other,
        },
        digester: image.digester,
        chunk_size: image.chunk_size,
        blob_toc: false,
        inline_meta: false,
        blob_id: None,
        ..options.clone()
    }
}

/// A chunk by its blob and row.
type Place = (u32, u32);

/// Each content once, in order; and those that are left out, each with the one that has its content.
fn distinct(chunks: &[ChunkRecord]) -> (Vec<ChunkRecord>, Vec<(Place, Place)>) {
    let mut known = HashMap::with_capacity(chunks.len());
    let (mut kept, mut twins) = (Vec::with_capacity(chunks.len()), Vec::new());
    for chunk in chunks {
        let place = (chunk.blob_index, chunk.index);
        let first = *known
            .entry((chunk.digest, chunk.uncompressed_size))
            .or_insert_with(|| {
                kept.push(*chunk);
                place
            });
        if first != place {
            twins.push((place, first));
        }
    }
    (kept, twins)
}

/// How many of the first chunks lie in one blob one behind the other, near enough to be read at once.
fn run_length(chunks: &[ChunkRecord], copied: impl Fn(&ChunkRecord) -> bool) -> usize {
    let Some(first) = chunks.first() else {
        return 0;
    };
    let end = |chunk: &ChunkRecord| {
        let size = u64::from(chunk.compressed_size);
        chunk.compressed_offset.saturating_add(size)
    };
    let follows = |pair: &[ChunkRecord]| {
        let [before, next] = pair else { return false };
        let gap = next.compressed_offset.checked_sub(end(before));
        next.blob_index == first.blob_index
            && gap.is_some_and(|gap| gap <= GAP_MAX)
            && end(next) - first.compressed_offset <= READ_MAX
            && copied(next)
    };
    1 + chunks.windows(2).take_while(|pair| follows(pair)).count()
}

struct Mover<'a, W> {
    image: &'a Image,
    options: &'a BuildOptions,
    source: &'a dyn BlobSource,
    readers: HashMap<u32, (Arc<dyn BlobReader>, Arc<ChunkDecoder>)>,
    again: StoredAgain,
    blob: BlobWriter<W>,
    /// The chunks in the new blob.
    records: Vec<ChunkRecord>,
    /// End of the uncompressed address space so far.
    end: u64,
}

impl<W: Write> Mover<'_, W> {
    fn open(&mut self, index: u32) -> Result<(Arc<dyn BlobReader>, Arc<ChunkDecoder>), Error> {
        if let Some(known) = self.readers.get(&index) {
            return Ok(known.clone());
        }
        let info = &self.image.blobs[index as usize];
        let reader = self.source.open(info.id.as_str());
        let reader = reader.map_err(|error| failed(info, error))?;
        let decoder = ChunkDecoder::new(info).map_err(|error| failed(info, error))?;
        let opened = (reader, Arc::new(decoder));
        self.readers.insert(index, opened.clone());
        Ok(opened)
    }

    /// Copies chunks of one blob, which lie there in this order and near each other.
    fn copy(&mut self, run: &[ChunkRecord]) -> Result<(), Error> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(());
        };
        let info = &self.image.blobs[first.blob_index as usize];
        for chunk in run {
            check_sizes(info, chunk)?;
        }
        let (reader, decoder) = self.open(first.blob_index)?;
        let start = first.compressed_offset;
        // Sizes were limited just now, and gaps when the run was made.
        let len = last.compressed_offset - start + u64::from(last.compressed_size);
        let mut bytes = vec![0; len as usize];
        reader
            .read_exact_at(&mut bytes, start)
            .map_err(|error| failed(info, error))?;
        let stored = |chunk: &ChunkRecord| {
            let from = (chunk.compressed_offset - start) as usize;
            &bytes[from..from + chunk.compressed_size as usize]
        };
        let verify = |chunk: &ChunkRecord| {
            let (record, known) = (StoredChunk::from(chunk), KnownChunk::from(chunk));
            let decoded = decoder.chunk(&record, &known, stored(chunk));
            let decoded = decoded.map_err(|source| Error::Chunk {
                blob: info.id.clone(),
                chunk: chunk.index,
                source,
            })?;
            // Tables take a chunk with two equal sizes for one that is not compressed.
            let raw = record.compressed && record.compressed_size == record.uncompressed_size;
            Ok(raw.then(|| decoded.into_inner()))
        };
        let verified: Result<Vec<_>, Error> = self
            .options
            .pool
            .install(|| run.par_iter().map(verify).collect());
        for (chunk, raw) in run.iter().zip(verified?) {
            let compressed = chunk.flags.contains(ChunkFlags::COMPRESSED) && raw.is_none();
            self.append(chunk, raw.as_deref().unwrap_or(stored(chunk)), compressed)?;
        }
        Ok(())
    }

    fn store_again(&mut self, chunk: &ChunkRecord) -> Result<(), Error> {
        let info = &self.image.blobs[chunk.blob_index as usize];
        let (bytes, compressed) = self.again.next(info)?;
        self.append(chunk, &bytes, compressed)
    }

    fn append(
        &mut self,
        chunk: &ChunkRecord,
        stored: &[u8],
        compressed: bool,
    ) -> Result<(), Error> {
        let mut record = ChunkRecord {
            blob_index: 0,
            index: self.records.len() as u32,
            compressed_offset: self.blob.len(),
            compressed_size: stored.len() as u32,
            uncompressed_offset: self.end,
            flags: chunk.flags - ChunkFlags::BATCH - ChunkFlags::ENCRYPTED,
            ..*chunk
        };
        record.flags.set(ChunkFlags::COMPRESSED, compressed);
        self.end += u64::from(chunk.uncompressed_size).next_multiple_of(self.options.alignment());
        self.records.push(record);
        self.blob.append(stored)
    }
}

/// Chunks that are decoded and stored again, in the order in which they are asked for.
struct StoredAgain {
    chunks: Option<(Sequence, ChunkStore, Encoder)>,
}

impl StoredAgain {
    fn new(
        chunks: &[ChunkRecord],
        origin: &Origin<'_>,
        options: &BuildOptions,
    ) -> Result<Self, Error> {
        if chunks.is_empty() {
            return Ok(Self { chunks: None });
        }
        let bootstrap = &origin.loaded.bootstrap;
        let store = ChunkStore::open(bootstrap, Arc::clone(&origin.source), Default::default());
        let store = store.map_err(Error::Store)?;
        let pointer = |chunk: &ChunkRecord| ChunkPointer {
            blob_index: chunk.blob_index,
            index: chunk.index,
            uncompressed_offset: chunk.uncompressed_offset,
        };
        let sequence = store.sequence(chunks.iter().map(pointer).collect());
        let encoder = Encoder::new(options.compressor, options.level).map_err(Error::Compress)?;
        Ok(Self {
            chunks: Some((sequence, store, encoder)),
        })
    }

    /// The next chunk as it is to be stored, and whether that is compressed.
    fn next(&mut self, info: &BlobInfo) -> Result<(Vec<u8>, bool), Error> {
        let Some((sequence, _, encoder)) = &mut self.chunks else {
            return Err(Error::Stopped);
        };
        let chunk = sequence.next().ok_or(Error::Stopped)?;
        let chunk = chunk.map_err(|error| failed(info, error))?;
        let mut stored = Vec::new();
        let how = encoder
            .encode(&chunk, &mut stored)
            .map_err(Error::Compress)?;
        Ok((stored, how == codec::Stored::Compressed))
    }
}

/// Refuses sizes that no blob has before memory is taken for them.
fn check_sizes(info: &BlobInfo, chunk: &ChunkRecord) -> Result<(), Error> {
    let sizes = 1..=info.chunk_size.min(CHUNK_SIZE_MAX);
    if sizes.contains(&chunk.uncompressed_size) && chunk.compressed_size <= CHUNK_SIZE_MAX {
        return Ok(());
    }
    Err(Error::Chunk {
        blob: info.id.clone(),
        chunk: chunk.index,
        source: storage::ChunkError::Record("its sizes are not those of a chunk"),
    })
}

fn failed(info: &BlobInfo, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Blob {
        id: info.id.to_string(),
        source: source.into(),
    }
}

/// Writes what follows the chunks; the blob's entry in the blob table.
fn finish<W: Write>(
    image: &Image,
    blob: BlobWriter<W>,
    info: BlobInfo,
    records: &[ChunkRecord],
    options: &BuildOptions,
) -> Result<BlobInfo, Error> {
    let mut alone = Image {
        tree: Tree::new(),
        blobs: vec![info],
        chunks: records.to_vec(),
        prefetch: Vec::new(),
        ..*image
    };
    let kind = tail::Kind {
        options,
        places: &Places::default(),
        cipher: None,
    };
    tail::finish(blob, &mut alone, Some(0), &kind)?;
    alone.blobs.pop().ok_or(Error::Stopped)
}
