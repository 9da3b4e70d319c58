use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rafs_format::ChunkPointer;

use super::stats::add;
use super::{Inner, Key, Purpose};
use crate::cache::State;
use crate::workers::give_way;

/// How long reads that wait for a blob may keep a worker from what is next on the list.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// Chunks that may wait; whoever asks for more waits too, so that no image decides how much memory the queue takes.
const WAITING_MAX: usize = 1 << 18;

/// Places of reads that had to wait, of which what lies around comes first.
const PLACES: usize = 4;
/// How far from such a place, in bytes of the blob's uncompressed address space.
const AROUND_MAX: u64 = 8 << 20;
/// The same without a list, of which what is fetched in vain would be part sooner or later.
const AROUND_ALONE: u64 = 1 << 20;
/// A worker that had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(1);
/// For how long after a read had to wait the line is left to reads and to what lies around them.
const CONTENDED: Duration = Duration::from_millis(500);

/// What is to be brought in when nobody waits.
///
/// The order is that of the list, but a read that had to wait draws the workers to its place: files that are used together
/// mostly lie together, so what lies behind it in the blob is likely to be wanted next, and then what lies before it.
#[derive(Default)]
pub(super) struct Prefetch {
    state: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    keys: VecDeque<Key>,
    /// Where reads had to wait, the last first.
    places: VecDeque<Key>,
    /// When a read began to wait last.
    waited: Option<Instant>,
    workers: Vec<JoinHandle<()>>,
    /// Workers that have not left.
    present: usize,
    /// Workers that bring in a chunk right now.
    working: usize,
    /// Reads that wait for a blob right now.
    readers: usize,
    /// Workers come for places alone, without a list.
    follow: bool,
    /// There was a list.
    listed: bool,
    stop: bool,
}

/// Keeps the workers from the list while a read waits.
pub(super) struct HeldBack<'a>(&'a Prefetch);

