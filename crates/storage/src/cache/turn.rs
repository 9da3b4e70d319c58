//! Who fetches a chunk, among processes.
//!
//! Whoever is about to fetch a chunk locks its record in the map, exclusively while it fetches and then, while it writes
//! the chunk, shared. The kernel lets go of the locks of a process that dies. The lock saves work and nothing else: a
//! chunk that two processes write is the same chunk twice. So nobody waits for it for ever; and only for a moment while
//! it is shared, for then its holder may itself wait: its write may have to wait for the process that fills the cache
//! for a mount by the kernel, which may be the one that asks here.

use std::fs::File;
use std::sync::Arc;

use sys::RangeLock;

use super::map::{RECORD_SIZE, Record};

/// The right to bring in a chunk, until dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    file: Arc<File>,
    index: u32,
}

/// Whose turn it is.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Ours.
    Mine(Turn),
    /// Another process fetches the chunk.
    Fetching,
    /// Another process has fetched it and writes it.
    Writing,
    /// Locks don't work here: everybody's.
    Free,
}

impl Turn {
    pub(super) fn ask(file: &Arc<File>, index: u32) -> Ask {
        match sys::lock_range(file, range(index), RangeLock::Exclusive) {
            Ok(true) => Ask::Mine(Self {
                file: Arc::clone(file),
                index,
            }),
            Ok(false) => match sys::range_lock_of_others(file, range(index)) {
                Ok(Some(RangeLock::Shared)) => Ask::Writing,
                // Let go just now, perhaps: the next one who asks will see.
                Ok(_) => Ask::Fetching,
                Err(_) => Ask::Free,
            },
            Err(_) => Ask::Free,
        }
    }

    /// From now on it is written.
    pub fn writes(&self) {
        // If not, others wait a little longer.
        let _ = sys::lock_range(&self.file, range(self.index), RangeLock::Shared);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = sys::unlock_range(&self.file, range(self.index));
    }
}

fn range(index: u32) -> std::ops::Range<u64> {
    let start = Record::position(index);
    start..start + RECORD_SIZE as u64
}
