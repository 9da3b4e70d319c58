use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::Inner;
use super::stats::add;

/// When the next barrier is due: some time after the first chunk without one, or as soon as there are many.
pub(super) struct Barrier {
    interval: Duration,
    bytes: u64,
    state: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    bytes: u64,
    stop: bool,
}

impl Barrier {
    pub fn new(interval: Duration, bytes: u64) -> Self {
        Self {
            interval,
            bytes,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A chunk of that many bytes was put into the cache.
    pub fn written(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.bytes;
        state.bytes = before.saturating_add(bytes);
        if before == 0 || state.bytes >= self.bytes {
            self.changed.notify_all();
        }
    }

    /// Asks for the last barrier.
    pub fn stop(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stop = true;
        self.changed.notify_all();
    }

    /// Waits until a barrier is due, or as long as `most` if nothing comes; says whether more will follow.
    pub fn wait(&self, most: Option<Duration>) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut Pending| state.bytes == 0 && !state.stop;
        let state = match most {
            None => self
                .changed
                .wait_while(state, idle)
                .unwrap_or_else(PoisonError::into_inner),
            Some(most) => {
                let waited = self.changed.wait_timeout_while(state, most, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        if state.bytes == 0 {
            return !state.stop;
        }
        let early = |state: &mut Pending| state.bytes < self.bytes && !state.stop;
        let waited = self.changed.wait_timeout_while(state, self.interval, early);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.bytes = 0;
        !state.stop
    }
}

impl Inner {
    /// One barrier for each blob; the first error after all were tried.
    pub fn sync(&self) -> io::Result<()> {
        let mut result = Ok(());
        for cache in self.blobs.iter().filter_map(|blob| blob.cache.as_ref()) {
            let outcome = cache
                .barrier()
                .inspect_err(|_| add(&self.counters.cache_errors, 1));
            result = result.and(outcome);
        }
        result
    }
}
