//! Second stage: in input order, which chunks are new and where they go.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use chunkdict::{ChunkKey, ChunkTable};
use codec::Encoder;
use rafs_format::{ChunkFlags, ChunkRecord, Compressor};
use tree::ChunkId;

use super::cut::Hashed;
use super::{CHUNKS_PER_BLOB_MAX, Pending, Piece, StoredSize, UNCOMPRESSED_MAX};
use crate::budget::{Buffer, Lane};
use crate::turn::{Dedup, Finish, Place, Shared};
use crate::{BuildOptions, Error};

/// Which blob a chunk lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Home {
    /// The one that is being written.
    Own,
    /// A blob of the dictionary.
    Dictionary,
    /// The blob of a lower layer of the same image.
    Lower(Place),
}

/// Stored bytes of new chunks, back to back.
pub(super) struct Compressed {
    pub buffer: Buffer,
    pub sizes: Vec<StoredSize>,
}

/// What the stage found out; see [`super::Output`].
pub(super) struct Deduped {
    pub chunks: Vec<(Home, ChunkRecord)>,
    pub ids: Vec<ChunkId>,
    pub uncompressed_size: u64,
    pub finish: Option<Finish>,
    pub duplicates: (u64, u64),
}

pub(super) fn run(
    options: &BuildOptions,
    dedup: Dedup,
    lane: &Lane,
    jobs: &Receiver<Pending<Hashed>>,
    commit: &SyncSender<Pending<io::Result<Compressed>>>,
) -> Result<Deduped, Error> {
    let turn = match dedup {
        Dedup::Layer => None,
        Dedup::Image(turn) => {
            lane.set_waiting(true);
            let turn = turn.wait(&options.cancel)?;
            lane.set_waiting(false);
            Some(turn)
        }
    };
    let mut chunks = Chunks {
        options,
        shared: turn,
        ..Chunks::new(options)
    };
    let encoders = Arc::new(Encoders {
        options: (options.compressor, options.level),
        idle: Mutex::default(),
    });
    for job in jobs {
        let Hashed { buffer, pieces } = job
            .wait()
            .map_err(|_| Error::Panicked { stage: "digest" })?;
        let new = chunks.enter(&pieces)?;
        if new.iter().any(|&new| new) {
            let encoders = Arc::clone(&encoders);
            let job = Pending::spawn(&options.pool, move || {
                encoders.compress(buffer, &pieces, &new)
            });
            commit.send(job).map_err(|_| Error::Stopped)?;
        }
    }
    Ok(chunks.finish())
}

/// The chunks of the layer, known by content.
struct Chunks<'a> {
    options: &'a BuildOptions,
    known: ChunkTable<ChunkId>,
    shared: Option<Shared>,
    chunks: Vec<(Home, ChunkRecord)>,
    ids: Vec<ChunkId>,
    /// Chunks of our own blob so far, and the end of its address space.
    count: u32,
    end: u64,
    duplicates: (u64, u64),
}

impl<'a> Chunks<'a> {
    fn new(options: &'a BuildOptions) -> Self {
        Self {
            options,
            known: ChunkTable::default(),
            shared: None,
            chunks: Vec::new(),
            ids: Vec::new(),
            count: 0,
            end: 0,
            duplicates: (0, 0),
        }
    }

