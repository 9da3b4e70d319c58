//! Chunks that stay in the layer's tar, which is gzipped (zran) or plain.
//!
//! The blob that is written holds no data but a chunk table (V2) that says where in the tar each chunk lies. Of gzip data
//! the table also holds the *slices*: places at which inflating can begin, each with the 32 KiB of output before it.
//! A chunk lies in the last slice that begins before it, and a slice reaches to the end of its last chunk, so slices may
//! overlap. Where a chunk's record points to in the gzip data is only about right: readers plan by it.
//!
//! ```text
//! fetch     the source, in pieces, and its digest
//!   -> inflate  source bytes -> tar bytes, index of places
//!        -> tree (caller's thread)  tar bytes -> chunks, their digests
//!        -> checksum                of the members of gzip
//! ```

use std::cell::RefCell;
use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, ScopedJoinHandle};

use chunkdict::{ChunkKey, ChunkTable};
use codec::Encoder;
use layer::piece::{Message, Pipe, pipe, pump, take_all};
use layer::{
    Boundary, Checksums, Compression, DataSink, FileInfo, FramingReader, GzipIndex, IndexingReader,
};
use rafs_format::blob_meta::{Placement, ZranContext};
use rafs_format::{
    BLOCK_SIZE, BlobFeatures, BlobId, BlobInfo, CHUNKS_PER_BLOB_MAX, ChunkFlags, ChunkRecord,
    Compressor, Digester, Version,
};
use sha2::{Digest as _, Sha256};
use storage::{BATCH_SIZE_MAX, SLICE_SIZE_MAX, SLICE_STORED_MAX};
use tree::{ChunkId, Image, Tree};

use super::frames::batches;
use super::sparse;
use crate::build::own_blob;
use crate::pipeline::{BlobWriter, Places};
use crate::prefetch::resolve_prefetch;
use crate::{BuildOptions, BuiltLayer, Error, Stats, tail};

/// Bytes of source and of tar that are handed over at a time. The index of places depends on both.
const PIECE: usize = 1 << 20;
/// Largest file that records can point into, in bytes.
const SOURCE_MAX: u64 = 1 << 40;
/// Bytes of a slice behind those that yield its output. Deployed readers that come to the end of a gzip member go on to the next
/// one before they see that they have enough, and fail if they can't: this has room for a trailer, a header and a beginning.
const BEYOND: u64 = 512;
/// Largest stored size that a record can express, in bytes.
const STORED_MAX: u64 = (1 << 24) - 1;

/// Makes an image of a layer's tar that stays the blob: gzipped, or plain. It is read once, to its end. What describes
/// its chunks goes to `out`. Of the options, compressor, digester, blob id, dictionary, parent and all about batches and
/// encryption count for nothing; the id of the blob is the SHA-256 of `source`.
///
/// # Errors
/// [`Error`]; among others for sparse files, whose holes are not in the tar, and for gzip data that cannot be inflated
/// from enough places. `out` then holds a useless part of a blob.
pub fn build_targz(
    source: impl Read + Send,
    compression: Compression,
    out: impl Write,
    options: &BuildOptions,
) -> Result<BuiltLayer, Error> {
    if compression == Compression::Zstd {
        let text = "the layer is compressed with zstd: only gzip can be read in pieces";
        let error = io::Error::new(io::ErrorKind::Unsupported, text);
        return Err(Error::Cut(error));
    }
    build_targz_with(source, compression, out, options, &mut ())
}

/// Looks on while a layer passes by.
pub trait Onlooker {
    /// The next bytes of the tar.
    fn tar(&mut self, bytes: &[u8]);

    /// Whether chunks are of interest, which have to be put together for that.
    fn takes_chunks(&self) -> bool;

    /// The next new chunk, which lies at byte `offset` of the blob's uncompressed address space.
    fn chunk(&mut self, offset: u64, bytes: &[u8]);
}

/// The reader of the tar and the sink of its chunks take turns.
type Shared<'a> = &'a RefCell<&'a mut (dyn Onlooker + 'a)>;

impl<T: Onlooker + ?Sized> Onlooker for &mut T {
    fn tar(&mut self, bytes: &[u8]) {
        (**self).tar(bytes);
    }

    fn takes_chunks(&self) -> bool {
        (**self).takes_chunks()
    }

    fn chunk(&mut self, offset: u64, bytes: &[u8]) {
        (**self).chunk(offset, bytes);
    }
}

/// Nobody.
impl Onlooker for () {
    fn tar(&mut self, _: &[u8]) {}

    fn takes_chunks(&self) -> bool {
        false
    }

    fn chunk(&mut self, _: u64, _: &[u8]) {}
}

