//! The chunk store: verified chunks on demand, kept in a cache.
//!
//! A read finds the chunk in the cache file, or else one thread brings it in (see [`fetch`]) while others that want it
//! wait. That thread asks the blob for the stored bytes of the chunk and of wanted neighbours in one request, decodes
//! and verifies the chunk, and leaves the neighbours to a small pool. Nothing is served, and nothing reaches the
//! cache, unless its digest is the one that the bootstrap records.

mod barrier;
mod blob;
mod budget;
mod elsewhere;
mod fetch;
mod fill;
mod first;
mod flight;
mod hand_over;
mod limit;
mod observer;
mod prefetch;
mod read;
mod recent;
mod refusal;
mod sequence;
mod stats;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rafs_format::{BlobInfo, Bootstrap, ChunkPointer};

pub use hand_over::HandedOver;
pub use limit::{Besides, Room};
pub use observer::{Decoded, Fetch, Observer, Purpose};
pub use sequence::Sequence;
pub use stats::{BlobDetails, Details, Stats};

use crate::cache::{BlobCache, CacheDir, State, boot_tag, running_boot, seal};
use crate::decode::require_supported;
use crate::workers::Workers;
use crate::{
    BlobSource, Error, KnownChunk, KnownChunks, ReadCause, ReadError, VerifiedChunk, Words,
    cache_file,
};
use barrier::Barrier;
use blob::{Blob, Remote};
use budget::Budget;
use elsewhere::{Elsewhere, Look};
use flight::Flights;
use limit::Limit;
use observer::Watch;
use prefetch::Prefetch;
use read::check_bounds;
use recent::Recent;
use refusal::Refusal;
use stats::{Counters, add};

/// Blobs that are opened side by side ahead of the first read.
const WARM_UP_THREADS: usize = 2;

/// How a store works. The defaults suit a mount.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Where chunks are kept, for this run and later ones. Without it only the last few are, in memory.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes that the cache directory may take on the disk, other images' blobs included. It is looked at now and
    /// then: blobs that nobody uses are removed, those not used for longest first; if that is not enough, no more is
    /// kept, except for a mount by the kernel, which can't do without.
    pub cache_limit: Option<u64>,
    /// What else lies in the cache directory and counts.
    pub besides: Option<Arc<dyn Besides>>,
    /// Most bytes that may be in flight: stored ones on their way in, and decoded ones on their way to the cache.
    pub memory: u64,
    /// Most bytes of chunks to keep in memory where they cannot be kept in a cache directory.
    pub recent: usize,
    /// Most requests to blobs that wait for an answer at once; work in the background has half of them. At least one.
    pub requests: u64,
    /// Longest range to ask a blob for, in bytes, unless one chunk alone is longer.
    pub request_max: u64,
    /// Longest run of unwanted bytes between two wanted ones that may be fetched along, in bytes.
    pub gap_max: u64,
    /// Threads that decode neighbours; 0 for one per core.
    pub threads: usize,
    /// Threads that prefetch.
    pub prefetch_threads: usize,
    /// Whether to seal blobs that the cache has all of, where the file system has fs-verity: their data can't be changed
    /// behind the store's back from then on.
    pub seal: bool,
    /// Longest time that a chunk waits for a barrier, after which it survives a power loss.
    pub barrier_interval: Duration,
    /// Most bytes of chunks that wait for a barrier.
    pub barrier_bytes: u64,
    /// What names the running boot of the machine; what the system says if not given.
    pub boot_id: Option<String>,
    /// Where to count; in words of its own if not given.
    pub words: Option<Arc<Words>>,
    /// Who is told what the store does.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_dir: None,
            cache_limit: None,
            besides: None,
            memory: 64 << 20,
            recent: 32 << 20,
            requests: 16,
            request_max: 2 << 20,
            gap_max: 128 << 10,
            threads: 0,
            prefetch_threads: 4,
            seal: false,
            barrier_interval: Duration::from_secs(5),
            barrier_bytes: 256 << 20,
            boot_id: None,
            words: None,
            observer: None,
        }
    }
}

