//! Counters in memory that outlives the process which counts: whoever takes its place goes on with them.
//!
//! | Words | What |
//! |---|---|
//! | 0 | which layout the others have |
//! | 1 to 127 | the caller's own, see [`Words::counter`] |
//! | 128 to 1023 | the store's |
//! | from 1024 | four for each blob |
//!
//! Counting is one relaxed addition; nothing else may be concluded from the order in which counters change.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sys::SharedWords;

/// Words in all; of those that nobody touches no memory is taken.
const LEN: usize = 1 << 14;
/// First word of the store's own.
pub(crate) const STORE: usize = 128;
/// First word of the blobs'.
pub(crate) const BLOBS: usize = 1024;
/// Words of a blob.
pub(crate) const BLOB: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Words(Kind);

#[derive(Debug)]
enum Kind {
    Own(Box<[AtomicU64]>),
    Shared(OwnedFd, SharedWords),
}

impl Default for Words {
    /// Words of this process alone.
    fn default() -> Self {
        let words = || AtomicU64::new(0);
        Self(Kind::Own((0..LEN).map(|_| words()).collect()))
    }
}

impl Words {
    /// Bytes that the words take in the shared memory.
    pub const BYTES: u64 = (LEN * 8) as u64;

    /// Words that may be passed on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> io::Result<Self> {
        let memory = SharedWords::create_growing("nydusify-mount", LEN)?;
        Self::of(memory)
    }

    /// Those that another process has counted in. If that was another version of the program, they begin anew.
    ///
    /// # Errors
    /// When the descriptor leads to something else.
    pub fn of(memory: OwnedFd) -> io::Result<Self> {
        let words = SharedWords::map(&memory, LEN)?;
        if let Some((layout, rest)) = words.words().split_first()
            && layout.swap(current_layout(), Ordering::Relaxed) != current_layout()
        {
            // Untouched pages stay so.
            let counted = rest.iter().filter(|word| word.load(Ordering::Relaxed) != 0);
            counted.for_each(|word| word.store(0, Ordering::Relaxed));
        }
        Ok(Self(Kind::Shared(memory, words)))
    }

    /// The shared memory: the words, and behind [`Words::BYTES`] whatever somebody wrote there. `None` if the words are
    /// those of this process alone.
    pub fn memory(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::Own(_) => None,
            Kind::Shared(memory, _) => Some(memory.as_fd()),
        }
    }

    /// The counter in word `at`.
    pub fn counter(self: &Arc<Self>, at: usize) -> Counter {
        let words = Arc::clone(self);
        Counter { words, at }
    }

    /// The histogram in the words from `at` on, [`Histogram::WORDS`] of them.
    pub fn histogram(self: &Arc<Self>, at: usize) -> Histogram {
        let words = Arc::clone(self);
        Histogram { words, at }
    }

    fn all(&self) -> &[AtomicU64] {
        match &self.0 {
            Kind::Own(words) => words,
            Kind::Shared(_, words) => words.words(),
        }
    }

    fn add(&self, at: usize, amount: u64) {
        if let Some(word) = self.all().get(at) {
            word.fetch_add(amount, Ordering::Relaxed);
        }
    }

    fn get(&self, at: usize) -> u64 {
        let word = self.all().get(at);
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

/// What tells one layout from another: the names of the store's counters.
fn current_layout() -> u64 {
    let stats = crate::Stats::default();
    let names = stats.fields().flat_map(|(name, _)| name.bytes().chain([0]));
    // FNV-1a; never 0, which new words have.
    names.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }) | 1
}

/// A number that grows.
#[derive(Debug, Clone)]
pub struct Counter {
    words: Arc<Words>,
    at: usize,
}

impl Counter {
    /// Adds to it.
    pub fn add(&self, amount: u64) {
        self.words.add(self.at, amount);
    }

    /// What it is.
    pub fn value(&self) -> u64 {
        self.words.get(self.at)
    }
}

/// How often something took how long.
#[derive(Debug, Clone)]
pub struct Histogram {
    words: Arc<Words>,
    at: usize,
}

/// Upper bound of the first bucket in microseconds; each further one is twice as high.
const FIRST: u64 = 8;
/// Buckets with a bound: the last one is 16.8 s.
const BUCKETS: usize = 22;

impl Histogram {
    /// Words that it takes: the buckets, one for what is beyond them, and the sum in microseconds.
    pub const WORDS: usize = BUCKETS + 2;

    /// Counts the time until what is returned goes.
    pub fn start(&self) -> Timer<'_> {
        Timer(self, Instant::now())
    }

    /// Counts something that took so long.
    pub fn observe(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let doublings = micros.div_ceil(FIRST).max(1).next_power_of_two();
        let bucket = (doublings.trailing_zeros() as usize).min(BUCKETS);
        self.words.add(self.at + bucket, 1);
        self.words.add(self.at + BUCKETS + 1, micros);
    }

    /// What was counted.
    pub fn times(&self) -> Times {
        let value = |index| self.words.get(self.at + index);
        Times {
            counts: (0..=BUCKETS).map(value).collect(),
            sum: Duration::from_micros(value(BUCKETS + 1)),
        }
    }
}

/// See [`Histogram::start`].
#[derive(Debug)]
pub struct Timer<'a>(&'a Histogram, Instant);

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.0.observe(self.1.elapsed());
    }
}

/// What a [`Histogram`] has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times {
    counts: Vec<u64>,
    /// All times together.
    pub sum: Duration,
}

impl Times {
    /// The upper bound of each bucket, `None` for none, and how many took no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = (0..BUCKETS).map(|at| Some(Duration::from_micros(FIRST << at)));
        let mut sum = 0_u64;
        bounds
            .chain([None])
            .zip(&self.counts)
            .map(move |(bound, count)| {
                sum = sum.saturating_add(*count);
                (bound, sum)
            })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn counters_go_on_in_the_next_process() {
        let words = Arc::new(Words::new().unwrap());
        words.counter(STORE).add(3);
        let memory = words.memory().unwrap().try_clone_to_owned().unwrap();
        drop(words);
        let next = Arc::new(Words::of(memory).unwrap());
        next.counter(STORE).add(4);
        assert_eq!(next.counter(STORE).value(), 7);
        // Another version counts something else there.
        next.all()[0].store(99, Ordering::Relaxed);
        let memory = next.memory().unwrap().try_clone_to_owned().unwrap();
        let other = Arc::new(Words::of(memory).unwrap());
        assert_eq!(other.counter(STORE).value(), 0);
        // What is beyond the words is nobody's.
        other.counter(usize::MAX).add(1);
        assert_eq!(other.counter(usize::MAX).value(), 0);
    }

    #[test]
    fn times_fall_into_the_bucket_of_their_bound() {
        let words = Arc::new(Words::default());
        let histogram = words.histogram(1);
        let micros = [0, 8, 9, 16, 17, 8 << 21, (8 << 21) + 1];
        for time in micros {
            histogram.observe(Duration::from_micros(time));
        }
        let times = histogram.times();
        let all: Vec<_> = times.cumulative().collect();
        assert_eq!(all[0], (Some(Duration::from_micros(8)), 2));
        assert_eq!(all[1], (Some(Duration::from_micros(16)), 4));
        assert_eq!(all[2], (Some(Duration::from_micros(32)), 5));
        assert_eq!(all[21], (Some(Duration::from_micros(8 << 21)), 6));
        assert_eq!(all[22], (None, 7));
        assert_eq!(
            times.sum.as_micros(),
            u128::from(micros.iter().sum::<u64>())
        );
    }
}
