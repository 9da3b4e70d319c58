use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::words::{self, Counter, Histogram, Times, Words};
use crate::{ReadCause, ReadError};

macro_rules! stats {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// What a store has done since it was opened.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Stats { $($(#[doc = $doc])* pub $name: u64,)* }

        impl Stats {
            /// Names and values, in a fixed order.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            /// What the fields of [`Stats::fields`] are, in the same order.
            pub fn descriptions() -> impl Iterator<Item = &'static str> {
                [$(concat!($($doc),*).trim_ascii(),)*].into_iter()
            }
        }

        pub(super) struct Counters { $(pub $name: Counter,)* pub more: More }

        impl Counters {
            pub fn new(words: &Arc<Words>) -> Self {
                let mut place = words::STORE + More::WORDS..words::BLOBS;
                let mut next = || words.counter(place.next().unwrap_or(usize::MAX));
                Self { $($name: next(),)* more: More::new(words) }
            }

            pub fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.value(),)* }
            }
        }
    };
}

stats! {
    /// Reads that were asked for.
    requests,
    /// Bytes that reads have got.
    bytes_served,
    /// Pieces of reads that the cache had.
    hits,
    /// Pieces of reads that had to be fetched or waited for.
    misses,
    /// Reads that ended in an error.
    errors,
    /// Requests to blobs, for chunks.
    fetches,
    /// Stored bytes that were fetched, gaps between merged ranges included.
    fetched_bytes,
    /// Chunks of which reads have used anything, each counted once.
    chunks_used,
    /// Their stored bytes, of blobs that had to be opened: what `fetched_bytes` has beyond them was fetched for nothing
    /// so far.
    used_bytes,
    /// Chunks that were decoded and verified.
    chunks_verified,
    /// Chunks whose bytes were not what the image records, on the wire or in the cache.
    verify_failures,
    /// Units of chunks that a mirror gave wrong, and that came from another place then.
    fetched_again,
    /// Chunks in the cache that were verified once more, mostly those of an earlier boot.
    reverified,
    /// Chunks, chunk maps or barriers that the cache directory failed to take.
    cache_errors,
    /// Chunks that were found in the cache because another process had brought them in meanwhile.
    chunks_of_others,
    /// Chunks that were copied from the cache of another blob, where they were found by their digest.
    chunks_copied,
    /// Their bytes.
    copied_bytes,
    /// Blobs read without the cache, which is in use for an image that disagrees about them.
    cache_conflicts,
    /// Blobs that were removed from the cache directory because it had reached its limit.
    cache_evicted,
    /// Chunks that were not kept because the cache directory has reached its limit, all of it in use.
    cache_refused,
    /// Chunks that were asked for in advance.
    prefetch_asked,
    /// Chunks that the background workers brought in, neighbours included.
    prefetch_fetched,
    /// Chunks asked for in advance that failed.
    prefetch_errors,
}

impl Stats {
    /// A JSON object, one member for each field.
    pub fn to_json(&self) -> String {
        let members: Vec<String> = self
            .fields()
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .collect();
        format!("{{{}}}", members.join(","))
    }
}

impl std::fmt::Display for Stats {
    /// `name=value` pairs, separated by blanks.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs: Vec<String> = self
            .fields()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        f.write_str(&pairs.join(" "))
    }
}

pub(super) fn add(counter: &Counter, value: u64) {
    counter.add(value);
}

/// Kinds of reads that ended in an error: names for [`Details::errors`], in the order of their words.
const ERRORS: [&str; 5] = ["open", "table", "fetch", "verify", "cache"];

fn kind(cause: &ReadCause) -> usize {
    match cause {
        ReadCause::Open(_) => 0,
        ReadCause::Unknown
        | ReadCause::Bounds { .. }
        | ReadCause::Meta(_)
        | ReadCause::Mismatch { .. } => 1,
        ReadCause::Fetch { .. } => 2,
        ReadCause::Decode(_) => 3,
        ReadCause::NotKept => 4,
    }
}

/// What is counted beside [`Stats`].
pub(super) struct More {
    words: Arc<Words>,
    /// How long blobs took to answer requests.
    pub fetch_times: Histogram,
    /// Requests that wait for an answer now.
    pub in_flight: AtomicU64,
}

impl More {
    const WORDS: usize = Histogram::WORDS + ERRORS.len();

    fn new(words: &Arc<Words>) -> Self {
        Self {
            words: Arc::clone(words),
            fetch_times: words.histogram(words::STORE),
            in_flight: AtomicU64::new(0),
        }
    }

    fn error(&self, kind: usize) -> Counter {
        self.words.counter(words::STORE + Histogram::WORDS + kind)
    }

    pub fn count_error(&self, error: &ReadError) {
        self.error(kind(&error.cause)).add(1);
    }

    /// A counter of a blob: 0 for requests, 1 for bytes, 2 for requests that failed.
    fn of_blob(&self, blob: usize, which: usize) -> Counter {
        self.words
            .counter(words::BLOBS + blob * words::BLOB + which)
    }

    /// Asks the blob `blob` for `size` bytes.
    pub fn fetch<E>(
        &self,
        blob: usize,
        size: u64,
        fetch: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let timer = self.fetch_times.start();
        let result = fetch();
        drop(timer);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.of_blob(blob, 0).add(1);
        match &result {
            Ok(()) => self.of_blob(blob, 1).add(size),
            Err(_) => self.of_blob(blob, 2).add(1),
        }
        result
    }
}

/// More figures of a store than [`Stats`] has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// How long blobs took to answer requests, failures included.
    pub fetch_times: Times,
    /// Requests to blobs that wait for an answer now.
    pub fetches_in_flight: u64,
    /// Reads that ended in an error, by kind.
    pub errors: Vec<(&'static str, u64)>,
    /// Of each blob, in the order of the image's table.
    pub blobs: Vec<BlobDetails>,
}

/// Figures of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobDetails {
    /// Its id.
    pub id: String,
    /// Bytes of the chunks that the image uses.
    pub size: u64,
    /// How many of them are in the cache.
    pub cached: u64,
    /// Requests to it.
    pub fetches: u64,
    /// Stored bytes that came in.
    pub fetched_bytes: u64,
    /// Requests that failed.
    pub fetch_errors: u64,
}

impl super::Inner {
    pub fn details(&self) -> Details {
        let more = &self.counters.more;
        let blobs = self.blobs.iter().enumerate().map(|(at, blob)| {
            if let Some(cache) = &blob.cache {
                cache.look_at_all(&blob.known);
            }
            let (mut size, mut cached) = (0, 0);
            for (slot, known) in blob.known.iter().enumerate() {
                size += u64::from(known.size);
                if blob.state(slot) == crate::cache::State::Present {
                    cached += u64::from(known.size);
                }
            }
            BlobDetails {
                id: blob.id.to_string(),
                size,
                cached,
                fetches: more.of_blob(at, 0).value(),
                fetched_bytes: more.of_blob(at, 1).value(),
                fetch_errors: more.of_blob(at, 2).value(),
            }
        });
        let errors = ERRORS.iter().enumerate();
        Details {
            fetch_times: more.fetch_times.times(),
            fetches_in_flight: more.in_flight.load(Ordering::Relaxed),
            errors: errors
                .map(|(at, name)| (*name, more.error(at).value()))
                .collect(),
            blobs: blobs.collect(),
        }
    }
}