/// Serves the chunks of an image, each verified. All methods may be called from any number of threads.
///
/// A store has threads of its own: open it after a fork, not before. Dropping it waits for what is under way and makes
/// the cache durable.
pub struct ChunkStore {
    inner: Arc<Inner>,
    keeper: Option<JoinHandle<()>>,
    /// Given up last, when nothing writes any more.
    _cache_dir: Option<CacheDir>,
}

/// What the threads of a store share.
struct Inner {
    options: StoreOptions,
    source: Arc<dyn BlobSource>,
    blobs: Vec<Blob>,
    flights: Arc<Flights>,
    budget: Arc<Budget>,
    requests: Arc<Budget>,
    recent: Recent,
    counters: Counters,
    watch: Watch,
    words: Arc<Words>,
    barrier: Barrier,
    prefetch: Prefetch,
    decoders: Arc<Workers>,
    /// Those that decode what nobody waits for.
    background: Arc<Workers>,
    refusal: Refusal,
    limit: Limit,
    elsewhere: Elsewhere,
}

/// A chunk of the image: its blob, and its position among the blob's known chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    blob: usize,
    slot: usize,
}

impl ChunkStore {
    /// A store for the image of `bootstrap`, with its blobs from `source`. Blobs are opened when they are needed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for images of a kind that cannot be read yet, [`Error::Invalid`] or [`Error::Format`]
    /// if the chunk table is not sound, [`Error::CacheBusy`] if a process has the cache directory for itself alone,
    /// [`Error::CacheVersion`] if a newer release wrote it, [`Error::Io`] if it cannot be used.
    pub fn open<D: Deref<Target = [u8]>>(
        bootstrap: &Bootstrap<D>,
        source: Arc<dyn BlobSource>,
        options: StoreOptions,
    ) -> Result<Self, Error> {
        let cache_dir = options
            .cache_dir
            .as_deref()
            .map(CacheDir::open)
            .transpose()?;
        let seals = options.seal;
        let open = |dir: &Path, info: &BlobInfo, known: &KnownChunks, boot| {
            if seals {
                // Where it can't be, the blob is used as it is.
                let _ = seal(dir, info);
            }
            BlobCache::open(dir, info, known, boot)
        };
        Self::with_caches(bootstrap, source, options, cache_dir, open)
    }

    /// A store with blobs' caches from `open`, which gets the directory, the blob, its chunks and the running boot.
    fn with_caches<D: Deref<Target = [u8]>>(
        bootstrap: &Bootstrap<D>,
        source: Arc<dyn BlobSource>,
        options: StoreOptions,
        cache_dir: Option<CacheDir>,
        mut open: impl FnMut(&Path, &BlobInfo, &KnownChunks, u64) -> Result<BlobCache, Error>,
    ) -> Result<Self, Error> {
        bootstrap.blobs().iter().try_for_each(require_supported)?;
        let known = KnownChunks::of(bootstrap)?;
        let tables = KnownChunks::tables(bootstrap, &*source)?;
        let boot = options
            .boot_id
            .as_deref()
            .map_or_else(running_boot, boot_tag);
        let words = options.words.clone().unwrap_or_default();
        let counters = Counters::new(&words);
        let mut blobs = Vec::with_capacity(known.len());
        for ((info, known), table) in bootstrap.blobs().iter().zip(known).zip(tables) {
            let cache = cache_dir
                .as_ref()
                .map(|dir| open(dir.path(), info, &known, boot));
            let cache = match cache.transpose() {
                // Reading does not need the cache.
                Err(Error::Io { source, .. }) if is_full(&source) => {
                    add(&counters.cache_errors, 1);
                    None
                }
                Err(Error::CacheConflict { .. }) => {
                    add(&counters.cache_conflicts, 1);
                    None
                }
                other => other?,
            };
            blobs.push(Blob::new(info.clone(), known, table, cache));
        }
        let elsewhere = match cache_dir {
            Some(_) => Elsewhere::new(&blobs),
            None => Elsewhere::default(),
        };
        let inner = Arc::new(Inner {
            source,
            blobs,
            flights: Arc::default(),
            budget: Budget::new(options.memory),
            requests: Budget::new(options.requests),
            recent: Recent::new(options.recent),
            counters,
            watch: Watch::new(options.observer.clone()),
            words,
            barrier: Barrier::new(options.barrier_interval, options.barrier_bytes),
            prefetch: Prefetch::default(),
            decoders: Workers::new("chunk-decode", options.threads),
            background: Workers::giving_way("chunk-later", options.threads),
            refusal: Refusal::default(),
            limit: Limit::default(),
            elsewhere,
            options,
        });
        let keeper = match &cache_dir {
            Some(dir) => {
                let dir_of_cache = dir.path();
                let (keeping, dir) = (Arc::clone(&inner), dir_of_cache.to_owned());
                if inner.has_others(&dir) {
                    inner.elsewhere.announce();
                }
                let thread = thread::Builder::new().name("cache-keeper".into());
                let thread = thread.spawn(move || keeping.keep_cache(&dir));
                let failed = Error::io("start the thread that looks after", dir_of_cache);
                Some(thread.map_err(failed)?)
            }
            None => None,
        };
        Ok(Self {
            inner,
            keeper,
            _cache_dir: cache_dir,
        })
    }

