//! Completing a run of a blob's cache file for a reader that goes to the file itself.

use std::ops::Range;
use std::sync::Arc;

use super::blob::Blob;
use super::{ChunkStore, Inner, Key};
use crate::cache::State;
use crate::{ReadCause, ReadError};

/// Bytes beyond the run that may be fetched along for each byte of it, and the most of them.
const AHEAD_PER_BYTE: u64 = 4;
const AHEAD_MAX: u64 = 4 << 20;

impl ChunkStore {
    /// Brings every chunk that touches bytes `run` of the blob's uncompressed address space into its cache file, and
    /// says which run of the file, around `run`, is good now: verified, or without data.
    ///
    /// # Errors
    /// [`ReadError`] if a chunk cannot be had, is not what the image records, or cannot be kept.
    pub fn fill(&self, blob_index: u32, run: Range<u64>) -> Result<Range<u64>, ReadError> {
        // What the caller reads never passes through here; it is counted as served all the same.
        let counters = &self.inner.counters;
        super::stats::add(&counters.requests, 1);
        let filled = self.inner.fill(blob_index, run.clone());
        match &filled {
            Ok(_) => super::stats::add(&counters.bytes_served, run.end.saturating_sub(run.start)),
            Err(error) => {
                super::stats::add(&counters.errors, 1);
                counters.more.count_error(error);
            }
        }
        filled
    }
}

impl Inner {
    fn fill(self: &Arc<Self>, blob_index: u32, run: Range<u64>) -> Result<Range<u64>, ReadError> {
        let unknown = || ReadError {
            blob: format!("index {blob_index}").into(),
            index: 0,
            offset: run.start,
            cause: Arc::new(ReadCause::Unknown),
        };
        let at = usize::try_from(blob_index).map_err(|_| unknown())?;
        let blob = self.blobs.get(at).ok_or_else(unknown)?;
        let mut good = run.clone();
        for slot in blob.known.within(&run) {
            let Some(known) = blob.known.get(slot) else {
                continue;
            };
            self.fill_chunk(blob, Key { blob: at, slot }, &run)?;
            good = good.start.min(known.offset)..good.end.max(known.end());
        }
        Ok(good)
    }

    fn fill_chunk(
        self: &Arc<Self>,
        blob: &Blob,
        key: Key,
        run: &Range<u64>,
    ) -> Result<(), ReadError> {
        self.note_use(key);
        if self.look(blob, key.slot) == State::Present {
            super::stats::add(&self.counters.hits, 1);
            return Ok(());
        }
        super::stats::add(&self.counters.misses, 1);
        let ahead = run
            .end
            .saturating_sub(run.start)
            .saturating_mul(AHEAD_PER_BYTE)
            .min(AHEAD_MAX);
        let around = run.start..run.end.saturating_add(ahead);
        let near = blob.known.within(&around);
        let want: Vec<Key> = near.map(|slot| Key { slot, ..key }).collect();
        let chunk = self.chunk_now(key, &want)?;
        if blob.state(key.slot) != State::Present {
            // It came from memory, where it was because the cache had no room for it then.
            self.keep(blob, key, &chunk);
        }
        match (blob.state(key.slot), blob.known.get(key.slot)) {
            (State::Present, _) => Ok(()),
            (_, Some(known)) => Err(blob.error(known, ReadCause::NotKept)),
            (_, None) => Ok(()),
        }
    }
}
