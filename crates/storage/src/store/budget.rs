use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bounds the bytes that are in flight between blobs and the cache. A request beyond the whole bound is let in when
/// nothing else is under way, so nobody waits for ever.
pub(super) struct Budget {
    limit: u64,
    used: Mutex<u64>,
    returned: Condvar,
}

/// A share of a [`Budget`], returned when dropped.
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: Mutex::new(0),
            returned: Condvar::new(),
        })
    }

    /// Waits until `bytes` more are allowed; work in the background may use only half of the whole.
    pub fn take(self: &Arc<Self>, bytes: u64, background: bool) -> Share {
        let limit = if background {
            self.limit / 2
        } else {
            self.limit
        };
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |used: &mut u64| *used != 0 && used.saturating_add(bytes) > limit;
        let mut used = self
            .returned
            .wait_while(used, full)
            .unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_add(bytes);
        Share {
            budget: Arc::clone(self),
            bytes,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self
            .budget
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(self.bytes);
        self.budget.returned.notify_all();
    }
}
