//! What a mount has done so far.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that the request threads bump; exact each, but not one snapshot together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) lookups: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) errors: AtomicU64,
}

/// Adds to a counter that nothing else depends on.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn snapshot(&self, store: storage::Stats) -> Stats {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            lookups: value(&self.lookups),
            reads: value(&self.reads),
            bytes: value(&self.bytes),
            errors: value(&self.errors),
            store,
        }
    }
}

/// What a mount has done since it began.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Names looked up by the kernel, listings included.
    pub lookups: u64,
    /// Read requests that reached us; what the kernel answers from its page cache is not among them.
    pub reads: u64,
    /// Bytes handed to the kernel.
    pub bytes: u64,
    /// Requests answered with EIO, because the image or its storage is damaged.
    pub errors: u64,
    /// What the chunk store did for it.
    pub store: storage::Stats,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lookups {}, reads {} ({} bytes), errors {}; {}",
            self.lookups, self.reads, self.bytes, self.errors, self.store
        )
    }
}