/// As [`build_targz`], while somebody looks on. Layers in zstd are taken, too, as long as no frame decodes to more than
/// [`BATCH_SIZE_MAX`] bytes; deployed readers do not know such blobs.
///
/// # Errors
/// As [`build_targz`].
pub fn build_targz_with(
    source: impl Read + Send,
    compression: Compression,
    out: impl Write,
    options: &BuildOptions,
    mut onlooker: &mut dyn Onlooker,
) -> Result<BuiltLayer, Error> {
    let onlooker = RefCell::new(&mut onlooker as &mut dyn Onlooker);
    if options.version != Version::V6 {
        return Err(Error::NotInV5("a layer's tar as the blob"));
    }
    let options = &BuildOptions {
        compressor: Compressor::Zstd,
        level: Encoder::ZSTD_LEVEL_DEFAULT,
        digester: Digester::Sha256,
        batch_size: 0,
        encryption: None,
        blob_id: None,
        dictionary: None,
        parent: None,
        ..options.clone()
    };
    options.validate()?;
    let (tree, mut chunks, scanned) = scan(source, compression, options, &onlooker)?;
    let Scanned { id, len, index } = scanned;
    if len > SOURCE_MAX {
        return Err(Error::TooLarge {
            what: "the layer",
            limit: "2^40 bytes",
        });
    }
    let mut features = BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::SEPARATE;
    features.set(BlobFeatures::ZRAN, compression == Compression::Gzip);
    features.set(BlobFeatures::BATCH, compression == Compression::Zstd);
    let compressor = match compression {
        Compression::Zstd => Compressor::Zstd,
        Compression::Gzip | Compression::None => Compressor::Gzip,
    };
    let places = match index {
        Index::Gzip(index) => slices(&mut chunks, index, len)?,
        Index::Frames(ends) => batches(&chunks.records, &chunks.offsets, &ends)?,
        Index::None => {
            for (record, &offset) in chunks.records.iter_mut().zip(&chunks.offsets) {
                (record.compressed_offset, record.compressed_size) =
                    (offset, record.uncompressed_size);
            }
            Places::default()
        }
    };
    let own = own_blob(0, options);
    let blob = BlobInfo {
        id,
        chunk_count: chunks.records.len() as u32,
        compressor,
        features: own.features | features,
        compressed_size: len,
        uncompressed_size: chunks.end,
        ..own
    };
    let own = (!chunks.records.is_empty()).then_some(0);
    let mut image = Image {
        version: Version::V6,
        prefetch: resolve_prefetch(&tree, &options.prefetch),
        tree,
        blobs: own.map(|_| blob).into_iter().collect(),
        chunks: chunks.records,
        chunk_size: options.chunk_size,
        compressor,
        digester: Digester::Sha256,
        explicit_owners: options.explicit_owners,
        tarfs: false,
    };
    let kind = tail::Kind {
        options,
        places: &places,
        cipher: None,
    };
    let blob = tail::finish(BlobWriter::new(out, 0), &mut image, own, &kind)?;
    Ok(BuiltLayer {
        image,
        own_blob: own,
        blob_digest: blob.digest,
        self_digest: blob.self_digest,
        blob_size: blob.size,
        bootstrap_digest: blob.bootstrap_digest,
        table: blob.table,
        stats: chunks.stats,
    })
}

/// What the source turned out to be.
struct Scanned {
    id: BlobId,
    len: u64,
    index: Index,
}

/// Where decoding can begin.
enum Index {
    /// Everywhere.
    None,
    Gzip(GzipIndex),
    Frames(Vec<Boundary>),
}

