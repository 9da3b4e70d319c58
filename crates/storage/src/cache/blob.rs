use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rafs_format::BlobInfo;

use super::cache_file;
use super::map::{HEADER_SIZE, Header, HeaderKind, RECORD_SIZE, Record, VERSION};
use crate::known::device_size;
use crate::{Error, KnownChunk, KnownChunks, VerifiedChunk};

/// Records that are read at once when a map is loaded.
const RECORDS_PER_READ: usize = 4096;

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

/// The cache file and the chunk map of one blob.
///
/// Chunks are named by their *slot*: their position among the known chunks of the blob.
pub(crate) struct BlobCache {
    data: File,
    map: File,
    dir: PathBuf,
    boot: u64,
    present: Bits,
    suspect: Bits,
    missing: AtomicUsize,
    promises: Mutex<Promises>,
    /// Held during a barrier, so that whoever asks for one finds it done.
    barrier: Mutex<()>,
}

/// Records that were written since the last barrier.
#[derive(Default)]
struct Promises {
    /// They hold only as long as the page cache does.
    volatile: Vec<KnownChunk>,
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
    /// The chunk map.
    pub map: File,
}

impl BlobCache {
    /// Opens or makes the files of the blob in `dir` and learns what they hold.
    pub fn open(
        dir: &Path,
        info: &BlobInfo,
        known: &KnownChunks,
        boot: u64,
    ) -> Result<Self, Error> {
        let open = |path: &Path| {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options
                .open(path)
                .map_err(Error::io("open the cache file", path))
        };
        let [data_path, map_path] = paths(dir, info);
        let files = BlobFiles {
            data: open(&data_path)?,
            map: open(&map_path)?,
        };
        let (mut cache, good) = Self::learned(dir, info, known, boot, files)?;
        if !good {
            cache
                .clear(&header(info), known.len())
                .map_err(Error::io("make the cache file", &data_path))?;
        }
        Ok(cache)
    }

    /// Goes on with files that another process has opened, and that may be mounted from.
    pub fn take_over(
        dir: &Path,
        info: &BlobInfo,
        known: &KnownChunks,
        boot: u64,
        files: BlobFiles,
    ) -> Result<Self, Error> {
        match Self::learned(dir, info, known, boot, files)? {
            (cache, true) => Ok(cache),
            // Beginning anew would take data from under a mount.
            (_, false) => Err(Error::CacheLost {
                blob: info.id.to_string(),
            }),
        }
    }

    /// Descriptors of the files, for [`BlobCache::take_over`] by another process.
    pub fn files(&self) -> io::Result<BlobFiles> {
        Ok(BlobFiles {
            data: self.data.try_clone()?,
            map: self.map.try_clone()?,
        })
    }

    /// What the files hold, and whether it is of this blob and whole.
    fn learned(
        dir: &Path,
        info: &BlobInfo,
        known: &KnownChunks,
        boot: u64,
        BlobFiles { data, map }: BlobFiles,
    ) -> Result<(Self, bool), Error> {
        let [data_path, map_path] = paths(dir, info);
        let header = header(info);
        let mut cache = Self {
            data,
            map,
            dir: dir.to_owned(),
            boot,
            present: Bits::new(known.len()),
            suspect: Bits::new(known.len()),
            missing: AtomicUsize::new(known.len()),
            promises: Mutex::default(),
            barrier: Mutex::default(),
        };
        let kind = cache
            .recognise(&header)
            .map_err(Error::io("read the chunk map", &map_path))?;
        if let HeaderKind::Newer(version) = kind {
            return Err(Error::CacheVersion {
                path: map_path,
                version,
                known: VERSION,
            });
        }
        let data_size = cache
            .data
            .metadata()
            .map_err(Error::io("read the cache file", &data_path))?
            .len();
        let good = kind == HeaderKind::Good
            && data_size == header.data_size
            && cache
                .load(&header, known)
                .map_err(Error::io("read the chunk map", &map_path))?;
        Ok((cache, good))
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

    /// Chunks of the image that are not there, or not verified yet.
    pub fn missing(&self) -> usize {
        self.missing.load(Ordering::Acquire)
    }

    /// Reads from the cache file; `offset` is an uncompressed offset.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.data.read_exact_at(buf, offset)
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
    pub fn forget(&self, slot: usize) {
        if self.present.clear(slot) {
            self.missing.fetch_add(1, Ordering::AcqRel);
        }
        self.suspect.clear(slot);
    }

    /// Makes every promise so far one that outlives a power loss.
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
        let durable = durable.and_then(|()| {
            chunks
                .iter()
                .try_for_each(|chunk| self.write_record(chunk, 0))
        });
        durable
            .and_then(|()| self.map.sync_data())
            .inspect_err(|_| self.give_up(chunks))
    }

