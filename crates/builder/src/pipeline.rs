//! From file data to stored chunks: three plain threads in a row and one pool for the work.
//!
//! ```text
//! cut (caller's thread)  file bytes -> chunk buffers -> [pool: digest, crc]   in input order
//!   -> dedup             known? else a new index and offset; small ones into batches -> [pool: compress, encrypt]
//!   -> commit            stored bytes to the blob, in that order
//! ```
//!
//! Stages are joined by bounded channels of *pending* jobs: the order in which jobs are sent is the order of the
//! input, whatever order the pool finishes them in, so the result does not depend on the number of threads. A stage
//! that fails drops its end of the channel, which ends its neighbours; the error furthest down the line is the cause.

mod batch;
mod commit;
mod compress;
mod cut;
mod dedup;
mod places;
mod runs;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvError, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use codec::BlobCipher;
use rafs_format::{CHUNKS_PER_BLOB_MAX, ChunkRecord, Digest};
use tree::ChunkId;

pub(crate) use commit::BlobWriter;
pub(crate) use compress::Sealer;
pub(crate) use cut::Cutter;
pub(crate) use dedup::Home;
pub(crate) use places::Places;

use dedup::Outgoing;

use crate::options::COMPRESSED_MAX;
use crate::turn::{Dedup, Finish};
use crate::{BuildOptions, Error};

/// Jobs that may wait between two stages; the budget usually admits fewer.
const QUEUE: usize = 1024;
/// Buffers that one layer has under way for each thread of the pool. Enough to keep the threads busy, and few enough
/// that a buffer is still in a processor cache when it comes to the next stage, or is filled again.
const BUFFERS_PER_THREAD: usize = 8;
/// Largest address in a blob's uncompressed space, in bytes.
const UNCOMPRESSED_MAX: u64 = 1 << 44;

/// A chunk as the pool saw it.
#[derive(Debug, Clone, Copy)]
struct Piece {
    len: u32,
    digest: Digest,
    crc32: u32,
}

/// What is stored in the blob as one: a chunk, or a batch of them.
#[derive(Debug, Clone, Copy)]
struct StoredUnit {
    size: u32,
    compressed: bool,
    /// Chunks of the batch; 0 for a chunk by itself.
    members: u32,
}

/// The result of a job that may still run in the pool.
struct Pending<T>(Receiver<T>);

impl<T: Send + 'static> Pending<T> {
    /// Starts `work` in the pool.
    fn spawn(pool: &rayon::ThreadPool, work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel(1);
        pool.spawn(move || {
            // A panic drops the sender, which the waiting stage sees; the pool itself would abort the process.
            if let Ok(result) = catch_unwind(AssertUnwindSafe(work)) {
                sender.send(result).ok();
            }
        });
        Self(receiver)
    }

    /// Waits for the result; fails if the work panicked.
    fn wait(self) -> Result<T, RecvError> {
        self.0.recv()
    }
}

/// What the pipeline made of the data.
pub(crate) struct Output<W, R> {
    /// The blob so far: pure chunk data.
    pub blob: BlobWriter<W>,
    /// What the producer returned.
    pub produced: R,
    /// Every chunk that the files use, in order of first use. Those of this blob have their final offsets; `blob_index`
    /// is unset.
    pub chunks: Vec<(Home, ChunkRecord)>,
    /// What the records do not say of the chunks of this blob.
    pub places: Places,
    /// The chunk behind each provisional [`ChunkId`] that the cutter gave out.
    pub ids: Vec<ChunkId>,
    /// How many of the first of them are of files to prefetch.
    pub prefetched: u32,
    /// End of the blob's uncompressed address space.
    pub uncompressed_size: u64,
    /// The other end of the turn that was passed in.
    pub finish: Option<Finish>,
    /// See [`crate::Stats`].
    pub duplicates: (u64, u64),
}

/// Runs `produce` with a cutter and everything that goes into the cutter through all stages into `out`.
pub(crate) fn run<W: Write + Send, R>(
    options: &BuildOptions,
    cipher: Option<BlobCipher>,
    dedup: Dedup,
    out: W,
    produce: impl FnOnce(&mut Cutter) -> Result<R, Error>,
) -> Result<Output<W, R>, Error> {
    let threads = options.pool.current_num_threads();
    let most = BUFFERS_PER_THREAD * threads * cut::buffer_size(options);
    let (lane, batch_lane) = (options.budget.lane(most), options.budget.lane(most));
    let encrypted = cipher.is_some();
    let (produced, deduped, committed) = thread::scope(|scope| {
        let (cut_sender, cut) = sync_channel(QUEUE);
        let (commit_sender, commit) = sync_channel(QUEUE);
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let dedup_lane = lane.clone();
        let outgoing = Outgoing::new(options, cipher, batch_lane, commit_sender);
        let dedup_thread = named("dedup")
            .spawn_scoped(scope, move || {
                dedup::run(options, dedup, &dedup_lane, &cut, outgoing)
            })
            .map_err(Error::Thread)?;
        let commit_thread = named("commit")
            .spawn_scoped(scope, move || commit::run(&commit, out, options))
            .map_err(Error::Thread)?;
        let mut cutter = Cutter::new(options, lane, cut_sender);
        let produced = produce(&mut cutter).and_then(|produced| {
            cutter.finish().map_err(Error::Cut)?;
            Ok((produced, cutter.prefetched()))
        });
        drop(cutter);
        Ok::<_, Error>((
            produced,
            join("dedup", dedup_thread),
            join("commit", commit_thread),
        ))
    })?;
    options.cancel.check()?;
    // The last stage first: a failure travels up the line as a mere "stopped".
    let (blob, units) = committed?;
    let mut deduped = deduped?;
    let (produced, prefetched) = produced?;
    let own = deduped
        .chunks
        .iter_mut()
        .filter(|(home, _)| *home == Home::Own);
    let places = Places::settle(
        own.map(|(_, record)| record),
        &units,
        encrypted,
        options.blob_offset,
    )?;
    Ok(Output {
        blob,
        produced,
        chunks: deduped.chunks,
        places,
        prefetched,
        ids: deduped.ids,
        uncompressed_size: deduped.uncompressed_size,
        finish: deduped.finish,
        duplicates: deduped.duplicates,
    })
}

fn join<T>(
    stage: &'static str,
    thread: ScopedJoinHandle<'_, Result<T, Error>>,
) -> Result<T, Error> {
    thread.join().unwrap_or(Err(Error::Panicked { stage }))
}

impl<W, R> Output<W, R> {
    /// Where the head of the blob ends that holds all that is new of the files to prefetch.
    pub(crate) fn head_end(&self) -> u64 {
        let prefetched = self.ids.get(..self.prefetched as usize);
        let last = prefetched.and_then(|ids| ids.iter().max());
        let chunks = last.and_then(|last| self.chunks.get(..=last.0 as usize));
        let own = chunks
            .into_iter()
            .flatten()
            .filter(|(home, _)| *home == Home::Own);
        let end =
            |record: &ChunkRecord| record.compressed_offset + u64::from(record.compressed_size);
        own.map(|(_, record)| end(record)).max().unwrap_or(0)
    }
}

/// The error that ends a stage whose neighbour has ended: never the one that is reported.
fn stopped() -> io::Error {
    io::Error::other("the build has stopped")
}
