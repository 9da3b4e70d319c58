//! The cache on disk: a directory with two files for each blob.
//!
//! `<id>.blob.data` is the blob's uncompressed address space: each chunk lies at its uncompressed offset, what is not
//! there yet is a hole, and the size is that of the whole space in blocks. With all chunks of an image in it, the
//! file is the extra device that an EROFS mount of the image wants. `<id>.blob.map` says which chunks are there (see
//! [`map`]). The file `lock` is locked by the one process that fills the directory, and names it.

mod blob;
mod map;

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rafs_format::Digester;

pub use blob::BlobFiles;
pub(crate) use blob::{BlobCache, State};

use crate::Error;

/// How long an owner may take to let go: one that is ending, or one that is gone but was just starting a program,
/// which has its descriptors for a moment.
const PATIENCE: Duration = Duration::from_millis(500);

/// A cache directory that this process owns. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct CacheDir {
    path: PathBuf,
    lock: File,
}

impl CacheDir {
    /// Makes the directory if need be and takes it into possession.
    pub fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::io("create the cache directory", path))?;
        let lock_path = path.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut lock = options
            .open(&lock_path)
            .map_err(Error::io("open", &lock_path))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::CacheBusy {
                        dir: path.to_owned(),
                        owner: owner(&mut lock),
                    });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Error::io("lock", &lock_path)(error));
                }
            }
        }
        // The name is for people; a full disk must not keep anyone from reading.
        let _ = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
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

fn owner(lock: &mut File) -> String {
    let mut text = String::new();
    match lock.take(20).read_to_string(&mut text) {
        Ok(_) if text.trim().parse::<u32>().is_ok() => format!("process {}", text.trim()),
        _ => "another process".to_owned(),
    }
}

/// Path of the cache file of blob `id` in the cache directory `dir`.
pub fn cache_file(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.blob.data"))
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
    fn a_directory_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/cache");
        let owner = CacheDir::open(&path).unwrap();
        let error = CacheDir::open(&path).unwrap_err();
        assert!(
            matches!(&error, Error::CacheBusy { owner, .. } if *owner == format!("process {}", std::process::id())),
            "{error}"
        );
        drop(owner);
        CacheDir::open(&path).unwrap();
    }

    #[test]
    fn boots_differ() {
        assert_ne!(boot_tag("a"), boot_tag("b"));
        assert_eq!(boot_tag("a\n"), boot_tag("a"));
        assert_ne!(running_boot(), 0);
    }
}