    /// Takes no more chunks and forgets the promises since the last barrier.
    fn give_up(&self, mut chunks: Vec<KnownChunk>) {
        let mut promises = self.promises();
        promises.broken = true;
        chunks.append(&mut promises.volatile);
        for chunk in chunks {
            // If this fails too, the record still names this boot at most, or its bytes were synced.
            let _ = self
                .map
                .write_all_at(&[0; RECORD_SIZE], Record::position(chunk.index));
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
        let KnownChunk {
            index,
            size,
            offset,
            digest,
            ..
        } = *known;
        let record = Record {
            digest,
            boot,
            offset,
            size,
            index,
        };
        self.map
            .write_all_at(&record.encode(), Record::position(index))
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

    fn recognise(&self, header: &Header) -> io::Result<HeaderKind> {
        let mut bytes = [0; HEADER_SIZE];
        match self.map.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(header.recognise(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(HeaderKind::Other),
            Err(error) => Err(error),
        }
    }

    /// Learns from the records. `false` if they are those of an image that disagrees about the blob.
    fn load(&mut self, header: &Header, known: &KnownChunks) -> io::Result<bool> {
        let mut rows = vec![0; RECORDS_PER_READ * RECORD_SIZE];
        for first in (0..header.chunk_count).step_by(RECORDS_PER_READ) {
            let count = RECORDS_PER_READ.min((header.chunk_count - first) as usize);
            let filled = read_up_to(
                &self.map,
                &mut rows[..count * RECORD_SIZE],
                Record::position(first),
            )?;
            for (index, row) in (first..).zip(rows[..filled].as_chunks::<RECORD_SIZE>().0) {
                if let Some(record) = Record::decode(row, index)
                    && !self.learn(&record, known)
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn learn(&mut self, record: &Record, known: &KnownChunks) -> bool {
        let Some((slot, chunk)) = known.find(record.index) else {
            // A chunk that only another image uses. It must not lie where this image has one.
            return !known.overlaps(record.offset, record.size);
        };
        if (record.offset, record.size, record.digest) != (chunk.offset, chunk.size, chunk.digest) {
            return false;
        }
        if record.boot == 0 || record.boot == self.boot {
            self.present.set(slot);
            *self.missing.get_mut() -= 1;
        } else {
            self.suspect.set(slot);
        }
        if record.boot == self.boot {
            let promises = self
                .promises
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            promises.volatile.push(*chunk);
        }
        true
    }

    /// Begins anew with empty files.
    fn clear(&mut self, header: &Header, chunks: usize) -> io::Result<()> {
        // The map goes first, also on the disk: it must never speak of bytes that are gone.
        if self.map.metadata()?.len() != 0 {
            self.map.set_len(0)?;
            self.map.sync_all()?;
        }
        self.data.set_len(0)?;
        self.data.set_len(header.data_size)?;
        self.map.write_all_at(&header.encode(), 0)?;
        self.map.set_len(Record::position(header.chunk_count))?;
        self.present = Bits::new(chunks);
        self.suspect = Bits::new(chunks);
        self.missing = AtomicUsize::new(chunks);
        self.promises = Mutex::default();
        Ok(())
    }

    fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn paths(dir: &Path, info: &BlobInfo) -> [PathBuf; 2] {
    let map = dir.join(format!("{}.blob.map", info.id));
    [cache_file(dir, info.id.as_str()), map]
}

fn header(info: &BlobInfo) -> Header {
    Header {
        blob: info.id.to_string(),
        chunk_count: info.chunk_count,
        data_size: device_size(info),
    }
}

fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A set of small numbers that threads share without a lock.
struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new(len: usize) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn get(&self, at: usize) -> bool {
        self.0
            .get(at / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (at % 64) & 1 == 1)
    }

    /// Whether it was not set before.
    fn set(&self, at: usize) -> bool {
        let mask = 1 << (at % 64);
        self.0
            .get(at / 64)
            .is_some_and(|word| word.fetch_or(mask, Ordering::AcqRel) & mask == 0)
    }

    /// Whether it was set before.
    fn clear(&self, at: usize) -> bool {
        let mask = 1 << (at % 64);
        self.0
            .get(at / 64)
            .is_some_and(|word| word.fetch_and(!mask, Ordering::AcqRel) & mask != 0)
    }

    /// Moves all members to `other`; says how many there were.
    fn move_to(&self, other: &Self) -> usize {
        let words = self.0.iter().zip(&other.0);
        let moved = words.map(|(from, to)| {
            let bits = from.swap(0, Ordering::AcqRel);
            to.fetch_or(bits, Ordering::AcqRel);
            bits.count_ones() as usize
        });
        moved.sum()
    }
}
