//! What a mount has done so far.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use storage::{Counter, Histogram, Words};

/// Counters that the request threads bump; exact each, but not one snapshot together. They go on with the process that
/// takes the place of this one.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) lookups: Counter,
    pub(crate) reads: Counter,
    pub(crate) bytes: Counter,
    pub(crate) errors: Counter,
    /// Those of `errors` for which the bootstrap is to blame.
    pub(crate) bootstrap_errors: Counter,
    /// Processes that have served, one after the other.
    pub(crate) servers: Counter,
    /// When the first of them began, in seconds since 1970.
    pub(crate) began: Counter,
    /// How long reads took.
    pub(crate) read_times: Histogram,
}

/// Adds to a counter that nothing else depends on.
pub(crate) fn add(counter: &Counter, amount: u64) {
    counter.add(amount);
}

impl Counters {
    /// Those in `words`, for a process that begins to serve. New ones are added at the end: another version of the program
    /// may have counted before.
    pub(crate) fn begin(words: &Arc<Words>) -> Self {
        let counters = Self {
            lookups: words.counter(1),
            reads: words.counter(2),
            bytes: words.counter(3),
            errors: words.counter(4),
            bootstrap_errors: words.counter(5),
            servers: words.counter(6),
            began: words.counter(7),
            read_times: words.histogram(16),
        };
        counters.servers.add(1);
        if counters.began.value() == 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            counters.began.add(now.unwrap_or_default().as_secs());
        }
        counters
    }

    pub(crate) fn snapshot(&self, store: storage::Stats) -> Stats {
        Stats {
            lookups: self.lookups.value(),
            reads: self.reads.value(),
            bytes: self.bytes.value(),
            errors: self.errors.value(),
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
