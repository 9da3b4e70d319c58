//! Choosing what the store fetches in the background before anybody asks for it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rafs_format::{BlobFeatures, Bootstrap, ChunkPointer, ChunkRecord, Nid};
use storage::ChunkStore;

use crate::{Error, Prefetch};

/// The background thread that walks the tree; dropping it stops it and what the store still has to fetch.
pub(crate) struct Prefetcher {
    store: Arc<ChunkStore>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetcher {
    /// Starts to fetch; without a thread if there is nothing to fetch.
    pub(crate) fn start(
        bootstrap: Arc<Bootstrap<Vec<u8>>>,
        store: Arc<ChunkStore>,
        what: Prefetch,
    ) -> Result<Self, Error> {
        let (first, nids) = match what {
            Prefetch::Nothing => (Vec::new(), Vec::new()),
            Prefetch::Listed | Prefetch::Everything => chosen(&bootstrap, what),
        };
        let stop = Arc::new(AtomicBool::new(false));
        if first.is_empty() && nids.is_empty() {
            return Ok(Self {
                store,
                stop,
                thread: None,
            });
        }
        let work = Work {
            bootstrap,
            store: store.clone(),
            stop: stop.clone(),
        };
        let thread = thread::Builder::new()
            .name("prefetch".to_owned())
            .spawn(move || {
                work.store.bring_first(&first, &work.stop);
                work.store.follow_reads();
                work.run(nids);
            })
            .map_err(|source| Error::System {
                what: "starting a thread",
                source,
            })?;
        Ok(Self {
            store,
            stop,
            thread: Some(thread),
        })
    }

    /// Stops; what is being fetched just now still comes.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread may wait for room.
            self.store.cancel_prefetch();
            // A panic there is no concern of the mount.
            let _ = thread.join();
            self.store.cancel_prefetch();
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The chunks that the image puts first, and what to fetch after them.
fn chosen(bootstrap: &Bootstrap<Vec<u8>>, what: Prefetch) -> (Vec<ChunkPointer>, Vec<Nid>) {
    let (first, root) = (first_chunks(bootstrap), bootstrap.root());
    let mut nids: Vec<Nid> = bootstrap.prefetch().collect();
    match what {
        Prefetch::Everything => nids.push(root),
        // Converters list the root if nobody says what is needed, but for this image somebody has: the rest would only
        // take the line and the processor from whoever starts.
        _ if !first.is_empty() => nids.retain(|&nid| nid != root),
        _ => {}
    }
    (first, nids)
}

/// The chunks of blobs that hold what is needed first, in their order.
fn first_chunks(bootstrap: &Bootstrap<Vec<u8>>) -> Vec<ChunkPointer> {
    let is_first = |record: &ChunkRecord| {
        let blob = bootstrap.blobs().get(record.blob_index as usize);
        blob.is_some_and(|blob| {
            let kind = BlobFeatures::SEPARATED_WITH_PREFETCH_FILES;
            blob.features.contains(kind)
        })
    };
    // What is damaged is left to the read that meets it.
    let records = bootstrap.chunk_table().filter_map(Result::ok);
    let mut chunks: Vec<ChunkPointer> = records
        .filter(is_first)
        .map(|record| ChunkPointer {
            blob_index: record.blob_index,
            index: record.index,
            uncompressed_offset: record.uncompressed_offset,
        })
        .collect();
    chunks.sort_unstable_by_key(|chunk| (chunk.blob_index, chunk.uncompressed_offset));
    chunks
}

struct Work {
    bootstrap: Arc<Bootstrap<Vec<u8>>>,
    store: Arc<ChunkStore>,
    stop: Arc<AtomicBool>,
}

impl Work {
    /// Fetches what lies at and below `nids`, in their order.
    fn run(self, nids: Vec<Nid>) {
        // Each inode once, however many names it has: that also ends loops in a damaged image.
        let mut seen = HashSet::new();
        for nid in nids {
            let mut below = vec![nid];
            while let Some(nid) = below.pop() {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                if !seen.insert(nid) {
                    continue;
                }
                if let Err(error) = self.visit(nid, &mut below) {
                    tracing::warn!("prefetch of inode {}: {error}", nid.0);
                }
            }
        }
    }

    /// Fetches a file, or adds the entries of a directory to `below`, the first on top.
    fn visit(&self, nid: Nid, below: &mut Vec<Nid>) -> Result<(), rafs_format::Error> {
        let inode = self.bootstrap.inode(nid)?;
        if inode.is_regular() {
            let chunks: Vec<ChunkPointer> =
                self.bootstrap.chunks(&inode)?.collect::<Result<_, _>>()?;
            self.store.prefetch(&chunks);
        } else if inode.is_dir() {
            let start = below.len();
            for entry in self.bootstrap.entries(&inode)? {
                let entry = entry?;
                if entry.name != b"." && entry.name != b".." {
                    below.push(entry.nid);
                }
            }
            below[start..].reverse();
        }
        Ok(())
    }
}
