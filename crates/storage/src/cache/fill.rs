//! Chunks of a blob that is not known yet: they are kept while the layer that has them passes by.
//!
//! They go into a file without a name, each at its uncompressed offset. Once the blob is known and its digest is right,
//! that file becomes the blob's cache file. Whatever ends the process before leaves nothing.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rafs_format::{BlobInfo, ChunkRecord};
use rustix::fs::{AtFlags, CWD, linkat};

use super::blob::{BlobCache, State};
use super::keep::disk_usage;
use super::map::Record;
use super::open::{for_locks, header, lease, open_or_make, paths, remove, take_turn};
use super::{CacheDir, running_boot};
use crate::{Error, KnownChunks, VerifiedChunk};

/// Bytes between two looks whether there is room.
const LOOK_EVERY: u64 = 16 << 20;
/// Records that are written at once.
const RECORDS_AT_ONCE: usize = 4096;

/// Keeps the chunks of one blob, in order, as long as there is room.
#[derive(Debug)]
pub struct CacheFill {
    dir: CacheDir,
    file: File,
    limit: Option<u64>,
    /// Bytes in all such files of those who share the limit.
    unsettled: Arc<AtomicU64>,
    /// Chunks that are kept: the first so many.
    chunks: u32,
    written: u64,
    /// Bytes that the blobs in the directory took, and what had been written when that was looked at.
    settled: Option<u64>,
    looked: u64,
    full: bool,
}

impl CacheFill {
    /// Makes ready to keep the chunks of a blob in the cache directory `dir`, which is to take no more than `limit` bytes. All
    /// who fill it at the same time count in `unsettled` what they have written.
    ///
    /// # Errors
    /// As those of [`ChunkStore::open`](crate::ChunkStore::open) about the directory.
    pub fn begin(dir: &Path, limit: Option<u64>, unsettled: Arc<AtomicU64>) -> Result<Self, Error> {
        let dir = CacheDir::open(dir)?;
        let file = tempfile::tempfile_in(dir.path())
            .map_err(Error::io("create a temporary file in", dir.path()))?;
        Ok(Self {
            dir,
            file,
            limit,
            unsettled,
            chunks: 0,
            written: 0,
            settled: None,
            looked: 0,
            full: false,
        })
    }

    /// Keeps the next chunk, which lies at `offset` of the blob's uncompressed address space. From the first that finds
    /// no room on, none is kept.
    pub fn keep(&mut self, offset: u64, bytes: &[u8]) {
        let size = bytes.len() as u64;
        if self.full || !self.has_room(size) || self.file.write_all_at(bytes, offset).is_err() {
            self.full = true;
            return;
        }
        self.chunks += 1;
        self.written += size;
        self.unsettled.fetch_add(size, Ordering::Relaxed);
    }

    fn has_room(&mut self, size: u64) -> bool {
        let Some(limit) = self.limit else { return true };
        let unsettled = self.unsettled.load(Ordering::Relaxed);
        let wanted = unsettled.saturating_add(size);
        if self.settled.is_none() || self.written >= self.looked + LOOK_EVERY {
            self.looked = self.written;
            // What can't be told is no reason to do without.
            self.settled = Some(disk_usage(self.dir.path()).unwrap_or_default());
        }
        let settled = self.settled.unwrap_or_default();
        settled.saturating_add(wanted) <= limit
    }

    /// Makes what was kept the cache of the blob `info`, whose chunk records are `records`: what was kept must be verified,
    /// by the digest of the layer. How many chunks the cache got.
    ///
    /// # Errors
    /// [`Error`] if the records contradict themselves, or the disk refuses.
    pub fn finish(self, info: &BlobInfo, records: &[ChunkRecord]) -> Result<usize, Error> {
        let known = KnownChunks::of_blob(info, records)?;
        if self.chunks == 0 {
            return Ok(0);
        }
        match self.become_cache(info, &known)? {
            Some(kept) => Ok(kept),
            None => self.copy(info, &known),
        }
    }

    /// Puts the file in the place of a blob's cache file that nobody has made yet. `None` if somebody has, or it can't be put
    /// there.
    fn become_cache(&self, info: &BlobInfo, known: &KnownChunks) -> Result<Option<usize>, Error> {
        let [data_path, map_path]: [PathBuf; 2] = paths(self.dir.path(), info);
        let Some(map) = lease(open_or_make(&map_path)?, &map_path)? else {
            return Ok(None);
        };
        let Some(_turn) = take_turn(for_locks(&map)) else {
            return Ok(None);
        };
        if map.metadata().is_ok_and(|metadata| metadata.len() != 0) {
            return Ok(None);
        }
        let header = header(info);
        let place = || {
            self.file.set_permissions(Permissions::from_mode(0o644))?;
            self.file.set_len(header.data_size)?;
            remove(&data_path)?;
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, &own, CWD, &data_path, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from)
        };
        if place().is_err() {
            return Ok(None);
        }
        let boot = running_boot();
        let promise = || {
            let chunks: Vec<_> = known.iter().take(self.chunks as usize).collect();
            let mut kept = 0;
            for run in chunks.chunks(RECORDS_AT_ONCE) {
                let rows = run.iter().map(|chunk| Record::of(chunk, boot).encode());
                let rows: Vec<u8> = rows.flatten().collect();
                let first = run.first().map_or(0, |chunk| chunk.index);
                map.write_all_at(&rows, Record::position(first))?;
                kept += run.len();
            }
            map.set_len(Record::position(header.chunk_count))?;
            // Last: before, the map counts as one of nothing.
            map.write_all_at(&header.encode(), 0)?;
            Ok(kept)
        };
        let promised: io::Result<usize> = promise();
        promised
            .map(Some)
            .map_err(Error::io("write the chunk map", &map_path))
    }

    /// Copies the chunks that a cache lacks which others have made.
    fn copy(&self, info: &BlobInfo, known: &KnownChunks) -> Result<usize, Error> {
        let cache = BlobCache::open(self.dir.path(), info, known, running_boot())?;
        let mut kept = 0;
        for (slot, chunk) in known.iter().take(self.chunks as usize).enumerate() {
            if cache.look(slot, chunk).0 == State::Present {
                continue;
            }
            let mut bytes = vec![0; chunk.size as usize];
            let read = self.file.read_exact_at(&mut bytes, chunk.offset);
            let verified = read.map(|()| VerifiedChunk::verify(info.digester, chunk, bytes));
            match verified {
                Ok(Ok(bytes)) if cache.store(slot, chunk, &bytes).is_ok() => kept += 1,
                _ => break,
            }
        }
        Ok(kept)
    }
}

