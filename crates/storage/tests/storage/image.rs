//! Images made on the spot, and sources that count, wait or fail.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use codec::{BlobCipher, Encoder, Stored};
use rafs_format::blob_meta::{
    BatchContext, Header, Placement, StoredChunk, encode_batch, encode_v1, encode_v2,
};
use rafs_format::{
    BlobFeatures, BlobId, BlobInfo, Bootstrap, ChunkFlags, ChunkPointer, ChunkRecord, Cipher,
    Compressor, DeviceSlot, Digester, Nid, SuperFlags, Superblock, encode,
};
use storage::{BlobReader, BlobSource, ChunkStore, StoreOptions};

/// How an image stores its chunks.
#[derive(Clone, Copy)]
pub struct Kind {
    pub compressor: Compressor,
    pub chunk_size: u32,
    pub encrypted: bool,
    /// Every that many consecutive chunks make a batch; 0 for none.
    pub batch: usize,
}

impl Default for Kind {
    fn default() -> Self {
        Self {
            compressor: Compressor::Zstd,
            chunk_size: 1 << 20,
            encrypted: false,
            batch: 0,
        }
    }
}

/// An image of one blob.
pub struct Image {
    pub bootstrap: Bootstrap<Vec<u8>>,
    pub blob: Vec<u8>,
    pub chunks: Vec<Vec<u8>>,
    pub pointers: Vec<ChunkPointer>,
    /// The blob table entry.
    pub info: BlobInfo,
    /// The chunk table.
    pub records: Vec<ChunkRecord>,
}

/// The id of the blob.
pub fn id() -> String {
    "ab".repeat(32)
}

/// Chunks of odd sizes, neither empty nor all alike; the last of 18 bytes, as filled-up encrypted ones have.
pub fn some_chunks(count: usize, largest: usize) -> Vec<Vec<u8>> {
    let size = |at: usize| 1 + (at * 7919 + largest - 1) % largest;
    let mut chunks: Vec<_> = (0..count)
        .map(|at| match at % 3 {
            0 => testkit::noise(at as u64, size(at)),
            _ => testkit::prose(at as u64, size(at)),
        })
        .collect();
    if let Some(last) = chunks.last_mut() {
        *last = testkit::noise(1, 18);
    }
    chunks
}

