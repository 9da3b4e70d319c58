use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Key;
use crate::cache::Turn;
use crate::{ReadError, VerifiedChunk};

/// How a flight ended.
pub(super) type Landing = Result<Arc<VerifiedChunk>, ReadError>;

/// The chunks that some thread is bringing in. Each is brought in by one thread; others wait for it.
#[derive(Default)]
pub(super) struct Flights {
    open: Mutex<HashMap<Key, Arc<Flight>>>,
    empty: Condvar,
}

#[derive(Default)]
pub(super) struct Flight {
    end: Mutex<Option<End>>,
    ended: Condvar,
}

#[derive(Clone)]
enum End {
    Landed(Landing),
    /// The thread turned back. Whoever still wants the chunk begins anew.
    Abandoned,
}

/// The duty to bring in a chunk. Dropping it unfinished lets others begin anew.
pub(super) struct Claim {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    pub key: Key,
    /// The same among processes.
    pub turn: Option<Turn>,
}

/// Whose duty a chunk is.
pub(super) enum Duty {
    Mine(Claim),
    Other(Arc<Flight>),
}

impl Flights {
    /// Takes the duty for `key`, or finds who has it.
    pub fn join(self: &Arc<Self>, key: Key) -> Duty {
        match self.lock().entry(key) {
            Entry::Occupied(flight) => Duty::Other(Arc::clone(flight.get())),
            Entry::Vacant(place) => {
                let flight = Arc::clone(place.insert(Arc::default()));
                Duty::Mine(Claim {
                    flights: Arc::clone(self),
                    flight,
                    key,
                    turn: None,
                })
            }
        }
    }

    /// Takes the duty for `key` if nobody has it.
    pub fn claim(self: &Arc<Self>, key: Key) -> Option<Claim> {
        match self.join(key) {
            Duty::Mine(claim) => Some(claim),
            Duty::Other(_) => None,
        }
    }

    /// Whether somebody brings in `key` just now.
    pub fn contains(&self, key: Key) -> bool {
        self.lock().contains_key(&key)
    }

    /// Waits until nobody brings in anything.
    pub fn wait_empty(&self) {
        let busy = |open: &mut HashMap<Key, Arc<Flight>>| !open.is_empty();
        drop(
            self.empty
                .wait_while(self.lock(), busy)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// Waits for the end; `None` if the flight was abandoned.
    pub fn wait(&self) -> Option<Landing> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let end = self
            .ended
            .wait_while(end, |end| end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match end.clone() {
            Some(End::Landed(landing)) => Some(landing),
            Some(End::Abandoned) | None => None,
        }
    }

    fn finish(&self, end: End) {
        let mut slot = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(end);
        self.ended.notify_all();
    }
}

impl Claim {
    /// Hands the outcome to all who wait. The chunk must be in the cache by now, if it is to be there.
    pub fn land(self, landing: Landing) {
        self.flight.finish(End::Landed(landing));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut open = self.flights.lock();
        open.remove(&self.key);
        if open.is_empty() {
            self.flights.empty.notify_all();
        }
        drop(open);
        self.flight.finish(End::Abandoned);
    }
}
