//! Which requests are being answered, in memory that outlives the server.
//!
//! Linux before 6.9 does not hand out again what a dead server had taken, and whoever asked would wait for ever. So the next
//! server refuses it. A request that was taken but not noted yet is not far from the last one that was.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fuser::Request;
use sys::SharedWords;

/// Threads that answer requests; there are no more of them.
const SLOTS: usize = 64;
/// Words before the slots: the greatest number of a request so far.
const HEAD: usize = 1;
/// Numbers of requests grow by this (`FUSE_REQ_ID_STEP`).
const STEP: u64 = 2;
/// How far from the last request that was noted one may be that was not.
const BEHIND: u64 = STEP << 16;
const AHEAD: u64 = STEP << 12;
/// Set in the number of a request that is handed out again (`FUSE_UNIQUE_RESEND`).
const AGAIN: u64 = 1 << 63;

/// See the module.
#[derive(Debug)]
pub(crate) struct Flights(SharedWords);

/// A request that is being answered.
pub(crate) struct Flight<'a>(Option<&'a AtomicU64>);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SLOT: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % SLOTS);
}

impl Flights {
    /// Memory for them.
    pub(crate) fn create() -> io::Result<OwnedFd> {
        SharedWords::create("nydusify-requests", HEAD + SLOTS)
    }

    pub(crate) fn map(memory: &OwnedFd) -> io::Result<Self> {
        SharedWords::map(memory, HEAD + SLOTS).map(Self)
    }

    /// Notes a request until what is returned goes.
    pub(crate) fn begin(&self, request: &Request) -> Flight<'_> {
        self.note(request.unique().0)
    }

    fn note(&self, number: u64) -> Flight<'_> {
        let words = self.0.words();
        let slot = words.get(HEAD + SLOT.get());
        if let Some(slot) = slot {
            slot.store(number, Ordering::Relaxed);
        }
        if let Some(last) = words.first() {
            last.fetch_max(number & !AGAIN, Ordering::Relaxed);
        }
        Flight(slot)
    }

    /// The numbers that requests may have which a dead server left unanswered; from now on none is noted.
    pub(super) fn take(&self) -> impl Iterator<Item = u64> {
        let words = self.0.words();
        let last = words.first().map_or(0, |last| last.load(Ordering::Relaxed));
        let slots = words.get(HEAD..).unwrap_or_default().iter();
        let noted = slots.map(|slot| slot.swap(0, Ordering::Relaxed));
        let near = last.saturating_sub(BEHIND)..=last.saturating_add(AHEAD);
        let older =
            noted.filter(move |&number| number != 0 && number < last.saturating_sub(BEHIND));
        older.chain(near.step_by(STEP as usize))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_a_dead_server_left_is_known_to_the_next_one() {
        let memory = Flights::create().unwrap();
        let dead = Flights::map(&memory).unwrap();
        std::mem::forget(dead.note(42));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in (44..1_000_000).step_by(2) {
                    dead.note(number);
                }
                std::mem::forget(dead.note(1_000_000));
            });
        });
        let next = Flights::map(&memory).unwrap();
        let left: Vec<u64> = next.take().collect();
        assert!(left.contains(&42) && left.contains(&1_000_000) && left.contains(&1_000_002));
        assert!(!left.contains(&44), "it was answered long ago");
        assert!(!next.take().any(|number| number == 42));
    }
}