impl Image {
    pub fn new(chunks: Vec<Vec<u8>>, kind: Kind) -> Self {
        let key = testkit::noise(7, 32);
        let iv = testkit::noise(8, 16);
        let cipher = kind
            .encrypted
            .then(|| BlobCipher::new(key[..].try_into().unwrap(), iv[..].try_into().unwrap()));
        let v2 = kind.encrypted || kind.batch != 0;
        let mut encoder = Encoder::new(kind.compressor, 3).unwrap();
        let mut blob = Vec::new();
        let mut store = |plain: &[u8], blob: &mut Vec<u8>| {
            let start = blob.len();
            let compressed = encoder.encode(plain, blob).unwrap() == Stored::Compressed;
            if let Some(cipher) = &cipher {
                cipher.encrypt(blob, start);
            }
            (start as u64, (blob.len() - start) as u32, compressed)
        };

        let (mut table, mut contexts, mut records, mut pointers) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut offset = 0;
        let mut batch = None;
        for (index, chunk) in chunks.iter().enumerate() {
            let (place, placement) = if kind.batch == 0 {
                (store(chunk, &mut blob), Placement::Plain)
            } else {
                if index % kind.batch == 0 {
                    let all: Vec<u8> = chunks[index..]
                        .iter()
                        .take(kind.batch)
                        .flatten()
                        .copied()
                        .collect();
                    let (start, stored, _) = store(&all, &mut blob);
                    let context = BatchContext {
                        compressed_size: stored,
                        uncompressed_size: all.len() as u32,
                    };
                    encode_batch(&context, &mut contexts);
                    batch = Some((start, (index / kind.batch) as u32, 0));
                }
                let (start, number, within) = batch.as_mut().unwrap();
                let placement = Placement::Batch {
                    index: *number,
                    offset: *within,
                };
                *within += chunk.len() as u32;
                ((*start, 0, true), placement)
            };
            let crc = codec::crc32c(chunk);
            let stored = StoredChunk {
                index: index as u32,
                uncompressed_offset: offset,
                uncompressed_size: chunk.len() as u32,
                compressed_offset: place.0,
                compressed_size: place.1,
                compressed: place.2,
                encrypted: kind.encrypted,
                crc32: (v2 && kind.batch == 0).then_some(crc),
                placement,
            };
            if v2 {
                encode_v2(&stored, &mut table)
            } else {
                encode_v1(&stored, &mut table)
            }
            .unwrap();
            records.push(ChunkRecord {
                digest: codec::digest(Digester::Blake3, chunk),
                blob_index: 0,
                flags: ChunkFlags::HAS_CRC32,
                compressed_size: place.1,
                uncompressed_size: chunk.len() as u32,
                compressed_offset: place.0,
                uncompressed_offset: offset,
                file_offset: 0,
                index: index as u32,
                crc32: crc,
            });
            pointers.push(ChunkPointer {
                blob_index: 0,
                index: index as u32,
                uncompressed_offset: offset,
            });
            offset += (chunk.len() as u64).next_multiple_of(4096);
        }

        let records_size = table.len() as u64;
        let count = (contexts.len() / 40) as u32;
        table.append(&mut contexts);
        let uncompressed_size = table.len() as u64;
        let (meta_offset, stored, compressed) = store(&table, &mut blob);
        let meta_compressor = if compressed {
            kind.compressor
        } else {
            Compressor::None
        };
        let mut features = BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC;
        features.set(BlobFeatures::CHUNK_INFO_V2, v2);
        features.set(BlobFeatures::ENCRYPTED, kind.encrypted);
        features.set(BlobFeatures::BATCH, kind.batch != 0);
        let header = Header {
            features,
            compressor: meta_compressor,
            entries: chunks.len() as u32,
            offset: meta_offset,
            compressed_size: u64::from(stored),
            uncompressed_size,
            contexts_offset: if count == 0 { 0 } else { records_size },
            contexts_size: u64::from(count) * 40,
            contexts_count: count,
        };
        let at = blob.len();
        blob.extend_from_slice(&header.encode());
        if let Some(cipher) = &cipher {
            cipher.encrypt(&mut blob, at);
        }

        let info = BlobInfo {
            readahead_size: 0,
            id: BlobId::new(id()).unwrap(),
            index: 0,
            chunk_size: kind.chunk_size,
            chunk_count: chunks.len() as u32,
            compressor: kind.compressor,
            digester: Digester::Blake3,
            features,
            compressed_size: blob.len() as u64,
            uncompressed_size: offset,
            toc_size: 0,
            toc_digest: [0; 32],
            meta_compressor,
            meta_offset,
            meta_compressed_size: u64::from(stored),
            meta_uncompressed_size: uncompressed_size,
            meta_digest: if kind.encrypted {
                key[..].try_into().unwrap()
            } else {
                [0; 32]
            },
            meta_size: if kind.encrypted {
                u64::from_le_bytes(iv[..8].try_into().unwrap())
            } else {
                0
            },
            cipher_iv: if kind.encrypted {
                iv[8..].try_into().unwrap()
            } else {
                [0; 8]
            },
            cipher: if kind.encrypted {
                Cipher::Aes128Xts
            } else {
                Cipher::None
            },
        };
        let bootstrap = bootstrap(&info, &records);
        Self {
            bootstrap,
            blob,
            chunks,
            pointers,
            info,
            records,
        }
    }

    /// A source of the blob that counts.
    pub fn source(&self) -> Arc<Counting> {
        Counting::new(self.blob.clone())
    }

    /// Reads every chunk and compares it. The error of the first that fails.
    pub fn check(&self, store: &ChunkStore) -> Result<(), storage::ReadError> {
        for (at, chunk) in self.chunks.iter().enumerate() {
            let mut bytes = vec![0xEE; chunk.len()];
            store.read(self.pointers[at], 0, &mut bytes, &self.pointers[at + 1..])?;
            assert!(bytes == *chunk, "chunk {at} has other bytes");
        }
        Ok(())
    }
}

