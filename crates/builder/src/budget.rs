//! The byte budget that all layers of a conversion share, and the chunk buffers that it admits.
//!
//! A [`Lane`] is one layer. It asks for buffers in its input order and gives each back when the bytes are committed,
//! so a layer that holds nothing is always admitted one buffer: no set of layers can lock one another out, however
//! small the budget. Buffers are kept and handed out again instead of going back to the allocator, which keeps both
//! page faults and fragmentation away.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use progress::{Cancel, Cancelled};

/// A budget of bytes, shared by every layer that is built at the same time.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes in buffers that lanes hold.
    used: usize,
    /// Bytes in buffers that wait in `free`.
    idle: usize,
    /// Buffers to hand out again, by size.
    free: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            state: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    /// The budget in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A lane for one more layer, which never holds more than `most` bytes unless that is a single buffer.
    pub(crate) fn lane(self: &Arc<Self>, most: usize) -> Lane {
        Lane {
            budget: Arc::clone(self),
            most,
            held: Arc::default(),
            kept: Arc::default(),
            waits: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A buffer of `size` bytes; idle ones of other sizes make room for a new one.
    fn take(&mut self, size: usize, limit: usize) -> Vec<u8> {
        self.used += size;
        if let Some(buffer) = self.free.get_mut(&size).and_then(Vec::pop) {
            self.idle -= size;
            return buffer;
        }
        while self.used + self.idle > limit {
            let Some((other, buffers)) = self
                .free
                .iter_mut()
                .find(|(_, buffers)| !buffers.is_empty())
            else {
                break;
            };
            buffers.pop();
            self.idle -= other;
        }
        // Zeroed by the system, page by page as they are used.
        vec![0; size]
    }
}

/// One layer's access to the budget.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    budget: Arc<Budget>,
    most: usize,
    /// Bytes this lane holds; changed under the budget's lock only.
    held: Arc<AtomicUsize>,
    /// How many of these a stage keeps until it has seen what follows them.
    kept: Arc<AtomicUsize>,
    /// The lane can't commit before another one has: it leaves half of the budget to the others.
    waits: Arc<AtomicBool>,
}

impl Lane {
    /// Waits for a buffer of `size` bytes.
    ///
    /// # Errors
    /// [`Cancelled`] if that was asked for in the meantime.
    pub(crate) fn acquire(&self, size: usize, cancel: &Cancel) -> Result<Buffer, Cancelled> {
        let mut state = self.budget.lock();
        loop {
            cancel.check()?;
            let limit = if self.waits.load(Ordering::Relaxed) {
                self.budget.limit / 2
            } else {
                self.budget.limit
            };
            let held = self.held.load(Ordering::Relaxed);
            let kept = self.kept.load(Ordering::Relaxed);
            if held <= kept || (held + size <= self.most && state.used + size <= limit) {
                self.held.fetch_add(size, Ordering::Relaxed);
                let bytes = state.take(size, self.budget.limit);
                return Ok(Buffer {
                    bytes,
                    used: 0,
                    size,
                    lane: self.clone(),
                });
            }
            // The timeout is for the cancel flag, which wakes nobody.
            let wait = self
                .budget
                .freed
                .wait_timeout(state, Duration::from_millis(100));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Says whether the lane can't commit for now since it waits for another lane.
    pub(crate) fn set_waiting(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
        self.budget.freed.notify_all();
    }

    /// Says how many of the lane's bytes a stage keeps until it has seen what follows them: nothing else frees them,
    /// so they don't count when the lane asks for the next buffer.
    pub(crate) fn set_kept(&self, bytes: usize) {
        if self.kept.swap(bytes, Ordering::Relaxed) < bytes {
            // Under the lock, so that nobody between looking and waiting misses it.
            drop(self.budget.lock());
            self.budget.freed.notify_all();
        }
    }

    fn release(&self, size: usize, bytes: Vec<u8>) {
        let mut state = self.budget.lock();
        state.used -= size;
        self.held.fetch_sub(size, Ordering::Relaxed);
        if state.used + state.idle + size <= self.budget.limit {
            state.idle += size;
            state.free.entry(size).or_default().push(bytes);
        }
        drop(state);
        self.budget.freed.notify_all();
    }
}

/// A buffer of bytes that counts against the budget until it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// At least `size` bytes.
    bytes: Vec<u8>,
    used: usize,
    size: usize,
    lane: Lane,
}

impl Buffer {
    /// Bytes that can still be added.
    pub(crate) fn room(&self) -> usize {
        self.size - self.used
    }

