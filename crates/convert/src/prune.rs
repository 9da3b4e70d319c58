//! Making room in a cache directory: of blobs that mounts have fetched, and of indexes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use storage::{Besides, CachedBlob, Prune, Room, cached_blobs, remove_cached};

use crate::{Error, IndexStore, KeptIndex};

/// What was removed from a cache directory, and what is left.
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// The blobs that are gone, or would be.
    pub blobs: Vec<CachedBlob>,
    /// The indexes that are gone, or would be.
    pub indexes: Vec<KeptIndex>,
    /// Bytes on the disk that are left.
    pub left: u64,
    /// Those of them that are in use.
    pub in_use: u64,
}

/// What the indexes in a cache directory take of the room that its mounts have there.
#[derive(Debug, Clone)]
pub struct BesideBlobs {
    cache: PathBuf,
}

impl BesideBlobs {
    /// The indexes beside the blobs of the cache directory `cache`.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        let cache = cache.into();
        Self { cache }
    }
}

impl Besides for BesideBlobs {
    /// What can't be told counts as nothing.
    fn disk_usage(&self) -> u64 {
        let used = IndexStore::beside(&self.cache).disk_usage();
        used.unwrap_or_default()
    }

    fn make_room(&self, limit: u64) -> io::Result<Room> {
        let what = Prune {
            max_size: Some(limit),
            ..Prune::default()
        };
        let pruned = prune_cache(&self.cache, &what).map_err(io::Error::other)?;
        Ok(Room {
            removed: (pruned.blobs.len() + pruned.indexes.len()) as u64,
            left: pruned.left,
        })
    }
}

/// What can be removed on its own.
enum Kept {
    Blob(CachedBlob),
    Index(KeptIndex),
}

impl Kept {
    fn last_used(&self) -> SystemTime {
        match self {
            Self::Blob(blob) => blob.last_used,
            Self::Index(index) => index.last_used,
        }
    }

    fn disk(&self) -> u64 {
        match self {
            Self::Blob(blob) => blob.disk,
            Self::Index(index) => index.disk,
        }
    }

    fn in_use(&self) -> bool {
        match self {
            Self::Blob(blob) => blob.in_use,
            Self::Index(index) => index.in_use,
        }
    }
}

/// Removes blobs and indexes that nobody uses from the cache directory `dir`.
///
/// # Errors
/// [`Error`] if the directory cannot be read, or something in it not removed.
pub fn prune_cache(dir: &Path, what: &Prune) -> Result<Pruned, Error> {
    let indexes = IndexStore::beside(dir);
    let blobs = cached_blobs(dir)?.into_iter().map(Kept::Blob);
    let mut all: Vec<Kept> = blobs.collect();
    all.extend(indexes.list()?.into_iter().map(Kept::Index));
    all.sort_by_key(Kept::last_used);
    let mut pruned = Pruned {
        left: all.iter().map(Kept::disk).sum(),
        in_use: all
            .iter()
            .filter(|kept| kept.in_use())
            .map(Kept::disk)
            .sum(),
        ..Pruned::default()
    };
    for kept in all.into_iter().filter(|kept| !kept.in_use()) {
        if !what.wants(kept.last_used(), pruned.left) {
            continue;
        }
        let gone = what.dry_run
            || match &kept {
                Kept::Blob(blob) => remove_cached(dir, blob)?,
                Kept::Index(index) => indexes.remove(index)?,
            };
        if gone {
            pruned.left = pruned.left.saturating_sub(kept.disk());
            match kept {
                Kept::Blob(blob) => pruned.blobs.push(blob),
                Kept::Index(index) => pruned.indexes.push(index),
            }
        }
    }
    Ok(pruned)
}