impl Prefetch {
    /// Keeps the workers from the list while a read waits for chunk `key`, and draws them to its place.
    fn hold_back(&self, key: Key) -> HeldBack<'_> {
        let mut queue = self.lock();
        queue.readers += 1;
        queue.waited = Some(Instant::now());
        queue.places.push_front(key);
        queue.places.truncate(PLACES);
        drop(queue);
        self.changed.notify_all();
        HeldBack(self)
    }

    /// Whether reads have waited just now: then requests have to be short, for the next read queues behind them.
    pub fn is_contended(&self) -> bool {
        let waited = self.lock().waited;
        waited.is_some_and(|at| at.elapsed() < CONTENDED)
    }

    /// Goes back to the list: what lies around the places cannot be had.
    fn leave_places(&self) {
        self.lock().places.clear();
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

    /// The next chunk that is `wanted` still, and those after it; `None` when the store is dropped or there was none for long:
    /// then the caller has left. `around` tells the
    /// absent chunks around a place. `done` says whether the caller has finished another one.
    fn next(
        &self,
        done: bool,
        wanted: &impl Fn(Key) -> bool,
        around: &impl Fn(Key, u64) -> Vec<Key>,
    ) -> Option<(Key, Vec<Key>)> {
        let mut queue = self.lock();
        if done {
            queue.working -= 1;
            self.changed.notify_all();
        }
        let idle =
            |queue: &mut Queue| queue.keys.is_empty() && queue.places.is_empty() && !queue.stop;
        let asked = Instant::now();
        let key = loop {
            let waited = self.changed.wait_timeout_while(queue, IDLE, idle);
            let (now, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = now;
            if queue.stop || waited.timed_out() {
                queue.present -= 1;
                return None;
            }
            if let Some(near) = queue.near_a_place(around) {
                queue.working += 1;
                return Some((*near.first()?, near));
            }
            if let Some(left) = queue.held(asked) {
                let waited = self.changed.wait_timeout(queue, left);
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
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

impl Queue {
    /// The absent chunks around the last read that had to wait and has any.
    fn near_a_place(&mut self, around: &impl Fn(Key, u64) -> Vec<Key>) -> Option<Vec<Key>> {
        while let Some(&place) = self.places.front() {
            let far = if self.listed {
                AROUND_MAX
            } else {
                AROUND_ALONE
            };
            let near = around(place, far);
            if !near.is_empty() {
                return Some(near);
            }
            self.places.pop_front();
        }
        None
    }

    /// For how long a worker that came at `asked` still leaves the line to reads.
    fn held(&self, asked: Instant) -> Option<Duration> {
        let quiet = match self.waited {
            _ if self.readers != 0 => Duration::ZERO,
            Some(at) => at.elapsed(),
            None => return None,
        };
        let left = CONTENDED.checked_sub(quiet)?;
        let most = HOLD_MAX.checked_sub(asked.elapsed())?;
        Some(left.min(most)).filter(|left| !left.is_zero())
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.0.lock().readers -= 1;
        self.0.changed.notify_all();
    }
}

impl Inner {
    /// Queues chunks, and starts the workers that are not there.
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
        queue.listed = true;
        queue.keys.extend(keys);
        self.start_prefetchers(&mut queue);
        if queue.present == 0 {
            queue.keys.clear();
        }
        drop(queue);
        self.prefetch.changed.notify_all();
    }

    /// From now on what lies around reads that have to wait is brought in, be there a list or not.
    pub fn follow_reads(&self) {
        self.prefetch.lock().follow = true;
    }

    /// Keeps the workers from the list while a read waits for chunk `key`, and draws them to its place.
    pub fn hold_back(self: &Arc<Self>, key: Key) -> HeldBack<'_> {
        let held = self.prefetch.hold_back(key);
        let mut queue = self.prefetch.lock();
        if queue.follow && !queue.stop {
            self.start_prefetchers(&mut queue);
        }
        drop(queue);
        held
    }

    /// Starts the workers that are not there.
    fn start_prefetchers(self: &Arc<Self>, queue: &mut Queue) {
        queue.workers.retain(|worker| !worker.is_finished());
        while queue.present < self.options.prefetch_threads.max(1) {
            let inner = Arc::clone(self);
            let thread = thread::Builder::new()
                .name("chunk-prefetch".into())
                .spawn(move || inner.run_prefetch());
            match thread {
                Ok(thread) => {
                    queue.workers.push(thread);
                    queue.present += 1;
                }
                // One worker is enough, and without any nothing is lost but time.
                Err(_) => break,
            }
        }
    }

    /// The chunks that are absent, and that no thread is about to bring, from chunk `place` on to `bytes` of the blob's
    /// address space behind it; if there is none, those before it, the nearest first.
    pub fn absent_around(&self, place: Key, bytes: u64) -> Vec<Key> {
        let kept = self.known(place).filter(|(blob, _)| {
            // What is not kept would be absent for ever.
            let open = !self.refusal.holds() && !self.limit.is_reached();
            blob.cache.is_some() && open
        });
        let Some((blob, known)) = kept else {
            return Vec::new();
        };
        let behind = known.offset..known.end().saturating_add(bytes);
        let before = known.offset.saturating_sub(bytes)..known.offset;
        let absent = |slot| {
            let key = Key { slot, ..place };
            (self.is_absent(key) && !self.flights.contains(key)).then_some(key)
        };
        let mut keys: Vec<Key> = blob.known.within(&behind).filter_map(absent).collect();
        if keys.is_empty() {
            keys.extend(blob.known.within(&before).filter_map(absent));
            keys.reverse();
        }
        keys.truncate(super::fetch::NEIGHBOURS_MAX);
        keys
    }

    fn run_prefetch(self: &Arc<Self>) {
        give_way();
        let wanted = |key: Key| {
            self.blobs
                .get(key.blob)
                .is_some_and(|blob| self.look(blob, key.slot) != State::Present)
        };
        let around = |place: Key, bytes: u64| self.absent_around(place, bytes);
        let mut done = false;
        while let Some((key, near)) = self.prefetch.next(done, &wanted, &around) {
            // A panic has been told of. Whoever waits until all is there must not wait for ever.
            let bring = || self.chunk_in_background(key, &near, Purpose::Prefetch);
            if !matches!(catch_unwind(AssertUnwindSafe(bring)), Ok(Ok(()))) {
                add(&self.counters.prefetch_errors, 1);
                self.prefetch.leave_places();
            }
            done = true;
        }
    }
}
