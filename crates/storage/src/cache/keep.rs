//! Keeping a cache directory: what is in it, who uses it, and what may go.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rafs_format::Digest;

use super::map::{AGREED, RECORD_SIZE, Record};
use super::open::{discard, each_row};
use super::seal::is_sealed;
use super::{cache_file, map_file};
use crate::Error;

/// A blob in a cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedBlob {
    /// Id of the blob.
    pub id: String,
    /// Size of its uncompressed address space in bytes.
    pub size: u64,
    /// Bytes of the chunks that are there.
    pub cached: u64,
    /// Bytes that its files take on the disk.
    pub disk: u64,
    /// Chunks that are there.
    pub chunks: u64,
    /// Chunks that are known to be in use by some image, and are not there.
    pub missing: u64,
    /// Whether a process has it in use.
    pub in_use: bool,
    /// Ids of the processes that took it in use, as far as the system tells. Others may have it from them.
    pub processes: Vec<u32>,
    /// When it was last used.
    pub last_used: SystemTime,
    /// Whether its data can't be changed any more (fs-verity).
    pub sealed: bool,
}

impl CachedBlob {
    /// Whether every chunk is there that an image uses.
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.chunks != 0
    }
}

/// Which blobs to remove from a cache directory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prune {
    /// So many, those not used for longest first, that the rest takes at most this many bytes on the disk.
    pub max_size: Option<u64>,
    /// All that were not used for so long.
    pub older_than: Option<Duration>,
    /// All.
    pub all: bool,
    /// Remove nothing, only say what would be.
    pub dry_run: bool,
}

impl Prune {
    /// Whether something is to go that was last used then, while so many bytes are left of all.
    pub fn wants(&self, last_used: SystemTime, left: u64) -> bool {
        let old = |age| last_used.elapsed().is_ok_and(|since| since >= age);
        self.all
            || self.max_size.is_some_and(|most| left > most)
            || self.older_than.is_some_and(old)
    }
}

/// What was removed, and what is left.
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// The blobs that are gone, or would be.
    pub removed: Vec<CachedBlob>,
    /// Bytes on the disk that are left.
    pub left: u64,
    /// Those of them that are in use.
    pub in_use: u64,
}

/// The blobs of the cache directory `dir`, by id. None if there is no such directory.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn cached_blobs(dir: &Path) -> Result<Vec<CachedBlob>, Error> {
    let holders = lock_holders();
    let mut blobs = Vec::new();
    for id in blob_ids(dir)? {
        // Somebody else may have removed it meanwhile.
        blobs.extend(look_at(dir, id, &holders)?);
    }
    Ok(blobs)
}

/// Removes blobs that nobody uses from the cache directory `dir`.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read, or a file of it not removed.
pub fn prune_cache(dir: &Path, what: &Prune) -> Result<Pruned, Error> {
    let mut blobs = cached_blobs(dir)?;
    blobs.sort_by(|a, b| (a.last_used, &a.id).cmp(&(b.last_used, &b.id)));
    let mut pruned = Pruned {
        left: blobs.iter().map(|blob| blob.disk).sum(),
        in_use: blobs.iter().filter(|b| b.in_use).map(|b| b.disk).sum(),
        ..Pruned::default()
    };
    for blob in blobs.into_iter().filter(|blob| !blob.in_use) {
        let unwanted = what.wants(blob.last_used, pruned.left);
        if unwanted && (what.dry_run || remove_cached(dir, &blob)?) {
            pruned.left = pruned.left.saturating_sub(blob.disk);
            pruned.removed.push(blob);
        }
    }
    Ok(pruned)
}

/// Removes a blob from the cache directory `dir`; false if somebody uses it.
///
/// # Errors
/// [`Error::Io`] if a file of it cannot be removed.
pub fn remove_cached(dir: &Path, blob: &CachedBlob) -> Result<bool, Error> {
    let [data, map] = files(dir, &blob.id);
    let mut options = File::options();
    // Files without a map are what a crash has left; who uses one has made the map before.
    options.read(true).write(true).create(true).truncate(false);
    let open = options.open(&map);
    open.and_then(|file| discard(&file, &data, &map))
        .map_err(Error::io("remove the cached blob", &map))
}

/// When the map of a blob was last changed; `None` if there is none.
pub(crate) fn last_change(dir: &Path, id: &str) -> Option<SystemTime> {
    fs::metadata(map_file(dir, id))
        .and_then(|map| map.modified())
        .ok()
}

/// Calls `each` with the digest, the size and the place of each chunk that the cache of a blob holds, or may hold.
pub(crate) fn each_chunk(
    dir: &Path,
    id: &str,
    mut each: impl FnMut(&Digest, u32, u64),
) -> io::Result<()> {
    let map = File::open(map_file(dir, id))?;
    let rows = u32::try_from(map.metadata()?.len() / RECORD_SIZE as u64).unwrap_or(u32::MAX);
    each_row(&map, rows, |index, row| {
        if let Some(record) = Record::decode(row, index)
            && record.boot != AGREED
        {
            each(&record.digest, record.size, record.offset);
        }
        Ok(())
    })
}