    /// Enters the chunks of a job in order; says of each whether it has to be stored.
    fn enter(&mut self, pieces: &[Piece]) -> Result<Vec<bool>, Error> {
        let mut new = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let key = ChunkKey {
                digest: piece.digest,
                size: piece.len,
            };
            let (id, is_new) = match self.known.find(&key) {
                Some(id) => (id, false),
                None => self.first_use(key, piece)?,
            };
            if !is_new {
                self.duplicates.0 += 1;
                self.duplicates.1 += u64::from(piece.len);
            }
            self.ids.push(id);
            new.push(is_new);
        }
        Ok(new)
    }

    /// The first use of a chunk in this layer.
    fn first_use(&mut self, key: ChunkKey, piece: &Piece) -> Result<(ChunkId, bool), Error> {
        let id = ChunkId(self.chunks.len() as u32);
        self.known.insert(key, id);
        let found = match self
            .options
            .dictionary
            .as_ref()
            .and_then(|dictionary| dictionary.find(&key))
        {
            Some(record) => Some((Home::Dictionary, record)),
            None => self
                .shared
                .as_ref()
                .and_then(|shared| shared.find(&key))
                .map(|place| {
                    // Only complete once the lower layer is; see `Finish`.
                    (Home::Lower(place), record(piece, 0, 0))
                }),
        };
        let is_new = found.is_none();
        let entry = match found {
            Some(found) => found,
            None => (Home::Own, self.store(key, piece)?),
        };
        self.chunks.push(entry);
        Ok((id, is_new))
    }

    /// Gives a new chunk its place in the blob.
    fn store(&mut self, key: ChunkKey, piece: &Piece) -> Result<ChunkRecord, Error> {
        if self.count + 1 >= CHUNKS_PER_BLOB_MAX {
            return Err(Error::TooLarge {
                what: "the blob",
                limit: "2^24 - 1 chunks",
            });
        }
        let record = record(piece, self.count, self.end);
        if let Some(shared) = &mut self.shared {
            shared.insert(key, self.count);
        }
        self.count += 1;
        self.end += u64::from(piece.len).next_multiple_of(self.options.alignment());
        if self.end > UNCOMPRESSED_MAX {
            return Err(Error::TooLarge {
                what: "the blob",
                limit: "2^44 uncompressed bytes",
            });
        }
        Ok(record)
    }

    fn finish(self) -> Deduped {
        Deduped {
            chunks: self.chunks,
            ids: self.ids,
            uncompressed_size: self.end,
            finish: self.shared.map(Shared::pass),
            duplicates: self.duplicates,
        }
    }
}

/// The record of a chunk of our own; the commit stage knows the rest.
fn record(piece: &Piece, index: u32, uncompressed_offset: u64) -> ChunkRecord {
    // Readers refuse a recorded CRC of 0, so the one chunk in 2^32 that has it goes without.
    let flags = if piece.crc32 == 0 {
        ChunkFlags::empty()
    } else {
        ChunkFlags::HAS_CRC32
    };
    ChunkRecord {
        digest: piece.digest,
        blob_index: 0,
        flags,
        compressed_size: 0,
        uncompressed_size: piece.len,
        compressed_offset: 0,
        uncompressed_offset,
        file_offset: 0,
        index,
        crc32: piece.crc32,
    }
}

/// Encoders that wait for the next job, each with memory to write to: never more than the pool has threads.
struct Encoders {
    options: (Compressor, i32),
    idle: Mutex<Vec<(Encoder, Vec<u8>)>>,
}

impl Encoders {
    /// Replaces the chunks of a buffer by the stored form of the new ones.
    fn compress(&self, buffer: Buffer, pieces: &[Piece], new: &[bool]) -> io::Result<Compressed> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let (mut encoder, mut spare) = match idle {
            Some(idle) => idle,
            None => (
                Encoder::new(self.options.0, self.options.1)?,
                vec![0; buffer.len()],
            ),
        };
        let result = compress(&mut encoder, &mut spare, buffer, pieces, new);
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((encoder, spare));
        result
    }
}

/// Compresses into `spare`, which then changes places with the memory of the buffer.
fn compress(
    encoder: &mut Encoder,
    spare: &mut Vec<u8>,
    mut buffer: Buffer,
    pieces: &[Piece],
    new: &[bool],
) -> io::Result<Compressed> {
    let mut sizes = Vec::with_capacity(pieces.len());
    let (mut read, mut written) = (0, 0);
    // The stored bytes so far are the first bytes of the buffer as they are.
    let mut untouched = true;
    for (piece, &new) in pieces.iter().zip(new) {
        let start = read;
        read += piece.len as usize;
        if !new {
            continue;
        }
        let chunk = &buffer.as_slice()[start..read];
        let stored = encoder.compress_at(chunk, spare, written)?;
        if untouched && (stored.is_some() || start != written) {
            untouched = false;
            put(spare, 0, &buffer.as_slice()[..written]);
        }
        if stored.is_none() && !untouched {
            put(spare, written, chunk);
        }
        let size = stored.unwrap_or(chunk.len());
        written += size;
        sizes.push(StoredSize {
            size: size as u32,
            compressed: stored.is_some(),
        });
    }
    if untouched {
        buffer.truncate(written);
    } else {
        buffer.exchange(spare, written);
    }
    Ok(Compressed { buffer, sizes })
}

/// Overwrites the bytes from `start` on, with room added as needed.
fn put(out: &mut Vec<u8>, start: usize, bytes: &[u8]) {
    let end = start + bytes.len();
    if out.len() < end {
        out.resize(end, 0);
    }
    out[start..end].copy_from_slice(bytes);
}