    /// Fills `buf` with the bytes of `chunk` from byte `offset` of the chunk on. If the chunk must be fetched, those
    /// of `want_neighbours` that lie near it in the blob come along.
    ///
    /// # Errors
    /// [`ReadError`] if the bytes cannot be had, or are not those that the image records; `buf` is then undefined.
    pub fn read(
        &self,
        chunk: ChunkPointer,
        offset: u32,
        buf: &mut [u8],
        want_neighbours: &[ChunkPointer],
    ) -> Result<(), ReadError> {
        self.counted(buf, |inner, buf| {
            let (key, blob, known) = inner.locate(chunk)?;
            check_bounds(blob, known, u64::from(offset), buf.len())?;
            inner.look(blob, key.slot);
            inner.read_piece(key, u64::from(offset), buf, want_neighbours)?;
            inner.note_use(key);
            Ok(())
        })
    }

    /// Fills `buf` with the bytes of a file from byte `offset` on. `chunks` are the file's chunks, the first of them
    /// at byte 0, and each but the file's last has `chunk_size` bytes; so a caller that knows only some chunks of a
    /// file counts `offset` from the first of these. Chunks beyond the range are fetched along where that is cheap.
    ///
    /// # Errors
    /// As [`ChunkStore::read`]; also if the chunks end before the range does.
    pub fn read_file_range(
        &self,
        chunks: &[ChunkPointer],
        chunk_size: u32,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        self.counted(buf, |inner, buf| {
            inner.read_file_range(chunks, chunk_size, offset, buf)
        })
    }

    /// The whole of a chunk.
    ///
    /// # Errors
    /// As [`ChunkStore::read`].
    pub fn chunk(&self, chunk: ChunkPointer) -> Result<Arc<VerifiedChunk>, ReadError> {
        let (key, _, _) = self.inner.locate(chunk)?;
        self.inner.chunk(key, &[])
    }

    /// Reads chunks in this order, each once for every time that it is named, and brings in ahead what is next. Of what
    /// is not in a cache directory so much is kept in memory as [`StoreOptions::recent`] says; a chunk that is named
    /// again much later is fetched again. A blob is asked for one range after the other, never for two at once.
    pub fn sequence(&self, chunks: Vec<ChunkPointer>) -> Sequence {
        Sequence::start(&self.inner, chunks)
    }

    /// Brings chunks into the cache in the background, in that order, whenever no read has to wait for a blob. Without
    /// a cache directory this does nothing. Waits while very many are to be brought in already, until that is done or
    /// cancelled. Errors are counted and otherwise left to the read that meets them.
    pub fn prefetch(&self, chunks: &[ChunkPointer]) {
        if self._cache_dir.is_some() {
            self.inner.prefetch_later(chunks);
        }
    }

