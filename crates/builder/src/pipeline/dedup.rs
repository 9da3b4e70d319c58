//! Second stage: in input order, which chunks are new and where they go.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use chunkdict::{ChunkKey, ChunkTable};
use codec::BlobCipher;
use rafs_format::{ChunkFlags, ChunkRecord};
use tree::ChunkId;

use super::batch::{Batch, Gatherer};
use super::compress::{Compressed, Encoders};
use super::cut::Hashed;
use super::runs::{Member, Run};
use super::{CHUNKS_PER_BLOB_MAX, Pending, Piece, UNCOMPRESSED_MAX};
use crate::budget::Lane;
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
    mut outgoing: Outgoing<'_>,
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
    for job in jobs {
        let hashed = job
            .wait()
            .map_err(|_| Error::Panicked { stage: "digest" })?;
        chunks.enter(hashed)?;
        while let Some(job) = chunks.decided() {
            outgoing.send(job)?;
        }
        lane.set_kept(chunks.kept());
    }
    chunks.end_run()?;
    while let Some(job) = chunks.decided() {
        outgoing.send(job)?;
    }
    outgoing.end_batch()?;
    Ok(chunks.finish())
}

/// The way of new chunks to the pool and on to the last stage, in the order of the blob.
pub(super) struct Outgoing<'a> {
    options: &'a BuildOptions,
    encoders: Arc<Encoders>,
    batches: Gatherer<'a>,
    commit: SyncSender<Pending<io::Result<Compressed>>>,
}

impl<'a> Outgoing<'a> {
    /// `lane` is for batches alone.
    pub fn new(
        options: &'a BuildOptions,
        cipher: Option<BlobCipher>,
        lane: Lane,
        commit: SyncSender<Pending<io::Result<Compressed>>>,
    ) -> Self {
        Self {
            options,
            encoders: Arc::new(Encoders::new(options, cipher)),
            batches: Gatherer::new(options, lane),
            commit,
        }
    }

    /// Sends the new chunks of a job, or gathers them.
    fn send(&mut self, job: Entered) -> Result<(), Error> {
        let Entered { hashed, new } = job;
        if !new.contains(&true) {
            return Ok(());
        }
        let lens: Vec<u32> = hashed.pieces.iter().map(|piece| piece.len).collect();
        if hashed.batched {
            return self.gather(hashed.buffer.as_slice(), &lens, &new);
        }
        self.end_batch()?;
        self.spawn(move |encoders| encoders.chunks(hashed.buffer, &lens, &new))
    }

    fn gather(&mut self, mut bytes: &[u8], lens: &[u32], new: &[bool]) -> Result<(), Error> {
        for (&len, &new) in lens.iter().zip(new) {
            let (chunk, rest) = bytes.split_at(len as usize);
            bytes = rest;
            if !new {
                continue;
            }
            if self.batches.is_full(len) {
                self.end_batch()?;
            }
            self.batches.add(chunk)?;
        }
        Ok(())
    }

    fn end_batch(&mut self) -> Result<(), Error> {
        let Some(batch) = self.batches.end() else {
            return Ok(());
        };
        let Batch {
            buffer,
            lens,
            single,
        } = batch;
        self.spawn(move |encoders| {
            if single {
                encoders.chunks(buffer, &lens, &vec![true; lens.len()])
            } else {
                encoders.batch(buffer, lens.len() as u32)
            }
        })
    }

    fn spawn(
        &self,
        work: impl FnOnce(&Encoders) -> io::Result<Compressed> + Send + 'static,
    ) -> Result<(), Error> {
        let encoders = Arc::clone(&self.encoders);
        let job = Pending::spawn(&self.options.pool, move || work(&encoders));
        self.commit.send(job).map_err(|_| Error::Stopped)
    }
}