/// A store with a cache directory.
pub fn cached(dir: &Path) -> StoreOptions {
    StoreOptions {
        cache_dir: Some(dir.to_owned()),
        ..StoreOptions::default()
    }
}

/// A bootstrap with those tables and no more; its tree is empty bytes.
pub fn bootstrap(info: &BlobInfo, records: &[ChunkRecord]) -> Bootstrap<Vec<u8>> {
    let mut tables = Vec::new();
    encode::blob_info(info, &mut tables);
    let meta = 8192_u64;
    let mut chunk_table = Vec::new();
    for record in records {
        encode::chunk_record(record, &mut chunk_table);
    }
    let blocks = (info.uncompressed_size / 4096) as u32;
    let superblock = Superblock {
        block_bits: 12,
        root: Nid(128),
        inos: 1,
        blocks,
        meta_blkaddr: (meta / 4096) as u32,
        extra_devices: 1,
        flags: SuperFlags::of_compressor(info.compressor) | SuperFlags::of_digester(info.digester),
        chunk_size: info.chunk_size,
        blob_table_offset: 4096,
        blob_table_size: 256,
        chunk_table_offset: meta + 8192,
        chunk_table_size: chunk_table.len() as u64,
        prefetch_table_offset: 0,
        prefetch_table_size: 0,
    };
    let mut out = vec![0; 1024];
    encode::superblock(&superblock, &mut out).unwrap();
    encode::ext_superblock(&superblock, &mut out);
    encode::device(
        &DeviceSlot {
            id: info.id.to_string(),
            blocks,
            mapped_blkaddr: 0x80,
        },
        &mut out,
    )
    .unwrap();
    out.resize(4096, 0);
    out.extend_from_slice(&tables);
    out.resize((meta + 8192) as usize, 0);
    out.extend_from_slice(&chunk_table);
    out.resize(out.len().next_multiple_of(4096), 0);
    Bootstrap::parse(out).unwrap()
}

/// A source of one blob that counts, waits and fails as told.
pub struct Counting {
    blob: Mutex<Arc<Vec<u8>>>,
    reads: AtomicU64,
    bytes: AtomicU64,
    pub delay: Mutex<Duration>,
    pub fail: AtomicBool,
    ranges: Mutex<BTreeMap<u64, usize>>,
}

impl Counting {
    pub fn new(blob: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            blob: Mutex::new(Arc::new(blob)),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            delay: Mutex::default(),
            fail: AtomicBool::new(false),
            ranges: Mutex::default(),
        })
    }

    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    /// Longest request so far at each offset.
    pub fn ranges(&self) -> BTreeMap<u64, usize> {
        self.ranges.lock().unwrap().clone()
    }

    /// Changes a byte of the blob.
    pub fn flip(&self, at: usize) {
        Arc::make_mut(&mut self.blob.lock().unwrap())[at] ^= 1;
    }

    /// Cuts off the end of the blob.
    pub fn truncate(&self, len: usize) {
        Arc::make_mut(&mut self.blob.lock().unwrap()).truncate(len);
    }

    fn blob(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.blob.lock().unwrap())
    }
}

/// `BlobSource` for the shared counter.
pub struct Source(pub Arc<Counting>);

struct Reader(Arc<Counting>);

impl BlobSource for Source {
    fn open(&self, blob: &str) -> io::Result<Arc<dyn BlobReader>> {
        if blob != id() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(Reader(Arc::clone(&self.0))))
    }
}

impl BlobReader for Reader {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let this = &self.0;
        this.reads.fetch_add(1, Ordering::SeqCst);
        this.bytes.fetch_add(buf.len() as u64, Ordering::SeqCst);
        let mut ranges = this.ranges.lock().unwrap();
        let longest = ranges.entry(offset).or_default();
        *longest = buf.len().max(*longest);
        drop(ranges);
        std::thread::sleep(*this.delay.lock().unwrap());
        if this.fail.load(Ordering::SeqCst) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the line is down",
            ));
        }
        this.blob().read_exact_at(buf, offset)
    }

    fn size(&self) -> u64 {
        self.0.blob().len() as u64
    }
}
