//! The cache on disk: a directory with two files for each blob, which any number of processes use at once.
//!
//! `<id>.blob.data` is the blob's uncompressed address space: each chunk lies at its uncompressed offset, what is not
//! there yet is a hole, and the size is that of the whole space in blocks. With all chunks of an image in it, the
//! file is the extra device that an EROFS mount of the image wants. `<id>.blob.map` says which chunks are there (see
//! [`map`]), and is what processes lock: see [`open`] for who uses a blob, and [`turn`] for who fetches a chunk.

mod bits;
mod blob;
mod check;
mod fill;
mod keep;
mod map;
mod open;
mod seal;
mod turn;

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rafs_format::Digester;

pub use blob::BlobFiles;
pub(crate) use blob::{BlobCache, State};
pub use check::{BadChunk, CheckedBlob, check_cache};
pub use fill::CacheFill;
pub use keep::{CachedBlob, Prune, Pruned, cached_blobs, prune_cache, remove_cached};
pub(crate) use keep::{blob_ids, disk_usage, each_chunk, last_change};
pub use open::is_at;
pub(crate) use seal::{open_existing, seal};
pub(crate) use turn::{Ask, Turn};

use crate::Error;

/// How long to wait for locks that others have for a moment only.
const PATIENCE: Duration = Duration::from_millis(500);

/// A cache directory in use.
#[derive(Debug)]
pub(crate) struct CacheDir {
    path: PathBuf,
    /// Shared with all who use the directory. Releases that want it for themselves alone lock it exclusively.
    lock: File,
}

impl CacheDir {
    /// Makes the directory if need be.
    pub fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::io("create the cache directory", path))?;
        let lock_path = path.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let lock = options
            .open(&lock_path)
            .map_err(Error::io("open", &lock_path))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lock.try_lock_shared() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::CacheBusy {
                        dir: path.to_owned(),
                    });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Error::io("lock", &lock_path)(error));
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            lock,
        })
    }

    /// A directory whose lock another process has passed on.
    pub fn take_over(path: &Path, lock: File) -> Self {
        Self {
            path: path.to_owned(),
            lock,
        }
    }

    /// The lock, for [`CacheDir::take_over`]: it is held as long as any descriptor of it is open.
    pub fn lock(&self) -> std::io::Result<File> {
        self.lock.try_clone()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Path of the cache file of blob `id` in the cache directory `dir`.
pub fn cache_file(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.blob.data"))
}

/// Path of the chunk map of blob `id` in the cache directory `dir`.
pub(crate) fn map_file(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.blob.map"))
}

/// What stands for a boot of the machine in chunk maps; never 0.
pub(crate) fn boot_tag(boot_id: &str) -> u64 {
    let mut tag = [0; 8];
    tag.copy_from_slice(&codec::digest(Digester::Blake3, boot_id.trim().as_bytes())[..8]);
    u64::from_le_bytes(tag) | 1
}

/// The tag of the running boot. Where the system does not tell, a value that no other run has.
pub(crate) fn running_boot() -> u64 {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => boot_tag(&id),
        Err(_) => RandomState::new().hash_one(std::process::id()) | 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_shared_unless_somebody_wants_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/cache");
        let users = [
            CacheDir::open(&path).unwrap(),
            CacheDir::open(&path).unwrap(),
        ];
        drop(users);
        let alone = File::open(path.join("lock")).unwrap();
        alone.lock().unwrap();
        let error = CacheDir::open(&path).unwrap_err();
        assert!(matches!(error, Error::CacheBusy { .. }), "{error}");
        drop(alone);
        CacheDir::open(&path).unwrap();
    }

    #[test]
    fn boots_differ() {
        assert_ne!(boot_tag("a"), boot_tag("b"));
        assert_eq!(boot_tag("a\n"), boot_tag("a"));
        assert_ne!(running_boot(), 0);
    }
}