/// A job whose chunks were looked up.
struct Entered {
    hashed: Hashed,
    /// Which chunks are to be stored.
    new: Vec<bool>,
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
    /// Chunks in a row that the dictionary has in a row, too.
    run: Option<Run>,
    /// Jobs that have not gone on their way, and the number of the first one.
    jobs: VecDeque<Entered>,
    first_job: usize,
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
            run: None,
            jobs: VecDeque::new(),
            first_job: 0,
        }
    }

    /// Enters the chunks of a job in order.
    fn enter(&mut self, hashed: Hashed) -> Result<(), Error> {
        let pieces = hashed.pieces.clone();
        let mut found = self.look_up_new(&pieces);
        let new = vec![false; pieces.len()];
        self.jobs.push_back(Entered { hashed, new });
        let job = self.first_job + self.jobs.len() - 1;
        for (position, piece) in pieces.into_iter().enumerate() {
            let key = key(&piece);
            let id = match self.known.find(&key) {
                Some(id) => {
                    self.count_duplicate(&piece);
                    id
                }
                None => {
                    let id = ChunkId(self.chunks.len() as u32);
                    self.known.insert(key, id);
                    let member = Member {
                        id,
                        key,
                        piece,
                        job,
                        position,
                    };
                    self.first_use(member, &found.remove(&key).unwrap_or_default())?;
                    id
                }
            };
            self.ids.push(id);
        }
        Ok(())
    }

    /// Where the dictionary has the chunks of a job that are new in this layer; nothing without a dictionary.
    fn look_up_new(&self, pieces: &[Piece]) -> HashMap<ChunkKey, Vec<ChunkRecord>> {
        let Some(dictionary) = &self.options.dictionary else {
            return HashMap::new();
        };
        let new = |key: &ChunkKey| self.known.find(key).is_none();
        let keys: HashSet<ChunkKey> = pieces.iter().map(key).filter(new).collect();
        let keys: Vec<ChunkKey> = keys.into_iter().collect();
        let places = dictionary.all_places(&keys);
        keys.into_iter().zip(places).collect()
    }

    /// The first job if it is known of all its chunks whether they are stored.
    fn decided(&mut self) -> Option<Entered> {
        let open = self
            .run
            .as_ref()
            .and_then(|run| run.first_open(self.least()));
        if open.is_some_and(|job| job <= self.first_job) {
            return None;
        }
        let job = self.jobs.pop_front()?;
        self.first_job += 1;
        Some(job)
    }

    /// Bytes of the jobs that wait for what follows them.
    fn kept(&self) -> usize {
        self.jobs.iter().map(|job| job.hashed.buffer.size()).sum()
    }

    /// Chunks that make a run.
    fn least(&self) -> u32 {
        self.options.dictionary_run.map_or(1, u32::from)
    }

    fn count_duplicate(&mut self, piece: &Piece) {
        self.duplicates.0 += 1;
        self.duplicates.1 += u64::from(piece.len);
    }

    /// The first use of a chunk in this layer, which the dictionary has at the places `found`.
    fn first_use(&mut self, member: Member, found: &[ChunkRecord]) -> Result<(), Error> {
        if self.options.dictionary.is_none() {
            return self.enter_own(&member, None);
        }
        if self.options.dictionary_run.is_none() {
            return match found.first() {
                Some(record) => {
                    self.count_duplicate(&member.piece);
                    self.chunks.push((Home::Dictionary, *record));
                    Ok(())
                }
                None => self.enter_own(&member, None),
            };
        }
        let continued = match &mut self.run {
            Some(run) => run.extend(found, &member),
            None => false,
        };
        if !continued {
            self.end_run()?;
            self.run = Run::start(found, &member);
            if self.run.is_none() {
                return self.enter_own(&member, None);
            }
        }
        // Until the run has ended and its place is known.
        let open = record(&member.piece, 0, 0);
        self.chunks.push((Home::Dictionary, open));
        Ok(())
    }

    /// Decides where the chunks of the run come from.
    fn end_run(&mut self) -> Result<(), Error> {
        let (Some(run), Some(dictionary)) = (self.run.take(), &self.options.dictionary) else {
            return Ok(());
        };
        if !run.is_long_enough(self.least()) {
            for member in run.members() {
                self.enter_own(member, Some(member.id))?;
            }
            return Ok(());
        }
        for (member, record) in run.places(dictionary) {
            let record = record.ok_or(Error::Stopped)?;
            self.chunks[member.id.0 as usize] = (Home::Dictionary, record);
            self.count_duplicate(&member.piece);
        }
        Ok(())
    }

    /// A chunk that does not come from the dictionary: of a lower layer, or to be stored. It takes the place of the
    /// entry `at`, or is a new one.
    fn enter_own(&mut self, member: &Member, at: Option<ChunkId>) -> Result<(), Error> {
        let lower = self
            .shared
            .as_ref()
            .and_then(|shared| shared.find(&member.key));
        let entry = match lower {
            Some(place) => {
                self.count_duplicate(&member.piece);
                // Only complete once the lower layer is; see `Finish`.
                (Home::Lower(place), record(&member.piece, 0, 0))
            }
            None => {
                self.jobs[member.job - self.first_job].new[member.position] = true;
                (Home::Own, self.store(member.key, &member.piece)?)
            }
        };
        match at {
            Some(id) => self.chunks[id.0 as usize] = entry,
            None => self.chunks.push(entry),
        }
        Ok(())
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

fn key(piece: &Piece) -> ChunkKey {
    ChunkKey {
        digest: piece.digest,
        size: piece.len,
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
