//! Opening a blob's cache, which other processes open, use and remove at the same time.
//!
//! * Whoever uses a blob has a *lease*: a shared `flock` of its map. Who has an exclusive one may remove both files, the
//!   data first; so an opener leases the map, sees that it is still the file at its path, and only then opens the data.
//! * Openers take turns (a lock on the header), and each leaves a record for every chunk that its image uses. So images
//!   that disagree about a blob find out here, before either has written a byte over the other's.
//! * Files are never emptied, only removed: whoever has them open goes on with what he has.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rafs_format::BlobInfo;
use sys::RangeLock;

use super::bits::Bits;
use super::blob::{BlobCache, BlobFiles, State};
use super::map::{AGREED, HEADER_SIZE, Header, HeaderKind, RECORD_SIZE, Record, VERSION};
use super::seal::{is_read_only, open_data};
use super::{PATIENCE, cache_file, map_file};
use crate::known::device_size;
use crate::{Error, KnownChunk, KnownChunks};

/// Records that are read or written at once.
const RECORDS_AT_ONCE: usize = 4096;
/// Records beyond the chunks that the header counts: a blob made up of dictionaries does not count them right.
const RECORDS_BEYOND: u32 = 1 << 16;
/// How often to begin anew when others are in the way, and the pause in between.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_millis(20);

impl BlobCache {
    /// Opens or makes the files of the blob in `dir`, leases them, and learns what they hold.
    ///
    /// # Errors
    /// [`Error::CacheConflict`] if they are in use for an image that disagrees about the blob.
    pub fn open(
        dir: &Path,
        info: &BlobInfo,
        known: &KnownChunks,
        boot: u64,
    ) -> Result<Self, Error> {
        let most = info.chunk_count.saturating_add(RECORDS_BEYOND);
        let fits = known
            .iter()
            .next_back()
            .is_none_or(|last| last.index < most);
        for _ in 0..if fits { TRIES } else { 0 } {
            if let Some(cache) = Self::try_open(dir, info, known, boot)? {
                return Ok(cache);
            }
            thread::sleep(PAUSE);
        }
        Err(Error::CacheConflict {
            blob: info.id.to_string(),
        })
    }

    /// As [`BlobCache::open`]; `None` if somebody else was in the way.
    fn try_open(
        dir: &Path,
        info: &BlobInfo,
        known: &KnownChunks,
        boot: u64,
    ) -> Result<Option<Self>, Error> {
        let [data_path, map_path] = paths(dir, info);
        let map = open_or_make(&map_path)?;
        let Some(map) = lease(map, &map_path)? else {
            return Ok(None);
        };
        let turns = for_locks(&map);
        let Some(_turn) = take_turn(turns.clone()) else {
            return Ok(None);
        };
        let fail = Error::io("make the cache file", &data_path);
        let header = header(info);
        let unused = map.metadata().is_ok_and(|metadata| metadata.len() == 0);
        let data = if unused {
            remove(&data_path)
                .and_then(|()| begin(&map, &data_path, &header))
                .map_err(fail)
        } else {
            open_data(&data_path)
        };
        let files = BlobFiles { data: data?, map };
        let (cache, agreed) = Self::learned(dir, info, known, boot, files, turns)?;
        // What is sealed takes no more.
        let lacks = |cache: &Self| (0..known.len()).any(|slot| cache.state(slot) == State::Absent);
        let useless = is_read_only(&cache.data) && lacks(&cache);
        let Some(agreed) = agreed.filter(|_| !useless) else {
            discard(&cache.map, &data_path, &map_path)
                .map_err(Error::io("discard the cache file", &data_path))?;
            return Ok(None);
        };
        cache
            .agree(known, &agreed)
            .map_err(Error::io("write the chunk map", &map_path))?;
        let _ = cache.map.set_modified(SystemTime::now());
        Ok(Some(cache))
    }