    /// Opens in the background the blobs of which anything may have to be fetched, and reads their chunk tables: the
    /// first read then finds connections and everything else that it needs. An error is left to the read that meets it.
    pub fn warm_up(&self) {
        let next = Arc::new(AtomicUsize::new(0));
        for _ in 0..WARM_UP_THREADS.min(self.inner.blobs.len()) {
            let (inner, next) = (Arc::clone(&self.inner), Arc::clone(&next));
            let work = move || {
                while let Some(blob) = inner.blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let complete = blob.cache.as_ref().is_some_and(|c| c.missing() == 0);
                    if !complete && !blob.known.is_empty() {
                        let _ = inner.remote(blob, true);
                    }
                }
            };
            // Without the thread nothing is lost but time.
            let _ = thread::Builder::new().name("warm-up".into()).spawn(work);
        }
    }

    /// From now on, what lies around a read that has to wait is brought into the cache in the background, as long as
    /// the store lives: it is likely to be wanted next.
    pub fn follow_reads(&self) {
        if self._cache_dir.is_some() {
            self.inner.follow_reads();
        }
    }

    /// Drops what is still to be prefetched.
    pub fn cancel_prefetch(&self) {
        self.inner.prefetch.cancel();
    }

    /// Waits until everything that was to be prefetched is there, has failed or was cancelled.
    pub fn wait_prefetch(&self) {
        self.inner.prefetch.wait_idle();
        self.inner.flights.wait_empty();
    }

    /// Makes everything that is in the cache survive a power loss.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk fails; the chunks are then fetched or verified again.
    pub fn sync(&self) -> Result<(), Error> {
        let dir = self
            ._cache_dir
            .as_ref()
            .map_or(Path::new(""), CacheDir::path);
        self.inner
            .sync()
            .map_err(Error::io("make the cache durable in", dir))
    }

    /// Reads every chunk that the cache has of the image and verifies it; those that are wrong are fetched again when
    /// they are needed. How many were.
    pub fn verify_cached(&self) -> u64 {
        let keys = self.inner.blobs.iter().enumerate();
        let keys =
            keys.flat_map(|(blob, of)| (0..of.known.len()).map(move |slot| Key { blob, slot }));
        let there = keys.filter(|key| !self.inner.is_absent(*key));
        let there: Vec<Key> = there.collect();
        let (next, wrong) = (AtomicUsize::new(0), AtomicU64::new(0));
        let verify = || {
            while let Some(key) = there.get(next.fetch_add(1, Ordering::Relaxed)) {
                let is_wrong = self.inner.reverify(*key).is_none();
                wrong.fetch_add(u64::from(is_wrong), Ordering::Relaxed);
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.inner.decoders.most() {
                // Without it the others do its part.
                let _ = thread::Builder::new().spawn_scoped(scope, verify);
            }
            verify();
        });
        wrong.into_inner()
    }

    /// What the store has done so far.
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }

    /// Figures beside [`ChunkStore::stats`]. Looks at each chunk.
    pub fn details(&self) -> Details {
        self.inner.details()
    }

    /// Where the store counts.
    pub fn words(&self) -> &Arc<Words> {
        &self.inner.words
    }

    /// Whether the cache holds every chunk of the blob that the image uses. Then its cache file is the extra device
    /// of an EROFS mount of the image.
    pub fn is_complete(&self, blob_index: u32) -> bool {
        let blob = usize::try_from(blob_index)
            .ok()
            .and_then(|index| self.inner.blobs.get(index));
        let cached = blob.and_then(|blob| Some((blob.cache.as_ref()?, &blob.known)));
        cached.is_some_and(|(cache, known)| {
            cache.look_at_all(known);
            cache.missing() == 0
        })
    }

    fn counted(
        &self,
        buf: &mut [u8],
        read: impl FnOnce(&Arc<Inner>, &mut [u8]) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let counters = &self.inner.counters;
        add(&counters.requests, 1);
        let len = buf.len() as u64;
        let result = read(&self.inner, buf);
        match &result {
            Ok(()) => add(&counters.bytes_served, len),
            Err(error) => {
                add(&counters.errors, 1);
                counters.more.count_error(error);
            }
        }
        result
    }
}