    /// What it counts for in the budget, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Bytes added so far.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Adds `count` bytes (at most [`Buffer::room`]) of unspecified content, for the caller to fill.
    pub(crate) fn extend(&mut self, count: usize) -> &mut [u8] {
        assert!(
            count <= self.room(),
            "a buffer is never filled beyond what the budget admitted"
        );
        let start = self.used;
        self.used += count;
        &mut self.bytes[start..self.used]
    }

    /// Takes the first `len` bytes of `other` as its content and leaves its own memory there: no byte is copied.
    pub(crate) fn exchange(&mut self, other: &mut Vec<u8>, len: usize) {
        assert!(
            len <= self.size,
            "a buffer never holds more than what the budget admitted"
        );
        if other.len() < self.size {
            other.resize(self.size, 0);
        }
        std::mem::swap(&mut self.bytes, other);
        self.used = len;
    }

    /// Forgets all but the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.used = self.used.min(len);
    }

    /// The content.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.lane
            .release(self.size, std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stage_keeps_does_not_keep_the_next_buffer_away() {
        let budget = Budget::new(1);
        let (lane, cancel) = (budget.lane(usize::MAX), Cancel::default());
        let kept = lane.acquire(1 << 20, &cancel).unwrap();
        lane.set_kept(kept.size());
        let next = lane.acquire(1 << 20, &cancel).unwrap();
        cancel.cancel();
        assert!(lane.acquire(1 << 20, &cancel).is_err());
        drop((kept, next));
    }

    #[test]
    fn a_lane_that_holds_nothing_is_always_admitted() {
        let budget = Budget::new(1);
        let cancel = Cancel::default();
        let (a, b) = (budget.lane(usize::MAX), budget.lane(usize::MAX));
        let first = a.acquire(1 << 20, &cancel).unwrap();
        let second = b.acquire(1 << 20, &cancel).unwrap();
        assert_eq!(budget.lock().used, 2 << 20);
        drop((first, second));
        assert_eq!(budget.lock().used, 0);
        assert_eq!(budget.lock().idle, 0, "nothing beyond the budget is kept");
    }

    #[test]
    fn a_full_budget_blocks_until_a_buffer_comes_back() {
        let budget = Budget::new(2 << 20);
        let cancel = Cancel::default();
        let lane = budget.lane(usize::MAX);
        let held: Vec<_> = (0..2)
            .map(|_| lane.acquire(1 << 20, &cancel).unwrap())
            .collect();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lane.acquire(1 << 20, &cancel).map(|buffer| buffer.size));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            drop(held);
            assert_eq!(waiter.join().unwrap(), Ok(1 << 20));
        });
    }

    #[test]
    fn a_lane_waits_for_itself_when_it_holds_its_most() {
        let budget = Budget::new(8 << 20);
        let cancel = Cancel::default();
        let lane = budget.lane(1 << 20);
        let held = lane.acquire(1 << 20, &cancel).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lane.acquire(1 << 20, &cancel).map(|buffer| buffer.size));
            std::thread::sleep(Duration::from_millis(20));
            assert!(
                !waiter.is_finished(),
                "the budget has room, the lane has not"
            );
            drop(held);
            assert_eq!(waiter.join().unwrap(), Ok(1 << 20));
        });
    }

    #[test]
    fn cancelling_ends_the_wait() {
        let budget = Budget::new(1 << 20);
        let cancel = Cancel::default();
        let lane = budget.lane(usize::MAX);
        let _held = lane.acquire(1 << 20, &cancel).unwrap();
        cancel.cancel();
        assert_eq!(lane.acquire(1, &cancel).map(|_| ()), Err(Cancelled));
    }

    #[test]
    fn a_waiting_lane_leaves_half_of_the_budget() {
        let budget = Budget::new(2 << 20);
        let cancel = Cancel::default();
        let (first, second) = (budget.lane(usize::MAX), budget.lane(usize::MAX));
        second.set_waiting(true);
        let _one = second.acquire(1 << 20, &cancel).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| second.acquire(1 << 20, &cancel).map(|_| ()));
            let _other = first.acquire(1 << 20, &cancel).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            cancel.cancel();
            assert_eq!(waiter.join().unwrap(), Err(Cancelled));
        });
    }

    #[test]
    fn buffers_are_reused_and_make_room_for_other_sizes() {
        let budget = Budget::new(2 << 20);
        let cancel = Cancel::default();
        let lane = budget.lane(usize::MAX);
        for _ in 0..3 {
            let mut buffer = lane.acquire(1 << 20, &cancel).unwrap();
            buffer.extend(5).copy_from_slice(b"hello");
            assert_eq!(buffer.as_slice(), b"hello");
        }
        assert_eq!(budget.lock().free[&(1 << 20)].len(), 1);
        let _big = lane.acquire(2 << 20, &cancel).unwrap();
        assert_eq!(budget.lock().idle, 0);
    }
}
