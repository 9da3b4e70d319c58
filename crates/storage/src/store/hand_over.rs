//! Passing a cache that is in use from one process to the next.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use rafs_format::Bootstrap;

use super::{ChunkStore, StoreOptions};
use crate::cache::{BlobCache, BlobFiles, CacheDir};
use crate::{BlobSource, Error};

/// Descriptors of a cache: whoever holds them may go on where the store that gave them left off, or lies dead.
#[derive(Debug)]
pub struct HandedOver {
    /// The lock of the cache directory. The directory stays taken as long as any duplicate of it is open.
    pub lock: File,
    /// The files of each blob, in the order of the image's blob table.
    pub blobs: Vec<BlobFiles>,
}

impl ChunkStore {
    /// Duplicates of all that [`ChunkStore::take_over`] needs. They were opened by this process: marks that somebody
    /// puts on the files later do not concern them. From now on every chunk is kept, whatever the limit of the cache.
    ///
    /// # Errors
    /// When there is no cache directory, or the disk had no room for a blob's cache, or too many files are open.
    pub fn hand_over(&self) -> io::Result<HandedOver> {
        let missing = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                "a blob has no cache on the disk: it is full, or the cache is in use for an image that has other chunks in the blob",
            )
        };
        self.inner.limit.keep_all();
        let lock = self._cache_dir.as_ref().ok_or_else(missing)?.lock()?;
        let blobs = self.inner.blobs.iter();
        let blobs = blobs.map(|blob| blob.cache.as_ref().ok_or_else(missing)?.files());
        Ok(HandedOver {
            lock,
            blobs: blobs.collect::<io::Result<_>>()?,
        })
    }

    /// As [`ChunkStore::open`], over a cache that is in use. [`StoreOptions::cache_dir`] says where it lies, or lay.
    ///
    /// # Errors
    /// As [`ChunkStore::open`]; [`Error::CacheLost`] if the cache is not the image's.
    pub fn take_over<D: Deref<Target = [u8]>>(
        bootstrap: &Bootstrap<D>,
        source: Arc<dyn BlobSource>,
        options: StoreOptions,
        handed: HandedOver,
    ) -> Result<Self, Error> {
        let path = options.cache_dir.clone().unwrap_or_default();
        let dir = CacheDir::take_over(&path, handed.lock);
        let mut blobs = handed.blobs.into_iter();
        let store = Self::with_caches(
            bootstrap,
            source,
            options,
            Some(dir),
            |dir, info, known, boot| {
                let files = blobs.next().ok_or_else(|| Error::CacheLost {
                    blob: info.id.to_string(),
                })?;
                BlobCache::take_over(dir, info, known, boot, files)
            },
        )?;
        store.inner.limit.keep_all();
        Ok(store)
    }
}
