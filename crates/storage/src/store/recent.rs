use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use super::Key;
use crate::VerifiedChunk;

/// The chunks used last, in memory: for a store without a cache directory, or one whose disk is full.
pub(super) struct Recent {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    chunks: HashMap<Key, (u64, Arc<VerifiedChunk>)>,
    /// By the time of their last use.
    order: BTreeMap<u64, Key>,
    bytes: usize,
    clock: u64,
}

impl Recent {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            inner: Mutex::default(),
        }
    }

    pub fn get(&self, key: Key) -> Option<Arc<VerifiedChunk>> {
        let inner = &mut *self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (used, chunk) = inner.chunks.get_mut(&key)?;
        inner.clock += 1;
        inner.order.remove(used);
        inner.order.insert(inner.clock, key);
        *used = inner.clock;
        Some(Arc::clone(chunk))
    }

    /// The chunk, without counting that as a use.
    pub fn peek(&self, key: Key) -> Option<Arc<VerifiedChunk>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.chunks.get(&key).map(|(_, chunk)| Arc::clone(chunk))
    }

    pub fn contains(&self, key: Key) -> bool {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .chunks
            .contains_key(&key)
    }

    pub fn insert(&self, key: Key, chunk: Arc<VerifiedChunk>) {
        let inner = &mut *self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        inner.bytes += chunk.len();
        inner.order.insert(inner.clock, key);
        if let Some((used, old)) = inner.chunks.insert(key, (inner.clock, chunk)) {
            inner.order.remove(&used);
            inner.bytes -= old.len();
        }
        // One chunk may always stay.
        while inner.bytes > self.limit && inner.chunks.len() > 1 {
            let Some((_, oldest)) = inner.order.pop_first() else {
                break;
            };
            if let Some((_, old)) = inner.chunks.remove(&oldest) {
                inner.bytes -= old.len();
            }
        }
    }
}
