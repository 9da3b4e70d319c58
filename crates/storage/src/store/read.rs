//! Reads of files: pieces of chunks, and runs of chunks that lie side by side in a cache file.

use std::sync::Arc;

use rafs_format::ChunkPointer;

use super::blob::Blob;
use super::stats::add;
use super::{Inner, Key};
use crate::cache::State;
use crate::{KnownChunk, ReadCause, ReadError, VerifiedChunk};

impl Inner {
    /// As [`ChunkStore::read_file_range`](super::ChunkStore::read_file_range).
    pub(super) fn read_file_range(
        self: &Arc<Self>,
        chunks: &[ChunkPointer],
        chunk_size: u32,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        let size = u64::from(chunk_size.max(1));
        let mut at = usize::try_from(offset / size).unwrap_or(usize::MAX);
        let mut start = offset % size;
        let mut left = buf;
        while !left.is_empty() {
            let beyond = ChunkPointer {
                blob_index: u32::MAX,
                index: u32::MAX,
                uncompressed_offset: offset,
            };
            let (key, blob, known) = self.locate(chunks.get(at).copied().unwrap_or(beyond))?;
            let one = left
                .len()
                .min(usize::try_from(size - start).unwrap_or(usize::MAX));
            check_bounds(blob, known, start, one)?;
            let rest = chunks.get(at + 1..).unwrap_or_default();
            self.look(blob, key.slot);
            let run = self.cached_run(key, rest, size, start, left.len());
            let run = run.filter(|&run| {
                left.get_mut(..run)
                    .is_some_and(|piece| self.read_cached(key, start, piece))
            });
            let done = run.unwrap_or(one);
            let (piece, later) = left.split_at_mut(done);
            if run.is_none() {
                self.read_piece(key, start, piece, rest)?;
            }
            let end = start + done as u64;
            self.note_use(key);
            let also = usize::try_from(end.saturating_sub(1) / size).unwrap_or(usize::MAX);
            for (key, ..) in rest
                .iter()
                .take(also)
                .filter_map(|&chunk| self.locate(chunk).ok())
            {
                self.note_use(key);
            }
            at += usize::try_from(end / size).unwrap_or(usize::MAX);
            start = end % size;
            left = later;
        }
        Ok(())
    }

    /// How many bytes, of `len` from byte `start` of chunk `key` on, lie in one run of the cache file. `rest` are the
    /// chunks of the file that follow. `None` if not even the first is there.
    fn cached_run(
        &self,
        key: Key,
        rest: &[ChunkPointer],
        size: u64,
        start: u64,
        len: usize,
    ) -> Option<usize> {
        let (blob, known) = self.known(key)?;
        let present = |slot| (blob.state(slot) == State::Present).then_some(());
        present(key.slot)?;
        let wanted = start + len as u64;
        let (mut end, mut offset, mut full) = (
            u64::from(known.size),
            known.offset,
            u64::from(known.size) == size,
        );
        for next in rest {
            if end >= wanted || !full || usize::try_from(next.blob_index) != Ok(key.blob) {
                break;
            }
            let Some((slot, known)) = blob.known.find(next.index) else {
                break;
            };
            let follows = known.offset == offset + size && next.uncompressed_offset == known.offset;
            if !follows || present(slot).is_none() {
                break;
            }
            (end, offset, full) = (
                end + u64::from(known.size),
                known.offset,
                u64::from(known.size) == size,
            );
        }
        usize::try_from(end.min(wanted) - start).ok()
    }

    pub(super) fn read_piece(
        self: &Arc<Self>,
        key: Key,
        start: u64,
        buf: &mut [u8],
        want: &[ChunkPointer],
    ) -> Result<(), ReadError> {
        if self.read_cached(key, start, buf) {
            return Ok(());
        }
        let chunk = match self.recent.get(key) {
            Some(chunk) => {
                add(&self.counters.hits, 1);
                self.keep_after_all(key, &chunk);
                chunk
            }
            None => {
                add(&self.counters.misses, 1);
                self.chunk_now(key, &self.keys(want))?
            }
        };
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let piece = start
            .checked_add(buf.len())
            .and_then(|end| chunk.get(start..end));
        buf.copy_from_slice(
            piece.expect(
                "the bounds were checked against the size, and the digest against the bytes",
            ),
        );
        Ok(())
    }

    /// Puts a chunk into the cache that the disk has refused, if it takes any by now.
    fn keep_after_all(&self, key: Key, chunk: &Arc<VerifiedChunk>) {
        let refused = |(blob, _): &(&Blob, &KnownChunk)| {
            blob.cache.is_some() && blob.state(key.slot) == State::Absent
        };
        let takes_any = || !self.refusal.holds() && !self.limit.is_reached();
        if let Some((blob, _)) = self.known(key).filter(refused)
            && takes_any()
        {
            self.keep(blob, key, chunk);
        }
    }

    /// Counts a chunk that was read, once.
    pub(super) fn note_use(&self, key: Key) {
        let Some((blob, known)) = self.known(key).filter(|(blob, _)| blob.note_use(key.slot))
        else {
            return;
        };
        add(&self.counters.chunks_used, 1);
        if let Some(size) = blob.stored_size(known) {
            add(&self.counters.used_bytes, u64::from(size));
        }
    }

    /// Reads from the cache file what is there, verified. `false` if it is not, or cannot be read.
    fn read_cached(&self, key: Key, start: u64, buf: &mut [u8]) -> bool {
        let Some((blob, known)) = self.known(key) else {
            return false;
        };
        let Some(cache) = blob
            .cache
            .as_ref()
            .filter(|cache| cache.state(key.slot) == State::Present)
        else {
            return false;
        };
        let read = cache.read(buf, known.offset + start);
        match read {
            Ok(()) => add(&self.counters.hits, 1),
            Err(_) => {
                add(&self.counters.cache_errors, 1);
                cache.forget(key.slot, known);
            }
        }
        read.is_ok()
    }
}

pub(super) fn check_bounds(
    blob: &Blob,
    known: &KnownChunk,
    start: u64,
    len: usize,
) -> Result<(), ReadError> {
    let fits = start
        .checked_add(len as u64)
        .is_some_and(|end| end <= u64::from(known.size));
    if fits {
        Ok(())
    } else {
        Err(blob.error(
            known,
            ReadCause::Bounds {
                start,
                len,
                size: known.size,
            },
        ))
    }
}