/// Bytes on the disk that the blobs in `dir` take, whoever uses them.
pub(crate) fn disk_usage(dir: &Path) -> Result<u64, Error> {
    let files = blob_ids(dir)?.into_iter().flat_map(|id| files(dir, &id));
    Ok(files.map(|path| disk_size(&path)).sum())
}

fn look_at(dir: &Path, id: String, holders: &Holders) -> Result<Option<CachedBlob>, Error> {
    let [data_path, map_path] = files(dir, &id);
    let fail = Error::io("read the chunk map", &map_path);
    let size = fs::metadata(&data_path).map_or(0, |data| data.len());
    let mut blob = CachedBlob {
        size,
        disk: disk_size(&data_path) + disk_size(&map_path),
        id,
        cached: 0,
        chunks: 0,
        missing: 0,
        in_use: false,
        processes: Vec::new(),
        last_used: SystemTime::UNIX_EPOCH,
        sealed: is_sealed(&data_path),
    };
    let map = match File::open(&map_path) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(data_path.exists().then_some(blob));
        }
        Err(error) => return Err(fail(error)),
    };
    let mut look = || {
        let metadata = map.metadata()?;
        blob.last_used = metadata.modified()?;
        let device = (
            rustix::fs::major(metadata.dev()),
            rustix::fs::minor(metadata.dev()),
        );
        let found = holders.get(&(device, metadata.ino()));
        blob.processes = found.into_iter().flatten().copied().collect();
        blob.in_use = is_locked(&map)?;
        let rows = metadata.len() / RECORD_SIZE as u64;
        each_row(
            &map,
            u32::try_from(rows).unwrap_or(u32::MAX),
            |index, row| {
                match Record::decode(row, index) {
                    Some(record) if record.boot == AGREED => blob.missing += 1,
                    Some(record) => {
                        blob.chunks += 1;
                        blob.cached += u64::from(record.size);
                    }
                    None => {}
                }
                Ok(())
            },
        )
    };
    look().map_err(fail)?;
    Ok(Some(blob))
}

/// Whether anybody has a lease. Asking takes one for a moment, so that nobody is kept from it.
fn is_locked(map: &File) -> io::Result<bool> {
    // A shared lock would be granted beside others, and an exclusive one would be in the way of whoever comes.
    match map.try_lock() {
        Ok(()) => map.unlock().map(|()| false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Ids of the blobs that have a file in `dir`, in order.
pub(crate) fn blob_ids(dir: &Path) -> Result<BTreeSet<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(Error::io("read the cache directory", dir)(error)),
    };
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let id = name.strip_suffix(".blob.map");
        let id = id.or_else(|| name.strip_suffix(".blob.data"))?;
        Some(id.to_owned())
    });
    Ok(names.collect())
}

fn files(dir: &Path, id: &str) -> [PathBuf; 2] {
    [cache_file(dir, id), map_file(dir, id)]
}

fn disk_size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}

/// A file: major and minor number of its device, and its inode.
type FileId = ((u32, u32), u64);
/// Processes that took a `flock`, by the file.
type Holders = HashMap<FileId, BTreeSet<u32>>;

/// What the system says of locks; nothing where it does not.
fn lock_holders() -> Holders {
    let mut holders = Holders::new();
    let text = fs::read_to_string("/proc/locks").unwrap_or_default();
    for line in text.lines() {
        if let Some((file, process)) = parse_lock(line) {
            holders.entry(file).or_default().insert(process);
        }
    }
    holders
}

/// `1: FLOCK ADVISORY READ 4711 fe:00:12345 0 EOF`: kind, process, and major and minor number in hexadecimal.
fn parse_lock(line: &str) -> Option<(FileId, u32)> {
    let mut words = line.split_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let process = words.nth(2)?.parse().ok()?;
    let mut file = words.next()?.split(':');
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let (major, minor) = (number(file.next()?)?, number(file.next()?)?);
    let inode = file.next()?.parse().ok()?;
    Some((((major, minor), inode), process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_locks_are_understood() {
        assert_eq!(
            parse_lock("12: FLOCK  ADVISORY  READ 4711 fe:0a:12345 0 EOF"),
            Some((((0xfe, 10), 12345), 4711))
        );
        for line in [
            "",
            "1: POSIX ADVISORY READ 1 fe:00:1 0 EOF",
            "1: -> FLOCK ADVISORY WRITE 2 fe:00:1 0 EOF",
            "1: FLOCK ADVISORY READ x fe:00:1 0 EOF",
        ] {
            assert_eq!(parse_lock(line), None, "{line}");
        }
    }
}