/// Reads the source once: its tree, the chunks of its files, and all about itself.
fn scan<'a>(
    source: impl Read + Send,
    compression: Compression,
    options: &'a BuildOptions,
    onlooker: Shared<'a>,
) -> Result<(Tree, Chunks<'a>, Scanned), Error> {
    let mut chunks = Chunks {
        options,
        onlooker,
        known: ChunkTable::default(),
        records: Vec::new(),
        offsets: Vec::new(),
        end: 0,
        kept: onlooker.borrow().takes_chunks().then(Vec::new),
        stats: Stats::default(),
    };
    let cancel = &options.cancel;
    let (tree, digested, index, checked) = thread::scope(|scope| {
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let (to_inflate, stored) = pipe();
        let (to_tree, tar) = pipe();
        let (to_checksum, inflated) = pipe();
        let fetch = move || {
            let mut source = Identified::new(source);
            pump(&mut source, PIECE, &[to_inflate], cancel);
            source.finish()
        };
        let stored = Pipe::new(stored);
        let (give_checksums, checksums) = channel();
        let inflate = move || match compression {
            Compression::None => {
                pump(stored, PIECE, &[to_tree], cancel);
                Ok::<_, io::Error>(Index::None)
            }
            Compression::Gzip => {
                let (mut reader, checksums) = IndexingReader::apart(stored);
                // Who is gone needs none.
                let _ = give_checksums.send(checksums);
                pump(&mut reader, PIECE, &[to_tree, to_checksum], cancel);
                Ok(Index::Gzip(reader.into_index()))
            }
            Compression::Zstd => {
                let mut reader = FramingReader::new(stored, BATCH_SIZE_MAX.into())?;
                pump(&mut reader, PIECE, &[to_tree], cancel);
                Ok(Index::Frames(reader.into_ends()))
            }
        };
        let checksum = move || {
            // There are none but of gzip.
            let Ok(checksums) = checksums.recv() else {
                return Ok(());
            };
            compare(checksums, &inflated)
        };
        let inflate = named("inflate")
            .spawn_scoped(scope, inflate)
            .map_err(Error::Thread)?;
        let checksum = named("checksum")
            .spawn_scoped(scope, checksum)
            .map_err(Error::Thread)?;
        let fetch = named("fetch")
            .spawn_scoped(scope, fetch)
            .map_err(Error::Thread)?;
        let reader = Watched {
            pipe: Pipe::new(tar),
            onlooker,
            left: 0,
        };
        let tree = layer::read_tree(reader, &mut chunks, &options.layer);
        let index = join("inflating", inflate)?;
        let checked = join("checksum", checksum)?;
        Ok::<_, Error>((tree, join("fetch", fetch)?, index, checked))
    })?;
    options.cancel.check()?;
    // If the decoder could not be set up, the tree only knows that a stage has failed.
    let index = index.map_err(Error::Cut)?;
    let tree = tree?;
    checked.map_err(Error::Cut)?;
    let (len, id) = digested.ok_or(Error::Stopped)?;
    Ok((tree, chunks, Scanned { id, len, index }))
}

/// A source that is being read to its end, and its digest.
struct Identified<R> {
    source: R,
    sha256: Sha256,
    len: u64,
    ended: bool,
}

impl<R: Read> Identified<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            sha256: Sha256::new(),
            len: 0,
            ended: false,
        }
    }

    /// Length in bytes and id of the source; `None` if it did not come to its end.
    fn finish(self) -> Option<(u64, BlobId)> {
        let id = BlobId::new(hex::encode(self.sha256.finalize()))?;
        self.ended.then_some((self.len, id))
    }
}

impl<R: Read> Read for Identified<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buf)?;
        self.ended |= count == 0 && !buf.is_empty();
        self.sha256.update(&buf[..count]);
        self.len += count as u64;
        Ok(count)
    }
}

/// Compares the checksums of all members.
fn compare(mut checksums: Checksums, inflated: &Receiver<Message>) -> io::Result<()> {
    take_all(inflated, |bytes| checksums.update(bytes));
    checksums.finish()
}

fn join<T>(stage: &'static str, thread: ScopedJoinHandle<'_, T>) -> Result<T, Error> {
    thread.join().map_err(|_| Error::Panicked { stage })
}

/// Enters about where the chunks lie in the gzip data of `len` bytes, and gives their exact places.
fn slices(chunks: &mut Chunks<'_>, mut index: GzipIndex, len: u64) -> Result<Places, Error> {
    let mut contexts: Vec<ZranContext> = Vec::new();
    let mut placements = Vec::with_capacity(chunks.records.len());
    let (mut used, mut dictionary) = (Vec::new(), 0);
    for (record, &start) in chunks.records.iter_mut().zip(&chunks.offsets) {
        let end = start + u64::from(record.uncompressed_size);
        let at = index.place_before(start);
        let at = at.ok_or(Error::NoPlace { size: start })?;
        let (stored_start, stored_end) = (index.input_near(start), index.input_near(end));
        let input_end = index.input_end(end).saturating_add(BEYOND).min(len);
        let place = &index.places[at];
        if used.last() != Some(&at) {
            used.push(at);
            contexts.push(ZranContext {
                in_offset: place.in_offset,
                out_offset: place.out_offset,
                dictionary_offset: dictionary,
                in_len: 0,
                out_len: 0,
                dictionary_size: place.window.len() as u32,
                byte: place.byte,
                bits: place.bits,
            });
            dictionary += place.window.len() as u64;
        }
        let (in_len, out_len) = (input_end - place.in_offset, end - place.out_offset);
        if in_len > SLICE_STORED_MAX.into() || out_len > SLICE_SIZE_MAX.into() {
            return Err(Error::NoPlace { size: out_len });
        }
        placements.push(Placement::Zran {
            index: contexts.len() as u32 - 1,
            offset: (start - place.out_offset) as u32,
        });
        // Chunks come in the order of the tar, so each reaches further than the one before.
        if let Some(context) = contexts.last_mut() {
            (context.in_len, context.out_len) = (in_len as u32, out_len as u32);
        }
        record.flags |= ChunkFlags::COMPRESSED;
        record.compressed_offset = stored_start;
        record.compressed_size = (stored_end - stored_start).clamp(1, STORED_MAX) as u32;
    }
    index.keep_windows(used);
    Ok(Places::in_slices(contexts, index.windows, placements))
}