impl Drop for CacheFill {
    fn drop(&mut self) {
        self.unsettled.fetch_sub(self.written, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use rafs_format::{BlobId, ChunkFlags, Compressor, Digester};

    use super::*;

    const SIZE: u32 = 5000;

    fn blob(chunks: u8) -> (BlobInfo, Vec<ChunkRecord>, Vec<Vec<u8>>) {
        let bytes: Vec<Vec<u8>> = (0..chunks).map(|n| vec![n + 1; SIZE as usize]).collect();
        let records = (0..)
            .zip(&bytes)
            .map(|(index, bytes)| ChunkRecord {
                digest: codec::digest(Digester::Sha256, bytes),
                blob_index: 0,
                flags: ChunkFlags::empty(),
                compressed_size: SIZE,
                uncompressed_size: SIZE,
                compressed_offset: u64::from(index) * 8192,
                uncompressed_offset: u64::from(index) * 8192,
                file_offset: 0,
                index,
                crc32: 0,
            })
            .collect();
        let id = BlobId::new("a".repeat(64)).unwrap();
        let info = BlobInfo {
            chunk_count: chunks.into(),
            compressed_size: 1 << 20,
            uncompressed_size: u64::from(chunks) * 8192,
            ..BlobInfo::new(id, 1 << 20, Compressor::Gzip, Digester::Sha256)
        };
        (info, records, bytes)
    }

    fn present(dir: &Path, info: &BlobInfo, records: &[ChunkRecord]) -> Vec<bool> {
        let known = KnownChunks::of_blob(info, records).unwrap();
        let cache = BlobCache::open(dir, info, &known, running_boot()).unwrap();
        let look = |(slot, chunk): (usize, &crate::KnownChunk)| {
            let there = cache.look(slot, chunk).0 == State::Present;
            let mut bytes = vec![0; chunk.size as usize];
            cache.read(&mut bytes, chunk.offset).unwrap();
            let right = codec::digest(Digester::Sha256, &bytes) == chunk.digest;
            assert!(right || !there);
            there
        };
        known
            .iter()
            .enumerate()
            .map(|(s, c)| look((s, c)))
            .collect()
    }

    #[test]
    fn what_passed_by_is_in_the_cache_of_the_blob() {
        let dir = tempfile::tempdir().unwrap();
        let (info, records, bytes) = blob(3);
        let mut fill = CacheFill::begin(dir.path(), None, Arc::default()).unwrap();
        for (record, bytes) in records.iter().zip(&bytes) {
            fill.keep(record.uncompressed_offset, bytes);
        }
        assert_eq!(fill.finish(&info, &records).unwrap(), 3);
        assert_eq!(present(dir.path(), &info, &records), [true; 3]);
    }

    #[test]
    fn what_was_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut fill = CacheFill::begin(dir.path(), None, Arc::default()).unwrap();
        fill.keep(0, &[1; 9]);
        drop(fill);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "only the lock: {left:?}");
    }

    #[test]
    fn a_cache_that_others_have_made_is_filled_up() {
        let dir = tempfile::tempdir().unwrap();
        let (info, records, bytes) = blob(4);
        let known = KnownChunks::of_blob(&info, &records).unwrap();
        let others = BlobCache::open(dir.path(), &info, &known, running_boot()).unwrap();
        let mut fill = CacheFill::begin(dir.path(), None, Arc::default()).unwrap();
        for (record, bytes) in records.iter().zip(&bytes).take(2) {
            fill.keep(record.uncompressed_offset, bytes);
        }
        assert_eq!(fill.finish(&info, &records).unwrap(), 2);
        drop(others);
        let there = present(dir.path(), &info, &records);
        assert_eq!(there, [true, true, false, false]);
    }

    #[test]
    fn a_limit_ends_the_keeping_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (info, records, bytes) = blob(4);
        let mut fill =
            CacheFill::begin(dir.path(), Some(2 * u64::from(SIZE)), Arc::default()).unwrap();
        for (record, bytes) in records.iter().zip(&bytes) {
            fill.keep(record.uncompressed_offset, bytes);
        }
        assert_eq!(fill.finish(&info, &records).unwrap(), 2);
        let there = present(dir.path(), &info, &records);
        assert_eq!(there, [true, true, false, false]);
    }
}
