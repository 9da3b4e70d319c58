use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::bits::Bits;
use super::map::{AGREED, RECORD_SIZE, Record};
use super::open::each_row;
use super::turn::{Ask, Turn};
use crate::{KnownChunk, KnownChunks, VerifiedChunk};

/// What the cache knows of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not there.
    Absent,
    /// Perhaps there: to be verified before it is used.
    Suspect,
    /// There, and verified.
    Present,
}

/// The cache file and the chunk map of one blob, which other processes use and fill at the same time.
///
/// Chunks are named by their *slot*: their position among the known chunks of the blob.
pub(crate) struct BlobCache {
    pub(super) data: File,
    /// Holds the lease, as do its duplicates in other processes.
    pub(super) map: File,
    /// The map once more, opened for itself, so that its locks die with this process; `None` where that can't be had.
    pub(super) turns: Option<Arc<File>>,
    pub(super) dir: PathBuf,
    pub(super) boot: u64,
    pub(super) present: Bits,
    pub(super) suspect: Bits,
    pub(super) missing: AtomicUsize,
    pub(super) promises: Mutex<Promises>,
    /// Held during a barrier, so that whoever asks for one finds it done.
    pub(super) barrier: Mutex<()>,
    /// When the map had last changed as it was read as a whole.
    pub(super) seen: Mutex<Option<SystemTime>>,
}

/// Records that were written since the last barrier.
#[derive(Default)]
pub(super) struct Promises {
    /// They hold only as long as the page cache does.
    pub volatile: Vec<KnownChunk>,
    /// The disk lost writes: nothing is promised any more.
    broken: bool,
    /// The files are known to be in their directory after a power loss.
    linked: bool,
}

/// The two files of a blob's cache.
#[derive(Debug)]
pub struct BlobFiles {
    /// The cache file.
    pub data: File,
    /// The chunk map. The blob is leased as long as any duplicate of this descriptor is open.
    pub map: File,
}

impl BlobCache {
    /// Descriptors of the files, for [`BlobCache::take_over`] by another process.
    pub fn files(&self) -> io::Result<BlobFiles> {
        Ok(BlobFiles {
            data: self.data.try_clone()?,
            map: self.map.try_clone()?,
        })
    }

    /// What is known of the chunk in `slot`. Whoever sees `Present` sees the bytes too.
    pub fn state(&self, slot: usize) -> State {
        if self.present.get(slot) {
            State::Present
        } else if self.suspect.get(slot) {
            State::Suspect
        } else {
            State::Absent
        }
    }

    /// As [`BlobCache::state`], after a look into the map at what is absent: another process may have brought it in.
    /// The second value says whether it was news.
    pub fn look(&self, slot: usize, known: &KnownChunk) -> (State, bool) {
        let state = self.state(slot);
        if state != State::Absent {
            return (state, false);
        }
        let mut row = [0; RECORD_SIZE];
        let read = self
            .map
            .read_exact_at(&mut row, Record::position(known.index));
        let record = read.ok().and_then(|()| Record::decode(&row, known.index));
        if let Some(record) = record.filter(|record| record.is_of(known)) {
            self.note(slot, known, record.boot);
        }
        let state = self.state(slot);
        (state, state != State::Absent)
    }

