use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing more is written to a disk that has refused something.
const PAUSE: Duration = Duration::from_secs(2);

/// Whether the disk takes chunks. One that has refused a chunk, mostly because it is full, is left alone for a while.
#[derive(Default)]
pub(super) struct Refusal(Mutex<Option<Instant>>);

impl Refusal {
    /// The disk has refused a chunk just now.
    pub fn note(&self) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = Some(Instant::now());
    }

    /// Whether that was just now.
    pub fn holds(&self) -> bool {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|at| at.elapsed() < PAUSE)
    }
}
