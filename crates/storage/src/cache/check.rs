//! Verifying what a cache directory holds, without any image at hand.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use rafs_format::Digester;

use super::keep::blob_ids;
use super::map::{AGREED, RECORD_SIZE, Record};
use super::open::{each_row, is_at, lease};
use super::seal::open_existing;
use super::{cache_file, map_file, running_boot};
use crate::Error;

/// No chunk is longer, in bytes.
const CHUNK_MAX: u32 = 1 << 28;
/// Records that each thread gets at a time.
const RECORDS_PER_THREAD: usize = 1024;

/// What was found of a blob in a cache directory.
#[derive(Debug, Clone)]
pub struct CheckedBlob {
    /// Id of the blob.
    pub id: String,
    /// Chunks that are right.
    pub good: u64,
    /// Chunks that were not on the disk yet when the machine went down, and are not right: never promised.
    pub lost: u64,
    /// Chunks that are not what their records say.
    pub bad: Vec<BadChunk>,
    /// Whether the bad ones are fetched again from now on. They are not while the blob is in use.
    pub dropped: bool,
}

/// A chunk that is not what its record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChunk {
    /// Row of the chunk in its blob's chunk table.
    pub index: u32,
    /// Where it lies in the cache file, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u32,
}

/// Reads and verifies every chunk in the cache directory `dir`, blob by blob and each on `threads` threads, and drops what
/// is wrong of blobs that nobody uses.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read.
pub fn check_cache(
    dir: &Path,
    threads: NonZeroUsize,
) -> Result<impl Iterator<Item = Result<CheckedBlob, Error>>, Error> {
    let dir = dir.to_owned();
    let ids = blob_ids(&dir)?.into_iter();
    Ok(ids.filter_map(move |id| check_blob(&dir, id, threads).transpose()))
}

/// `None` if the blob was removed meanwhile.
fn check_blob(dir: &Path, id: String, threads: NonZeroUsize) -> Result<Option<CheckedBlob>, Error> {
    let (data_path, map_path) = (cache_file(dir, &id), map_file(dir, &id));
    let map = match File::options().read(true).write(true).open(&map_path) {
        Ok(map) => lease(map, &map_path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("open the chunk map", &map_path)(error)),
    };
    let Some(map) = map else {
        return Ok(None);
    };
    let data = open_existing(&data_path).map_err(Error::io("open the cache file", &data_path))?;
    let mut check = Check {
        data: sys::open_quietly(&data).unwrap_or(data),
        boot: running_boot(),
        digester: Digester::Blake3,
        threads: threads.get(),
        lost: Vec::new(),
        bad: Vec::new(),
        good: 0,
    };
    let read = |error| Error::io("read the cache file", &data_path)(error);
    let len = map.metadata().map_err(read)?.len();
    let rows = u32::try_from(len / RECORD_SIZE as u64).unwrap_or(u32::MAX);
    let mut records = Vec::new();
    each_row(&map, rows, |index, row| {
        let record = Record::decode(row, index);
        records.extend(record.filter(|record| record.boot != AGREED));
        if records.len() >= check.threads.saturating_mul(RECORDS_PER_THREAD) {
            check.all(&records)?;
            records.clear();
        }
        Ok(())
    })
    .and_then(|()| check.all(&records))
    .map_err(read)?;
    let dropped = check
        .drop_wrong(&map, &map_path)
        .map_err(Error::io("write the chunk map", &map_path))?;
    Ok(Some(CheckedBlob {
        id,
        good: check.good,
        lost: check.lost.len() as u64,
        bad: check.bad.iter().map(BadChunk::from).collect(),
        dropped,
    }))
}

struct Check {
    data: File,
    boot: u64,
    /// The one that the last chunk was right with: the map does not say, and a blob has one.
    digester: Digester,
    threads: usize,
    lost: Vec<Record>,
    bad: Vec<Record>,
    good: u64,
}

impl Check {
    /// Verifies some chunks, a part of them on each thread.
    fn all(&mut self, records: &[Record]) -> io::Result<()> {
        let share = records.len().div_ceil(self.threads).max(1);
        let (data, digester) = (&self.data, self.digester);
        let parts = thread::scope(|scope| {
            let parts = records.chunks(share);
            let workers: Vec<_> = parts
                .map(|part| scope.spawn(move || Part::verify(data, digester, part)))
                .collect();
            let done = workers.into_iter().map(|worker| {
                let verified = worker.join();
                verified.unwrap_or_else(|panic| resume_unwind(panic))
            });
            done.collect::<io::Result<Vec<Part>>>()
        })?;
        self.good += records.len() as u64;
        for Part { digester, wrong } in parts {
            self.digester = digester;
            self.good -= wrong.len() as u64;
            for record in wrong {
                match record.boot == 0 || record.boot == self.boot {
                    true => self.bad.push(record),
                    false => self.lost.push(record),
                }
            }
        }
        Ok(())
    }

    /// Takes the records of wrong chunks back, if nobody else has a lease; says whether it did.
    fn drop_wrong(&self, map: &File, path: &Path) -> io::Result<bool> {
        if self.bad.is_empty() && self.lost.is_empty() {
            return Ok(true);
        }
        if map.try_lock().is_err() || !is_at(path, map) {
            return Ok(false);
        }
        for record in self.bad.iter().chain(&self.lost) {
            let record = Record {
                boot: AGREED,
                ..*record
            };
            map.write_all_at(&record.encode(), Record::position(record.index))?;
        }
        map.sync_data()?;
        Ok(true)
    }
}

/// What one thread found.
struct Part {
    digester: Digester,
    wrong: Vec<Record>,
}

impl Part {
    fn verify(data: &File, digester: Digester, records: &[Record]) -> io::Result<Self> {
        let (mut digester, mut wrong, mut bytes) = (digester, Vec::new(), Vec::new());
        for record in records {
            match right_digester(data, &mut bytes, digester, record)? {
                Some(right) => digester = right,
                None => wrong.push(*record),
            }
        }
        Ok(Self { digester, wrong })
    }
}

/// The digester by which a chunk is what its record says, `first` if that is one; `None` if it is not.
fn right_digester(
    data: &File,
    bytes: &mut Vec<u8>,
    first: Digester,
    record: &Record,
) -> io::Result<Option<Digester>> {
    if record.size > CHUNK_MAX {
        return Ok(None);
    }
    bytes.resize(record.size as usize, 0);
    match data.read_exact_at(bytes, record.offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let other = match first {
        Digester::Blake3 => Digester::Sha256,
        Digester::Sha256 => Digester::Blake3,
    };
    let mut both = [first, other].into_iter();
    Ok(both.find(|digester| codec::digest(*digester, bytes) == record.digest))
}

impl From<&Record> for BadChunk {
    fn from(record: &Record) -> Self {
        Self {
            index: record.index,
            offset: record.offset,
            size: record.size,
        }
    }
}