    /// Looks into the map for all that is absent, if the map has changed since.
    pub fn look_at_all(&self, known: &KnownChunks) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = self.map.metadata().and_then(|map| map.modified()).ok();
        // The time of the change is coarse: what was written right after it may bear the same.
        let fresh = changed.is_some_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() < 2));
        if self.missing() == 0 || (changed.is_some() && *seen == changed && !fresh) {
            return;
        }
        let rows = known.iter().next_back().map_or(0, |last| last.index + 1);
        let found = each_row(&self.map, rows, |index, row| {
            let chunk = known.find(index);
            if let Some((slot, chunk)) = chunk
                && self.state(slot) == State::Absent
                && let Some(record) = Record::decode(row, index)
                && record.is_of(chunk)
            {
                self.note(slot, chunk, record.boot);
            }
            Ok(())
        });
        *seen = found.ok().and(changed);
    }

    /// Learns from a record that names its chunk right.
    pub(super) fn note(&self, slot: usize, known: &KnownChunk, boot: u64) {
        if boot == AGREED {
            return;
        }
        let mut promises = self.promises();
        if boot != 0 && boot != self.boot || promises.broken {
            self.suspect.set(slot);
            return;
        }
        if self.present.set(slot) {
            self.missing.fetch_sub(1, Ordering::AcqRel);
            if boot != 0 {
                promises.volatile.push(*known);
            }
        }
    }

    /// Chunks of the image that are not there, or not verified yet.
    pub fn missing(&self) -> usize {
        self.missing.load(Ordering::Acquire)
    }

    /// Reads from the cache file; `offset` is an uncompressed offset.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.data.read_exact_at(buf, offset)
    }

    /// Asks to be the one process that brings in a chunk.
    pub fn ask_turn(&self, known: &KnownChunk) -> Ask {
        match &self.turns {
            Some(file) => Turn::ask(file, known.index),
            None => Ask::Free,
        }
    }

    /// Puts a chunk into the cache. On an error the chunk is as it was before.
    pub fn store(&self, slot: usize, known: &KnownChunk, bytes: &VerifiedChunk) -> io::Result<()> {
        self.data.write_all_at(bytes, known.offset)?;
        self.promise(slot, known)
    }

    /// Trusts a suspect chunk whose bytes have been verified.
    pub fn confirm(&self, slot: usize, known: &KnownChunk) -> io::Result<()> {
        self.promise(slot, known)
    }

    /// Trusts a chunk no longer: its bytes are gone or are not what they should be.
    pub fn forget(&self, slot: usize, known: &KnownChunk) {
        // If this fails, whoever looks meets what we have met.
        let _ = self.write_record(known, AGREED);
        if self.present.clear(slot) {
            self.missing.fetch_add(1, Ordering::AcqRel);
        }
        self.suspect.clear(slot);
    }

    /// Makes every promise so far one that outlives a power loss: ours, and those of others that we have seen. They
    /// were written after the bytes, so a sync from here on covers the bytes, whoever wrote them.
    ///
    /// If the disk fails to take the data, no chunk is trusted without another look, and the cache takes no more.
    pub fn barrier(&self) -> io::Result<()> {
        let _only = self.barrier.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunks, linked) = {
            let mut promises = self.promises();
            (std::mem::take(&mut promises.volatile), promises.linked)
        };
        if chunks.is_empty() {
            return Ok(());
        }
        let durable = self
            .data
            .sync_data()
            .and_then(|()| if linked { Ok(()) } else { self.link() });
        let durable = durable.and_then(|()| chunks.iter().try_for_each(|chunk| self.keep(chunk)));
        durable
            .and_then(|()| self.map.sync_data())
            .inspect_err(|_| self.give_up(chunks))
    }

    /// Makes a promise hold for ever, unless another process has taken it back: its sync may have failed where ours,
    /// later, has not.
    fn keep(&self, known: &KnownChunk) -> io::Result<()> {
        let mut row = [0; RECORD_SIZE];
        self.map
            .read_exact_at(&mut row, Record::position(known.index))?;
        match Record::decode(&row, known.index) {
            Some(record) if record.is_of(known) && record.boot == self.boot => {
                self.write_record(known, 0)
            }
            _ => Ok(()),
        }
    }

    /// Takes no more chunks and forgets the promises since the last barrier.
    fn give_up(&self, mut chunks: Vec<KnownChunk>) {
        let mut promises = self.promises();
        promises.broken = true;
        chunks.append(&mut promises.volatile);
        for chunk in chunks {
            // If this fails too, the record still names this boot at most, or its bytes were synced.
            let _ = self.write_record(&chunk, AGREED);
        }
        let lost = self.present.move_to(&self.suspect);
        self.missing.fetch_add(lost, Ordering::AcqRel);
    }

    fn promise(&self, slot: usize, known: &KnownChunk) -> io::Result<()> {
        let mut promises = self.promises();
        if promises.broken {
            return Err(io::Error::other(
                "the cache lost data on its way to the disk and takes no more",
            ));
        }
        self.write_record(known, self.boot)?;
        promises.volatile.push(*known);
        if self.present.set(slot) {
            self.missing.fetch_sub(1, Ordering::AcqRel);
        }
        self.suspect.clear(slot);
        Ok(())
    }

    fn write_record(&self, known: &KnownChunk, boot: u64) -> io::Result<()> {
        let record = Record::of(known, boot);
        self.map
            .write_all_at(&record.encode(), Record::position(known.index))
    }

    fn link(&self) -> io::Result<()> {
        match File::open(&self.dir) {
            Ok(dir) => dir.sync_all()?,
            // Somebody deleted the directory: no one will look for the files there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.promises().linked = true;
        Ok(())
    }

    pub(super) fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BlobCache {
    fn drop(&mut self) {
        // When it was last used, for whoever has to choose what to evict.
        let _ = self.map.set_modified(SystemTime::now());
    }
}