    /// Goes on with files that another process has opened, and that may be mounted from.
    pub fn take_over(
        dir: &Path,
        info: &BlobInfo,
        known: &KnownChunks,
        boot: u64,
        files: BlobFiles,
    ) -> Result<Self, Error> {
        let turns = for_locks(&files.map);
        match Self::learned(dir, info, known, boot, files, turns)? {
            (cache, Some(_)) => Ok(cache),
            (_, None) => Err(Error::CacheLost {
                blob: info.id.to_string(),
            }),
        }
    }

    /// What the files hold; and which chunks have a record, if the files are of this blob and whole.
    fn learned(
        dir: &Path,
        info: &BlobInfo,
        known: &KnownChunks,
        boot: u64,
        BlobFiles { data, map }: BlobFiles,
        turns: Option<Arc<File>>,
    ) -> Result<(Self, Option<Bits>), Error> {
        let [data_path, map_path] = paths(dir, info);
        let header = header(info);
        let mut cache = Self {
            // Else our writes might wait for ourselves, where the file is a device of a mount by the kernel.
            data: sys::open_quietly(&data).unwrap_or(data),
            map,
            turns,
            dir: dir.to_owned(),
            boot,
            present: Bits::new(known.len()),
            suspect: Bits::new(known.len()),
            missing: AtomicUsize::new(known.len()),
            promises: Mutex::default(),
            barrier: Mutex::default(),
            seen: Mutex::default(),
        };
        let read = |error| Error::io("read the chunk map", &map_path)(error);
        let (kind, rows) = cache.recognise(&header).map_err(read)?;
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
        let rows = rows.filter(|_| kind == HeaderKind::Good && data_size == header.data_size);
        let agreed = match rows {
            Some(rows) => cache.load(rows, known).map_err(read)?,
            None => None,
        };
        Ok((cache, agreed))
    }

    /// What the header is, and how many records follow; `None` if that is too many.
    fn recognise(&self, header: &Header) -> io::Result<(HeaderKind, Option<u32>)> {
        let mut bytes = [0; HEADER_SIZE];
        match self.map.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok((HeaderKind::Other, None));
            }
            Err(error) => return Err(error),
        }
        let len = self.map.metadata()?.len();
        let rows = len.saturating_sub(HEADER_SIZE as u64) / RECORD_SIZE as u64;
        let most = header.chunk_count.saturating_add(RECORDS_BEYOND);
        let rows = u32::try_from(rows).ok().filter(|rows| *rows <= most);
        Ok((header.recognise(&bytes), rows))
    }

    /// Learns from the records; says which chunks have one. `None` if they are those of an image that disagrees about
    /// the blob.
    fn load(&mut self, rows: u32, known: &KnownChunks) -> io::Result<Option<Bits>> {
        let agreed = Bits::new(known.len());
        let mut same = true;
        each_row(&self.map, rows, |index, row| {
            let Some(record) = Record::decode(row, index) else {
                return Ok(());
            };
            match known.find(index) {
                Some((slot, chunk)) if record.is_of(chunk) => {
                    agreed.set(slot);
                    self.note(slot, chunk, record.boot);
                }
                Some(_) => same = false,
                // A chunk that only another image uses. It must not lie where this image has one.
                None => same &= !known.overlaps(record.offset, record.size),
            }
            Ok(())
        })?;
        Ok(same.then_some(agreed))
    }

    /// Leaves a record for each chunk that has none. Nobody else writes there: others know no such chunk.
    fn agree(&self, known: &KnownChunks, agreed: &Bits) -> io::Result<()> {
        let new = known.iter().zip(0..).filter(|(_, slot)| !agreed.get(*slot));
        let new: Vec<&KnownChunk> = new.map(|(chunk, _)| chunk).collect();
        let mut rest = new.as_slice();
        while let Some(first) = rest.first() {
            let follows = |(at, chunk): (u32, &&KnownChunk)| chunk.index == first.index + at;
            let run = (0..).zip(rest).take(RECORDS_AT_ONCE);
            let run = run.take_while(|&pair| follows(pair)).count();
            let (now, later) = rest.split_at(run);
            let rows = now.iter().map(|chunk| Record::of(chunk, AGREED).encode());
            let rows: Vec<u8> = rows.flatten().collect();
            self.map
                .write_all_at(&rows, Record::position(first.index))?;
            rest = later;
        }
        Ok(())
    }
}