impl Drop for ChunkStore {
    fn drop(&mut self) {
        self.inner.prefetch.stop();
        self.inner.flights.wait_empty();
        self.inner.barrier.stop();
        self.inner.elsewhere.stop();
        if let Some(thread) = self.keeper.take() {
            // The thread makes a last barrier. There is no one left to tell if it panicked.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn known(&self, key: Key) -> Option<(&Blob, &KnownChunk)> {
        let blob = self.blobs.get(key.blob)?;
        Some((blob, blob.known.get(key.slot)?))
    }

    fn locate(&self, chunk: ChunkPointer) -> Result<(Key, &Blob, &KnownChunk), ReadError> {
        let index = usize::try_from(chunk.blob_index).ok();
        let blob = index.and_then(|index| self.blobs.get(index));
        let found = blob.and_then(|blob| {
            let (slot, known) = blob.known.find(chunk.index)?;
            (known.offset == chunk.uncompressed_offset).then_some((
                Key { blob: index?, slot },
                blob,
                known,
            ))
        });
        found.ok_or_else(|| ReadError {
            blob: blob.map_or_else(
                || format!("index {}", chunk.blob_index).into(),
                |blob| Arc::clone(&blob.id),
            ),
            index: chunk.index,
            offset: chunk.uncompressed_offset,
            cause: Arc::new(ReadCause::Unknown),
        })
    }

    /// What the cache has of a chunk by now, other processes' work included.
    fn look(&self, blob: &Blob, slot: usize) -> State {
        let (Some(cache), Some(known)) = (&blob.cache, blob.known.get(slot)) else {
            return State::Absent;
        };
        let (state, news) = cache.look(slot, known);
        add(&self.counters.chunks_of_others, u64::from(news));
        state
    }

    fn keys(&self, chunks: &[ChunkPointer]) -> Vec<Key> {
        chunks
            .iter()
            .take(fetch::NEIGHBOURS_MAX)
            .filter_map(|&chunk| Some(self.locate(chunk).ok()?.0))
            .collect()
    }

    /// Looks after the cache in `dir` until the store is dropped: barriers, the last of which covers everything, and now and
    /// then a look at what other caches there hold.
    fn keep_cache(&self, dir: &Path) {
        let mut look = Some(Look::default());
        loop {
            look = look.take().and_then(|look| self.look_around(dir, look));
            let next = look.as_ref().map(|_| elsewhere::INTERVAL);
            let more = self.barrier.wait(next);
            // A failed barrier is counted; the cache then no longer trusts what it holds.
            let _ = self.sync();
            if !more {
                return;
            }
        }
    }

    /// The blob itself, opened if it is not yet.
    fn remote(&self, blob: &Blob, background: bool) -> Result<Arc<Remote>, ReadCause> {
        blob.remote(&*self.source, || self.requests.take(1, background))
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// Brings every chunk that the image uses into cache files in `dir` and makes them durable. The files, in the order of
/// the image's device slots, are the extra devices of an EROFS mount.
///
/// # Errors
/// As [`ChunkStore::open`] and [`ChunkStore::sync`]; [`Error::Incomplete`] if a chunk cannot be had or kept.
pub fn complete_cache_files<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    source: Arc<dyn BlobSource>,
    dir: &Path,
) -> Result<Vec<PathBuf>, Error> {
    let options = StoreOptions {
        cache_dir: Some(dir.to_owned()),
        ..StoreOptions::default()
    };
    let store = ChunkStore::open(bootstrap, source, options)?;
    let inner = &store.inner;
    for (at, blob) in inner.blobs.iter().enumerate() {
        let keys: Vec<Key> = (0..blob.known.len())
            .map(|slot| Key { blob: at, slot })
            .collect();
        for (slot, key) in keys.iter().enumerate() {
            if blob.state(slot) != State::Present {
                let want = keys.get(slot + 1..).unwrap_or_default();
                inner
                    .chunk(*key, want)
                    .map_err(|source| Error::Incomplete { source })?;
            }
        }
    }
    inner.flights.wait_empty();
    store.sync()?;
    let files = inner.blobs.iter().map(|blob| cache_file(dir, &blob.id));
    let incomplete = inner
        .blobs
        .iter()
        .find(|blob| blob.cache.as_ref().is_none_or(|cache| cache.missing() != 0));
    match incomplete {
        Some(blob) if blob.cache.is_none() && store.stats().cache_conflicts != 0 => {
            Err(Error::CacheConflict {
                blob: blob.info.id.to_string(),
            })
        }
        Some(blob) => {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            Err(Error::io(
                "complete the cache file",
                &cache_file(dir, &blob.id),
            )(full))
        }
        None => Ok(files.collect()),
    }
}
