//! Watching what a store does. A store that nobody watches does no more for it than look whether somebody does.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rafs_format::blob_meta::StoredChunk;

use crate::KnownChunk;

/// Is told what a store does. Calls come from all of its threads, those of readers included: none may wait.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A request to a blob was answered, or failed.
    fn fetched(&self, fetch: &Fetch);
    /// A chunk of what a request brought was decoded.
    fn decoded(&self, chunk: &Decoded);
}

/// What a request to a blob is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A read waits for it.
    Read,
    /// Nobody waits for it yet.
    Prefetch,
    /// Nobody waits for it yet, but it belongs to what the image puts first.
    First,
}

/// A request to a blob.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Counts the requests of the store.
    pub number: u64,
    /// What it was made for.
    pub purpose: Purpose,
    /// Position of the blob in the blob table.
    pub blob: usize,
    /// Bytes of the blob.
    pub range: Range<u64>,
    /// When the store asked for memory for it.
    pub began: Instant,
    /// How long there was none.
    pub waited: Duration,
    /// How long the answer took after that.
    pub took: Duration,
    /// Whether there was none.
    pub failed: bool,
}

/// A chunk that was decoded and verified.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The request that brought it.
    pub fetch: u64,
    /// Position of its blob in the blob table.
    pub blob: usize,
    /// Row of the chunk in its blob's chunk table.
    pub index: u32,
    /// Bytes of file data.
    pub size: u32,
    /// Bytes as they are stored.
    pub stored_size: u32,
    /// When decoding began.
    pub began: Instant,
    /// How long it took. Of chunks that are stored together, the first has the time of them all.
    pub took: Duration,
}

/// A store's link to its observer.
#[derive(Debug, Default)]
pub(super) struct Watch {
    observer: Option<Arc<dyn Observer>>,
    count: AtomicU64,
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Watched {
    pub number: u64,
    pub purpose: Purpose,
    began: Option<Instant>,
    asked: Option<Instant>,
}

impl Watch {
    pub fn new(observer: Option<Arc<dyn Observer>>) -> Self {
        Self {
            observer,
            count: AtomicU64::new(0),
        }
    }

    /// The time, if anybody wants to know.
    pub fn now(&self) -> Option<Instant> {
        self.observer.as_ref().map(|_| Instant::now())
    }

    /// A request begins, with waiting for memory.
    pub fn begin(&self, purpose: Purpose) -> Watched {
        Watched {
            number: self.count.fetch_add(1, Ordering::Relaxed),
            purpose,
            began: self.now(),
            asked: None,
        }
    }

    /// There is memory, and the blob is asked now.
    pub fn ask(&self, request: &mut Watched) {
        request.asked = self.now();
    }

    pub fn fetched(&self, request: &Watched, blob: usize, range: &Range<u64>, failed: bool) {
        if let (Some(observer), Some(began), Some(asked)) =
            (&self.observer, request.began, request.asked)
        {
            observer.fetched(&Fetch {
                number: request.number,
                purpose: request.purpose,
                blob,
                range: range.clone(),
                began,
                waited: asked.saturating_duration_since(began),
                took: asked.elapsed(),
                failed,
            });
        }
    }

    pub fn decoded(
        &self,
        fetch: u64,
        began: Option<Instant>,
        blob: usize,
        known: &KnownChunk,
        record: &StoredChunk,
    ) {
        if let (Some(observer), Some(began)) = (&self.observer, began) {
            observer.decoded(&Decoded {
                fetch,
                blob,
                index: known.index,
                size: known.size,
                stored_size: record.compressed_size,
                began,
                took: began.elapsed(),
            });
        }
    }
}
