use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rafs_format::ChunkPointer;

use super::stats::add;
use super::{Inner, Key};
use crate::cache::State;

/// How long reads that wait for a blob may hold back the workers each time.
const HOLD_MAX: Duration = Duration::from_millis(200);
/// Chunks that may wait; whoever asks for more waits too, so that no image decides how much memory the queue takes.
const WAITING_MAX: usize = 1 << 18;

/// What is to be brought in when nobody waits.
#[derive(Default)]
pub(super) struct Prefetch {
    state: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    keys: VecDeque<Key>,
    workers: Vec<JoinHandle<()>>,
    /// Workers that bring in a chunk right now.
    working: usize,
    /// Reads that wait for a blob right now.
    readers: usize,
    stop: bool,
}

/// Holds the workers back while a read waits.
pub(super) struct HeldBack<'a>(&'a Prefetch);

impl Prefetch {
    pub fn hold_back(&self) -> HeldBack<'_> {
        self.lock().readers += 1;
        HeldBack(self)
    }

    pub fn cancel(&self) {
        self.lock().keys.clear();
        self.changed.notify_all();
    }

    pub fn wait_idle(&self) {
        let busy = |queue: &mut Queue| !queue.keys.is_empty() || queue.working != 0;
        drop(
            self.changed
                .wait_while(self.lock(), busy)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Waits until few enough chunks wait, or the queue is emptied.
    fn with_room(&self) -> MutexGuard<'_, Queue> {
        let full = |queue: &mut Queue| queue.keys.len() >= WAITING_MAX && !queue.stop;
        self.changed
            .wait_while(self.lock(), full)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the workers, without what they have not begun.
    pub fn stop(&self) {
        let workers = {
            let mut queue = self.lock();
            queue.stop = true;
            queue.keys.clear();
            std::mem::take(&mut queue.workers)
        };
        self.changed.notify_all();
        for worker in workers {
            let _ = worker.join();
        }
    }

    /// The next chunk that is `wanted` still, and those after it; `None` when the store is dropped. `done` says
    /// whether the caller has finished another one.
    fn next(&self, done: bool, wanted: &impl Fn(Key) -> bool) -> Option<(Key, Vec<Key>)> {
        let mut queue = self.lock();
        if done {
            queue.working -= 1;
            self.changed.notify_all();
        }
        let idle = |queue: &mut Queue| queue.keys.is_empty() && !queue.stop;
        let held = |queue: &mut Queue| queue.readers != 0 && !queue.stop;
        let key = loop {
            queue = self
                .changed
                .wait_while(queue, idle)
                .unwrap_or_else(PoisonError::into_inner);
            let waited = self.changed.wait_timeout_while(queue, HOLD_MAX, held);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            if queue.stop {
                return None;
            }
            let mut keys = std::iter::from_fn(|| queue.keys.pop_front());
            if let Some(key) = keys.find(|&key| wanted(key)) {
                break key;
            }
            // Nothing was wanted, or another worker or a cancellation has emptied the queue meanwhile.
            self.changed.notify_all();
        };
        queue.working += 1;
        let near = queue
            .keys
            .iter()
            .take(super::fetch::NEIGHBOURS_MAX)
            .copied();
        Some((key, near.collect()))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.0.lock().readers -= 1;
        self.0.changed.notify_all();
    }
}

impl Inner {
    /// Queues chunks, and starts the workers the first time.
    pub fn prefetch_later(self: &Arc<Self>, chunks: &[ChunkPointer]) {
        add(&self.counters.prefetch_asked, chunks.len() as u64);
        let keys: Vec<Key> = chunks
            .iter()
            .filter_map(|&chunk| Some(self.locate(chunk).ok()?.0))
            .collect();
        add(
            &self.counters.prefetch_errors,
            (chunks.len() - keys.len()) as u64,
        );
        let mut queue = self.prefetch.with_room();
        queue.keys.extend(keys);
        while queue.workers.len() < self.options.prefetch_threads.max(1) {
            let inner = Arc::clone(self);
            let thread = thread::Builder::new()
                .name("chunk-prefetch".into())
                .spawn(move || inner.run_prefetch());
            match thread {
                Ok(thread) => queue.workers.push(thread),
                // One worker is enough, and without any nothing is lost but time.
                Err(_) => break,
            }
        }
        if queue.workers.is_empty() {
            queue.keys.clear();
        }
        drop(queue);
        self.prefetch.changed.notify_all();
    }

    fn run_prefetch(self: &Arc<Self>) {
        let wanted = |key: Key| {
            self.blobs
                .get(key.blob)
                .is_some_and(|blob| blob.state(key.slot) != State::Present)
        };
        let mut done = false;
        while let Some((key, near)) = self.prefetch.next(done, &wanted) {
            if self.chunk_in_background(key, &near).is_err() {
                add(&self.counters.prefetch_errors, 1);
            }
            done = true;
        }
    }
}