/// Reads the records of `map` below `rows`, as far as there are any.
pub(super) fn each_row(
    map: &File,
    rows: u32,
    mut each: impl FnMut(u32, &[u8; RECORD_SIZE]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buf = vec![0; RECORDS_AT_ONCE.min(rows as usize) * RECORD_SIZE];
    for first in (0..rows).step_by(RECORDS_AT_ONCE) {
        let count = RECORDS_AT_ONCE.min((rows - first) as usize);
        let buf = &mut buf[..count * RECORD_SIZE];
        let filled = read_up_to(map, buf, Record::position(first))?;
        for (index, row) in (first..).zip(buf[..filled].as_chunks::<RECORD_SIZE>().0) {
            each(index, row)?;
        }
    }
    Ok(())
}

/// The map with a lease; `None` if it was removed meanwhile, or somebody is about to.
pub(super) fn lease(map: File, path: &Path) -> Result<Option<File>, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match map.try_lock_shared() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(PAUSE / 4),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
    }
    Ok(is_at(path, &map).then_some(map))
}

/// Whether `file` is the one at `path`: whoever had to wait for a lock on it may find that it was removed meanwhile.
pub fn is_at(path: &Path, file: &File) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (
        fs::metadata(path).map(identity),
        file.metadata().map(identity),
    ) {
        (Ok(there), Ok(here)) => there == here,
        _ => false,
    }
}

/// The map for locks alone: duplicates of the other descriptor are in processes that outlive this one.
pub(super) fn for_locks(map: &File) -> Option<Arc<File>> {
    let path = format!("/proc/self/fd/{}", map.as_raw_fd());
    let file = File::options().read(true).write(true).open(path);
    file.ok().map(Arc::new)
}

/// An opener's turn. Given up when dropped.
pub(super) struct OpenTurn(Option<Arc<File>>);

pub(super) fn take_turn(file: Option<Arc<File>>) -> Option<OpenTurn> {
    let deadline = Instant::now() + PATIENCE;
    while let Some(file) = &file
        && let Ok(false) = sys::lock_range(file, 0..HEADER_SIZE as u64, RangeLock::Exclusive)
    {
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(PAUSE / 4);
    }
    Some(OpenTurn(file))
}

impl Drop for OpenTurn {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            let _ = sys::unlock_range(file, 0..HEADER_SIZE as u64);
        }
    }
}

/// Fills in an empty map, with a new cache file.
fn begin(map: &File, data_path: &Path, header: &Header) -> io::Result<File> {
    let mut options = File::options();
    let data = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(data_path)?;
    data.set_len(header.data_size)?;
    map.write_all_at(&header.encode(), 0)?;
    map.set_len(Record::position(header.chunk_count))?;
    Ok(data)
}

/// Removes both files if nobody else has a lease; says whether it did. `map` loses its lease.
pub(super) fn discard(map: &File, data_path: &Path, map_path: &Path) -> io::Result<bool> {
    match map.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    if !is_at(map_path, map) {
        return Ok(false);
    }
    remove(data_path)?;
    remove(map_path)?;
    // A map must never come back, after a power loss, to speak of a new file.
    match data_path.parent().map(File::open) {
        Some(Ok(dir)) => dir.sync_all()?,
        _ => return Ok(true),
    }
    Ok(true)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn open_or_make(path: &Path) -> Result<File, Error> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let open = || options.open(path);
    let opened = open().or_else(|error| match path.parent() {
        // Somebody deleted the directory just now.
        Some(dir) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).and_then(|()| open())
        }
        _ => Err(error),
    });
    opened.map_err(Error::io("open the cache file", path))
}

pub(super) fn paths(dir: &Path, info: &BlobInfo) -> [PathBuf; 2] {
    [
        cache_file(dir, info.id.as_str()),
        map_file(dir, info.id.as_str()),
    ]
}

pub(super) fn header(info: &BlobInfo) -> Header {
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
