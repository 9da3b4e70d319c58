//! Chunks that another blob's cache already holds: found by digest, and copied instead of fetched.
//!
//! Chunks of the image's own blobs are looked up in a sorted table of 16 bytes a chunk. For those of other blobs in the
//! cache directory a thread reads the maps, and again those that have changed; it remembers only what the image lacks.
//! A copy is verified as if it had been fetched, so nothing depends on what the maps say.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rafs_format::Digest;

use super::stats::add;
use super::{Blob, Inner, Key};
use crate::cache::{State, blob_ids, each_chunk, last_change, open_existing};
use crate::{KnownChunk, VerifiedChunk, cache_file};

/// How long the first reads wait for the first look around: less than a fetch takes.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often to look around.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// Cache files of other blobs to keep open.
const FILES_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Elsewhere {
    /// The beginning of each known chunk's digest, its blob and its slot, in order.
    own: Box<[(u64, u32, u32)]>,
    state: Mutex<Found>,
    changed: Condvar,
}

#[derive(Default)]
struct Found {
    /// Where chunks lie that the image lacks: in whose cache file, and at which byte.
    places: HashMap<Key, (Arc<str>, u64)>,
    files: HashMap<Arc<str>, Option<Arc<File>>>,
    /// Somebody is looking around for the first time.
    first_look: bool,
    stop: bool,
}

/// Which maps were read, and when they had changed last.
#[derive(Default)]
pub(super) struct Look(HashMap<String, SystemTime>);

impl Elsewhere {
    pub fn new(blobs: &[Blob]) -> Self {
        let mut own = Vec::new();
        for (at, blob) in (0..).zip(blobs) {
            let slots = (0..).zip(blob.known.iter());
            own.extend(slots.map(|(slot, known)| (beginning(&known.digest), at, slot)));
        }
        own.sort_unstable();
        Self {
            own: own.into(),
            ..Self::default()
        }
    }

    /// A thread is about to look around, and may find something.
    pub fn announce(&self) {
        self.lock().first_look = true;
    }

    /// Ends a look.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    /// The known chunks whose digests begin like `digest`.
    fn like(&self, digest: &Digest) -> impl Iterator<Item = Key> {
        let wanted = beginning(digest);
        let first = self.own.partition_point(|(begins, ..)| *begins < wanted);
        let rest = self.own.get(first..).unwrap_or_default().iter();
        let like = rest.take_while(move |(begins, ..)| *begins == wanted);
        like.map(|&(_, blob, slot)| Key {
            blob: blob as usize,
            slot: slot as usize,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn beginning(digest: &Digest) -> u64 {
    digest
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Inner {
    /// Whether there are other blobs in the cache directory than the image's.
    pub fn has_others(&self, dir: &Path) -> bool {
        let ids = blob_ids(dir).unwrap_or_default();
        let is_mine = |id: &String| self.blobs.iter().any(|blob| *blob.id == **id);
        !ids.iter().all(is_mine)
    }

    /// Looks around in the cache directory, after `before`. `None` if there is nothing left to find, or the store is dropped.
    pub fn look_around(&self, dir: &Path, before: Look) -> Option<Look> {
        let Look(mut seen) = before;
        let mine: HashSet<&str> = self.blobs.iter().map(|blob| &*blob.id).collect();
        for id in blob_ids(dir).unwrap_or_default() {
            let changed = last_change(dir, &id);
            if mine.contains(&*id) || changed.is_none() || changed.as_ref() == seen.get(&id) {
                continue;
            }
            self.look_into(dir, &id);
            seen.extend(changed.map(|changed| (id, changed)));
            if self.elsewhere.lock().stop {
                return None;
            }
        }
        let mut state = self.elsewhere.lock();
        state.first_look = false;
        self.elsewhere.changed.notify_all();
        if self.blobs.iter().all(|blob| blob.is_complete()) {
            state.places.clear();
            return None;
        }
        Some(Look(seen))
    }

    /// Remembers what the cache of another blob holds that the image lacks.
    fn look_into(&self, dir: &Path, id: &str) {
        let id: Arc<str> = id.into();
        // What can't be read is fetched.
        let _ = each_chunk(dir, &id, |digest, size, offset| {
            for key in self.elsewhere.like(digest) {
                if let Some((blob, known)) = self.known(key)
                    && known.digest == *digest
                    && known.size == size
                    && blob.state(key.slot) == State::Absent
                {
                    let place = (Arc::clone(&id), offset);
                    self.elsewhere.lock().places.insert(key, place);
                }
            }
        });
    }

    /// Whether the chunk lies in the cache of another blob.
    pub fn is_elsewhere(&self, key: Key) -> bool {
        let Some((_, known)) = self.known(key) else {
            return false;
        };
        self.twins(key, known).next().is_some() || self.elsewhere.lock().places.contains_key(&key)
    }

    /// A copy of the chunk from the cache of another blob.
    pub fn copy_from_elsewhere(&self, key: Key) -> Option<VerifiedChunk> {
        let (blob, known) = self.known(key)?;
        let verify = |bytes| VerifiedChunk::verify(blob.info.digester, known, bytes).ok();
        let twin = self.twins(key, known).find_map(|(cache, at)| {
            let mut bytes = vec![0; known.size as usize];
            cache.read(&mut bytes, at).ok()?;
            verify(bytes)
        });
        let copy = twin.or_else(|| {
            let (file, offset) = self.place_of(key)?;
            let mut bytes = vec![0; known.size as usize];
            let read = file.read_exact_at(&mut bytes, offset);
            let copy = read.ok().and_then(|()| verify(bytes));
            if copy.is_none() {
                self.elsewhere.lock().places.remove(&key);
            }
            copy
        })?;
        add(&self.counters.chunks_copied, 1);
        add(&self.counters.copied_bytes, u64::from(known.size));
        Some(copy)
    }

    /// Where else in the image's own blobs the chunk lies and is there.
    fn twins<'a>(
        &'a self,
        key: Key,
        wanted: &'a KnownChunk,
    ) -> impl Iterator<Item = (&'a crate::cache::BlobCache, u64)> {
        let like = self.elsewhere.like(&wanted.digest);
        like.filter(move |other| *other != key).filter_map(|other| {
            let (blob, known) = self.known(other)?;
            let same = (known.digest, known.size) == (wanted.digest, wanted.size);
            let there = same && blob.state(other.slot) == State::Present;
            Some((blob.cache.as_ref().filter(|_| there)?, known.offset))
        })
    }

    /// The cache file of another blob that has the chunk, and where.
    fn place_of(&self, key: Key) -> Option<(Arc<File>, u64)> {
        let dir = self.options.cache_dir.as_ref()?;
        let first = |found: &mut Found| found.first_look && !found.stop;
        let state = self.elsewhere.lock();
        let waited = self
            .elsewhere
            .changed
            .wait_timeout_while(state, PATIENCE, first);
        let (mut state, late) = waited.unwrap_or_else(PoisonError::into_inner);
        // Nobody waits twice.
        state.first_look &= !late.timed_out();
        let (id, offset) = state.places.get(&key)?.clone();
        if state.files.len() >= FILES_MAX {
            state.files.clear();
        }
        let open = || {
            let file = open_existing(&cache_file(dir, &id)).ok()?;
            Some(Arc::new(sys::open_quietly(&file).unwrap_or(file)))
        };
        let file = state.files.entry(Arc::clone(&id)).or_insert_with(open);
        let file = file.clone();
        if file.is_none() {
            state.places.remove(&key);
            state.files.remove(&id);
        }
        Some((file?, offset))
    }
}