/// The chunks of the layer, known by content.
struct Chunks<'a> {
    options: &'a BuildOptions,
    onlooker: Shared<'a>,
    known: ChunkTable<ChunkId>,
    records: Vec<ChunkRecord>,
    /// Where each chunk lies in the tar, in bytes.
    offsets: Vec<u64>,
    /// End of the blob's uncompressed address space.
    end: u64,
    /// The bytes of the current chunk, if the onlooker takes any.
    kept: Option<Vec<u8>>,
    stats: Stats,
}

impl DataSink for Chunks<'_> {
    fn file(&mut self, file: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        let offset = file.offset.ok_or_else(sparse)?;
        let mut ids = Vec::new();
        let mut start = 0;
        while start < file.size {
            self.options.cancel.check().map_err(io::Error::other)?;
            let size = (file.size - start).min(self.options.chunk_size.into());
            let (key, crc32) = self.digest(size as u32, data)?;
            ids.push(self.chunk(key, crc32, offset + start)?);
            start += size;
        }
        Ok(ids.into())
    }
}

impl Chunks<'_> {
    /// Digests the next chunk where it lies, and gives its CRC-32C as well.
    fn digest(&mut self, size: u32, data: &mut dyn BufRead) -> io::Result<(ChunkKey, u32)> {
        let (mut sha256, mut crc32) = (Sha256::new(), 0);
        self.kept.iter_mut().for_each(Vec::clear);
        let mut left = size as usize;
        while left > 0 {
            let bytes = data.fill_buf()?;
            let bytes = bytes.get(..left).unwrap_or(bytes);
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sha256.update(bytes);
            crc32 = codec::crc32c_append(crc32, bytes);
            if let Some(kept) = &mut self.kept {
                kept.extend_from_slice(bytes);
            }
            let count = bytes.len();
            left -= count;
            data.consume(count);
        }
        let digest = sha256.finalize().into();
        Ok((ChunkKey { digest, size }, crc32))
    }

    /// Enters the chunk that was digested, which lies at `offset` of the tar.
    fn chunk(&mut self, key: ChunkKey, crc32: u32, offset: u64) -> io::Result<ChunkId> {
        let size = u64::from(key.size);
        if let Some(id) = self.known.find(&key) {
            self.stats.duplicate_chunks += 1;
            self.stats.duplicate_size += size;
            return Ok(id);
        }
        let id = ChunkId(self.records.len() as u32);
        if id.0 + 1 >= CHUNKS_PER_BLOB_MAX {
            return Err(io::Error::other(
                "the layer has more than 2^24 - 1 chunks: choose a larger chunk size",
            ));
        }
        if let Some(kept) = &self.kept {
            self.onlooker.borrow_mut().chunk(self.end, kept);
        }
        self.known.insert(key, id);
        self.records.push(ChunkRecord {
            digest: key.digest,
            blob_index: 0,
            // Readers refuse a recorded CRC of 0.
            flags: if crc32 == 0 {
                ChunkFlags::empty()
            } else {
                ChunkFlags::HAS_CRC32
            },
            compressed_size: 0,
            uncompressed_size: key.size,
            compressed_offset: 0,
            uncompressed_offset: self.end,
            file_offset: 0,
            index: id.0,
            crc32,
        });
        self.offsets.push(offset);
        self.end += size.next_multiple_of(BLOCK_SIZE);
        self.stats.chunks += 1;
        self.stats.uncompressed_size += size;
        Ok(id)
    }
}

/// The tar, at which somebody looks piece by piece.
struct Watched<'a> {
    pipe: Pipe,
    onlooker: Shared<'a>,
    /// Bytes of the current piece that were not read.
    left: usize,
}

impl BufRead for Watched<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let bytes = self.pipe.fill_buf()?;
        if self.left == 0 && !bytes.is_empty() {
            self.onlooker.borrow_mut().tar(bytes);
            self.left = bytes.len();
        }
        Ok(bytes)
    }

    fn consume(&mut self, count: usize) {
        self.left -= count;
        self.pipe.consume(count);
    }
}

impl Read for Watched<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}
