use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a store has done since it was opened.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Stats { $($(#[$doc])* pub $name: u64,)* }

        impl Stats {
            /// Names and values, in a fixed order.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        #[derive(Default)]
        pub(super) struct Counters { $(pub $name: AtomicU64,)* }

        impl Counters {
            pub fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
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

pub(super) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
