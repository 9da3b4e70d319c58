//! Bringing in what the image puts first.
//!
//! It was put together because a container needs it first, and lies in a blob of its own in the order in which it is
//! needed. So it is fetched in that order and does not give way to reads: most of them wait for what is next in it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rafs_format::ChunkPointer;

use super::fetch::NEIGHBOURS_MAX;
use super::stats::add;
use super::{ChunkStore, Inner, Key, Purpose};

/// Requests that are under way at once: enough to fill a long line, and few enough that the first of them is not the
/// last to be answered.
const LANES: usize = 4;

impl ChunkStore {
    /// Brings chunks into the cache, in that order and without giving way to reads. Returns when all are there or have
    /// failed, or soon after `stop` is set. Without a cache directory this does nothing.
    pub fn bring_first(&self, chunks: &[ChunkPointer], stop: &AtomicBool) {
        let inner = &self.inner;
        if self._cache_dir.is_none() || chunks.is_empty() {
            return;
        }
        add(&inner.counters.prefetch_asked, chunks.len() as u64);
        let located = chunks.iter().filter_map(|&chunk| inner.locate(chunk).ok());
        let keys: Vec<Key> = located.map(|(key, ..)| key).collect();
        let fail = |count: usize| add(&inner.counters.prefetch_errors, count as u64);
        fail(chunks.len() - keys.len());
        let batches = inner.batches(&keys);
        let next = AtomicUsize::new(0);
        let lane = || {
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                // Most often the first request brings the whole batch.
                for (at, &key) in (1..).zip(*batch) {
                    let rest = batch.get(at..).unwrap_or_default();
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let wanted = inner.is_absent(key) && !inner.flights.contains(key);
                    let brought = || inner.chunk_in_background(key, rest, Purpose::First);
                    if wanted && brought().is_err() {
                        fail(1);
                    }
                }
            }
        };
        thread::scope(|scope| {
            for number in 1..LANES {
                // This thread is one of them; without others it only takes longer.
                let _ = thread::Builder::new()
                    .name(format!("first-chunks-{number}"))
                    .spawn_scoped(scope, lane);
            }
            lane();
        });
    }
}

impl Inner {
    /// Cuts chunks into pieces that one request each can bring.
    fn batches<'a>(&self, keys: &'a [Key]) -> Vec<&'a [Key]> {
        let stored = |key: Key| {
            let blob = self.blobs.get(key.blob)?;
            // If it cannot be had now, whoever asks for the chunk says so.
            let remote = self.remote(blob, true).ok()?;
            let record = remote.record(blob.known.get(key.slot)?).ok()?;
            Some(u64::from(record.compressed_size))
        };
        let mut batches = Vec::new();
        let (mut start, mut size) = (0, 0_u64);
        for (at, &key) in keys.iter().enumerate() {
            let more = stored(key).unwrap_or(0);
            let other = keys.get(start).is_some_and(|first| first.blob != key.blob);
            let full = size.saturating_add(more) > self.options.request_max;
            if at != start && (other || full || at - start >= NEIGHBOURS_MAX) {
                batches.extend(keys.get(start..at));
                (start, size) = (at, 0);
            }
            size = size.saturating_add(more);
        }
        batches.extend(keys.get(start..));
        batches
    }
}
