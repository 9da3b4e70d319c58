use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Inner;
use super::stats::add;
use crate::cache::disk_usage;
use crate::{Error, Prune, prune_cache};

/// Bytes to write before the next look, unless the limit itself is small.
const LOOK_EVERY: u64 = 64 << 20;

/// What lies in a cache directory besides blobs.
pub trait Besides: fmt::Debug + Send + Sync {
    /// Bytes on the disk that it takes.
    fn disk_usage(&self) -> u64;

    /// Removes of it, and of the blobs, what nobody uses, until all takes at most `limit` bytes.
    ///
    /// # Errors
    /// What keeps something from being removed.
    fn make_room(&self, limit: u64) -> io::Result<Room>;
}

/// What comes of making room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How many blobs and other things are gone.
    pub removed: u64,
    /// Bytes on the disk that are left.
    pub left: u64,
}

/// Whether the cache directory has reached its limit.
#[derive(Default)]
pub(super) struct Limit {
    state: Mutex<State>,
    /// Whatever the limit, a reader needs what is fetched to be in the cache file.
    keep_all: AtomicBool,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    written: u64,
    over: bool,
}

impl Limit {
    /// From now on there is room for every chunk.
    pub fn keep_all(&self) {
        self.keep_all.store(true, Ordering::Relaxed);
    }

    /// Whether a reader needs what is fetched to be in the cache file.
    pub fn keeps_all(&self) -> bool {
        self.keep_all.load(Ordering::Relaxed)
    }

    /// Whether chunks were refused when somebody last looked.
    pub fn is_reached(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.over && !self.keeps_all()
    }
}

impl Inner {
    /// Whether the cache may take so many bytes more. Makes room if it can.
    pub fn has_room(&self, bytes: u64) -> bool {
        let (Some(limit), Some(dir)) = (self.options.cache_limit, &self.options.cache_dir) else {
            return true;
        };
        let state = self.limit.state.lock();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.written = state.written.saturating_add(bytes);
        let interval = self.options.barrier_interval;
        let due = state.looked.is_none_or(|at| at.elapsed() >= interval);
        if due || state.written >= LOOK_EVERY.min(limit / 8) && !state.over {
            *state = State {
                looked: Some(Instant::now()),
                written: 0,
                // What can't be told or removed is no reason to do without a cache.
                over: self.make_room(dir, limit).unwrap_or_else(|_| {
                    add(&self.counters.cache_errors, 1);
                    false
                }),
            };
        }
        let room = !state.over || self.limit.keeps_all();
        add(&self.counters.cache_refused, u64::from(!room));
        room
    }

    /// Removes what nobody uses; whether the directory is over its limit all the same.
    fn make_room(&self, dir: &Path, limit: u64) -> Result<bool, Error> {
        let besides = self.options.besides.as_ref();
        let more = besides.map_or(0, |besides| besides.disk_usage());
        if disk_usage(dir)?.saturating_add(more) <= limit {
            return Ok(false);
        }
        let room = match besides {
            Some(besides) => {
                let made = besides.make_room(limit);
                made.map_err(Error::io("make room in the cache directory", dir))?
            }
            None => {
                let what = Prune {
                    max_size: Some(limit),
                    ..Prune::default()
                };
                let pruned = prune_cache(dir, &what)?;
                Room {
                    removed: pruned.removed.len() as u64,
                    left: pruned.left,
                }
            }
        };
        add(&self.counters.cache_evicted, room.removed);
        Ok(room.left > limit)
    }
}
